//! What is done for what is wanted, and the bytes that do it.

use std::net::{Ipv4Addr, Ipv6Addr};

use nix::libc::{RTM_DELROUTE, RTM_DELRULE};

use super::{
    message::{FoundRoute, FoundRule, request},
    *,
};

const TABLE: u32 = 15_006;

fn rule(family: Family) -> Rule {
    Rule {
        family,
        priority: 1000,
        fwmark: Some(1337),
        incoming: None,
        ip_proto: None,
        table: TABLE,
    }
}

fn route(family: Family) -> LocalRoute {
    LocalRoute {
        addr: match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        },
        prefix_len: 0,
        table: TABLE,
    }
}

fn policy(rules: &[Rule], routes: &[LocalRoute]) -> Policy {
    Policy {
        rules: rules.iter().cloned().collect(),
        routes: routes.iter().copied().collect(),
    }
}

#[test]
fn what_is_wanted_is_added_and_what_is_not_is_removed_the_other_way_round() {
    use Family::{V4, V6};
    struct Case {
        name: &'static str,
        wanted: Policy,
        present: Policy,
        changes: Vec<Change>,
    }
    let whole = policy(&[rule(V4)], &[route(V4)]);
    let later = Rule {
        priority: 1001,
        ..rule(V4)
    };
    let cases = [
        Case {
            name: "nothing",
            wanted: Policy::default(),
            present: Policy::default(),
            changes: vec![],
        },
        Case {
            name: "everything is there",
            wanted: whole.clone(),
            present: whole.clone(),
            changes: vec![],
        },
        Case {
            name: "a start",
            wanted: whole.clone(),
            present: Policy::default(),
            changes: vec![Change::AddRule(rule(V4)), Change::AddRoute(route(V4))],
        },
        Case {
            name: "a start that was killed",
            wanted: whole.clone(),
            present: policy(&[rule(V4)], &[]),
            changes: vec![Change::AddRoute(route(V4))],
        },
        Case {
            name: "an end",
            wanted: Policy::default(),
            present: whole.clone(),
            changes: vec![Change::RemoveRoute(route(V4)), Change::RemoveRule(rule(V4))],
        },
        Case {
            name: "the other family comes",
            wanted: policy(&[rule(V4), rule(V6)], &[route(V4), route(V6)]),
            present: whole.clone(),
            changes: vec![Change::AddRule(rule(V6)), Change::AddRoute(route(V6))],
        },
        Case {
            name: "a rule of another priority: never none",
            wanted: policy(std::slice::from_ref(&later), &[route(V4)]),
            present: whole,
            changes: vec![Change::AddRule(later), Change::RemoveRule(rule(V4))],
        },
    ];
    for Case {
        name,
        wanted,
        present,
        changes,
    } in cases
    {
        assert_eq!(super::changes(&wanted, &present), changes, "{name}");
    }
}

#[test]
fn a_rule_is_read_as_it_was_written() {
    let cases = [
        rule(Family::V4),
        rule(Family::V6),
        Rule {
            fwmark: None,
            incoming: Some("k6t-eth0".to_owned()),
            ip_proto: Some(6),
            ..rule(Family::V4)
        },
        Rule {
            fwmark: None,
            table: 7,
            ..rule(Family::V6)
        },
    ];
    for rule in cases {
        let request = request(Owner::WAY_BACK, &Change::AddRule(rule.clone()));
        let found = FoundRule::parse(&request.as_bytes()[16..]).expect("it is a rule");
        assert_eq!(found.rule, rule);
        assert_eq!(found.owner, Owner::WAY_BACK);
        assert!(found.is_plain, "{rule:?}");
    }
}

#[test]
fn a_rule_that_does_more_than_can_be_said_is_not_plain() {
    let plain = request(Owner::WAY_BACK, &Change::AddRule(rule(Family::V4)));
    let plain = plain.as_bytes()[16..].to_vec();
    let with = |at: usize, byte: u8| {
        let mut body = plain.clone();
        body[at] = byte;
        body
    };
    let and = |name: u16, value: u32| {
        let mut body = plain.clone();
        body.extend(8_u16.to_ne_bytes());
        body.extend(name.to_ne_bytes());
        body.extend(value.to_ne_bytes());
        body
    };
    let cases = [
        ("as it is", plain.clone(), true),
        ("a destination", with(1, 24), false),
        ("a source", with(2, 24), false),
        ("a type of service", with(3, 8), false),
        ("unreachable", with(7, 7), false),
        ("all but these", with(8, 2), false),
        ("some bits of the mark", and(16, 0xff), false),
        ("suppresses nothing", and(14, u32::MAX), true),
        ("suppresses default routes", and(14, 0), false),
        ("a user", and(20, 0), false),
    ];
    for (name, body, is_plain) in cases {
        let found = FoundRule::parse(&body).expect("it is a rule");
        assert_eq!(found.is_plain, is_plain, "{name}");
    }
}

#[test]
fn a_local_route_is_read_as_it_was_written_and_only_by_its_owner() {
    let range = LocalRoute {
        addr: Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0).into(),
        prefix_len: 32,
        table: TABLE,
    };
    for route in [route(Family::V4), route(Family::V6), range] {
        let request = request(Owner::WAY_BACK, &Change::AddRoute(route));
        let body = &request.as_bytes()[16..];
        let found = |owner| FoundRoute::parse(body).and_then(|found| found.local_route(owner));
        assert_eq!(found(Owner::WAY_BACK), Some(route));
        assert_eq!(found(Owner::VIRTUAL_MACHINES), None);
    }
}

#[test]
fn what_is_cut_off_is_neither() {
    for change in [
        Change::RemoveRule(rule(Family::V4)),
        Change::RemoveRoute(route(Family::V6)),
    ] {
        let request = request(Owner::WAY_BACK, &change);
        let body = &request.as_bytes()[16..];
        // In the header, and in the value of the last attribute.
        for length in (1..12).chain(body.len() - 3..body.len()) {
            assert!(FoundRule::parse(&body[..length]).is_none(), "{length}");
            assert!(FoundRoute::parse(&body[..length]).is_none(), "{length}");
        }
    }
}

#[test]
fn a_removal_is_told_from_an_addition() {
    let cases = [
        (Change::RemoveRule(rule(Family::V4)), RTM_DELRULE),
        (Change::RemoveRoute(route(Family::V4)), RTM_DELROUTE),
    ];
    for (change, kind) in cases {
        let request = request(Owner::WAY_BACK, &change);
        assert_eq!(request.as_bytes()[4..6], kind.to_ne_bytes(), "{change:?}");
    }
}
