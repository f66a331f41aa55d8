//! Rows of Istio's redirection rules as tables, and properties over random rules.
extern crate std;

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::{v4_mapped, v4_of};

mod families;
mod interfaces;
mod preparing;
mod tproxy;

const CLIENT: u64 = 11;
const SERVER: u64 = 22;
const CLIENT_IP: [u8; 4] = [198, 18, 0, 1];
const SERVER_IP: [u8; 4] = [198, 18, 0, 2];
const APP: u32 = 1000;
const PROXY: u32 = 1337;
const VIP: [u8; 4] = [198, 19, 0, 9];

#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) pods: BTreeMap<u64, PodConfig>,
    pub(crate) owners: BTreeMap<[u8; 16], u64>,
    pub(crate) ports: BTreeSet<PortKey>,
    pub(crate) groups: BTreeSet<GroupKey>,
    pub(crate) ranges: BTreeSet<CidrKey>,
    pub(crate) interfaces: BTreeSet<InterfaceKey>,
    pub(crate) routes: BTreeMap<CidrKey, u32>,
}

impl Rules for Table {
    fn pod(&self, netns_cookie: u64) -> Option<PodConfig> {
        self.pods.get(&netns_cookie).copied()
    }

    fn owner(&self, addr: &[u8; 16]) -> Option<u64> {
        self.owners.get(addr).copied()
    }

    fn has_port(&self, key: &PortKey) -> bool {
        self.ports.contains(key)
    }

    fn has_group(&self, key: &GroupKey) -> bool {
        self.groups.contains(key)
    }

    fn has_addr(&self, key: &CidrKey) -> bool {
        self.ranges.iter().any(|range| range.covers(key))
    }

    fn has_interface(&self, key: &InterfaceKey) -> bool {
        self.interfaces.contains(key)
    }

    fn is_virtual(&self, _: &InterfaceKey) -> bool {
        panic!("what virtual machines send is not dialled here")
    }

    fn exit(&self, key: &CidrKey) -> Option<u32> {
        // Keys are in the order of their lengths.
        let mut routes = self.routes.iter().rev();
        let (_, ifindex) = routes.find(|(range, _)| range.covers(key))?;
        Some(*ifindex)
    }
}

/// Two pods with Istio's defaults, changed by `edit`.
fn table(edit: impl FnOnce(&mut Table)) -> Table {
    let mut table = Table {
        pods: [CLIENT, SERVER]
            .map(|netns| (netns, PodConfig::istio_default()))
            .into(),
        owners: [
            (v4_mapped(CLIENT_IP), CLIENT),
            (v4_mapped(SERVER_IP), SERVER),
        ]
        .into(),
        ..Table::default()
    };
    edit(&mut table);
    table
}

fn set_flags(table: &mut Table, netns: u64, flags: PodFlags) {
    if let Some(pod) = table.pods.get_mut(&netns) {
        pod.flags = flags;
    }
}

fn port_rule(table: &mut Table, netns: u64, list: RuleList, port: u16) {
    table
        .ports
        .insert(PortKey::new(netns, list, port.to_be_bytes()));
}

fn range_rule(table: &mut Table, list: RuleList, base: [u8; 4], bits: u8) {
    table.ranges.insert(CidrKey::v4(CLIENT, list, base, bits));
}

fn dial(uid: u32, gid: u32, destination: [u8; 4], port: u16) -> Dial {
    Dial {
        netns_cookie: CLIENT,
        uid,
        gid,
        source: v4_mapped([0; 4]),
        destination: v4_mapped(destination),
        port: port.to_be_bytes(),
        bound_ifindex: 0,
    }
}

/// The decision without the source, of which `sources_are_those_of_nat` tells.
pub(crate) fn decided(dial: &Dial, rules: &Table) -> Verdict {
    match decide(dial, rules) {
        Verdict::Redirect(redirect) => Verdict::Redirect(Redirect {
            source: Source::KEPT,
            ..redirect
        }),
        other @ (Verdict::Pass(_) | Verdict::Follow) => other,
    }
}

const fn to_outbound() -> Verdict {
    Verdict::Redirect(Redirect {
        addr: LOOPBACK,
        port: 15_001_u16.to_be_bytes(),
        source: Source::KEPT,
        peer_netns: CLIENT,
        hop: Hop::APP_TO_PROXY,
    })
}

const fn to_inbound() -> Verdict {
    Verdict::Redirect(Redirect {
        addr: v4_mapped(SERVER_IP),
        port: 15_006_u16.to_be_bytes(),
        source: Source::KEPT,
        peer_netns: SERVER,
        hop: Hop::PROXY_TO_PROXY_REQUEST,
    })
}

