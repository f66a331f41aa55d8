//! Rows D1 and D3 as a table, Istio's chain for UDP against random queries, and what a socket is shown.
extern crate std;

use std::{net::IpAddr, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    GroupKey, Hop, PassCause, Redirect, Source, Verdict,
    decision::tests::{Table, decided},
    v4_mapped,
};

const NETNS: u64 = 11;
const POD_V4: &str = "198.18.0.1";
const POD_V6: &str = "fd00::1";
const APP: u32 = 1000;
const PROXY: u32 = 1337;

fn bytes(addr: &str) -> [u8; 16] {
    match addr.parse().expect("an address") {
        IpAddr::V4(v4) => v4_mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A pod whose DNS is captured as the flags say, for these servers.
fn pod(dns: PodFlags, servers: &[&str]) -> Table {
    let config = PodConfig {
        flags: PodFlags::OUTBOUND_ALL.with(PodFlags::IPV6).with(dns),
        ..PodConfig::istio_default()
    };
    let server = |addr: &&str| CidrKey::lookup(NETNS, RuleList::DNS_SERVERS, bytes(addr));
    Table {
        pods: [(NETNS, config)].into(),
        owners: [(bytes(POD_V4), NETNS), (bytes(POD_V6), NETNS)].into(),
        ranges: servers.iter().map(server).collect(),
        ..Table::default()
    }
}

fn query(uid: u32, gid: u32, to: &str) -> Dial {
    let destination = bytes(to);
    Dial {
        netns_cookie: NETNS,
        uid,
        gid,
        source: bytes(if is_v4(&destination) { "0.0.0.0" } else { "::" }),
        destination,
        port: DNS_PORT,
        bound_ifindex: 0,
    }
    .routed()
}

#[test]
fn queries_go_to_the_agent_by_istios_rules() {
    const SERVERS: &[&str] = &["198.19.0.53", "fd00:53::1", "127.0.0.1"];
    const ANY: PodFlags = PodFlags::DNS.with(PodFlags::DNS_ALL);
    let resolvers = || pod(PodFlags::DNS, SERVERS);
    let all = || pod(ANY, &[]);
    let v4_only = || {
        let mut rules = all();
        let pods = rules.pods.values_mut();
        pods.for_each(|pod| pod.flags = ANY);
        rules
    };
    let excluding = || Table {
        ports: [PortKey::new(NETNS, RuleList::EXCLUDE_OUTBOUND, DNS_PORT)].into(),
        ..all()
    };
    let without_group = || Table {
        groups: [GroupKey {
            netns_cookie: NETNS,
            list: RuleList::EXCLUDE_OUTBOUND,
            gid: APP,
        }]
        .into(),
        ..pod(ANY.with(PodFlags::EXCLUDES_GROUPS), &[])
    };
    let app = |addr| query(APP, APP, addr);
    let from = |source, addr| Dial {
        source: bytes(source),
        ..app(addr)
    };
    let other_port = Dial {
        port: [0, 54],
        ..app("8.8.8.8")
    };
    let (to_agent, pass) = (DnsVerdict::ToAgent, DnsVerdict::Pass);
    let other = pass(DnsPass::OtherServer);
    let off = pass(DnsPass::NotCaptured);
    let proxy = pass(DnsPass::SenderIsProxy);
    let envoy = pass(DnsPass::BoundAsEnvoy);
    let cases = [
        ("D1", resolvers(), app("198.19.0.53"), to_agent),
        ("D1, IPv6", resolvers(), app("fd00:53::1"), to_agent),
        (
            "O9 comes before D1",
            without_group(),
            app("198.19.0.53"),
            pass(DnsPass::GroupExcluded),
        ),
        ("D1, on loopback", resolvers(), app("127.0.0.1"), to_agent),
        (
            "0.0.0.0 is this host",
            resolvers(),
            app("0.0.0.0"),
            to_agent,
        ),
        (":: is, but not listed", resolvers(), app("::"), other),
        ("another server", resolvers(), app("8.8.8.8"), other),
        ("another IPv6 server", resolvers(), app("fd00:53::2"), other),
        ("all", all(), app("8.8.8.8"), to_agent),
        ("all, IPv6", all(), app("2001:4860:4860::8888"), to_agent),
        ("all, the pod's own address", all(), app(POD_V6), to_agent),
        ("all, root", all(), query(0, 0, "8.8.8.8"), to_agent),
        ("X4: no IPv6", v4_only(), app("fd00:53::1"), off),
        ("X4: but IPv4", v4_only(), app("8.8.8.8"), to_agent),
        ("D3, user", all(), query(PROXY, 0, "8.8.8.8"), proxy),
        ("D3, group", all(), query(0, PROXY, "8.8.8.8"), proxy),
        ("off", pod(PodFlags::NONE, SERVERS), app("198.19.0.53"), off),
        (
            "`all` alone",
            pod(PodFlags::DNS_ALL, &[]),
            app("8.8.8.8"),
            off,
        ),
        ("no pod", Table::default(), app("8.8.8.8"), off),
        ("another port", all(), other_port, pass(DnsPass::NotDns)),
        (
            "O1",
            excluding(),
            app("8.8.8.8"),
            pass(DnsPass::PortExcluded),
        ),
        ("O2", all(), from("127.0.0.6", POD_V4), envoy),
        ("O2, IPv6", all(), from("::6", "::1"), envoy),
        (
            "O2 is for `lo`",
            all(),
            from("127.0.0.6", "8.8.8.8"),
            to_agent,
        ),
    ];
    for (name, rules, query, verdict) in cases {
        assert_eq!(decide_datagram(&query, &rules), verdict, "{name}");
    }
}

#[test]
fn connections_to_port_53_go_to_the_agent_by_istios_rules() {
    let resolvers = || pod(PodFlags::DNS, &["198.19.0.53", "fd00:53::1", "127.0.0.1"]);
    let off = || pod(PodFlags::NONE, &["198.19.0.53"]);
    let to = |addr: &str, port: u16| {
        Verdict::Redirect(Redirect {
            addr: bytes(addr),
            port: port.to_be_bytes(),
            source: Source::KEPT,
            peer_netns: NETNS,
            hop: Hop::APP_TO_PROXY,
        })
    };
    let inbound = Verdict::Redirect(Redirect {
        addr: LOOPBACK,
        port: 15_006_u16.to_be_bytes(),
        source: Source::KEPT,
        peer_netns: NETNS,
        hop: Hop::PROXY_TO_PROXY_REQUEST,
    });
    let pass = Verdict::Pass;
    let app = |addr| query(APP, APP, addr);
    let cases = [
        (
            "D1",
            resolvers(),
            app("198.19.0.53"),
            to("127.0.0.1", 15_053),
        ),
        (
            "D1, IPv6",
            resolvers(),
            app("fd00:53::1"),
            to("::1", 15_053),
        ),
        (
            "D1, on loopback",
            resolvers(),
            app("127.0.0.1"),
            to("127.0.0.1", 15_053),
        ),
        (
            "another server",
            resolvers(),
            app("8.8.8.8"),
            to("127.0.0.1", 15_001),
        ),
        (
            "DNS off",
            off(),
            app("198.19.0.53"),
            to("127.0.0.1", 15_001),
        ),
        ("no O4", resolvers(), app(POD_V4), to("127.0.0.1", 15_001)),
        (
            "O4, DNS off",
            off(),
            app(POD_V4),
            pass(PassCause::OwnAddress),
        ),
        (
            "O10",
            pod(PodFlags::DNS, &[]),
            app("127.0.0.1"),
            pass(PassCause::Loopback),
        ),
        (
            "no O3",
            resolvers(),
            query(PROXY, APP, POD_V4),
            pass(PassCause::CallerIsProxy),
        ),
        ("O3, DNS off", off(), query(PROXY, APP, POD_V4), inbound),
        (
            "O5",
            resolvers(),
            query(PROXY, APP, "127.0.0.1"),
            Verdict::Follow,
        ),
        ("O6", resolvers(), query(APP, PROXY, POD_V4), inbound),
        (
            "O4 before O6, DNS off",
            off(),
            query(APP, PROXY, POD_V4),
            pass(PassCause::OwnAddress),
        ),
        (
            "D3",
            resolvers(),
            query(APP, PROXY, "198.19.0.53"),
            pass(PassCause::CallerIsProxy),
        ),
    ];
    for (name, rules, dial, verdict) in cases {
        assert_eq!(decided(&dial, &rules), verdict, "{name}");
    }
}

#[test]
fn a_socket_is_shown_the_server_that_it_asked() {
    let shown = |socket: &DnsSocket, addr: &str, port: [u8; 2]| socket.shown(bytes(addr), port);
    let mut socket = DnsSocket::default();
    assert_eq!(
        shown(&socket, "127.0.0.1", DNS_AGENT_PORT),
        None,
        "asked nothing"
    );

    socket.ask(bytes("198.19.0.53"));
    assert_eq!(
        shown(&socket, "127.0.0.1", DNS_AGENT_PORT),
        Some(bytes("198.19.0.53"))
    );
    assert_eq!(
        shown(&socket, "::1", DNS_AGENT_PORT),
        None,
        "no IPv6 server yet"
    );
    assert_eq!(
        shown(&socket, "127.0.0.1", [0, 80]),
        None,
        "another port of this host"
    );
    assert_eq!(
        shown(&socket, "127.0.0.2", DNS_AGENT_PORT),
        None,
        "not the agent"
    );
    assert_eq!(shown(&socket, "8.8.8.8", DNS_PORT), None, "a real server");

    socket.ask(bytes("fd00:53::1"));
    socket.ask(bytes("198.19.0.54"));
    assert_eq!(
        shown(&socket, "127.0.0.1", DNS_AGENT_PORT),
        Some(bytes("198.19.0.54")),
        "the last one"
    );
    assert_eq!(
        shown(&socket, "::1", DNS_AGENT_PORT),
        Some(bytes("fd00:53::1")),
        "of its family"
    );

    socket.forget(bytes("8.8.8.8"), DNS_PORT);
    socket.forget(bytes("127.0.0.1"), [0, 80]);
    assert!(
        shown(&socket, "127.0.0.1", DNS_AGENT_PORT).is_some(),
        "sent to others"
    );
    socket.forget(bytes("127.0.0.1"), DNS_AGENT_PORT);
    assert_eq!(
        shown(&socket, "127.0.0.1", DNS_AGENT_PORT),
        None,
        "sent to the agent itself"
    );
    assert!(
        shown(&socket, "::1", DNS_AGENT_PORT).is_some(),
        "not over IPv6"
    );
}

/// One rule of a chain: whether it matches, and whether it is a redirect to 15053.
type Rule = (bool, bool);

/// The UDP part of `ISTIO_OUTPUT` and `ISTIO_OUTPUT_DNS`, in the order of `run.go`; first match wins.
fn chain(query: &Dial, rules: &Table) -> bool {
    let Some(pod) = rules.pods.get(&query.netns_cookie) else {
        return false;
    };
    let has_chain = is_v4(&query.destination) || pod.flags.has(PodFlags::IPV6);
    if !pod.flags.has(PodFlags::DNS) || !has_chain {
        return false;
    }
    let to = query.destination;
    let is_lo = to[..13] == bytes("127.0.0.0")[..13]
        || to == bytes("::1")
        || to == bytes("::6")
        || rules.owners.get(&to) == Some(&query.netns_cookie);
    let is_dns = query.port == DNS_PORT;
    let mut chain: Vec<Rule> = Vec::new();
    for port in &rules.ports {
        let is_port =
            port.list() == RuleList::EXCLUDE_OUTBOUND && port.port().to_be_bytes() == query.port;
        chain.push((is_port, false));
    }
    for source in ["127.0.0.6", "::6"] {
        chain.push((is_lo && query.source == bytes(source), false));
    }
    chain.push((query.uid == pod.proxy_uid, false));
    chain.push((query.gid == pod.proxy_gid, false));
    if pod.flags.has(PodFlags::DNS_ALL) {
        chain.push((is_dns, true));
    }
    for server in &rules.ranges {
        chain.push((is_dns && server.addr() == to, true));
    }
    chain
        .into_iter()
        .find(|(matches, _)| *matches)
        .is_some_and(|(_, is_taken)| is_taken)
}

fn any_addr() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "0.0.0.0",
        "127.0.0.1",
        "127.0.0.53",
        "198.18.0.1",
        "198.19.0.53",
        "8.8.8.8",
        "::",
        "::1",
        "fd00::1",
        "fd00:53::1",
        "::ffff:0:1",
    ])
}

