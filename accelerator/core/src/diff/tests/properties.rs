//! Random states, and random connections after every single operation between them.

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

proptest! {
    #[test]
    fn reaches_the_desired_state_and_stays_there(loaded in interrupted(), desired in any_state()) {
        let mut state = loaded.clone();
        for op in diff(&desired, &loaded) {
            let before = state.clone();
            state.apply(&op);
            prop_assert_ne!(&state, &before, "an operation without effect: {:?}", op);
        }
        prop_assert_eq!(&state, &desired);
        prop_assert_eq!(diff(&desired, &state), []);
    }

    // Its link to its namespace included: what arrives is captured as long as what leaves.
    #[test]
    fn never_shows_a_pod_without_its_rules(loaded in interrupted(), desired in any_state()) {
        let is_captured = |state: &State, cookie: u64| {
            state.pods.get(&cookie).is_some_and(PodConfig::is_in_force)
        };
        let mut state = loaded.clone();
        for op in diff(&desired, &loaded) {
            state.apply(&op);
            for cookie in PODS.into_iter().filter(|cookie| is_captured(&state, *cookie)) {
                let current = of_pod(&state, cookie);
                if !is_captured(&loaded, cookie) {
                    prop_assert_eq!(&current, &of_pod(&desired, cookie), "after {}", render_op(&op));
                }
                if !is_captured(&desired, cookie) {
                    prop_assert_eq!(&current, &of_pod(&loaded, cookie), "after {}", render_op(&op));
                }
            }
        }
    }

    // What the caller's policy and the policy of the pod it dials say: each may be old or new.
    #[test]
    fn captures_only_what_an_old_or_new_policy_says(
        loaded in interrupted(), desired in any_state(), dials in prop::collection::vec(any_dial(), 32),
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
        loaded in interrupted(), desired in any_state(), arrivals in prop::collection::vec(any_arrival(), 32),
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
        let desired = State { addrs: loaded.addrs.clone(), pods: loaded.pods.clone(), routes: loaded.routes.clone(), ..rules };
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

    // A pod whose addresses and owner stay is never left alone where both policies capture, or where its old
    // and its new routes have it captured.
    #[test]
    fn captures_what_both_policies_say(
        loaded in any_state(), rules in any_state(), dials in prop::collection::vec(any_dial(), 32),
    ) {
        let other_routes = State { routes: rules.routes.clone(), ..loaded.clone() };
        let other_rules = State {
            addrs: loaded.addrs.clone(),
            pods: loaded.pods.clone(),
            routes: loaded.routes.clone(),
            ..rules
        };
        for desired in [other_rules, other_routes] {
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
                    && loaded.addrs == desired.addrs
                    && loaded.routes == desired.routes;
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
        let routes = from.routes.iter();
        state
            .routes
            .extend(routes.filter(|(key, _)| belongs(key.netns_cookie())));
        let interfaces = from.interfaces.iter();
        state
            .interfaces
            .extend(interfaces.filter(|key| belongs(key.netns_cookie())));
        for (into, all) in [
            (&mut state.virtual_interfaces, &from.virtual_interfaces),
            (&mut state.virtual_links, &from.virtual_links),
        ] {
            into.extend(all.iter().filter(|key| belongs(key.netns_cookie())));
        }
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
            PodFlags::TPROXY,
            PodFlags::VIRTUAL_INTERFACES,
        ],
        0..=9,
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
    let interface = (cookie(), prop::sample::select(vec![1_u32, 5, 6]))
        .prop_map(|(cookie, ifindex)| InterfaceKey::new(cookie, ifindex));
    // By the interfaces that may be excluded, among them `lo`, and by others.
    let route =
        (cookie(), 0..8_u8, 28..=32_u8, 1..8_u32).prop_map(|(cookie, host, bits, ifindex)| {
            let range = CidrKey::v4(cookie, RuleList::ROUTES, [198, 18, 0, host], bits);
            (range, ifindex)
        });
    let steered = prop::sample::subsequence(PODS.to_vec(), 0..=3);
    let rules = (
        btree_set(port, 0..12),
        btree_set(cidr, 0..8),
        btree_set(group, 0..8),
        (
            btree_set(interface.clone(), 0..3),
            btree_set(interface, 0..3),
        ),
        prop::collection::vec(route, 0..12),
    );
    (pods, addrs, rules, steered).prop_map(
        |(pods, addrs, (ports, cidrs, groups, (interfaces, virtuals), routes), steered)| State {
            addrs: addrs
                .into_iter()
                .map(|(host, owner)| (addr(host), owner))
                .collect(),
            cidrs,
            groups,
            interfaces,
            pods,
            ports,
            routes: routes.into_iter().collect(),
            virtual_links: virtuals
                .iter()
                .filter(|key| steered.contains(&key.netns_cookie()))
                .copied()
                .collect(),
            steered: steered.into_iter().collect(),
            virtual_interfaces: virtuals,
        },
    )
}

// As an agent leaves it that is killed at any moment.
fn interrupted() -> impl Strategy<Value = State> {
    let preparing = prop::sample::subsequence(PODS.to_vec(), 0..=3);
    (any_state(), preparing).prop_map(|(mut state, preparing)| {
        for cookie in preparing {
            if let Some(config) = state.pods.get_mut(&cookie) {
                *config = config.preparing();
            }
        }
        state
    })
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
        bound_ifindex: 0,
    })
}
