//! The rows of Istio's inbound chain, and the places of listeners.

extern crate std;

use std::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use super::*;
use crate::{CidrKey, GroupKey, LOOPBACK_V6, v4_mapped};

const NETNS: u64 = 7;
const OTHER_NETNS: u64 = 8;
const ETH0: u32 = 2;
const NET1: u32 = 3;
const POD: [u8; 16] = v4_mapped([198, 18, 0, 1]);
const CLIENT: [u8; 16] = v4_mapped([198, 18, 0, 9]);
const POD_V6: [u8; 16] = v6(1);
const CLIENT_V6: [u8; 16] = v6(9);

#[derive(Default)]
struct Loaded {
    addrs: BTreeMap<[u8; 16], u64>,
    interfaces: BTreeSet<InterfaceKey>,
    virtual_interfaces: BTreeSet<InterfaceKey>,
    ranges: BTreeSet<CidrKey>,
    pods: BTreeMap<u64, PodConfig>,
    ports: BTreeSet<PortKey>,
}

impl Rules for Loaded {
    fn pod(&self, netns_cookie: u64) -> Option<PodConfig> {
        self.pods.get(&netns_cookie).copied()
    }

    fn owner(&self, addr: &[u8; 16]) -> Option<u64> {
        self.addrs.get(addr).copied()
    }

    fn has_port(&self, key: &PortKey) -> bool {
        self.ports.contains(key)
    }

    fn has_group(&self, _: &GroupKey) -> bool {
        panic!("no group matters to what arrives")
    }

    fn has_addr(&self, key: &CidrKey) -> bool {
        assert_eq!(key.list(), RuleList::INCLUDE_OUTBOUND);
        self.ranges.iter().any(|range| range.covers(key))
    }

    fn exit(&self, _: &CidrKey) -> Option<u32> {
        panic!("no route matters to what arrives")
    }

    fn has_interface(&self, key: &InterfaceKey) -> bool {
        self.interfaces.contains(key)
    }

