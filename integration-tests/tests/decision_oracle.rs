//! The accelerator's decision against Istio's rules: random annotations, random connections.
//!
//! One side reads the annotations as the agent does and asks `decide()`, the function that runs in the
//! kernel. The other side gives them to Istio's own code and interprets the rules that come out. The
//! interpreter knows nothing of sidecars, only of chains, matches and jumps.

#[path = "decision_oracle/rules.rs"]
mod rules;

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use isthmus_accel_abi::{Dial, DnsVerdict, LOOPBACK, Verdict, decide, decide_datagram, v4_mapped};
use isthmus_accel_core::{ResolvedPod, State, plan};
use isthmus_api::node_config::{Capture as PodCapture, NodeConfig, PodName};
use isthmus_integration_tests::istio::{IstioIptables, PodSettings};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use rules::{Outcome, Packet, Protocol, Table};
use serde_json::json;

const CLIENT: u64 = 11;
const SERVER: u64 = 22;
const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const SERVER_IP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const ENVOY_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const DNS: u16 = 15053;

// Ports that the pods' lists and the connections are drawn from, so that they meet.
const PORTS: [u16; 12] = [
    22, 53, 80, 443, 3306, 8080, 9090, 15001, 15006, 15008, 15020, 15021,
];
const RANGES: [&str; 8] = [
    "198.18.0.0/24",
    "198.18.0.2/32",
    "198.19.0.0/16",
    "198.19.9.0/24",
    "203.0.113.0/24",
    "0.0.0.0/0",
    "127.0.0.0/8",
    "127.0.0.2/32",
];
const DESTINATIONS: [Ipv4Addr; 9] = [
    CLIENT_IP,
    SERVER_IP,
    Ipv4Addr::new(198, 18, 0, 77),
    Ipv4Addr::new(198, 19, 9, 9),
    Ipv4Addr::new(198, 19, 77, 1),
    Ipv4Addr::new(203, 0, 113, 5),
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(127, 0, 0, 2),
    ENVOY_SOURCE,
];
// Never captured by the accelerator on the way in; Istio's rules leave most of them to a list.
const LEFT_TO_IPTABLES_INBOUND: [u16; 6] = [15001, 15006, 15008, 15020, 15021, 15090];

/// Where a connection ends up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    AsDialled,
    OwnOutbound,
    OwnInbound,
    OwnDns,
    PeerInbound,
}

#[derive(Clone, Debug)]
struct Attempt {
    uid: u32,
    gid: u32,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    port: u16,
}

fn settings() -> impl Strategy<Value = PodSettings> {
    let ports = || subsequence(PORTS.to_vec(), 0..4).prop_map(|ports| join(&ports));
    let ranges = || subsequence(RANGES.to_vec(), 0..4).prop_map(|ranges| ranges.join(","));
    let all = || Just("*".to_owned());
    let annotations = (
        proptest::option::of(ports()),
        proptest::option::of(ports()),
        proptest::option::of(ranges()),
        proptest::option::of(prop_oneof![all(), ports()]),
        proptest::option::of(ports()),
        proptest::option::of(prop_oneof![all(), ranges()]),
    );
    let owner = || select(vec![1337_u32, 2102]);
    let named = (annotations, owner(), owner());
    (named, dns()).prop_map(|((annotations, proxy_uid, proxy_gid), dns)| {
        let (excluded_in, excluded_out, without, inbound, outbound, ranges) = annotations;
        let named = [
            ("excludeInboundPorts", excluded_in),
            ("excludeOutboundPorts", excluded_out),
            ("excludeOutboundIPRanges", without),
            ("includeInboundPorts", inbound),
            ("includeOutboundPorts", outbound),
            ("includeOutboundIPRanges", ranges),
        ];
        let named = named
            .into_iter()
            .filter_map(|(name, value)| Some((format!("traffic.sidecar.istio.io/{name}"), value?)));
        PodSettings {
            annotations: named.collect(),
            proxy_gid,
            proxy_uid,
            ..dns
        }
    })
}

// Name servers, and whether DNS is captured for none, for them, or for all.
fn dns() -> impl Strategy<Value = PodSettings> {
    let metadata = select(vec![
        [
            ("ISTIO_META_DNS_CAPTURE", "false"),
            ("CAPTURE_ALL_DNS", "true"),
        ],
        [
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("CAPTURE_ALL_DNS", "false"),
        ],
        [
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("CAPTURE_ALL_DNS", "true"),
        ],
    ]);
    let servers = subsequence(DESTINATIONS.to_vec(), 0..4);
    (proptest::option::of(metadata), servers).prop_map(|(metadata, servers)| PodSettings {
        name_servers: servers.into_iter().map(IpAddr::V4).collect(),
        proxy_metadata: metadata
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        ..PodSettings::default()
    })
}

