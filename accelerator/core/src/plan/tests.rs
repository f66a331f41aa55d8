//! What becomes of pods: entries within the bounds, and refusals beyond them.

use isthmus_api::node_config::LoopbackRange;

use super::*;

/// `2001:db8::`
const DOCUMENTATION: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn turns_a_policy_into_entries() {
    let policy = TrafficPolicy {
        exclude_outbound_ports: [3306].into(),
        exclude_outbound_ranges: ranges(&["198.18.9.9/32", "2001:db8::/32"]),
        include_outbound_ports: [9300].into(),
        include_outbound_ranges: RangeCapture::Only(ranges(&["198.18.0.0/16", "::/0"])),
        has_loopback_range: true,
        inbound_ports: PortCapture::Only([8080].into()),
        dns: DnsCapture::Resolvers(
            ["10.96.0.10", "2001:db8::"]
                .map(|addr| addr.parse().expect(addr))
                .into(),
        ),
        ipv6: Ipv6Capture::WithAddress,
        app_acceleration: AppAcceleration::Off,
        interception: Interception::Redirect,
        owner_groups: GroupCapture::Only([2000].into()),
        direct_loopback: LoopbackRange::parse("127.0.0.0/8").expect("a range"),
        exclude_interfaces: ["net+".to_owned()].into(),
        virtual_interfaces: BTreeSet::new(),
    };
    let addrs = ["198.18.0.1", "2001:db8::1"].map(|addr| addr.parse().expect(addr));
    let pod = ResolvedPod {
        addrs: addrs.into(),
        interfaces: [("eth0".to_owned(), 2), ("net1".to_owned(), 3)].into(),
        routes: routes(&[
            ("0.0.0.0/0", &[2]),
            ("198.18.1.0/24", &[3]),
            ("2001:db8::/32", &[]),
        ]),
        sources: Sources {
            v4: Some([198, 18, 0, 1].into()),
            v6: None,
        },
        policy,
        ..resolved(7, &[])
    };
    let Plan { state, refused } = plan(&named(&[("default/a", pod)]));

    let port = |list, port: u16| PortKey::new(7, list, port.to_be_bytes());
    assert_eq!(refused, BTreeMap::new());
    assert_eq!(
        state.ports,
        [
            port(RuleList::EXCLUDE_OUTBOUND, 3306),
            port(RuleList::INCLUDE_OUTBOUND, 9300),
            port(RuleList::INCLUDE_INBOUND, 8080),
        ]
        .into()
    );
    assert_eq!(
        state.cidrs,
        [
            CidrKey::v4(7, RuleList::EXCLUDE_OUTBOUND, [198, 18, 9, 9], 32),
            CidrKey::v6(7, RuleList::EXCLUDE_OUTBOUND, DOCUMENTATION, 32),
            CidrKey::v4(7, RuleList::INCLUDE_OUTBOUND, [198, 18, 0, 0], 16),
            CidrKey::v6(7, RuleList::INCLUDE_OUTBOUND, [0; 16], 0),
            CidrKey::v4(7, RuleList::DNS_SERVERS, [10, 96, 0, 10], 32),
            CidrKey::v6(7, RuleList::DNS_SERVERS, DOCUMENTATION, 128),
        ]
        .into()
    );
    let mut own_v6 = DOCUMENTATION;
    own_v6[15] = 1;
    assert_eq!(
        state.addrs,
        [(v4_mapped([198, 18, 0, 1]), 7), (own_v6, 7)].into()
    );
    let group = GroupKey {
        netns_cookie: 7,
        list: RuleList::INCLUDE_OUTBOUND,
        gid: 2000,
    };
    assert_eq!(state.groups, [group].into());
    let flags = PodFlags::LOOPBACK_IN_RANGES
        .with(PodFlags::IPV6)
        .with(PodFlags::DNS)
        .with(PodFlags::ONLY_GROUPS)
        .with(PodFlags::INTERFACES_EXCLUDED);
    let config = PodConfig {
        flags,
        direct_loopback: [127, 0, 0, 0],
        direct_loopback_mask: [255, 0, 0, 0],
        source_v4: [198, 18, 0, 1],
        ..PodConfig::istio_default()
    };
    assert_eq!(state.pods, [(7, config)].into());
    assert_eq!(state.interfaces, [InterfaceKey::new(7, 3)].into());
    let routes = [
        (CidrKey::v4(7, RuleList::ROUTES, [0; 4], 0), 2),
        (CidrKey::v4(7, RuleList::ROUTES, [198, 18, 1, 0], 24), 3),
        (CidrKey::v6(7, RuleList::ROUTES, DOCUMENTATION, 32), 0),
    ];
    assert_eq!(state.routes, routes.into());
    assert_eq!(state.steered, [7].into());
}

