//! Rules and local routes as the kernel and `ip` have them.

use isthmus_accel_datapath::policy_routing::{
    Family, LocalRoute, Owner, Policy, Rule, converge_here, present_here,
};

use crate::fixture::Pod;

const TABLE: u32 = 15_006;

fn wanted() -> Policy {
    let rule = |family, fwmark, incoming: Option<&str>, ip_proto| Rule {
        family,
        priority: 1000,
        fwmark,
        incoming: incoming.map(str::to_owned),
        ip_proto,
        table: TABLE,
    };
    let route = |range: &str, prefix_len| LocalRoute {
        addr: range.parse().expect("an address"),
        prefix_len,
        table: TABLE,
    };
    Policy {
        rules: [
            rule(Family::V4, Some(1337), None, None),
            rule(Family::V4, None, Some("k6t-eth0"), Some(6)),
            rule(Family::V6, Some(1337), None, None),
        ]
        .into(),
        routes: [
            route("0.0.0.0", 0),
            route("198.18.0.0", 16),
            route("::", 0),
            route("fd18::", 32),
        ]
        .into(),
    }
}

#[test]
fn rules_and_routes_are_made_found_and_removed_beside_those_of_others() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let local = ["route", "add", "local"];
    for family in ["-4", "-6"] {
        pod.ip(&[family, "rule", "add", "fwmark", "1337", "lookup", "133"]);
        let istios = ["default", "dev", "lo", "table", "133"];
        pod.ip(&[&[family], &local[..], &istios].concat());
    }
    let foreign = ["203.0.113.0/24", "dev", "lo", "table", "15006"];
    pod.ip(&[&local[..], &foreign].concat());
    let tables = || {
        pod.run_as(0, || {
            let show = |args: &[&str]| {
                let output = std::process::Command::new("ip").args(args).output();
                String::from_utf8(output.expect("ip runs").stdout).expect("text")
            };
            ["-4", "-6"].map(|family| {
                let rules = show(&[family, "rule", "show"]);
                rules + &show(&[family, "route", "show", "table", "all"])
            })
        })
    };
    let before = tables();
    let converge = |wanted: Policy| {
        pod.run_as(0, move || converge_here(Owner::WAY_BACK, &wanted))
            .expect("it is ours")
    };
    let present = || {
        pod.run_as(0, || present_here(Owner::WAY_BACK))
            .expect("it is ours")
    };
    let others = present().others;
    assert!(
        others
            .iter()
            .any(|rule| rule.fwmark == Some(1337) && rule.table == 133)
    );

    assert_eq!(converge(wanted()), 7);
    assert_eq!(present().own, wanted());
    assert_eq!(present().others, others);
    assert_ne!(tables(), before);
    assert_eq!(converge(wanted()), 0, "twice is once");
    let other = pod.run_as(0, || present_here(Owner::VIRTUAL_MACHINES));
    assert_eq!(other.expect("it is ours").own, Policy::default());

    assert_eq!(converge(Policy::default()), 7);
    assert_eq!(tables(), before);
}