struct Case {
    name: &'static str,
    rules: Table,
    dial: Dial,
    verdict: Verdict,
}

fn check(cases: Vec<Case>) {
    for Case {
        name,
        rules,
        dial,
        verdict,
    } in cases
    {
        assert_eq!(decided(&dial, &rules), verdict, "{name}");
    }
}

#[test]
fn application_dials_follow_the_outbound_rules() {
    check(Vec::from([
        Case {
            name: "defaults: everything outbound is captured",
            rules: table(|_| ()),
            dial: dial(APP, APP, VIP, 80),
            verdict: to_outbound(),
        },
        Case {
            name: "a namespace that is no pod is left alone",
            rules: table(|t| {
                t.pods.remove(&CLIENT);
            }),
            dial: dial(APP, APP, VIP, 80),
            verdict: Verdict::Pass(PassCause::NotInPod),
        },
        Case {
            name: "O1: an excluded port goes to the real peer",
            rules: table(|t| port_rule(t, CLIENT, RuleList::EXCLUDE_OUTBOUND, 3306)),
            dial: dial(APP, APP, VIP, 3306),
            verdict: Verdict::Pass(PassCause::PortExcluded),
        },
        Case {
            name: "O1 comes before everything, for the proxy too",
            rules: table(|t| port_rule(t, CLIENT, RuleList::EXCLUDE_OUTBOUND, 3306)),
            dial: dial(PROXY, PROXY, SERVER_IP, 3306),
            verdict: Verdict::Pass(PassCause::PortExcluded),
        },
        Case {
            name: "O1 of another pod does not count",
            rules: table(|t| port_rule(t, SERVER, RuleList::EXCLUDE_OUTBOUND, 3306)),
            dial: dial(APP, APP, VIP, 3306),
            verdict: to_outbound(),
        },
        Case {
            name: "O4: the pod's own address is direct",
            rules: table(|_| ()),
            dial: dial(APP, APP, CLIENT_IP, 8080),
            verdict: Verdict::Pass(PassCause::OwnAddress),
        },
        Case {
            name: "O4: all of 127/8 is direct",
            rules: table(|_| ()),
            dial: dial(APP, APP, [127, 7, 7, 7], 8080),
            verdict: Verdict::Pass(PassCause::OwnAddress),
        },
        Case {
            name: "O10: without O4, 127.0.0.1 is direct",
            rules: table(|t| {
                set_flags(
                    t,
                    CLIENT,
                    PodFlags::OUTBOUND_ALL.with(PodFlags::LOOPBACK_IN_RANGES),
                );
            }),
            dial: dial(APP, APP, [127, 0, 0, 1], 8080),
            verdict: Verdict::Pass(PassCause::Loopback),
        },
        Case {
            name: "O10: without O4, 127.0.0.2 is captured",
            rules: table(|t| {
                set_flags(t, CLIENT, PodFlags::LOOPBACK_IN_RANGES);
                range_rule(t, RuleList::INCLUDE_OUTBOUND, [127, 0, 0, 0], 8);
            }),
            dial: dial(APP, APP, [127, 0, 0, 2], 8080),
            verdict: to_outbound(),
        },
    ]));
}

