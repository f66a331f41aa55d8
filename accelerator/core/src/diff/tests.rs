//! Every order of operations against the redirect decision that the kernel runs.

use std::collections::BTreeMap;

use isthmus_accel_abi::{
    Arrival, Dial, DnsVerdict, InboundVerdict, Redirect, Verdict, decide, decide_datagram,
    decide_inbound, v4_mapped,
};
use proptest::{collection::btree_set, prelude::*};

use super::*;

const APP: u32 = 1000;
const PODS: [u64; 3] = [1, 2, 3];
const GROUPS: [u32; 2] = [APP, 2000];
const PORTS: [u16; 4] = [53, 80, 443, 9300];
const PROXY: u32 = 1337;

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
                "+pod 1",
                "+netns 1",
            ],
        },
        Case {
            name: "it goes",
            loaded: steered(policy(&[])),
            desired: State::default(),
            ops: &["-netns 1", "-pod 1", "-addr 1", "-interface 5"],
        },
        Case {
            name: "nothing is to be steered any more, and the interface is no longer excluded",
            loaded: steered(policy(&[(include, 80)])),
            desired: policy(&[]),
            ops: &["-netns 1", "-include_outbound 80", "-interface 5"],
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

proptest! {
    #[test]
    fn reaches_the_desired_state_and_stays_there(loaded in any_state(), desired in any_state()) {
        let mut state = loaded.clone();
        for op in diff(&desired, &loaded) {
            let before = state.clone();
            state.apply(&op);
            prop_assert_ne!(&state, &before, "an operation without effect: {:?}", op);
        }
        prop_assert_eq!(&state, &desired);
        prop_assert_eq!(diff(&desired, &state), []);
    }

    #[test]
    fn never_shows_a_pod_without_its_rules(loaded in any_state(), desired in any_state()) {
        let mut state = loaded.clone();
        for op in diff(&desired, &loaded) {
            state.apply(&op);
            for cookie in PODS.iter().filter(|cookie| !loaded.pods.contains_key(cookie)) {
                if state.pods.contains_key(cookie) {
                    let unlinked = State { steered: BTreeSet::new(), ..of_pod(&desired, *cookie) };
                    let current = State { steered: BTreeSet::new(), ..of_pod(&state, *cookie) };
                    prop_assert_eq!(current, unlinked);
                }
            }
            for cookie in PODS.iter().filter(|cookie| !desired.pods.contains_key(cookie)) {
                if state.pods.contains_key(cookie) {
                    let unlinked = State { steered: BTreeSet::new(), ..of_pod(&loaded, *cookie) };
                    let current = State { steered: BTreeSet::new(), ..of_pod(&state, *cookie) };
                    prop_assert_eq!(current, unlinked);
                }
            }
        }
    }

    // What the caller's policy and the policy of the pod it dials say: each may be old or new.
    #[test]
    fn captures_only_what_an_old_or_new_policy_says(
        loaded in any_state(), desired in any_state(), dials in prop::collection::vec(any_dial(), 32),
    ) {
        let mut state = loaded.clone();
        for op in diff(&desired, &loaded) {
            state.apply(&op);
            for dial in &dials {
                let Some(redirect) = redirect(dial, &state) else { continue };
                let allowed = [&loaded, &desired].into_iter().flat_map(|caller| {
                    [&loaded, &desired].map(|target| mixed(dial.netns_cookie, caller, target))
                });
                let is_allowed = allowed.into_iter().any(|state| self::redirect(dial, &state) == Some(redirect));
                prop_assert!(is_allowed, "after {}: {:?} goes to {:?}", render_op(&op), dial, redirect);
            }
        }
    }

    // What arrives is steered by the old policy or by the new one.
    #[test]
    fn steers_only_what_an_old_or_new_policy_says(
        loaded in any_state(), desired in any_state(), arrivals in prop::collection::vec(any_arrival(), 32),
    ) {
        let mut state = loaded.clone();
        for op in diff(&desired, &loaded) {
            state.apply(&op);
            for arrival in &arrivals {
                let is_allowed = is_steered(arrival, &loaded) || is_steered(arrival, &desired);
                prop_assert!(
                    is_allowed || !is_steered(arrival, &state),
                    "after {}: {:?}", render_op(&op), arrival,
                );
            }
        }
    }

    // As below, for what arrives: a pod that stays has no moment in which plaintext passes its proxy.
    #[test]
    fn steers_what_both_policies_say(
        loaded in any_state(), rules in any_state(), arrivals in prop::collection::vec(any_arrival(), 32),
    ) {
        let desired = State { addrs: loaded.addrs.clone(), pods: loaded.pods.clone(), ..rules };
        let mut state = loaded.clone();
        for op in diff(&desired, &loaded) {
            state.apply(&op);
            for arrival in &arrivals {
                if is_steered(arrival, &loaded) && is_steered(arrival, &desired) {
                    prop_assert!(
                        is_steered(arrival, &state), "after {}: {:?}", render_op(&op), arrival,
                    );
                }
            }
        }
    }

    // A pod whose addresses and owner stay is never left alone where both policies capture.
    #[test]
    fn captures_what_both_policies_say(
        loaded in any_state(), rules in any_state(), dials in prop::collection::vec(any_dial(), 32),
    ) {
        let desired = State { addrs: loaded.addrs.clone(), pods: loaded.pods.clone(), ..rules };
        let mut state = loaded.clone();
        for op in diff(&desired, &loaded) {
            state.apply(&op);
            for dial in dials.iter().filter(|dial| dial.uid == APP) {
                let (old, new) = (redirect(dial, &loaded), redirect(dial, &desired));
                if old.is_some() && new.is_some() {
                    let now = redirect(dial, &state);
                    prop_assert!(now == old || now == new, "after {}: {:?}", render_op(&op), dial);
                }
            }
        }
    }

    // Datagrams depend on the sender's pod alone.
    #[test]
    fn takes_a_query_only_if_an_old_or_new_policy_does(
        loaded in any_state(), desired in any_state(), dials in prop::collection::vec(any_dial(), 32),
    ) {
        let mut state = loaded.clone();
        for op in diff(&desired, &loaded) {
            state.apply(&op);
            for dial in &dials {
                let is_taken = |state: &State| decide_datagram(dial, state) == DnsVerdict::ToAgent;
                let (old, new, now) = (is_taken(&loaded), is_taken(&desired), is_taken(&state));
                prop_assert!(!now || old || new, "after {}: {:?}", render_op(&op), dial);
                let stays = loaded.pods.get(&dial.netns_cookie) == desired.pods.get(&dial.netns_cookie)
                    && loaded.addrs == desired.addrs;
                prop_assert!(now || !(old && new && stays), "after {}: {:?}", render_op(&op), dial);
            }
        }
    }
}

fn is_steered(arrival: &Arrival, state: &State) -> bool {
    state.steered.contains(&arrival.netns_cookie)
        && decide_inbound(arrival, state) == InboundVerdict::Steer
}

fn redirect(dial: &Dial, state: &State) -> Option<Redirect> {
    match decide(dial, state) {
        Verdict::Redirect(redirect) => Some(redirect),
        Verdict::Pass(_) | Verdict::Follow => None,
    }
}

// The pod `cookie` as in one state, everybody else as in another.
fn mixed(cookie: u64, own: &State, others: &State) -> State {
    let pick = |is_own: bool| if is_own { own } else { others };
    let mut state = State::default();
    for is_own in [true, false] {
        let belongs = |owner: u64| (owner == cookie) == is_own;
        let from = pick(is_own);
        state
            .pods
            .extend(from.pods.iter().filter(|(owner, _)| belongs(**owner)));
        state
            .addrs
            .extend(from.addrs.iter().filter(|(_, owner)| belongs(**owner)));
        state
            .ports
            .extend(from.ports.iter().filter(|key| belongs(key.netns_cookie())));
        state
            .cidrs
            .extend(from.cidrs.iter().filter(|key| belongs(key.netns_cookie())));
        state
            .groups
            .extend(from.groups.iter().filter(|key| belongs(key.netns_cookie)));
        let interfaces = from.interfaces.iter();
        state
            .interfaces
            .extend(interfaces.filter(|key| belongs(key.netns_cookie())));
        state
            .steered
            .extend(from.steered.iter().filter(|owner| belongs(**owner)));
    }
    state
}

// Everything of one pod, its addresses included.
fn of_pod(state: &State, cookie: u64) -> State {
    mixed(cookie, state, &State::default())
}

fn any_state() -> impl Strategy<Value = State> {
    let list = prop::sample::select(vec![
        RuleList::EXCLUDE_OUTBOUND,
        RuleList::INCLUDE_OUTBOUND,
        RuleList::EXCLUDE_INBOUND,
        RuleList::INCLUDE_INBOUND,
        RuleList::DNS_SERVERS,
    ]);
    let cookie = || prop::sample::select(PODS.to_vec());
    let port = (cookie(), list.clone(), prop::sample::select(PORTS.to_vec()))
        .prop_map(|(cookie, list, port)| PortKey::new(cookie, list, port.to_be_bytes()));
    let outbound = [RuleList::EXCLUDE_OUTBOUND, RuleList::INCLUDE_OUTBOUND].to_vec();
    let group = (
        cookie(),
        prop::sample::select(outbound),
        prop::sample::select(GROUPS.to_vec()),
    );
    let group = group.prop_map(|(netns_cookie, list, gid)| GroupKey {
        netns_cookie,
        list,
        gid,
    });
    let cidr = (cookie(), list, 0..8_u8, 28..=32_u8)
        .prop_map(|(cookie, list, host, bits)| CidrKey::v4(cookie, list, [198, 18, 0, host], bits));
    let flags = prop::sample::subsequence(
        vec![
            PodFlags::OUTBOUND_ALL,
            PodFlags::INBOUND_ALL,
            PodFlags::LOOPBACK_IN_RANGES,
            PodFlags::EXCLUDES_GROUPS,
            PodFlags::ONLY_GROUPS,
            PodFlags::DNS,
            PodFlags::DNS_ALL,
            PodFlags::INTERFACES_EXCLUDED,
        ],
        0..=8,
    );
    let config = (prop::sample::select(vec![PROXY, APP]), flags).prop_map(|(proxy_uid, flags)| {
        let flags = flags.into_iter().fold(PodFlags::NONE, PodFlags::with);
        PodConfig {
            proxy_uid,
            flags,
            ..PodConfig::istio_default()
        }
    });
    let pods = prop::collection::btree_map(cookie(), config, 0..=3);
    let addrs = prop::collection::btree_map(0..8_u8, cookie(), 0..=5);
    let interface =
        (cookie(), 5..7_u32).prop_map(|(cookie, ifindex)| InterfaceKey::new(cookie, ifindex));
    let steered = prop::sample::subsequence(PODS.to_vec(), 0..=3);
    let rules = (
        btree_set(port, 0..12),
        btree_set(cidr, 0..8),
        btree_set(group, 0..8),
        btree_set(interface, 0..3),
    );
    (pods, addrs, rules, steered).prop_map(
        |(pods, addrs, (ports, cidrs, groups, interfaces), steered)| State {
            addrs: addrs
                .into_iter()
                .map(|(host, owner)| (addr(host), owner))
                .collect(),
            cidrs,
            groups,
            interfaces,
            pods,
            ports,
            steered: steered.into_iter().collect(),
        },
    )
}

fn any_arrival() -> impl Strategy<Value = Arrival> {
    let netns = prop::sample::select(PODS.to_vec());
    let port = prop::sample::select(PORTS.to_vec());
    (netns, 0..8_u8, port, 5..8_u32).prop_map(|(netns_cookie, host, port, ingress_ifindex)| {
        Arrival {
            netns_cookie,
            local: addr(host),
            port: port.to_be_bytes(),
            remote: v4_mapped([198, 19, 0, 1]),
            ingress_ifindex,
        }
    })
}

fn any_dial() -> impl Strategy<Value = Dial> {
    let uid = prop::sample::select(vec![APP, PROXY]);
    let port = prop::sample::select(PORTS.to_vec());
    let netns = prop::sample::select(PODS.to_vec());
    let gid = prop::sample::select(GROUPS.to_vec());
    (netns, uid, gid, 0..9_u8, port).prop_map(|(netns_cookie, uid, gid, host, port)| Dial {
        netns_cookie,
        uid,
        gid,
        source: v4_mapped([0; 4]),
        // The last one is loopback, but not the address that is always left alone.
        destination: if host == 8 {
            v4_mapped([127, 0, 0, 2])
        } else {
            addr(host)
        },
        port: port.to_be_bytes(),
    })
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
        steered: BTreeSet::new(),
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
        MapOp::AttachNetns { netns_cookie } => format!("+netns {netns_cookie}"),
        MapOp::DetachNetns { netns_cookie } => format!("-netns {netns_cookie}"),
        MapOp::PutPod { netns_cookie, .. } => format!("+pod {netns_cookie}"),
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