#[test]
fn ipv6_is_captured_where_there_is_an_address() {
    use Ipv6Capture::{WithAddress, WithoutIpv4};
    let (v4, v6) = ("198.18.0.1", "2001:db8::1");
    let cases: [(&[&str], Ipv6Capture, bool); 6] = [
        (&[v4], WithAddress, false),
        (&[v4, v6], WithAddress, true),
        (&[v6], WithAddress, true),
        (&[v4], WithoutIpv4, false),
        (&[v4, v6], WithoutIpv4, false),
        (&[v6], WithoutIpv4, true),
    ];
    for (addrs, ipv6, is_captured) in cases {
        let pod = ResolvedPod {
            addrs: addrs.iter().map(|addr| addr.parse().expect(addr)).collect(),
            policy: TrafficPolicy { ipv6, ..policy() },
            ..resolved(7, &[])
        };
        let plan = plan(&named(&[("default/a", pod)]));
        let has_rules = plan.state.pods[&7].flags.has(PodFlags::IPV6);
        assert_eq!(has_rules, is_captured, "{addrs:?}, {ipv6:?}");
    }
}

#[test]
fn sockets_of_an_application_skip_tcp_by_its_policy_only() {
    let cases = [
        (AppAcceleration::Off, false, false),
        (AppAcceleration::Writes, true, false),
        (AppAcceleration::ReadsAndWrites, true, true),
    ];
    for (app_acceleration, writes, reads) in cases {
        let pod = ResolvedPod {
            policy: TrafficPolicy {
                app_acceleration,
                ..policy()
            },
            ..resolved(7, &[1])
        };
        let flags = plan(&named(&[("default/a", pod)])).state.pods[&7].flags;
        let seen = [PodFlags::APP_WRITES, PodFlags::APP_READS].map(|flag| flags.has(flag));
        assert_eq!(seen, [writes, reads], "{app_acceleration:?}");
    }
}

#[test]
fn the_default_policy_captures_everything() {
    let plan = plan(&named(&[("default/a", resolved(7, &[1]))]));
    assert_eq!(plan.state.pods, [(7, PodConfig::istio_default())].into());
    assert_eq!(plan.state.steered, [7].into());
}

