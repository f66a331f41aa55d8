//! The steps, and that a crash behind any of them is repaired.

use super::*;

const ALL_OFF: [(Setting, Switch); 3] = [
    (Setting::TakeMarks, Switch::Off),
    (Setting::ReflectV4, Switch::Off),
    (Setting::ReflectV6, Switch::Off),
];

fn untouched(settings: &[(Setting, Switch)]) -> Found {
    Found {
        present: Present::default(),
        settings: settings.iter().copied().collect(),
    }
}

fn istios(families: &[Family]) -> BTreeSet<Rule> {
    let rule = |family: &Family| Rule {
        family: *family,
        priority: 32_765,
        fwmark: Some(MARK),
        incoming: None,
        ip_proto: None,
        table: 133,
    };
    families.iter().map(rule).collect()
}

fn apply(found: &mut Found, step: &Step) {
    let own = &mut found.present.own;
    match step {
        Step::Routing(Change::AddRule(rule)) => {
            own.rules.insert(rule.clone());
        }
        Step::Routing(Change::AddRoute(route)) => {
            own.routes.insert(*route);
        }
        Step::Routing(Change::RemoveRule(rule)) => {
            own.rules.remove(rule);
        }
        Step::Routing(Change::RemoveRoute(route)) => {
            own.routes.remove(route);
        }
        Step::Set(setting, switch) => {
            found.settings.insert(*setting, *switch);
        }
    }
}

fn established(mut found: Found, families: Families) -> Found {
    for step in establishing(&found, families).expect("it is made here") {
        apply(&mut found, &step);
    }
    found
}

fn withdrawn(mut found: Found) -> Found {
    for step in withdrawing(&found) {
        apply(&mut found, &step);
    }
    found
}

fn render(step: &Step) -> String {
    match step {
        Step::Routing(Change::AddRule(rule)) => {
            format!("+rule {:?} {}", rule.family, rule.priority)
        }
        Step::Routing(Change::RemoveRule(rule)) => {
            format!("-rule {:?} {}", rule.family, rule.priority)
        }
        Step::Routing(Change::AddRoute(route)) => format!("+route {}", route.addr),
        Step::Routing(Change::RemoveRoute(route)) => format!("-route {}", route.addr),
        Step::Set(setting, switch) => format!("{setting:?} {switch:?}"),
    }
}

#[test]
fn steps_are_in_an_order_that_leaves_a_record() {
    use Switch::{Off, On};
    struct Case {
        name: &'static str,
        found: Found,
        families: Families,
        made: &'static [&'static str],
        unmade: &'static [&'static str],
    }
    let cases = [
        Case {
            name: "both families",
            found: untouched(&ALL_OFF),
            families: Families::Both,
            made: &[
                "+rule V4 140",
                "+rule V6 133",
                "TakeMarks On",
                "ReflectV4 On",
                "ReflectV6 On",
                "+route 0.0.0.0",
                "+route ::",
            ],
            unmade: &[
                "-route 0.0.0.0",
                "-route ::",
                "-rule V6 133",
                "TakeMarks Off",
                "ReflectV4 Off",
                "ReflectV6 Off",
                "-rule V4 140",
            ],
        },
        Case {
            name: "a kernel without IPv6",
            found: untouched(&ALL_OFF[..2]),
            families: Families::V4,
            made: &[
                "+rule V4 136",
                "TakeMarks On",
                "ReflectV4 On",
                "+route 0.0.0.0",
            ],
            unmade: &[
                "-route 0.0.0.0",
                "TakeMarks Off",
                "ReflectV4 Off",
                "-rule V4 136",
            ],
        },
        Case {
            name: "a setting that was made before",
            found: untouched(&[(Setting::TakeMarks, On), (Setting::ReflectV4, Off)]),
            families: Families::V4,
            made: &["+rule V4 135", "ReflectV4 On", "+route 0.0.0.0"],
            unmade: &["-route 0.0.0.0", "ReflectV4 Off", "-rule V4 135"],
        },
        Case {
            name: "Istio's",
            found: Found {
                present: Present {
                    own: Policy::default(),
                    others: istios(&[Family::V4, Family::V6]),
                },
                ..untouched(&ALL_OFF)
            },
            families: Families::Both,
            made: &[],
            unmade: &[],
        },
    ];
    for Case {
        name,
        found,
        families,
        made,
        unmade,
    } in cases
    {
        let steps = establishing(&found, families).expect(name);
        assert_eq!(steps.iter().map(render).collect::<Vec<_>>(), made, "{name}");
        let after = established(found.clone(), families);
        assert_eq!(establishing(&after, families).expect(name), [], "{name}");
        let steps = withdrawing(&after);
        assert_eq!(
            steps.iter().map(render).collect::<Vec<_>>(),
            unmade,
            "{name}"
        );
        assert_eq!(withdrawn(after), found, "{name}");
    }
}

