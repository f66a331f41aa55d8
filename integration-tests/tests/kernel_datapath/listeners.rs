//! Which of a proxy's listening sockets gets what arrives, and for how long.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    os::fd::AsRawFd as _,
};

use isthmus_accel_abi::{PodConfig, map};
use isthmus_accel_core::MapOp;
use isthmus_accel_datapath::{Datapath as _, linux::LinuxDatapath};
use isthmus_integration_tests::iptables::Ports;

use crate::{
    cable::{
        APPLICATION, Cable, INBOUND_PORT, Listener, Mode, SIDECAR, accept_any, original_dst, policy,
    },
    fixture::{
        APP, Fixture, PROXY, Pod, SOCKADDR_BYTES, set_sockopt, sockaddr, tcp_socket, wait_until,
    },
};

const INBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, INBOUND_PORT);
const OLD: &str = "old sidecar";
const YOUNG: &str = "young sidecar";

/// One of several sockets that share the port.
fn worker(pod: &Pod, name: &'static str) -> Listener {
    let listener: TcpListener = pod.run_as(PROXY, || {
        let socket = tcp_socket(0);
        set_sockopt(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
        let addr = sockaddr(INBOUND);
        // SAFETY: an address and its length, and plain numbers.
        let answers = unsafe {
            let addr = (&raw const addr).cast();
            let bound = libc::bind(socket.as_raw_fd(), addr, SOCKADDR_BYTES);
            [bound, libc::listen(socket.as_raw_fd(), 128)]
        };
        assert_eq!(answers, [0, 0], "{}", io::Error::last_os_error());
        socket.into()
    });
    (name, listener)
}

fn steered(cable: &Cable) -> Fixture {
    let policy = policy(Ports::All, &[]);
    let fixture = cable.capture(Mode::Accelerator, &policy);
    fixture.expect("the accelerator takes part")
}

fn application(cable: &Cable) -> Listener {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 8080);
    (APPLICATION, cable.server.listen(APP, any))
}

/// Who takes a connection to the application's port.
fn taken_by(cable: &Cable, listeners: &[Listener]) -> &'static str {
    let to = SocketAddr::new(cable.server.addr.into(), 8080);
    let _client = cable.client.connect(APP, to).expect("somebody listens");
    let (by, accepted) = accept_any(listeners);
    if by != APPLICATION {
        assert_eq!(original_dst(&accepted), Some(to), "{by}");
    }
    by
}

#[test]
fn workers_that_share_the_port_share_the_connections() {
    let cable = Cable::new();
    let names = ["first", "second", "third", "fourth"];
    // Two that were there before, and two that come later.
    let mut workers: Vec<Listener> = names[..2]
        .iter()
        .map(|name| worker(&cable.server, name))
        .collect();
    let _fixture = steered(&cable);
    workers.extend(names[2..].iter().map(|name| worker(&cable.server, name)));
    let mut taken = [0; 4];
    for _ in 0..200 {
        let by = taken_by(&cable, &workers);
        taken[names.iter().position(|name| *name == by).expect("a worker")] += 1;
    }
    assert!(taken.iter().all(|count| *count > 10), "{taken:?}");
}

#[test]
fn a_young_proxy_takes_over_from_an_old_one() {
    let cable = Cable::new();
    let old = worker(&cable.server, OLD);
    let _fixture = steered(&cable);
    assert_eq!(taken_by(&cable, std::slice::from_ref(&old)), OLD);
    let young = worker(&cable.server, YOUNG);
    drop(old);
    assert_eq!(taken_by(&cable, std::slice::from_ref(&young)), YOUNG);
}

#[test]
fn an_old_proxy_goes_on_when_the_young_one_gives_up() {
    let cable = Cable::new();
    let listeners = [worker(&cable.server, OLD), application(&cable)];
    let mut fixture = steered(&cable);
    // More than there are places, so that none is left for the old one.
    let young: Vec<Listener> = (0..8).map(|_| worker(&cable.server, YOUNG)).collect();
    drop(young);
    fixture
        .datapath
        .find_listeners()
        .expect("the sockets can be walked through");
    assert_eq!(taken_by(&cable, &listeners), OLD);
}

#[test]
fn pods_with_the_same_address_have_their_own_proxies() {
    let cables = [Cable::new(), Cable::new()];
    let proxies = cables
        .each_ref()
        .map(|cable| worker(&cable.server, SIDECAR));
    let mut fixture = Fixture::load();
    for cable in &cables {
        fixture.govern(&cable.server, &policy(Ports::All, &[]));
    }
    for (cable, proxy) in cables.iter().zip(&proxies) {
        assert_eq!(taken_by(cable, std::slice::from_ref(proxy)), SIDECAR);
    }
}