#[test]
fn a_pod_that_asks_for_no_arriving_connection_is_not_steered() {
    let policy = TrafficPolicy {
        inbound_ports: PortCapture::Only(BTreeSet::new()),
        ..policy()
    };
    let pod = ResolvedPod {
        policy,
        ..resolved(7, &[1])
    };
    let plan = plan(&named(&[("default/a", pod)]));
    assert_eq!(plan.state.steered, BTreeSet::new());
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn refuses_pods_that_are_in_the_way_or_too_large() {
    struct Case {
        name: &'static str,
        pods: BTreeMap<PodName, ResolvedPod>,
        refused: &'static [(&'static str, &'static str)],
    }
    let every_port = TrafficPolicy {
        dns: DnsCapture::Off,
        include_outbound_ports: (0..=u16::MAX).collect(),
        ..policy()
    };
    let cases = [
        Case {
            name: "nobody is",
            pods: named(&[
                ("default/a", resolved(1, &[1, 2])),
                ("default/b", resolved(2, &[3])),
            ]),
            refused: &[],
        },
        Case {
            name: "one network namespace, two names",
            pods: named(&[
                ("default/b", resolved(1, &[1])),
                ("default/a", resolved(1, &[1])),
            ]),
            refused: &[(
                "default/b",
                "its network namespace is the one of pod default/a",
            )],
        },
        Case {
            name: "one address, two pods",
            pods: named(&[
                ("default/a", resolved(1, &[1])),
                ("default/b", resolved(2, &[2, 1])),
            ]),
            refused: &[(
                "default/b",
                "address 198.18.0.1 belongs to pod default/a too",
            )],
        },
        Case {
            name: "too many addresses",
            pods: named(&[("default/a", resolved(1, &(0..17).collect::<Vec<u8>>()))]),
            refused: &[(
                "default/a",
                "it has 17 addresses, over the limit of 16 for a pod",
            )],
        },
        Case {
            name: "a pod may have any number of rules, and who comes after it finds less room",
            pods: named(&[
                (
                    "default/a",
                    ResolvedPod {
                        policy: TrafficPolicy {
                            exclude_outbound_ports: BTreeSet::new(),
                            inbound_ports: PortCapture::Only(BTreeSet::new()),
                            ..every_port.clone()
                        },
                        ..resolved(1, &[1])
                    },
                ),
                ("default/b", resolved(2, &[2])),
                (
                    "default/c",
                    ResolvedPod {
                        policy: TrafficPolicy {
                            dns: DnsCapture::Off,
                            exclude_outbound_ports: BTreeSet::new(),
                            inbound_ports: PortCapture::Only(BTreeSet::new()),
                            ..policy()
                        },
                        ..resolved(3, &[3])
                    },
                ),
            ]),
            refused: &[(
                "default/b",
                "the node has no room for it: with its 5 there were 65541, and at most 65536 ports in lists fit",
            )],
        },
    ];

    for Case {
        name,
        pods,
        refused,
    } in cases
    {
        let plan = plan(&pods);
        let messages: Vec<(String, String)> = plan
            .refused
            .iter()
            .map(|(pod, refusal)| (pod.to_string(), refusal.to_string()))
            .collect();
        let expected: Vec<(String, String)> = refused
            .iter()
            .map(|(pod, error)| ((*pod).to_owned(), (*error).to_owned()))
            .collect();
        assert_eq!(messages, expected, "{name}");
        assert_eq!(plan.state.pods.len(), pods.len() - refused.len(), "{name}");
    }
}

#[test]
fn refuses_pods_whose_routes_do_not_say_what_is_left_alone() {
    type Row = (
        &'static str,
        &'static [&'static str],
        Routes,
        &'static [&'static str],
    );
    let many = |count: usize| -> Routes {
        let number = |number: usize| u32::try_from(number).expect("few");
        let range = |index| IpRange::around(Ipv4Addr::from_bits(number(index)).into(), 32);
        (0..count).map(|index| (range(index), [2].into())).collect()
    };
    let spread: &[(&str, &[u32])] = &[("198.18.0.0/16", &[2, 3])];
    let cases: [Row; 7] = [
        ("as many as there may be", &["net1"], many(512), &[]),
        (
            "one more",
            &["net1"],
            many(513),
            &["it leaves interfaces alone and has more than 512 routes, the limit for such a pod"],
        ),
        (
            "any number, where no interface is left alone",
            &[],
            many(513),
            &[],
        ),
        (
            "by two interfaces, none of them left alone",
            &["net9"],
            routes(spread),
            &[],
        ),
        (
            "both of them left alone",
            &["eth0", "net1"],
            routes(spread),
            &[],
        ),
        (
            "one of them left alone",
            &["net1"],
            routes(spread),
            &[
                "what it sends to 198.18.0.0/16 leaves by an excluded interface or by another one, as the kernel \
               chooses",
            ],
        ),
        ("it matters to nobody", &[], routes(spread), &[]),
    ];
    for (name, excluded, routes, reasons) in cases {
        let policy = TrafficPolicy {
            exclude_interfaces: excluded.iter().map(|name| (*name).to_owned()).collect(),
            ..policy()
        };
        let pod = ResolvedPod {
            interfaces: [("eth0".to_owned(), 2), ("net1".to_owned(), 3)].into(),
            policy,
            routes,
            ..resolved(7, &[1])
        };
        let plan = plan(&named(&[("default/a", pod)]));
        let refused: Vec<String> = plan.refused.values().map(ToString::to_string).collect();
        assert_eq!(refused, reasons, "{name}");
        let is_loaded = !plan.state.routes.is_empty();
        assert_eq!(
            is_loaded,
            reasons.is_empty() && !excluded.is_empty(),
            "{name}"
        );
    }
}

#[test]
fn a_full_node_refuses_the_rest() {
    let full = MAX_PODS as usize;
    let pods: BTreeMap<PodName, ResolvedPod> = (0..full + 2)
        .map(|index| {
            let cookie = u64::try_from(index).expect("few") + 1;
            (
                PodName::parse(&format!("default/p{index:05}")).expect("a name"),
                resolved(cookie, &[]),
            )
        })
        .collect();
    let plan = plan(&pods);

    assert_eq!(plan.state.pods.len(), full);
    let refused: Vec<String> = plan.refused.values().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        ["the node has no room for it: with its 1 there were 1025, and at most 1024 pods fit"; 2]
    );
    assert!(plan.state.ports.len() <= MAX_PLANNED_PORT_RULES);
}

