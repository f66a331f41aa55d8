//! Orders of operations as a table; random ones are in `properties`.

use std::collections::BTreeMap;

use isthmus_accel_abi::v4_mapped;

use super::*;

mod properties;

const RELINKED: &[&str] = &[
    "-pod 1",
    "-netns 1",
    "+pod 1, preparing",
    "+netns 1",
    "+pod 1",
];

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn orders_operations() {
    struct Case {
        name: &'static str,
        loaded: State,
        desired: State,
        ops: &'static [&'static str],
    }
    let policy = |rules: &[(RuleList, u16)]| pod(1, PodConfig::istio_default(), rules, &[1]);
    let none = PodConfig {
        flags: PodFlags::NONE,
        ..PodConfig::istio_default()
    };
    let other_owner = PodConfig {
        proxy_uid: 2000,
        ..PodConfig::istio_default()
    };
    let with_dns = PodConfig {
        flags: PodConfig::istio_default().flags.with(PodFlags::DNS),
        ..PodConfig::istio_default()
    };
    let tproxy = PodConfig {
        flags: PodConfig::istio_default().flags.with(PodFlags::TPROXY),
        ..PodConfig::istio_default()
    };
    let (exclude, include) = (RuleList::EXCLUDE_OUTBOUND, RuleList::INCLUDE_OUTBOUND);
    let cases = [
        Case {
            name: "nothing to do",
            loaded: policy(&[]),
            desired: policy(&[]),
            ops: &[],
        },
        Case {
            name: "a pod appears",
            loaded: State::default(),
            desired: policy(&[(include, 80), (exclude, 443)]),
            ops: &[
                "+addr 1",
                "+exclude_outbound 443",
                "+include_outbound 80",
                "+pod 1",
            ],
        },
        Case {
            name: "a pod goes",
            loaded: policy(&[(include, 80), (exclude, 443)]),
            desired: State::default(),
            ops: &[
                "-pod 1",
                "-addr 1",
                "-exclude_outbound 443",
                "-include_outbound 80",
            ],
        },
        Case {
            name: "a policy changes",
            loaded: policy(&[(include, 80), (exclude, 443)]),
            desired: policy(&[(include, 9300), (exclude, 80)]),
            ops: &[
                "+exclude_outbound 80",
                "+include_outbound 9300",
                "-include_outbound 80",
                "-exclude_outbound 443",
            ],
        },
        Case {
            name: "everything becomes a list",
            loaded: policy(&[]),
            desired: pod(1, none, &[(include, 80)], &[1]),
            ops: &["+include_outbound 80", "+pod 1"],
        },
        Case {
            name: "the sidecar has another owner",
            loaded: policy(&[]),
            desired: pod(1, other_owner, &[(include, 80)], &[1]),
            ops: &["-pod 1", "+include_outbound 80", "+pod 1"],
        },
        Case {
            name: "the agent answers DNS from here on",
            loaded: policy(&[]),
            desired: pod(1, with_dns, &[(include, 80)], &[1]),
            ops: &["-pod 1", "+include_outbound 80", "+pod 1"],
        },
        Case {
            name: "another address",
            loaded: policy(&[]),
            desired: pod(1, PodConfig::istio_default(), &[], &[2]),
            ops: &["+addr 2", "-addr 1"],
        },
        Case {
            name: "another address and another policy",
            loaded: policy(&[(include, 80)]),
            desired: pod(1, PodConfig::istio_default(), &[], &[2]),
            ops: &[
                "-pod 1",
                "-addr 1",
                "-include_outbound 80",
                "+addr 2",
                "+pod 1",
            ],
        },
        Case {
            name: "an address goes from a pod that goes to one that comes",
            loaded: policy(&[]),
            desired: pod(2, PodConfig::istio_default(), &[], &[1]),
            ops: &["-pod 1", "+addr 1", "+pod 2"],
        },
        Case {
            name: "a pod whose arriving connections are steered appears",
            loaded: State::default(),
            desired: steered(policy(&[(RuleList::EXCLUDE_INBOUND, 443)])),
            ops: &[
                "+addr 1",
                "+exclude_inbound 443",
                "+interface 5",
                "+pod 1, preparing",
                "+netns 1",
                "+pod 1",
            ],
        },
        Case {
            name: "it goes",
            loaded: steered(policy(&[])),
            desired: State::default(),
            ops: &["-pod 1", "-netns 1", "-addr 1", "-interface 5"],
        },
        Case {
            name: "a pod that an agent was killed over appears",
            loaded: preparing(policy(&[])),
            desired: steered(policy(&[])),
            ops: &[
                "-pod 1",
                "+interface 5",
                "+pod 1, preparing",
                "+netns 1",
                "+pod 1",
            ],
        },
        Case {
            name: "or was after it had linked it",
            loaded: preparing(steered(policy(&[]))),
            desired: steered(policy(&[])),
            ops: &["-pod 1", "+pod 1"],
        },
        Case {
            name: "the sidecar dials for its clients from here on: what is linked changes",
            loaded: steered(policy(&[])),
            desired: steered(pod(1, tproxy, &[], &[1])),
            ops: RELINKED,
        },
        Case {
            name: "and no longer",
            loaded: steered(pod(1, tproxy, &[], &[1])),
            desired: steered(policy(&[])),
            ops: RELINKED,
        },
        Case {
            name: "it does, and an agent was killed over that",
            loaded: preparing(steered(pod(1, tproxy, &[], &[1]))),
            desired: steered(pod(1, tproxy, &[], &[1])),
            ops: RELINKED,
        },
        Case {
            name: "nothing says what a link without a pod was for",
            loaded: State {
                pods: BTreeMap::new(),
                ..steered(policy(&[]))
            },
            desired: steered(policy(&[])),
            ops: &RELINKED[1..],
        },
        Case {
            name: "a pod asks for what arrives, from here on",
            loaded: policy(&[]),
            desired: State {
                steered: [1].into(),
                ..policy(&[])
            },
            ops: &["+netns 1"],
        },
        Case {
            name: "nothing is to be steered any more, and the interface is no longer excluded",
            loaded: steered(policy(&[(include, 80)])),
            desired: policy(&[]),
            ops: &["-netns 1", "-include_outbound 80", "-interface 5"],
        },
        Case {
            name: "routes change: the smallest ranges come first and go last",
            loaded: routed(&[(0, 24, 5), (0, 29, 6), (4, 30, 5)]),
            desired: routed(&[(0, 24, 6), (0, 28, 5), (4, 32, 6)]),
            ops: &[
                "+route 4/32 by 6",
                "+route 0/28 by 5",
                "+route 0/24 by 6",
                "-route 0/29",
                "-route 4/30",
            ],
        },
        Case {
            name: "routes and rules change",
            loaded: routed(&[(0, 24, 5)]),
            desired: State {
                interfaces: [InterfaceKey::new(1, 6)].into(),
                ..routed(&[(0, 24, 6)])
            },
            ops: &[
                "-pod 1",
                "-interface 5",
                "+interface 6",
                "+route 0/24 by 6",
                "+pod 1",
            ],
        },
        Case {
            name: "a captured range becomes one of name servers that is excluded otherwise",
            loaded: with_ranges(&[include]),
            desired: with_ranges(&[RuleList::DNS_SERVERS, exclude]),
            ops: &[
                "+dns_servers 0/28",
                "+exclude_outbound 0/28",
                "-include_outbound 0/28",
            ],
        },
        Case {
            name: "and back",
            loaded: with_ranges(&[RuleList::DNS_SERVERS, exclude]),
            desired: with_ranges(&[include]),
            ops: &[
                "+include_outbound 0/28",
                "-exclude_outbound 0/28",
                "-dns_servers 0/28",
            ],
        },
        Case {
            name: "rules without a pod, left by an agent that was killed",
            loaded: State {
                pods: BTreeMap::new(),
                ..policy(&[(include, 80)])
            },
            desired: policy(&[(include, 443)]),
            ops: &["-include_outbound 80", "+include_outbound 443", "+pod 1"],
        },
        Case {
            name: "a pod with a virtual machine appears",
            loaded: State::default(),
            desired: with_vm(policy(&[])),
            ops: &[
                "+addr 1",
                "+interface 5",
                "+virtual interface 6",
                "+pod 1, preparing",
                "+netns 1",
                "+virtual link 6",
                "+pod 1",
            ],
        },
        Case {
            name: "and goes",
            loaded: with_vm(policy(&[])),
            desired: State::default(),
            ops: &[
                "-pod 1",
                "-virtual link 6",
                "-netns 1",
                "-addr 1",
                "-interface 5",
                "-virtual interface 6",
            ],
        },
        Case {
            name: "a virtual machine comes to a pod",
            loaded: steered(policy(&[])),
            desired: with_vm(policy(&[])),
            ops: &["+virtual interface 6", "+virtual link 6"],
        },
    ];

    for Case {
        name,
        loaded,
        desired,
        ops,
    } in cases
    {
        let computed: Vec<String> = diff(&desired, &loaded).iter().map(render_op).collect();
        assert_eq!(computed, ops, "{name}");
    }
}