#[test]
fn a_crash_behind_any_step_is_repaired_by_the_next_start_and_by_detach() {
    use Switch::{Off, On};
    let befores = [
        untouched(&ALL_OFF),
        untouched(&[(Setting::TakeMarks, On), (Setting::ReflectV4, Off)]),
        untouched(&[(Setting::TakeMarks, Off), (Setting::ReflectV4, On)]),
    ];
    for before in befores {
        let whole = established(before.clone(), Families::Both);
        let cases = [
            (
                &before,
                establishing(&before, Families::Both).expect("none is Istio's"),
            ),
            (&whole, withdrawing(&whole)),
        ];
        for (start, steps) in cases {
            for count in 0..=steps.len() {
                let mut found = start.clone();
                for step in &steps[..count] {
                    apply(&mut found, step);
                }
                let at = format!(
                    "after {:?}",
                    steps[..count].iter().map(render).collect::<Vec<_>>()
                );
                assert_eq!(withdrawn(found.clone()), before, "{at}");
                let again = established(found, Families::Both);
                assert_eq!(again.settings, whole.settings, "{at}");
                assert_eq!(again.present.own.routes, whole.present.own.routes, "{at}");
                assert_eq!(withdrawn(again), before, "{at}");
            }
        }
    }
}

#[test]
fn what_is_undone_by_others_is_made_again_and_still_undone_at_the_end() {
    let before = untouched(&[(Setting::TakeMarks, Switch::On)]);
    let mut found = established(before, Families::V4);
    found.settings.insert(Setting::TakeMarks, Switch::Off);
    let steps = establishing(&found, Families::V4).expect("none is Istio's");
    assert_eq!(
        steps.iter().map(render).collect::<Vec<_>>(),
        ["+rule V4 134", "TakeMarks On", "-rule V4 133"]
    );
    let after = withdrawn(established(found, Families::V4));
    assert_eq!(after, untouched(&[(Setting::TakeMarks, Switch::Off)]));
}

#[test]
fn istios_rule_takes_the_place_of_ours_when_it_comes() {
    let before = untouched(&ALL_OFF);
    let mut found = established(before.clone(), Families::Both);
    found.present.others = istios(&[Family::V4, Family::V6]);
    let after = established(found, Families::Both);
    assert_eq!(after.present.own, Policy::default());
    assert_eq!(after.settings, before.settings);
}

#[test]
fn istios_rule_for_one_family_of_two_is_told() {
    let found = |families: &[Family]| Found {
        present: Present {
            own: Policy::default(),
            others: istios(families),
        },
        ..untouched(&ALL_OFF)
    };
    let outcome = establishing(&found(&[Family::V4]), Families::Both);
    assert!(
        matches!(outcome, Err(WayBackError::OneFamily)),
        "{outcome:?}"
    );
    let steps = establishing(&found(&[Family::V4]), Families::V4);
    assert_eq!(steps.expect("Istio's is enough"), []);
}
