//! Random pods and random connections, drawn from values that meet.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use isthmus_integration_tests::istio::PodSettings;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

pub(super) const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(super) const SERVER_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
pub(super) const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, 1);
pub(super) const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, 2);
const ENVOY_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const ENVOY_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

const PORTS: [u16; 12] = [
    22, 53, 80, 443, 3306, 8080, 9090, 15001, 15006, 15008, 15020, 15021,
];
const RANGES: [&str; 14] = [
    "198.18.0.0/24",
    "198.18.0.2/32",
    "198.19.0.0/16",
    "198.19.9.0/24",
    "203.0.113.0/24",
    "0.0.0.0/0",
    "127.0.0.0/8",
    "127.0.0.2/32",
    "fd18::/64",
    "fd18::2/128",
    "fd19::/16",
    "fd19:9::/32",
    "::/0",
    "::1/128",
];
const V4_DESTINATIONS: [Ipv4Addr; 10] = [
    CLIENT_V4,
    SERVER_V4,
    Ipv4Addr::new(198, 18, 0, 77),
    Ipv4Addr::new(198, 19, 9, 9),
    Ipv4Addr::new(198, 19, 77, 1),
    Ipv4Addr::new(203, 0, 113, 5),
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(127, 0, 0, 2),
    Ipv4Addr::UNSPECIFIED,
    ENVOY_V4,
];
const V6_DESTINATIONS: [Ipv6Addr; 7] = [
    CLIENT_V6,
    SERVER_V6,
    Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, 0x77),
    Ipv6Addr::new(0xfd19, 9, 0, 0, 0, 0, 0, 9),
    Ipv6Addr::new(0xfd19, 0x77, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::LOCALHOST,
    ENVOY_V6,
];
const IDS: [u32; 5] = [0, 1000, 1337, 2000, 2102];
/// Interfaces of each pod, with their numbers.
pub(super) const INTERFACES: [(&str, u32); 3] = [("lo", 1), ("eth0", 2), ("eth1", 3)];
/// Its routes. What is behind each is written a second time in [`exit`].
pub(super) const ROUTES: [(&str, u32); 9] = [
    ("0.0.0.0/0", 2),
    ("198.18.0.0/24", 2),
    ("198.18.0.64/26", 3),
    ("198.19.0.0/16", 3),
    ("198.19.77.0/24", 2),
    ("::/0", 3),
    ("fd18::/64", 2),
    ("fd19::/16", 3),
    ("fd19:9::/32", 2),
];
/// What a pod may exclude; iptables reads a `+` at the end as "whatever follows".
const INTERFACE_NAMES: [&str; 5] = ["lo", "eth0", "eth1", "eth+", "net1"];
// An address of the server's pod that the agent was not told of: it came a moment ago, or is link-local.
const UNKNOWN_SERVER_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 99);
const UNKNOWN_SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// Who dials what.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Address that the socket is bound to, if it is.
    pub(super) source: Option<IpAddr>,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    /// Interface that the socket is bound to, if it is.
    pub(super) bound_to: Option<&'static str>,
}

/// A connection that arrives at the server's pod.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    /// Interface that it came in by.
    pub(super) interface: &'static str,
    /// Address that it comes from.
    pub(super) remote: IpAddr,
    /// Address that it is for.
    pub(super) local: IpAddr,
    /// Port that it is for.
    pub(super) port: u16,
}

pub(super) fn settings() -> impl Strategy<Value = PodSettings> {
    let owner = || select(vec![1337_u32, 2102]);
    let v4 = V4_DESTINATIONS.map(IpAddr::V4).into_iter();
    let v6 = V6_DESTINATIONS.map(IpAddr::V6).into_iter();
    let servers = v4.chain(v6).filter(|addr| !addr.is_unspecified());
    let servers = subsequence(servers.collect::<Vec<_>>(), 0..6);
    (annotations(), metadata(), servers, owner(), owner()).prop_map(
        |(annotations, proxy_metadata, name_servers, proxy_uid, proxy_gid)| PodSettings {
            annotations,
            name_servers,
            proxy_metadata,
            proxy_gid,
            proxy_uid,
        },
    )
}

fn annotations() -> impl Strategy<Value = BTreeMap<String, String>> {
    let ports = || subsequence(PORTS.to_vec(), 0..4).prop_map(|ports| join(&ports));
    let ranges = || subsequence(RANGES.to_vec(), 0..5).prop_map(|ranges| ranges.join(","));
    let all = || Just("*".to_owned());
    let interfaces =
        subsequence(INTERFACE_NAMES.to_vec(), 1..3).prop_map(|interfaces| interfaces.join(","));
    let values = (
        option::of(ports()),
        option::of(ports()),
        option::of(ranges()),
        option::of(prop_oneof![all(), ports()]),
        option::of(ports()),
        option::of(prop_oneof![all(), ranges()]),
        prop_oneof![2 => Just(None), 1 => interfaces.prop_map(Some)],
        prop_oneof![3 => Just(None), 1 => select(vec!["eth0", "eth1", "eth1,eth2"]).prop_map(Some)],
    );
    values.prop_map(
        |(without_in, without_out, without, inbound, outbound, ranges, interfaces, virtuals)| {
            let named = [
                ("excludeInboundPorts", without_in),
                ("excludeInterfaces", interfaces),
                ("excludeOutboundPorts", without_out),
                ("excludeOutboundIPRanges", without),
                ("includeInboundPorts", inbound),
                ("includeOutboundPorts", outbound),
                ("includeOutboundIPRanges", ranges),
                ("kubevirtInterfaces", virtuals.map(str::to_owned)),
            ];
            given(named.map(|(name, value)| (format!("traffic.sidecar.istio.io/{name}"), value)))
        },
    )
}