fn named(pods: &[(&str, ResolvedPod)]) -> BTreeMap<PodName, ResolvedPod> {
    let name = |name: &str| PodName::parse(name).expect("a name");
    pods.iter()
        .map(|(pod, resolved)| (name(pod), resolved.clone()))
        .collect()
}

fn resolved(netns_cookie: u64, hosts: &[u8]) -> ResolvedPod {
    let addr = |host: &u8| IpAddr::from([198, 18, 0, *host]);
    ResolvedPod {
        interfaces: BTreeMap::new(),
        routes: Routes::new(),
        addrs: hosts.iter().map(addr).collect(),
        netns_cookie,
        sources: Sources::default(),
        policy: policy(),
        proxy_gid: 1337,
        proxy_uid: 1337,
    }
}

fn policy() -> TrafficPolicy {
    TrafficPolicy {
        exclude_interfaces: BTreeSet::new(),
        virtual_interfaces: BTreeSet::new(),
        dns: DnsCapture::Unspecified,
        exclude_outbound_ports: [15020].into(),
        exclude_outbound_ranges: BTreeSet::new(),
        include_outbound_ports: BTreeSet::new(),
        include_outbound_ranges: RangeCapture::All,
        has_loopback_range: false,
        inbound_ports: PortCapture::AllBut([15020, 15021, 15090].into()),
        ipv6: Ipv6Capture::WithAddress,
        app_acceleration: AppAcceleration::Off,
        interception: Interception::Redirect,
        owner_groups: GroupCapture::default(),
        direct_loopback: LoopbackRange::default(),
    }
}

fn routes(routes: &[(&str, &[u32])]) -> Routes {
    let route = |(range, interfaces): &(&str, &[u32])| {
        let range = IpRange::parse(range).expect(range);
        (range, interfaces.iter().copied().collect())
    };
    routes.iter().map(route).collect()
}

fn ranges(ranges: &[&str]) -> BTreeSet<IpRange> {
    ranges
        .iter()
        .map(|range| IpRange::parse(range).expect(range))
        .collect()
}

#[test]
fn dns_is_left_alone_taken_from_its_servers_or_taken_whole() {
    let of = |dns| {
        let policy = TrafficPolicy {
            dns,
            ..resolved(7, &[]).policy
        };
        let pod = ResolvedPod {
            policy,
            ..resolved(7, &[])
        };
        let state = plan(&named(&[("default/a", pod)])).state;
        let excluded = PortKey::new(7, RuleList::EXCLUDE_OUTBOUND, DNS_PORT);
        let flags = state.pods[&7].flags;
        let [is_on, is_all] = [PodFlags::DNS, PodFlags::DNS_ALL].map(|flag| flags.has(flag));
        (state.ports.contains(&excluded), is_on, is_all, state.cidrs)
    };
    let server: IpAddr = "10.96.0.10".parse().expect("an address");
    let key = CidrKey::v4(7, RuleList::DNS_SERVERS, [10, 96, 0, 10], 32);
    assert_eq!(
        of(DnsCapture::Unspecified),
        (true, false, false, BTreeSet::new())
    );
    assert_eq!(of(DnsCapture::Off), (false, false, false, BTreeSet::new()));
    assert_eq!(
        of(DnsCapture::Resolvers([server].into())),
        (false, true, false, [key].into())
    );
    assert_eq!(of(DnsCapture::All), (false, true, true, BTreeSet::new()));
}

#[test]
fn a_sidecar_that_dials_for_its_clients_is_told_to_the_programs() {
    for interception in [Interception::Redirect, Interception::Tproxy] {
        let pod = ResolvedPod {
            policy: TrafficPolicy {
                interception,
                ..policy()
            },
            ..resolved(7, &[])
        };
        let flags = plan(&named(&[("default/a", pod)])).state.pods[&7].flags;
        let is_tproxy = interception == Interception::Tproxy;
        assert_eq!(flags.has(PodFlags::TPROXY), is_tproxy, "{interception:?}");
    }
}
