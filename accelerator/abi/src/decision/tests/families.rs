//! Both families, owner groups, and what a proxy dials of its own pod.

use super::*;

const OWN_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const SERVER_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const VIP_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// Two pods with addresses and rules of both families, changed by `edit`.
fn dual_stack(edit: impl FnOnce(&mut Table)) -> Table {
    table(|t| {
        t.owners.insert(OWN_V6, CLIENT);
        t.owners.insert(SERVER_V6, SERVER);
        for pod in t.pods.values_mut() {
            pod.flags = pod.flags.with(PodFlags::IPV6);
        }
        edit(t);
    })
}

fn without_o4(table: &mut Table) {
    let pod = table.pods.get_mut(&CLIENT).expect("the table has it");
    pod.flags = pod.flags.with(PodFlags::LOOPBACK_IN_RANGES);
}

fn dial_v6(id: u32, destination: [u8; 16], port: u16) -> Dial {
    Dial {
        source: [0; 16],
        destination,
        ..dial(id, id, [0; 4], port)
    }
}

const fn to_own(addr: [u8; 16], port: u16, hop: Hop) -> Verdict {
    Verdict::Redirect(Redirect {
        addr,
        port: port.to_be_bytes(),
        source: Source::KEPT,
        peer_netns: CLIENT,
        hop,
    })
}

const TO_OUTBOUND_V6: Verdict = to_own(LOOPBACK_V6, 15_001, Hop::APP_TO_PROXY);
const TO_OWN_INBOUND: Verdict = to_own(LOOPBACK, 15_006, Hop::PROXY_TO_PROXY_REQUEST);
const TO_OWN_INBOUND_V6: Verdict = to_own(LOOPBACK_V6, 15_006, Hop::PROXY_TO_PROXY_REQUEST);