fn metadata() -> impl Strategy<Value = BTreeMap<String, String>> {
    let groups = || subsequence(IDS.to_vec(), 0..3).prop_map(|groups| join(&groups));
    let all = || Just("*".to_owned());
    let direct = select(vec!["127.0.0.1/32", "127.0.0.2/31", "127.0.0.0/8"]);
    let values = (
        any::<bool>(),
        option::of(prop_oneof![3 => all(), 1 => groups()]),
        option::of(groups()),
        option::of(direct.prop_map(str::to_owned)),
        (any::<bool>(), any::<bool>()),
    );
    values.prop_map(
        |(is_dual_stack, included, excluded, direct, (is_dns, is_all_dns))| {
            let values = [
                ("CAPTURE_ALL_DNS", Some(is_all_dns.to_string())),
                ("ISTIO_DUAL_STACK", Some(is_dual_stack.to_string())),
                ("ISTIO_META_DNS_CAPTURE", Some(is_dns.to_string())),
                ("ISTIO_OUTBOUND_OWNER_GROUPS", included),
                ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", excluded),
                ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", direct),
            ];
            given(values.map(|(name, value)| (name.to_owned(), value)))
        },
    )
}

fn given<const N: usize>(named: [(String, Option<String>); N]) -> BTreeMap<String, String> {
    let present = named.into_iter();
    present
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

fn join<T: ToString>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    items.join(",")
}

pub(super) fn attempt() -> impl Strategy<Value = Attempt> {
    let id = || select(IDS.to_vec());
    let v4 = (
        option::of(select(vec![ENVOY_V4, Ipv4Addr::LOCALHOST, CLIENT_V4])),
        select(V4_DESTINATIONS.to_vec()),
    );
    let v4 = v4.prop_map(|(source, to)| (source.map(IpAddr::V4), IpAddr::V4(to)));
    let v6 = (
        option::of(select(vec![ENVOY_V6, Ipv6Addr::LOCALHOST, CLIENT_V6])),
        select(V6_DESTINATIONS.to_vec()),
    );
    let v6 = v6.prop_map(|(source, to)| (source.map(IpAddr::V6), IpAddr::V6(to)));
    let bound_to = prop_oneof![3 => Just(None), 1 => select(vec!["eth0", "eth1"]).prop_map(Some)];
    (
        id(),
        id(),
        prop_oneof![v4, v6],
        select(PORTS.to_vec()),
        bound_to,
    )
        .prop_map(
            |(uid, gid, (source, destination), port, bound_to)| Attempt {
                uid,
                gid,
                // Loopback addresses reach nothing outside of the pod.
                source: source.filter(|source| is_local(destination) || !is_on_lo(*source)),
                destination,
                port,
                bound_to,
            },
        )
}

/// The interface that a connection leaves the client's pod by.
pub(super) fn exit(attempt: &Attempt) -> &'static str {
    if is_local(attempt.destination) {
        return "lo";
    }
    if let Some(interface) = attempt.bound_to {
        return interface;
    }
    match attempt.destination {
        IpAddr::V4(v4) => match v4.octets() {
            [198, 18, 0, 64..=127] => "eth1",
            [198, 19, third, _] if third != 77 => "eth1",
            _ => "eth0",
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0xfd18, 0, 0, 0, ..] | [0xfd19, 9, ..] => "eth0",
            _ => "eth1",
        },
    }
}

pub(super) fn visit() -> impl Strategy<Value = Visit> {
    let v4 = (
        // The last one is for somebody else.
        select(vec![
            SERVER_V4,
            UNKNOWN_SERVER_V4,
            Ipv4Addr::new(198, 19, 9, 9),
        ]),
        select(vec![
            CLIENT_V4,
            SERVER_V4,
            Ipv4Addr::new(203, 0, 113, 5),
            ENVOY_V4,
        ]),
    );
    let v4 = v4.prop_map(|(local, remote)| (IpAddr::V4(local), IpAddr::V4(remote)));
    let v6 = (
        select(vec![
            SERVER_V6,
            UNKNOWN_SERVER_V6,
            Ipv6Addr::new(0xfd19, 9, 0, 0, 0, 0, 0, 9),
        ]),
        select(vec![
            CLIENT_V6,
            SERVER_V6,
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            ENVOY_V6,
        ]),
    );
    let v6 = v6.prop_map(|(local, remote)| (IpAddr::V6(local), IpAddr::V6(remote)));
    let by = select(vec!["eth0", "eth1"]);
    (prop_oneof![v4, v6], select(PORTS.to_vec()), by).prop_map(
        |((local, remote), port, interface)| Visit {
            interface: if is_of_server(remote) {
                "lo"
            } else {
                interface
            },
            remote,
            local,
            port,
        },
    )
}

/// Whether it is an address of the server's pod, as far as something may come from there.
pub(super) fn is_of_server(address: IpAddr) -> bool {
    is_on_lo(address) || address == SERVER_V4 || address == SERVER_V6
}

/// Whether it is an address of the client's pod.
pub(super) fn is_local(address: IpAddr) -> bool {
    is_on_lo(address) || address == CLIENT_V4 || address == CLIENT_V6
}

fn is_on_lo(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || address == ENVOY_V6
}