proptest! {
    #[test]
    fn a_datagram_is_taken_exactly_when_istios_chain_takes_it(
        flags in prop::sample::subsequence(vec![PodFlags::DNS, PodFlags::DNS_ALL], 0..=2),
        servers in prop::collection::vec(any_addr(), 0..4),
        excludes_dns in prop::bool::weighted(0.2),
        source in prop::sample::select(vec!["0.0.0.0", "::", "127.0.0.6", "::6", "198.18.0.1"]),
        to in any_addr(),
        uid in prop::sample::select(vec![0, APP, PROXY]),
        gid in prop::sample::select(vec![0, APP, PROXY]),
        port in prop::sample::select(vec![53_u16, 80, 15_053]),
        is_pod in prop::bool::weighted(0.9),
    ) {
        let flags = flags.into_iter().fold(PodFlags::NONE, PodFlags::with);
        let mut rules = pod(flags, &servers);
        if excludes_dns {
            rules.ports.insert(PortKey::new(NETNS, RuleList::EXCLUDE_OUTBOUND, DNS_PORT));
        }
        let query = Dial {
            netns_cookie: if is_pod { NETNS } else { NETNS + 1 },
            source: bytes(source),
            port: port.to_be_bytes(),
            ..query(uid, gid, to)
        };
        let is_taken = decide_datagram(&query, &rules) == DnsVerdict::ToAgent;
        prop_assert_eq!(is_taken, chain(&query, &rules), "{:?} under {:?}", query, rules);
    }
}