#[test]
fn application_dials_follow_the_address_rules() {
    let listed = PodFlags::INBOUND_ALL;
    check(Vec::from([
        Case {
            name: "O11: an excluded range is direct",
            rules: table(|t| range_rule(t, RuleList::EXCLUDE_OUTBOUND, [169, 254, 169, 254], 32)),
            dial: dial(APP, APP, [169, 254, 169, 254], 80),
            verdict: Verdict::Pass(PassCause::AddressExcluded),
        },
        Case {
            name: "O11 beats O12",
            rules: table(|t| {
                range_rule(t, RuleList::EXCLUDE_OUTBOUND, [198, 19, 0, 0], 16);
                port_rule(t, CLIENT, RuleList::INCLUDE_OUTBOUND, 9300);
            }),
            dial: dial(APP, APP, VIP, 9300),
            verdict: Verdict::Pass(PassCause::AddressExcluded),
        },
        Case {
            name: "O12: a listed port is captured whatever the address",
            rules: table(|t| {
                set_flags(t, CLIENT, listed);
                port_rule(t, CLIENT, RuleList::INCLUDE_OUTBOUND, 9300);
                range_rule(t, RuleList::INCLUDE_OUTBOUND, [198, 18, 0, 0], 16);
            }),
            dial: dial(APP, APP, [1, 2, 3, 4], 9300),
            verdict: to_outbound(),
        },
        Case {
            name: "O13: an address outside the listed ranges is direct",
            rules: table(|t| {
                set_flags(t, CLIENT, listed);
                port_rule(t, CLIENT, RuleList::INCLUDE_OUTBOUND, 9300);
                range_rule(t, RuleList::INCLUDE_OUTBOUND, [198, 18, 0, 0], 16);
            }),
            dial: dial(APP, APP, [1, 2, 3, 4], 80),
            verdict: Verdict::Pass(PassCause::NotIncluded),
        },
        Case {
            name: "O13: an address inside the listed ranges is captured",
            rules: table(|t| {
                set_flags(t, CLIENT, listed);
                range_rule(t, RuleList::INCLUDE_OUTBOUND, [198, 19, 0, 0], 16);
            }),
            dial: dial(APP, APP, VIP, 80),
            verdict: to_outbound(),
        },
        Case {
            name: "O13: an empty list captures nothing",
            rules: table(|t| set_flags(t, CLIENT, listed)),
            dial: dial(APP, APP, VIP, 80),
            verdict: Verdict::Pass(PassCause::NotIncluded),
        },
    ]));
}

#[test]
fn the_proxy_is_exempt_by_user_and_by_group() {
    let outside = [203, 0, 113, 5];
    check(Vec::from([
        Case {
            name: "O5: the proxy's user leaves",
            rules: table(|_| ()),
            dial: dial(PROXY, 0, outside, 443),
            verdict: Verdict::Pass(PassCause::CallerIsProxy),
        },
        Case {
            name: "O8: the proxy's group leaves",
            rules: table(|_| ()),
            dial: dial(0, PROXY, outside, 443),
            verdict: Verdict::Pass(PassCause::CallerIsProxy),
        },
        Case {
            name: "user and group come from the pod, not from Istio's default",
            rules: table(|t| {
                if let Some(pod) = t.pods.get_mut(&CLIENT) {
                    (pod.proxy_uid, pod.proxy_gid) = (2000, 3000);
                }
            }),
            dial: dial(PROXY, PROXY, outside, 443),
            verdict: to_outbound(),
        },
        Case {
            name: "O2: Envoy's dial to the application, from 127.0.0.6",
            rules: table(|_| ()),
            dial: Dial {
                source: ENVOY_INBOUND_SOURCE,
                ..dial(PROXY, PROXY, CLIENT_IP, 8080)
            },
            verdict: Verdict::Follow,
        },
        Case {
            name: "Envoy's dial to the application on 127.0.0.1",
            rules: table(|_| ()),
            dial: dial(PROXY, PROXY, [127, 0, 0, 1], 8080),
            verdict: Verdict::Follow,
        },
    ]));
}