#[test]
fn a_pod_that_is_prepared_is_left_alone_until_it_is_in_force() {
    let cable = Cable::new();
    let application = application(&cable);
    let listeners = [worker(&cable.server, SIDECAR), application];
    let mut fixture = Fixture::load();
    let config = PodConfig::istio_default();
    fixture.add_pod_as(&cable.server, config.preparing());
    fixture.steer(&cable.server);
    assert_eq!(taken_by(&cable, &listeners), APPLICATION);
    // What leaves too: nobody listens for it, so that captured it would be refused.
    let to_client = SocketAddr::new(cable.client.addr.into(), 8080);
    let target = cable
        .client
        .listen(APP, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 8080));
    let dial = || cable.server.connect(APP, to_client).map(drop);
    dial().expect("it is not captured");

    fixture.apply(MapOp::PutPod {
        netns_cookie: cable.server.cookie,
        config,
    });
    // With the listener that was found before.
    assert_eq!(taken_by(&cable, &listeners), SIDECAR);
    let error = dial().expect_err("it is captured, and nobody listens");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    drop(target);
}

#[test]
fn a_pod_that_leaves_is_left_alone() {
    let cable = Cable::new();
    let listeners = [worker(&cable.server, SIDECAR), application(&cable)];
    let mut fixture = steered(&cable);
    assert_eq!(taken_by(&cable, &listeners), SIDECAR);
    let netns_cookie = cable.server.cookie;
    fixture.apply(MapOp::DetachNetns { netns_cookie });
    assert_eq!(taken_by(&cable, &listeners), APPLICATION, "at once");
    let usage = fixture.datapath.map_usage().expect("it can be read");
    let known = usage.iter().find(|usage| usage.name == map::LISTENERS);
    assert_eq!(known.map(|usage| usage.entries), Some(0), "all forgotten");
    let state = fixture.datapath.loaded().expect("it can be read");
    assert!(state.steered.is_empty(), "{state:?}");
}

#[test]
fn links_outlive_the_agent_and_the_next_one_adopts_or_replaces_them() {
    let cable = Cable::new();
    let listeners = [worker(&cable.server, SIDECAR), application(&cable)];
    let mut fixture = steered(&cable);
    let (pin_dir, options) = (fixture.pin_dir.clone(), fixture.options.clone());
    let state = fixture.datapath.loaded().expect("it can be read");
    assert_eq!(state.steered, [cable.server.cookie].into());

    // What a SIGKILL leaves: the pins.
    fixture.datapath = LinuxDatapath::open_pinned(&pin_dir).expect("it is pinned");
    assert_eq!(taken_by(&cable, &listeners), SIDECAR, "without an agent");
    fixture.datapath = Fixture::open(&pin_dir, &options);
    assert_eq!(fixture.datapath.loaded().expect("it can be read"), state);
    assert_eq!(taken_by(&cable, &listeners), SIDECAR, "adopted");

    // Maps that are gone make programs of theirs useless: each instance is replaced.
    std::fs::remove_file(pin_dir.join("maps").join(map::LISTENERS)).expect("it is pinned");
    fixture.datapath = Fixture::open(&pin_dir, &options);
    fixture
        .datapath
        .locate([(cable.server.cookie, cable.server.path())].into());
    fixture
        .datapath
        .find_listeners()
        .expect("the sockets can be walked through");
    assert_eq!(fixture.datapath.loaded().expect("it can be read"), state);
    assert_eq!(taken_by(&cable, &listeners), SIDECAR, "replaced");
}

#[test]
fn after_a_detach_connections_go_where_they_are_for_and_established_ones_go_on() {
    let cable = Cable::new();
    let listeners = [worker(&cable.server, SIDECAR), application(&cable)];
    let fixture = steered(&cable);
    let to = SocketAddr::new(cable.server.addr.into(), 8080);
    let mut client = cable.client.connect(APP, to).expect("somebody listens");
    let (by, mut accepted) = accept_any(&listeners);
    assert_eq!(by, SIDECAR);
    drop(fixture);
    // The kernel lets go of a link a moment after its pin.
    wait_until("it is left alone", || {
        let _client = cable.client.connect(APP, to).expect("somebody listens");
        accept_any(&listeners).0 == APPLICATION
    });
    client.write_all(b"goes on").expect("it is connected");
    let mut bytes = [0; 7];
    accepted.read_exact(&mut bytes).expect("it arrives");
}

#[test]
fn a_namespace_that_is_gone_leaves_a_link_that_can_be_removed() {
    let cable = Cable::new();
    let mut fixture = steered(&cable);
    let netns_cookie = cable.server.cookie;
    drop(cable);
    let is_steered = |fixture: &Fixture| {
        let state = fixture.datapath.loaded().expect("it can be read");
        state.steered.contains(&netns_cookie)
    };
    assert!(is_steered(&fixture), "the pin stays");
    fixture.apply(MapOp::DetachNetns { netns_cookie });
    wait_until("the link is gone", || !is_steered(&fixture));
    // And one that went before it could be steered is no error.
    let gone = "/run/netns/isthmus-test-gone";
    fixture
        .datapath
        .locate([(netns_cookie, gone.into())].into());
    fixture.apply(MapOp::AttachNetns { netns_cookie });
    assert!(!is_steered(&fixture));
}
