//! The accelerator's decisions against Istio's rules: random annotations, random connections.
//!
//! One side reads the annotations as the agent does and asks `decide()`, `decide_datagram()` and
//! `decide_inbound()`, the functions that run in the kernel. The other side gives them to Istio's own code and interprets the rules that come out. The
//! interpreter knows nothing of sidecars, only of chains, matches and jumps.

#[path = "decision_oracle/generate.rs"]
mod generate;
#[path = "decision_oracle/rules.rs"]
mod rules;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use generate::{
    Attempt, CLIENT_V4, CLIENT_V6, INTERFACES, ROUTES, SERVER_V4, SERVER_V6, Visit, attempt, exit,
    is_local, is_of_server, settings, visit,
};
use isthmus_accel_abi::{
    Arrival, Dial, DnsVerdict, InboundVerdict, LOOPBACK, LOOPBACK_V6, Verdict, decide,
    decide_datagram, decide_inbound, v4_mapped,
};
use isthmus_accel_core::{ResolvedPod, Routes, Sources, State, plan};
use isthmus_api::node_config::{Capture as PodCapture, IpRange, NodeConfig, PodName};
use isthmus_integration_tests::istio::{IstioIptables, PodSettings};
use proptest::prelude::*;
use rules::{Outcome, Packet, Protocol, Table};
use serde_json::json;

const CLIENT: u64 = 11;
const SERVER: u64 = 22;
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const DNS: u16 = 15053;