#[test]
fn proxies_reach_each_other_by_the_inbound_rules_of_the_target() {
    type Row = (&'static str, fn(&mut Table), u16, Verdict);
    let rows: [Row; 9] = [
        (
            "I5: everything else is captured",
            |_| (),
            8080,
            to_inbound(),
        ),
        (
            "I3: HBONE is never captured",
            |_| (),
            15_008,
            Verdict::Pass(PassCause::NotCapturedInbound),
        ),
        (
            "I4: an excluded port is not captured",
            |t| port_rule(t, SERVER, RuleList::EXCLUDE_INBOUND, 9090),
            9090,
            Verdict::Pass(PassCause::NotCapturedInbound),
        ),
        (
            "I1: where an interface is excluded, the arrival decides",
            |t| {
                let flags = PodConfig::istio_default().flags;
                set_flags(t, SERVER, flags.with(PodFlags::INTERFACES_EXCLUDED));
            },
            8080,
            Verdict::Pass(PassCause::NotCapturedInbound),
        ),
        (
            "I6: a listed port is captured",
            |t| {
                set_flags(t, SERVER, PodFlags::OUTBOUND_ALL);
                port_rule(t, SERVER, RuleList::INCLUDE_INBOUND, 8080);
            },
            8080,
            to_inbound(),
        ),
        (
            "I6: a port that is not listed is not captured",
            |t| {
                set_flags(t, SERVER, PodFlags::OUTBOUND_ALL);
                port_rule(t, SERVER, RuleList::INCLUDE_INBOUND, 8080);
            },
            9090,
            Verdict::Pass(PassCause::NotCapturedInbound),
        ),
        (
            "I6: with a list, the exclude list is ignored",
            |t| {
                set_flags(t, SERVER, PodFlags::OUTBOUND_ALL);
                port_rule(t, SERVER, RuleList::INCLUDE_INBOUND, 8080);
                port_rule(t, SERVER, RuleList::EXCLUDE_INBOUND, 8080);
            },
            8080,
            to_inbound(),
        ),
        (
            "I7: an empty list captures nothing",
            |t| set_flags(t, SERVER, PodFlags::OUTBOUND_ALL),
            8080,
            Verdict::Pass(PassCause::NotCapturedInbound),
        ),
        (
            "what goes to the inbound port already stays as it is, whichever port that is",
            |t| {
                if let Some(pod) = t.pods.get_mut(&SERVER) {
                    pod.inbound_port = 15_106_u16.to_be_bytes();
                }
            },
            15_106,
            Verdict::Pass(PassCause::NotCapturedInbound),
        ),
    ];
    for (name, edit, port, verdict) in rows {
        let rules = table(edit);
        assert_eq!(
            decided(&dial(PROXY, PROXY, SERVER_IP, port), &rules),
            verdict,
            "{name}"
        );
    }
}

/// The outbound rules once more, in the order and words of iptables' chain, as an oracle.
fn chain(dial: &Dial, rules: &Table) -> bool {
    let pod = &rules.pods[&CLIENT];
    let on_lo = rules.owners.get(&dial.destination) == Some(&CLIENT)
        || v4_of(dial.destination).is_some_and(|octets| octets[0] == 127);
    let port = |list| rules.ports.contains(&PortKey::new(CLIENT, list, dial.port));
    let range = |list| rules.has_addr(&CidrKey::lookup(CLIENT, list, dial.destination));

    let steps = [
        (port(RuleList::EXCLUDE_OUTBOUND), false),
        (
            on_lo && dial.uid != pod.proxy_uid && !pod.flags.has(PodFlags::LOOPBACK_IN_RANGES),
            false,
        ),
        (dial.uid == pod.proxy_uid, false),
        (dial.gid == pod.proxy_gid, false),
        (dial.destination == LOOPBACK, false),
        (range(RuleList::EXCLUDE_OUTBOUND), false),
        (port(RuleList::INCLUDE_OUTBOUND), true),
        (range(RuleList::INCLUDE_OUTBOUND), true),
        (pod.flags.has(PodFlags::OUTBOUND_ALL), true),
    ];
    steps
        .iter()
        .find_map(|(matches, is_captured)| matches.then_some(*is_captured))
        .unwrap_or(false)
}

fn few_addresses() -> impl Strategy<Value = [u8; 4]> {
    prop_oneof![
        Just(CLIENT_IP),
        Just(SERVER_IP),
        Just([127, 0, 0, 1]),
        Just([127, 0, 0, 2]),
        Just(VIP),
        any::<[u8; 4]>(),
    ]
}

proptest! {
    #[test]
    fn agrees_with_the_chain_of_iptables(
        uid in prop_oneof![Just(APP), Just(PROXY)],
        gid in prop_oneof![Just(APP), Just(PROXY)],
        destination in few_addresses(),
        port in 1_u16..5,
        port_rules in prop::collection::vec((prop_oneof![
            Just(RuleList::EXCLUDE_OUTBOUND), Just(RuleList::INCLUDE_OUTBOUND)], 1_u16..5), 0..4),
        range_rules in prop::collection::vec((prop_oneof![
            Just(RuleList::EXCLUDE_OUTBOUND), Just(RuleList::INCLUDE_OUTBOUND)],
            few_addresses(), 0_u8..=32), 0..4),
        has_all in any::<bool>(),
        has_loopback in any::<bool>(),
    ) {
        let rules = table(|t| {
            let mut flags = PodFlags::INBOUND_ALL;
            if has_all {
                flags = flags.with(PodFlags::OUTBOUND_ALL);
            }
            if has_loopback {
                flags = flags.with(PodFlags::LOOPBACK_IN_RANGES);
            }
            set_flags(t, CLIENT, flags);
            for (list, port) in port_rules {
                port_rule(t, CLIENT, list, port);
            }
            for (list, base, bits) in range_rules {
                range_rule(t, list, base, bits);
            }
        });
        let dial = dial(uid, gid, destination, port);
        let is_to_outbound = decided(&dial, &rules) == to_outbound();
        prop_assert_eq!(is_to_outbound, chain(&dial, &rules));
    }
}