fn pod(cookie: u64, config: PodConfig, rules: &[(RuleList, u16)], addrs: &[u8]) -> State {
    let key = |(list, port): &(RuleList, u16)| PortKey::new(cookie, *list, port.to_be_bytes());
    State {
        addrs: addrs.iter().map(|host| (addr(*host), cookie)).collect(),
        cidrs: BTreeSet::new(),
        groups: BTreeSet::new(),
        interfaces: BTreeSet::new(),
        pods: [(cookie, config)].into(),
        ports: rules.iter().map(key).collect(),
        routes: BTreeMap::new(),
        steered: BTreeSet::new(),
        virtual_interfaces: BTreeSet::new(),
        virtual_links: BTreeSet::new(),
    }
}

// A pod that leaves interface 5 alone: last byte and length of each range, and its interface.
fn routed(routes: &[(u8, u8, u32)]) -> State {
    let config = PodConfig {
        flags: PodFlags::OUTBOUND_ALL.with(PodFlags::INTERFACES_EXCLUDED),
        ..PodConfig::istio_default()
    };
    let route = |(host, bits, ifindex): &(u8, u8, u32)| {
        let range = CidrKey::v4(1, RuleList::ROUTES, [198, 18, 0, *host], *bits);
        (range, *ifindex)
    };
    State {
        interfaces: [InterfaceKey::new(1, 5)].into(),
        routes: routes.iter().map(route).collect(),
        ..pod(1, config, &[], &[1])
    }
}