/// Where a connection ends up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    AsDialled,
    OwnOutbound,
    OwnInbound,
    OwnDns,
    PeerInbound,
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
        ("default/client", CLIENT, (CLIENT_V4, CLIENT_V6)),
        ("default/server", SERVER, (SERVER_V4, SERVER_V6)),
    ];
    let pods = places.map(|(name, netns_cookie, (v4, v6))| {
        let name = PodName::parse(name).expect("a pod's name");
        let pod = &config.pods[&name];
        let PodCapture::Accelerated(policy) = &pod.capture else {
            panic!("{name} is left alone: no annotation here asks for that");
        };
        let resolved = ResolvedPod {
            addrs: [IpAddr::V4(v4), IpAddr::V6(v6)].into(),
            interfaces: INTERFACES
                .map(|(name, ifindex)| (name.to_owned(), ifindex))
                .into(),
            netns_cookie,
            routes: routes(),
            sources: Sources::default(),
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

fn routes() -> Routes {
    let route = |(range, ifindex): (&str, u32)| {
        let range = IpRange::parse(range).expect("a range");
        (range, [ifindex].into())
    };
    ROUTES.map(route).into()
}

/// Istio's rules for one pod.
struct RuleSet {
    v4: Table,
    v6: Table,
}

impl RuleSet {
    fn of(settings: &PodSettings) -> Self {
        thread_local! {
            static ISTIO: RefCell<IstioIptables> =
                RefCell::new(IstioIptables::start().expect("`cargo xtask setup` builds it"));
        }
        let rules = ISTIO.with_borrow_mut(|istio| istio.rules(&settings.istio_config()));
        let rules = rules.expect("Istio takes every one of these configurations");
        Self {
            v4: Table::parse(&rules.v4),
            v6: Table::parse(&rules.v6),
        }
    }

    fn run(&self, chain: &str, packet: &Packet) -> Outcome {
        let table = if packet.destination.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        };
        table.run(chain, packet)
    }
}

// The packet as the kernel makes it: the source that it chooses, and loopback for no address at all.
fn packet(protocol: Protocol, attempt: &Attempt) -> Packet {
    let destination = if attempt.destination.is_unspecified() {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        attempt.source.unwrap_or(loopback)
    } else {
        attempt.destination
    };
    let is_local = is_local(destination);
    let routed = match destination {
        IpAddr::V4(v4) if v4.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V4(_) => CLIENT_V4.into(),
        // IPv6 prefers the destination itself.
        IpAddr::V6(v6) if is_local => v6.into(),
        IpAddr::V6(_) => CLIENT_V6.into(),
    };
    Packet {
        protocol,
        interface: exit(attempt),
        source: attempt.source.unwrap_or(routed),
        destination,
        port: attempt.port,
        uid: attempt.uid,
        gid: attempt.gid,
    }
}

// Where iptables sends a connection, without the accelerator.
fn by_iptables(attempt: &Attempt, client: &RuleSet, server: &RuleSet) -> End {
    let packet = packet(Protocol::Tcp, attempt);
    match client.run("OUTPUT", &packet) {
        Outcome::Redirect(OUTBOUND) => End::OwnOutbound,
        Outcome::Redirect(INBOUND) => End::OwnInbound,
        Outcome::Redirect(DNS) => End::OwnDns,
        Outcome::Redirect(port) => panic!("no rule redirects to {port}"),
        Outcome::Pass if is_server(attempt.destination) => {
            match server.run("PREROUTING", &packet) {
                Outcome::Redirect(INBOUND) => End::PeerInbound,
                // The latter as if a virtual machine had sent it: decided where it arrives.
                Outcome::Pass | Outcome::Redirect(OUTBOUND) => End::AsDialled,
                Outcome::Redirect(port) => panic!("no inbound rule redirects to {port}"),
            }
        }
        Outcome::Pass => End::AsDialled,
    }
}

fn is_server(address: IpAddr) -> bool {
    address == SERVER_V4 || address == SERVER_V6
}

fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4_mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn dial(attempt: &Attempt) -> Dial {
    let unbound: IpAddr = match attempt.destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Dial {
        netns_cookie: CLIENT,
        uid: attempt.uid,
        gid: attempt.gid,
        source: bytes(attempt.source.unwrap_or(unbound)),
        destination: bytes(attempt.destination),
        port: attempt.port.to_be_bytes(),
        bound_ifindex: attempt
            .bound_to
            .map_or(0, |name| BTreeMap::from(INTERFACES)[name]),
    }
    .routed()
}

// Where the accelerator sends it, without iptables.
fn by_accelerator(attempt: &Attempt, state: &State) -> End {
    let dial = dial(attempt);
    let own = if attempt.destination.is_ipv4() {
        LOOPBACK
    } else {
        LOOPBACK_V6
    };
    match decide(&dial, state) {
        Verdict::Pass(_) | Verdict::Follow => End::AsDialled,
        Verdict::Redirect(to) if to.addr == own => match u16::from_be_bytes(to.port) {
            OUTBOUND => End::OwnOutbound,
            INBOUND => End::OwnInbound,
            DNS => End::OwnDns,
            port => panic!("the proxy does not listen on {port}"),
        },
        Verdict::Redirect(to) => {
            assert_eq!(
                (to.addr, to.port),
                (dial.destination, INBOUND.to_be_bytes())
            );
            End::PeerInbound
        }
    }
}

// Pending: what arrives from whoever is no proxy.
fn may_be_left(attempt: &Attempt, end: End, client: &PodSettings) -> bool {
    let is_dns = attempt.port == 53 && has_unknown_servers(client);
    is_dns || end == End::PeerInbound
}

// Istio captures no DNS for a pod without name servers. The accelerator does not know that it has none.
fn has_unknown_servers(settings: &PodSettings) -> bool {
    let is_set = |name: &str| {
        let value = settings.proxy_metadata.get(name);
        value.is_some_and(|value| value == "true")
    };
    is_set("ISTIO_META_DNS_CAPTURE")
        && !is_set("CAPTURE_ALL_DNS")
        && settings.name_servers.is_empty()
}

// What iptables makes of an arrival, without the accelerator.
fn arrival_by_iptables(visit: &Visit, server: &RuleSet) -> Outcome {
    // What a pod sends to itself went through OUTPUT, and NAT looks at a connection once.
    if is_of_server(visit.remote) {
        return Outcome::Pass;
    }
    let packet = Packet {
        protocol: Protocol::Tcp,
        interface: visit.interface,
        source: visit.remote,
        destination: visit.local,
        port: visit.port,
        // Of whoever sent it, which nothing shows here.
        uid: u32::MAX,
        gid: u32::MAX,
    };
    match server.run("PREROUTING", &packet) {
        // To where it goes anyway.
        Outcome::Redirect(port) if port == visit.port => Outcome::Pass,
        outcome @ (Outcome::Pass | Outcome::Redirect(_)) => outcome,
    }
}

// What the accelerator makes of it, without iptables.
fn arrival_by_accelerator(visit: &Visit, state: &State) -> Outcome {
    // For IPv6 the kernel names the interface that has the address.
    let interface = if visit.local.is_ipv6() && visit.interface == "lo" {
        "eth0"
    } else {
        visit.interface
    };
    let ifindex = BTreeMap::from(INTERFACES)[interface];
    let arrival = Arrival {
        netns_cookie: SERVER,
        local: bytes(visit.local),
        port: visit.port.to_be_bytes(),
        remote: bytes(visit.remote),
        ingress_ifindex: ifindex,
    };
    match decide_inbound(&arrival, state) {
        InboundVerdict::Pass(_) => Outcome::Pass,
        InboundVerdict::Steer | InboundVerdict::SteerUnlessDialledHere => {
            Outcome::Redirect(INBOUND)
        }
        InboundVerdict::SteerOutbound if visit.port == OUTBOUND => Outcome::Pass,
        InboundVerdict::SteerOutbound => Outcome::Redirect(OUTBOUND),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3_000) })]

    #[test]
    fn the_decision_is_that_of_istios_rules(
        client in settings(),
        server in settings(),
        attempts in prop::collection::vec(attempt(), 32),
    ) {
        let state = load(&client, &server);
        let (client_rules, server_rules) = (RuleSet::of(&client), RuleSet::of(&server));
        for attempt in attempts {
            let expected = by_iptables(&attempt, &client_rules, &server_rules);
            let decided = by_accelerator(&attempt, &state);
            let is_left = decided == End::AsDialled && may_be_left(&attempt, expected, &client);
            prop_assert!(
                decided == expected || is_left,
                "{:?} was made {:?}, and iptables makes it {:?}", attempt, decided, expected
            );
        }
    }
    #[test]
    fn datagrams_go_where_istios_rules_send_them(
        client in settings(),
        attempts in prop::collection::vec(attempt(), 32),
    ) {
        let state = load(&client, &PodSettings::default());
        let rules = RuleSet::of(&client);
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
    #[test]
    fn what_arrives_goes_where_istios_rules_send_it(
        server in settings(),
        visits in prop::collection::vec(visit(), 32),
    ) {
        let state = load(&PodSettings::default(), &server);
        let rules = RuleSet::of(&server);
        for visit in visits {
            let expected = arrival_by_iptables(&visit, &rules);
            let decided = arrival_by_accelerator(&visit, &state);
            prop_assert_eq!(decided, expected, "{:?}", visit);
        }
    }
}
