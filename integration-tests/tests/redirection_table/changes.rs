//! What happens while pods and their rules change: case 9 and row X5.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use isthmus_integration_tests::istio::PodSettings;
use isthmus_integration_tests::netns::{self, Netns};

use crate::dial::{self, Seen};
use crate::fixture::{APP, PATIENCE, PROXY};
use crate::modes::{Agent, Mode, Redirection};
use crate::net::{Addr, Family, Net};
use crate::row::{app, row};
use crate::servers::{self, INBOUND_PORT, Role, Servers, Transparency};
use crate::{net::Place, socket};

/// Changes of the rules while somebody dials.
const CHANGES: usize = 20;
const REUSED: Ipv4Addr = Ipv4Addr::new(198, 18, 5, 2);

/// Row X5: iptables are guarded by rules that drop everything while Istio replaces its own. The
/// accelerator needs no guard, since there is no moment without rules.
#[test]
fn nothing_escapes_while_the_rules_change() {
    let net = Net::new();
    let _servers = Servers::start(&net, Transparency::Off);
    let mut redirection = Redirection::new(&net, Mode::AcceleratorAlone);
    let rules = [
        ("excludeOutboundPorts", "3306"),
        ("excludeOutboundPorts", "3306,9300,22"),
    ];
    let rules = rules.map(|(name, value)| row("X5").annotation(name, value).settings);
    redirection.apply(&rules[0]);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let dials = scope.spawn(|| {
            let sidecar = servers::name(Place::Pod, Role::Outbound);
            let mut dialled = 0;
            while !is_over.load(Ordering::Relaxed) {
                let seen = dial::dial(&net, &app(Addr::Vip, 80), Family::V4);
                let is_captured = matches!(&seen, Seen::Answered { by, .. } if *by == sidecar);
                assert!(is_captured, "{seen:?} after {dialled} dials");
                dialled += 1;
            }
            dialled
        });
        for change in 0..CHANGES {
            redirection.apply(&rules[change % rules.len()]);
        }
        is_over.store(true, Ordering::Relaxed);
        let dialled: usize = dials.join().expect("every dial is captured");
        assert!(dialled > CHANGES, "{dialled} dials are too few to see much");
    });
}

/// Row I1 for what leaves: the agent reads the routes of a pod that leaves interfaces alone in every round.
#[test]
fn the_routes_of_a_pod_that_leaves_an_interface_alone_are_followed() {
    let net = Net::new();
    let _servers = Servers::start(&net, Transparency::Off);
    let mut redirection = Redirection::new(&net, Mode::AcceleratorAlone);
    let settings = row("I1").annotation("excludeInterfaces", "eth1").settings;
    assert_eq!(redirection.apply(&settings), None);
    let captured = servers::name(Place::Pod, Role::Outbound);
    let direct = servers::name(Place::World, Role::Direct);
    for (family, route) in [
        (Family::V4, ["198.19.9.0/24", "via", "198.18.3.1"]),
        (Family::V6, ["fd19:9::/32", "via", "fd18:3::1"]),
    ] {
        let answered_by = |name: &str| {
            let seen = dial::dial(&net, &app(Addr::OtherRange, 80), family);
            matches!(&seen, Seen::Answered { by, .. } if *by == name)
        };
        assert!(answered_by(&captured), "it leaves by eth0");
        for (change, name) in [("add", &direct), ("del", &captured)] {
            net.pod.ip(&[&["route", change], &route[..]].concat());
            let start = Instant::now();
            while !answered_by(name) {
                assert!(start.elapsed() < PATIENCE, "{change} is not followed");
                thread::yield_now();
            }
            println!(
                "{change} was followed after {} ms",
                start.elapsed().as_millis()
            );
        }
    }
}

/// The address of a deleted pod belongs to one without a sidecar at once. Nobody rewrites the agent's file.
#[test]
fn case_09_an_address_that_another_pod_gets_is_not_captured_for_the_old_one() {
    let net = Net::new();
    net.world.ip(&["link", "add", "reused", "type", "bridge"]);
    net.world
        .ip(&["address", "add", "198.18.5.1/24", "dev", "reused"]);
    net.world.ip(&["link", "set", "reused", "up"]);
    let mut agent = Agent::start().expect("the agent starts");
    let settings = PodSettings::default();
    let old = plug(&net, "old");
    let names = ["default/client", "default/old"].map(str::to_owned);
    let entries = [
        settings.node_config_entry(&names[0], &net.pod.path()),
        settings.node_config_entry(&names[1], &old.path()),
    ];
    let left_alone = agent.apply(&names, &entries).expect("the pods are loaded");
    assert_eq!(left_alone, None);
    {
        let inbound = listen(&old, INBOUND_PORT);
        assert!(dial(&net), "the old pod's sidecar is dialled by its port");
        inbound.accept().expect("it came by connect");
    }

    drop(old);
    let start = Instant::now();
    let new = plug(&net, "new");
    let application = listen(&new, 8080);
    while !dial(&net) {
        assert!(start.elapsed() < PATIENCE, "the address is still captured");
        thread::yield_now();
    }
    println!(
        "direct {} ms after the pod was gone",
        start.elapsed().as_millis()
    );
    for _ in 0..20 {
        assert!(dial(&net), "once it is direct it stays so");
    }
    for _ in 0..21 {
        application.accept().expect("every dial came here");
    }
}

// A pod on the bridge, with the address that is used again.
fn plug(net: &Net, name: &str) -> Netns {
    let full = format!("isthmus-table-{}-{name}", std::process::id());
    let netns = Netns::create(&full).expect("root makes namespaces");
    let peer = ["type", "veth", "peer", "name", "eth0", "netns", &full];
    net.world.ip(&[&["link", "add", name], &peer[..]].concat());
    net.world
        .ip(&["link", "set", name, "master", "reused", "up"]);
    for args in [
        &["address", "add", "198.18.5.2/24", "dev", "eth0"][..],
        &["link", "set", "eth0", "up"],
        &["route", "add", "default", "via", "198.18.5.1"],
    ] {
        netns.ip(args).expect("the namespace is ours");
    }
    netns
}

fn listen(netns: &Netns, port: u16) -> std::net::TcpListener {
    let at = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    netns::enter(Some(&netns.path()), || socket::listen(at)).expect("the namespace is ours")
}

// Whether the client's sidecar reaches somebody at the address. It is left in the queue of whoever listens.
fn dial(net: &Net) -> bool {
    let to = SocketAddr::new(REUSED.into(), 8080);
    let dialled = net.pod.spawn_as(PROXY, APP, move || {
        let socket = socket::socket(Family::V4, libc::SOCK_STREAM);
        dial::connect(&socket, to, Family::V4)
    });
    dialled.join().expect("an error is reported").is_ok()
}