// A pod whose DNS is captured, with the same range in each of these lists.
fn with_ranges(lists: &[RuleList]) -> State {
    let config = PodConfig {
        flags: PodFlags::DNS,
        ..PodConfig::istio_default()
    };
    let range = |list: &RuleList| CidrKey::v4(1, *list, [198, 18, 0, 0], 28);
    State {
        cidrs: lists.iter().map(range).collect(),
        ..pod(1, config, &[], &[1])
    }
}

fn steered(state: State) -> State {
    State {
        interfaces: [InterfaceKey::new(1, 5)].into(),
        steered: [1].into(),
        ..state
    }
}

// With a virtual machine behind interface 6.
fn with_vm(state: State) -> State {
    let key = InterfaceKey::new(1, 6);
    State {
        virtual_interfaces: [key].into(),
        virtual_links: [key].into(),
        ..steered(state)
    }
}

fn preparing(state: State) -> State {
    let pods = state.pods.into_iter();
    State {
        pods: pods
            .map(|(cookie, config)| (cookie, config.preparing()))
            .collect(),
        ..state
    }
}

fn addr(host: u8) -> [u8; 16] {
    v4_mapped([198, 18, 0, host])
}

fn render_op(op: &MapOp) -> String {
    match op {
        MapOp::PutPort(key) => format!("+{} {}", key.list().name(), key.port()),
        MapOp::PutCidr(key) => format!("+{} {}", key.list().name(), render_range(key)),
        MapOp::PutGroup(key) => format!("+{} group {}", key.list.name(), key.gid),
        MapOp::RemoveGroup(key) => format!("-{} group {}", key.list.name(), key.gid),
        MapOp::PutInterface(key) => format!("+interface {}", key.ifindex()),
        MapOp::RemoveInterface(key) => format!("-interface {}", key.ifindex()),
        MapOp::PutVirtualInterface(key) => format!("+virtual interface {}", key.ifindex()),
        MapOp::RemoveVirtualInterface(key) => format!("-virtual interface {}", key.ifindex()),
        MapOp::AttachVirtual(key) => format!("+virtual link {}", key.ifindex()),
        MapOp::DetachVirtual(key) => format!("-virtual link {}", key.ifindex()),
        MapOp::PutRoute { key, ifindex } => format!("+route {} by {ifindex}", render_range(key)),
        MapOp::RemoveRoute(key) => format!("-route {}", render_range(key)),
        MapOp::AttachNetns { netns_cookie } => format!("+netns {netns_cookie}"),
        MapOp::DetachNetns { netns_cookie } => format!("-netns {netns_cookie}"),
        MapOp::PutPod {
            netns_cookie,
            config,
        } => {
            let preparing = if config.is_in_force() {
                ""
            } else {
                ", preparing"
            };
            format!("+pod {netns_cookie}{preparing}")
        }
        MapOp::PutAddr { addr, .. } => format!("+addr {}", addr[15]),
        MapOp::RemoveAddr { addr } => format!("-addr {}", addr[15]),
        MapOp::RemovePod { netns_cookie } => format!("-pod {netns_cookie}"),
        MapOp::RemoveCidr(key) => format!("-{} {}", key.list().name(), render_range(key)),
        MapOp::RemovePort(key) => format!("-{} {}", key.list().name(), key.port()),
    }
}

// Last byte and length of an IPv4 range.
fn render_range(key: &CidrKey) -> String {
    format!("{}/{}", key.addr()[15], key.addr_prefix_bits() - 96)
}