    fn is_virtual(&self, key: &InterfaceKey) -> bool {
        self.virtual_interfaces.contains(key)
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn follows_istios_inbound_chain() {
    use InboundPass::{
        AlreadyRedirected, FromPodItself, InterfaceExcluded, NoIpv6Rules, NotInPod, PortNotCaptured,
    };
    struct Case {
        name: &'static str,
        rules: Loaded,
        arrival: Arrival,
        pass: Option<InboundPass>,
    }
    let case = |name, rules, arrival, pass| Case {
        name,
        rules,
        arrival,
        pass,
    };
    let from = |arrival: Arrival, remote| Arrival { remote, ..arrival };
    let by = |arrival: Arrival, ingress_ifindex| Arrival {
        ingress_ifindex,
        ..arrival
    };
    let excluded = || all_but(&[15_021]);
    let to_v6 = Arrival {
        local: POD_V6,
        remote: CLIENT_V6,
        ..to(8080)
    };
    let v4_only = || Loaded {
        pods: [(NETNS, PodConfig::istio_default())].into(),
        ..excluded()
    };
    let preparing = || Loaded {
        pods: [(NETNS, PodConfig::istio_default().preparing())].into(),
        ..excluded()
    };
    let in_other = Arrival {
        netns_cookie: OTHER_NETNS,
        ..to(8080)
    };
    let cases = [
        case("no pod of ours", excluded(), in_other, Some(NotInPod)),
        case(
            "one that is being prepared",
            preparing(),
            to(8080),
            Some(NotInPod),
        ),
        case(
            "I1: interface",
            excluded(),
            by(to(8080), NET1),
            Some(InterfaceExcluded),
        ),
        case("I3", excluded(), to(15_008), Some(PortNotCaptured)),
        case(
            "I3 before a list",
            only(&[15_008]),
            to(15_008),
            Some(PortNotCaptured),
        ),
        case("I4", excluded(), to(15_021), Some(PortNotCaptured)),
        case("I5", excluded(), to(8080), None),
        case("I5, IPv6", excluded(), to_v6, None),
        case("X4: no rules for IPv6", v4_only(), to_v6, Some(NoIpv6Rules)),
        case("X4: but for IPv4", v4_only(), to(8080), None),
        case("I5, outbound listener", excluded(), to(15_001), None),
        case("I6, listed", only(&[8080]), to(8080), None),
        case(
            "I6, not listed",
            only(&[8080]),
            to(9090),
            Some(PortNotCaptured),
        ),
        case("I7", only(&[]), to(8080), Some(PortNotCaptured)),
        case(
            "inbound port",
            excluded(),
            to(15_006),
            Some(AlreadyRedirected),
        ),
        case(
            "O4: by lo",
            excluded(),
            by(to(8080), 1),
            Some(FromPodItself),
        ),
        case(
            "O4: own address",
            excluded(),
            from(to(8080), POD),
            Some(FromPodItself),
        ),
        case(
            "O4: another own address",
            excluded(),
            Arrival {
                local: v6(2),
                remote: POD_V6,
                ..to(8080)
            },
            Some(FromPodItself),
        ),
        case(
            "O4: an own address that nobody has told",
            excluded(),
            Arrival {
                local: v6(3),
                remote: v6(3),
                ..to(8080)
            },
            Some(FromPodItself),
        ),
        case(
            "O2: Envoy's dial to the application",
            excluded(),
            from(to(8080), v4_mapped([127, 0, 0, 6])),
            Some(FromPodItself),
        ),
        case(
            "to ::1",
            excluded(),
            Arrival {
                local: LOOPBACK_V6,
                ..to_v6
            },
            Some(FromPodItself),
        ),
        case(
            "another pod's address is outside",
            excluded(),
            from(to(8080), v4_mapped([198, 18, 0, 2])),
            None,
        ),
        case(
            "T1: excluded ports",
            tproxy(),
            to(15_021),
            Some(PortNotCaptured),
        ),
    ];
    for Case {
        name,
        rules,
        arrival,
        pass,
    } in cases
    {
        let expected = pass.map_or(InboundVerdict::Steer, InboundVerdict::Pass);
        assert_eq!(decide_inbound(&arrival, &rules), expected, "{name}");
    }
}

#[test]
fn what_a_proxy_dials_for_its_client_looks_like_the_client() {
    use InboundVerdict::{Steer, SteerUnlessDialledHere};
    let to_v6 = Arrival {
        local: POD_V6,
        remote: CLIENT_V6,
        ..to(8080)
    };
    let cases = [
        ("IPv4", tproxy(), to(8080), SteerUnlessDialledHere),
        (
            "the tunnel too",
            tproxy(),
            to(15_008),
            SteerUnlessDialledHere,
        ),
        ("IPv6", tproxy(), to_v6, SteerUnlessDialledHere),
        ("no TPROXY", all_but(&[]), to_v6, Steer),
    ];
    for (name, rules, arrival, expected) in cases {
        assert_eq!(decide_inbound(&arrival, &rules), expected, "{name}");
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn what_virtual_machines_send_is_outbound() {
    use InboundPass::{AlreadyRedirected, FromPodItself, NoIpv6Rules, NotInPod, NotIncluded};
    const K6T0: u32 = 4;
    const VM: [u8; 16] = v4_mapped([198, 18, 4, 2]);
    const VIP: [u8; 16] = v4_mapped([198, 19, 7, 9]);
    let with = |flags: PodFlags| {
        let flags = flags.with(PodFlags::VIRTUAL_INTERFACES);
        let range = CidrKey::v4(NETNS, RuleList::INCLUDE_OUTBOUND, [198, 19, 7, 0], 24);
        let key = InterfaceKey::new(NETNS, K6T0);
        Loaded {
            virtual_interfaces: [key].into(),
            // I1 comes after I2.
            interfaces: [key].into(),
            ranges: [range].into(),
            ..loaded(flags, RuleList::EXCLUDE_INBOUND, &[80])
        }
    };
    let all = || with(PodFlags::OUTBOUND_ALL.with(PodFlags::INBOUND_ALL));
    let ranges = || with(PodFlags::INBOUND_ALL);
    let by_vm = |local, port| Arrival {
        local,
        remote: VM,
        ingress_ifindex: K6T0,
        ..to(port)
    };
    let v6 = Arrival {
        local: v6(77),
        remote: CLIENT_V6,
        ..by_vm(VIP, 80)
    };
    let other = v4_mapped([198, 19, 9, 9]);
    let preparing = || {
        let mut rules = all();
        let pods = rules.pods.into_iter();
        rules.pods = pods.map(|(netns, pod)| (netns, pod.preparing())).collect();
        rules
    };
    let outbound = InboundVerdict::SteerOutbound;
    let pass = InboundVerdict::Pass;
    let cases = [
        ("to anywhere", all(), by_vm(VIP, 80), outbound),
        ("to the pod itself", all(), by_vm(POD, 8080), outbound),
        ("to the tunnel", all(), by_vm(VIP, 15_008), outbound),
        (
            "to a port of the sidecar",
            all(),
            by_vm(VIP, 15_006),
            outbound,
        ),
        (
            "redirected by iptables",
            all(),
            by_vm(POD, 15_001),
            outbound,
        ),
        ("to a range", ranges(), by_vm(VIP, 80), outbound),
        (
            "to another range",
            ranges(),
            by_vm(other, 80),
            pass(NotIncluded),
        ),
        (
            "to the pod, in no range",
            ranges(),
            by_vm(POD, 8080),
            pass(NotIncluded),
        ),
        ("IPv6 without rules", all(), v6, pass(NoIpv6Rules)),
        (
            "IPv6",
            with(PodFlags::OUTBOUND_ALL.with(PodFlags::IPV6)),
            v6,
            outbound,
        ),
        (
            "an IPv6 address of that interface, dialled by the pod",
            with(PodFlags::OUTBOUND_ALL.with(PodFlags::IPV6)),
            Arrival {
                local: POD_V6,
                remote: POD_V6,
                ..v6
            },
            pass(FromPodItself),
        ),
        (
            "while it is prepared",
            preparing(),
            by_vm(VIP, 80),
            pass(NotInPod),
        ),
        (
            "by another interface",
            all(),
            Arrival {
                ingress_ifindex: ETH0,
                ..by_vm(POD, 8080)
            },
            InboundVerdict::Steer,
        ),
        (
            "by another interface, to the inbound listener",
            all(),
            Arrival {
                ingress_ifindex: ETH0,
                ..by_vm(POD, 15_006)
            },
            pass(AlreadyRedirected),
        ),
    ];
    for (name, rules, arrival, expected) in cases {
        assert_eq!(decide_inbound(&arrival, &rules), expected, "{name}");
    }
}

#[test]
fn a_listener_has_one_place_by_what_it_can_take() {
    let cases = [
        ("0.0.0.0", v4_mapped([0; 4]), Some(ListenerKind::V4)),
        ("a v4 address", POD, Some(ListenerKind::V4)),
        ("127.0.0.1", v4_mapped([127, 0, 0, 1]), None),
        ("::", [0; 16], Some(ListenerKind::ANY)),
        ("a v6 address", POD_V6, Some(ListenerKind::V6)),
        ("::1", LOOPBACK_V6, None),
    ];
    for (name, addr, kind) in cases {
        assert_eq!(ListenerKind::of(&addr), kind, "{name}");
    }

    let outbound = ListenerKey::outbound_of(NETNS);
    let all: Vec<ListenerKey> = ListenerKey::inbound_of(NETNS).chain(outbound).collect();
    let distinct: BTreeSet<&ListenerKey> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
    for cookie in [0, 1, 4_097, u64::MAX] {
        for kind in [ListenerKind::ANY, ListenerKind::V6.outbound()] {
            let key = ListenerKey::of_socket(NETNS, kind, cookie);
            assert!(
                all.contains(&key),
                "{cookie}: what is forgotten is everything"
            );
        }
    }
}

fn to(port: u16) -> Arrival {
    Arrival {
        netns_cookie: NETNS,
        local: POD,
        port: port.to_be_bytes(),
        remote: CLIENT,
        ingress_ifindex: ETH0,
    }
}

fn all_but(ports: &[u16]) -> Loaded {
    loaded(
        PodConfig::istio_default().flags.with(PodFlags::IPV6),
        RuleList::EXCLUDE_INBOUND,
        ports,
    )
}

fn tproxy() -> Loaded {
    let flags = PodConfig::istio_default().flags.with(PodFlags::IPV6);
    let flags = flags.with(PodFlags::TPROXY);
    loaded(flags, RuleList::EXCLUDE_INBOUND, &[15_021])
}

fn only(ports: &[u16]) -> Loaded {
    loaded(PodFlags::IPV6, RuleList::INCLUDE_INBOUND, ports)
}

fn loaded(flags: PodFlags, list: RuleList, ports: &[u16]) -> Loaded {
    let config = PodConfig {
        flags,
        ..PodConfig::istio_default()
    };
    let key = |port: &u16| PortKey::new(NETNS, list, port.to_be_bytes());
    Loaded {
        addrs: [
            (POD, NETNS),
            (POD_V6, NETNS),
            (v4_mapped([198, 18, 0, 2]), OTHER_NETNS),
        ]
        .into(),
        interfaces: [InterfaceKey::new(NETNS, NET1)].into(),
        pods: [(NETNS, config)].into(),
        ports: ports.iter().map(key).collect(),
        ..Loaded::default()
    }
}

const fn v6(host: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
}