fn join(ports: &[u16]) -> String {
    ports
        .iter()
        .map(u16::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let owner = || select(vec![0_u32, 1000, 1337, 2102]);
    let destination = select(DESTINATIONS.to_vec());
    (
        owner(),
        owner(),
        any::<bool>(),
        destination,
        select(PORTS.to_vec()),
    )
        .prop_map(|(uid, gid, is_bound, destination, port)| {
            // The kernel's own choice of a source, unless the caller is bound as Envoy is.
            let is_loopback = destination.is_loopback();
            let routed = if is_loopback {
                Ipv4Addr::LOCALHOST
            } else {
                CLIENT_IP
            };
            let is_bound = is_bound && is_local(destination);
            let source = if is_bound { ENVOY_SOURCE } else { routed };
            Attempt {
                uid,
                gid,
                source,
                destination,
                port,
            }
        })
}

fn is_local(address: Ipv4Addr) -> bool {
    address.is_loopback() || address == CLIENT_IP
}

// What the agent would load for the two pods.
fn load(client: &PodSettings, server: &PodSettings) -> State {
    let pod = |name: &str, settings: &PodSettings| {
        let netns = Path::new("/run/netns").join(name);
        settings.node_config_entry(&format!("default/{name}"), &netns)
    };
    let text = json!({
        "apiVersion": "isthmus.io/v1alpha1",
        "kind": "NodeConfig",
        "dnsCapture": "none",
        "pods": [pod("client", client), pod("server", server)],
    })
    .to_string();
    let config = NodeConfig::parse(text.as_bytes()).expect("the annotations are Istio's own words");
    let places = [
        ("default/client", CLIENT, CLIENT_IP),
        ("default/server", SERVER, SERVER_IP),
    ];
    let pods = places.map(|(name, netns_cookie, addr)| {
        let name = PodName::parse(name).expect("a pod's name");
        let pod = &config.pods[&name];
        let PodCapture::Accelerated(policy) = &pod.capture else {
            panic!("{name} is left alone: no annotation here asks for that");
        };
        let resolved = ResolvedPod {
            addrs: [IpAddr::V4(addr)].into(),
            netns_cookie,
            policy: policy.clone(),
            proxy_gid: pod.proxy_gid,
            proxy_uid: pod.proxy_uid,
        };
        (name, resolved)
    });
    let plan = plan(&pods.into());
    assert!(plan.refused.is_empty(), "{:?}", plan.refused);
    plan.state
}

fn packet(protocol: Protocol, attempt: &Attempt) -> Packet {
    Packet {
        protocol,
        interface: if is_local(attempt.destination) {
            "lo"
        } else {
            "eth0"
        },
        source: attempt.source.into(),
        destination: attempt.destination.into(),
        port: attempt.port,
        uid: attempt.uid,
        gid: attempt.gid,
    }
}

// Where iptables sends a connection, without the accelerator.
fn by_iptables(attempt: &Attempt, client: &Table, server: &Table) -> End {
    let packet = packet(Protocol::Tcp, attempt);
    match client.run("OUTPUT", &packet) {
        Outcome::Redirect(OUTBOUND) => End::OwnOutbound,
        Outcome::Redirect(INBOUND) => End::OwnInbound,
        Outcome::Redirect(DNS) => End::OwnDns,
        Outcome::Redirect(port) => panic!("no rule redirects to {port}"),
        Outcome::Pass if attempt.destination == SERVER_IP => {
            match server.run("PREROUTING", &packet) {
                Outcome::Redirect(INBOUND) => End::PeerInbound,
                Outcome::Redirect(port) => panic!("no inbound rule redirects to {port}"),
                Outcome::Pass => End::AsDialled,
            }
        }
        Outcome::Pass => End::AsDialled,
    }
}

fn dial(attempt: &Attempt) -> Dial {
    let is_bound = attempt.source == ENVOY_SOURCE;
    let source = if is_bound {
        ENVOY_SOURCE
    } else {
        Ipv4Addr::UNSPECIFIED
    };
    Dial {
        netns_cookie: CLIENT,
        uid: attempt.uid,
        gid: attempt.gid,
        source: v4_mapped(source.octets()),
        destination: v4_mapped(attempt.destination.octets()),
        port: attempt.port.to_be_bytes(),
    }
}

fn decided(attempt: &Attempt, state: &State) -> Option<End> {
    let dial = dial(attempt);
    match decide(&dial, state) {
        Verdict::Pass(_) => None,
        Verdict::Follow => Some(End::AsDialled),
        Verdict::Redirect(to) if to.addr == LOOPBACK => match u16::from_be_bytes(to.port) {
            OUTBOUND => Some(End::OwnOutbound),
            INBOUND => Some(End::OwnInbound),
            DNS => Some(End::OwnDns),
            port => panic!("the proxy does not listen on {port}"),
        },
        Verdict::Redirect(to) => {
            assert_eq!(
                (to.addr, to.port),
                (dial.destination, INBOUND.to_be_bytes())
            );
            Some(End::PeerInbound)
        }
    }
}

// Connections that the accelerator may leave to iptables although iptables captures them.
fn may_be_left(attempt: &Attempt, end: End, client: &PodSettings) -> bool {
    let is_dns = attempt.port == 53 && has_unknown_servers(client);
    match end {
        End::OwnOutbound | End::OwnInbound => is_dns,
        End::OwnDns => false,
        End::AsDialled => true,
        // The other pod's rules take it when it arrives. Only what a proxy sends is worth following, and
        // only where O1 leaves the question of who sends open.
        End::PeerInbound => {
            let is_proxy = attempt.uid == client.proxy_uid || attempt.gid == client.proxy_gid;
            let is_excluded = excluded_outbound_ports(client).contains(&attempt.port);
            let is_reserved = LEFT_TO_IPTABLES_INBOUND.contains(&attempt.port);
            !is_proxy || is_excluded || is_dns || is_reserved
        }
    }
}

// Istio captures no DNS for a pod without name servers. The accelerator does not know that it has none.
fn has_unknown_servers(settings: &PodSettings) -> bool {
    let is_set = |name: &str| {
        settings
            .proxy_metadata
            .get(name)
            .is_some_and(|value| value == "true")
    };
    is_set("ISTIO_META_DNS_CAPTURE")
        && !is_set("CAPTURE_ALL_DNS")
        && settings.name_servers.is_empty()
}

// By the annotation, or by the plugin's default.
fn excluded_outbound_ports(settings: &PodSettings) -> Vec<u16> {
    let name = "traffic.sidecar.istio.io/excludeOutboundPorts";
    let list = settings
        .annotations
        .get(name)
        .map_or("15020", String::as_str);
    list.split(',')
        .filter_map(|port| port.parse().ok())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn the_decision_is_that_of_istios_rules(
        client in settings(),
        server in settings(),
        attempts in prop::collection::vec(attempt(), 24),
    ) {
        let state = load(&client, &server);
        let (client_rules, server_rules) = (istios_rules(&client), istios_rules(&server));
        for attempt in attempts {
            let expected = by_iptables(&attempt, &client_rules, &server_rules);
            match decided(&attempt, &state) {
                Some(end) => prop_assert_eq!(end, expected, "{:?}", attempt),
                None => prop_assert!(
                    may_be_left(&attempt, expected, &client),
                    "{:?} was left alone, and iptables makes it {:?}", attempt, expected
                ),
            }
        }
    }

    #[test]
    fn datagrams_go_where_istios_rules_send_them(
        client in settings(),
        attempts in prop::collection::vec(attempt(), 24),
    ) {
        let state = load(&client, &PodSettings::default());
        let rules = istios_rules(&client);
        for attempt in attempts {
            let expected = rules.run("OUTPUT", &packet(Protocol::Udp, &attempt));
            let verdict = decide_datagram(&dial(&attempt), &state);
            let decided = if verdict == DnsVerdict::ToAgent {
                Outcome::Redirect(DNS)
            } else {
                Outcome::Pass
            };
            prop_assert_eq!(decided, expected, "{:?}: {:?}", attempt, verdict);
        }
    }
}

fn istios_rules(settings: &PodSettings) -> Table {
    thread_local! {
        static ISTIO: RefCell<IstioIptables> =
            RefCell::new(IstioIptables::start().expect("`cargo xtask setup` builds it"));
    }
    let rules = ISTIO.with_borrow_mut(|istio| istio.rules(&settings.istio_config()));
    Table::parse(
        &rules
            .expect("Istio takes every one of these configurations")
            .v4,
    )
}