#[test]
fn what_a_proxy_dials_of_its_own_pod_comes_in_by_the_inbound_listener() {
    type Row = (&'static str, fn(&mut Table), Dial, Verdict);
    let own = PassCause::OwnAddress;
    let rows: [Row; 13] = [
        (
            "O3: its own address",
            |_| (),
            dial(PROXY, PROXY, CLIENT_IP, 8080),
            TO_OWN_INBOUND,
        ),
        (
            "O3: by the user alone",
            |_| (),
            dial(PROXY, 0, CLIENT_IP, 8080),
            TO_OWN_INBOUND,
        ),
        (
            "O4 comes before O6",
            |_| (),
            dial(0, PROXY, CLIENT_IP, 8080),
            Verdict::Pass(own),
        ),
        (
            "O6: by the group, without O4",
            without_o4,
            dial(0, PROXY, CLIENT_IP, 8080),
            TO_OWN_INBOUND,
        ),
        (
            "O8: 127.0.0.1, without O4",
            without_o4,
            dial(0, PROXY, [127, 0, 0, 1], 8080),
            Verdict::Follow,
        ),
        (
            "X6: the validator's dial",
            |_| (),
            dial(PROXY, PROXY, [127, 0, 0, 6], 15_002),
            TO_OWN_INBOUND,
        ),
        (
            "O5: not to the tunnel",
            |_| (),
            dial(PROXY, PROXY, CLIENT_IP, 15_008),
            Verdict::Pass(PassCause::CallerIsProxy),
        ),
        (
            "O1 comes before O3",
            |t| port_rule(t, CLIENT, RuleList::EXCLUDE_OUTBOUND, 8080),
            dial(PROXY, PROXY, CLIENT_IP, 8080),
            Verdict::Pass(PassCause::PortExcluded),
        ),
        (
            "O5: not in a range that is direct",
            widen_direct_loopback,
            dial(PROXY, PROXY, [127, 0, 0, 6], 15_002),
            Verdict::Follow,
        ),
        (
            "O10: such a range, without O4",
            |t| {
                widen_direct_loopback(t);
                without_o4(t);
            },
            dial(APP, APP, [127, 0, 0, 2], 8080),
            Verdict::Pass(PassCause::Loopback),
        ),
        (
            "IPv6: its own address",
            |_| (),
            dial_v6(PROXY, OWN_V6, 8080),
            TO_OWN_INBOUND_V6,
        ),
        (
            "IPv6: the validator's dial",
            |_| (),
            Dial {
                source: LOOPBACK_V6,
                ..dial_v6(PROXY, ENVOY_INBOUND_SOURCE_V6, 15_002)
            },
            TO_OWN_INBOUND_V6,
        ),
        (
            "IPv6: not ::1",
            |_| (),
            dial_v6(PROXY, LOOPBACK_V6, 8080),
            Verdict::Follow,
        ),
    ];
    for (name, edit, dial, verdict) in rows {
        assert_eq!(decided(&dial, &dual_stack(edit)), verdict, "{name}");
    }
}

fn widen_direct_loopback(table: &mut Table) {
    let pod = table.pods.get_mut(&CLIENT).expect("the table has it");
    (pod.direct_loopback, pod.direct_loopback_mask) = ([127, 0, 0, 0], [0xff, 0, 0, 0]);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn ipv6_follows_the_same_rules_apart_from_ipv4() {
    type Row = (&'static str, fn(&mut Table), Dial, Verdict);
    let rows: [Row; 14] = [
        (
            "everything outbound is captured",
            |_| (),
            dial_v6(APP, VIP_V6, 80),
            TO_OUTBOUND_V6,
        ),
        (
            "a v4-mapped destination goes to 127.0.0.1",
            |_| (),
            dial_v6(APP, v4_mapped(VIP), 80),
            to_outbound(),
        ),
        (
            "X4: without rules of IPv6",
            |t| set_flags(t, CLIENT, PodConfig::istio_default().flags),
            dial_v6(APP, VIP_V6, 80),
            Verdict::Pass(PassCause::NoIpv6Rules),
        ),
        (
            "X4: a v4-mapped destination acts as IPv4",
            |t| set_flags(t, CLIENT, PodConfig::istio_default().flags),
            dial_v6(APP, v4_mapped(VIP), 80),
            to_outbound(),
        ),
        (
            "O1 is of both families",
            |t| port_rule(t, CLIENT, RuleList::EXCLUDE_OUTBOUND, 80),
            dial_v6(APP, VIP_V6, 80),
            Verdict::Pass(PassCause::PortExcluded),
        ),
        (
            "O2: from ::6",
            |_| (),
            Dial {
                source: ENVOY_INBOUND_SOURCE_V6,
                ..dial_v6(PROXY, OWN_V6, 8080)
            },
            Verdict::Follow,
        ),
        (
            "O4: its own address",
            |_| (),
            dial_v6(APP, OWN_V6, 80),
            Verdict::Pass(PassCause::OwnAddress),
        ),
        (
            "O4: ::1",
            |_| (),
            dial_v6(APP, LOOPBACK_V6, 80),
            Verdict::Pass(PassCause::OwnAddress),
        ),
        (
            "O5: the proxy leaves",
            |_| (),
            dial_v6(PROXY, VIP_V6, 80),
            Verdict::Pass(PassCause::CallerIsProxy),
        ),
        (
            "O10: ::1, without O4",
            without_o4,
            dial_v6(APP, LOOPBACK_V6, 80),
            Verdict::Pass(PassCause::Loopback),
        ),
        (
            "O11: an IPv6 range",
            |t| {
                t.ranges
                    .insert(CidrKey::v6(CLIENT, RuleList::EXCLUDE_OUTBOUND, VIP_V6, 64));
            },
            dial_v6(APP, VIP_V6, 80),
            Verdict::Pass(PassCause::AddressExcluded),
        ),
        (
            "O11: ::/0 holds no IPv4 address",
            |t| {
                t.ranges
                    .insert(CidrKey::v6(CLIENT, RuleList::EXCLUDE_OUTBOUND, VIP_V6, 0));
            },
            dial(APP, APP, VIP, 80),
            to_outbound(),
        ),
        (
            "O13: 0.0.0.0/0 holds no IPv6 address",
            |t| {
                set_flags(t, CLIENT, PodFlags::IPV6);
                range_rule(t, RuleList::INCLUDE_OUTBOUND, [0; 4], 0);
            },
            dial_v6(APP, VIP_V6, 80),
            Verdict::Pass(PassCause::NotIncluded),
        ),
        (
            "a link-local address says nothing",
            |_| (),
            dial_v6(APP, LINK_LOCAL, 80),
            Verdict::Pass(PassCause::LinkLocal),
        ),
    ];
    for (name, edit, dial, verdict) in rows {
        assert_eq!(decided(&dial, &dual_stack(edit)), verdict, "{name}");
    }
}

#[test]
fn proxies_reach_each_other_over_ipv6_where_both_have_its_rules() {
    let dial = dial_v6(PROXY, SERVER_V6, 8080);
    let to_server = Verdict::Redirect(Redirect {
        addr: SERVER_V6,
        port: 15_006_u16.to_be_bytes(),
        source: Source::KEPT,
        peer_netns: SERVER,
        hop: Hop::PROXY_TO_PROXY_REQUEST,
    });
    assert_eq!(decided(&dial, &dual_stack(|_| ())), to_server);
    let only_client = dual_stack(|t| set_flags(t, SERVER, PodConfig::istio_default().flags));
    assert_eq!(
        decided(&dial, &only_client),
        Verdict::Pass(PassCause::NotCapturedInbound)
    );
}

#[test]
fn to_dial_no_address_is_to_dial_oneself() {
    let none_v4 = v4_mapped([0; 4]);
    let own = v4_mapped(CLIENT_IP);
    let rows = [
        ("0.0.0.0", none_v4, none_v4, LOOPBACK),
        ("0.0.0.0 from an address", own, none_v4, own),
        ("0.0.0.0 from an IPv6 socket", [0; 16], none_v4, LOOPBACK),
        ("::", [0; 16], [0; 16], LOOPBACK_V6),
        (":: from an IPv6 address", OWN_V6, [0; 16], LOOPBACK_V6),
        (":: from a v4-mapped address", own, [0; 16], LOOPBACK),
        ("an address", none_v4, own, own),
        (
            "::6",
            [0; 16],
            ENVOY_INBOUND_SOURCE_V6,
            ENVOY_INBOUND_SOURCE_V6,
        ),
    ];
    for (name, source, destination, routed) in rows {
        let dial = Dial {
            source,
            ..dial_v6(APP, destination, 80)
        };
        assert_eq!(dial.routed().destination, routed, "{name}");
        let is_source = routed == ENVOY_INBOUND_SOURCE_V6;
        let source = if is_source { routed } else { source };
        assert_eq!(dial.routed().source, source, "{name}");
    }
}

#[test]
fn sources_are_those_of_nat() {
    let rules = dual_stack(without_o4);
    let bound = Dial {
        source: v4_mapped([198, 18, 0, 9]),
        ..dial(APP, APP, VIP, 80)
    };
    let rows = [
        ("IPv4", dial(APP, APP, VIP, 80), Source::DEFAULT),
        ("IPv6", dial_v6(APP, SERVER_V6, 80), Source::DEFAULT),
        (
            "its own address",
            dial(APP, APP, CLIENT_IP, 80),
            Source::DESTINATION,
        ),
        (
            "O3: its own address",
            dial_v6(PROXY, OWN_V6, 80),
            Source::DESTINATION,
        ),
        ("loopback", dial(APP, APP, [127, 0, 0, 2], 80), Source::KEPT),
        ("bound", bound, Source::KEPT),
        (
            "another pod",
            dial(PROXY, PROXY, SERVER_IP, 80),
            Source::KEPT,
        ),
    ];
    for (name, dial, source) in rows {
        let Verdict::Redirect(redirect) = decide(&dial, &rules) else {
            panic!("{name} is not redirected");
        };
        assert_eq!(redirect.source, source, "{name}");
    }
}

fn group_rule(table: &mut Table, list: RuleList, gid: u32) {
    table.groups.insert(GroupKey {
        netns_cookie: CLIENT,
        list,
        gid,
    });
}

fn only_group_2000(table: &mut Table) {
    set_flags(
        table,
        CLIENT,
        PodFlags::OUTBOUND_ALL.with(PodFlags::ONLY_GROUPS),
    );
    group_rule(table, RuleList::INCLUDE_OUTBOUND, 2000);
}

fn all_but_group_2000(table: &mut Table) {
    set_flags(
        table,
        CLIENT,
        PodFlags::OUTBOUND_ALL.with(PodFlags::EXCLUDES_GROUPS),
    );
    group_rule(table, RuleList::EXCLUDE_OUTBOUND, 2000);
}

#[test]
fn owner_groups_are_captured_or_left_out() {
    type Row = (&'static str, fn(&mut Table), Dial, Verdict);
    let excluded = Verdict::Pass(PassCause::GroupExcluded);
    let to_server = decided(&dial(PROXY, PROXY, SERVER_IP, 8080), &table(|_| ()));
    let rows: [Row; 7] = [
        (
            "O9: a listed group",
            only_group_2000,
            dial(APP, 2000, VIP, 80),
            to_outbound(),
        ),
        (
            "O9: another group",
            only_group_2000,
            dial(APP, APP, VIP, 80),
            excluded,
        ),
        (
            "O9: an excluded group",
            all_but_group_2000,
            dial(APP, 2000, VIP, 80),
            excluded,
        ),
        (
            "O9: a group that is not",
            all_but_group_2000,
            dial(APP, APP, VIP, 80),
            to_outbound(),
        ),
        (
            "O9: a user is no group",
            all_but_group_2000,
            dial(2000, APP, VIP, 80),
            to_outbound(),
        ),
        (
            "O5 comes before O9",
            only_group_2000,
            dial(PROXY, PROXY, SERVER_IP, 8080),
            to_server,
        ),
        (
            "O9 comes before O12",
            |t| {
                all_but_group_2000(t);
                port_rule(t, CLIENT, RuleList::INCLUDE_OUTBOUND, 80);
            },
            dial(APP, 2000, VIP, 80),
            excluded,
        ),
    ];
    for (name, edit, dial, verdict) in rows {
        assert_eq!(decided(&dial, &table(edit)), verdict, "{name}");
    }
}
