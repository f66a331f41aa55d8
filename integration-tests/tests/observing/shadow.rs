//! `run --shadow`: Istio's rules act in the pod, and the agent says where they and the programs differ.

use std::{net::Ipv4Addr, process::Output};

use anyhow::ensure;
use isthmus_accel_datapath::{Datapath as _, linux::LinuxDatapath};
use isthmus_integration_tests::{
    iptables::{self, Capture},
    shell, wait,
};
use serde_json::Value;

use crate::pod::{APP, Agent, PATIENCE, PROXY, Pod};

fn asked(agent: &Agent, args: &[&str]) -> Output {
    let output = agent.command("shadow").args(args).output();
    output.expect("the program can be started")
}

/// The report, once this many calls are in it.
fn report(agent: &Agent, calls: u64) -> Value {
    let report = wait::until(&format!("{calls} calls"), PATIENCE, || {
        let output = asked(agent, &["-o", "json"]);
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let count = |name: &str| report[name].as_u64().unwrap_or(0);
        let found = count("agreed") + count("disagreed");
        ensure!(found >= calls, "{found} are judged: {report}");
        Ok(report)
    });
    report.expect("every call is judged")
}

#[test]
fn istios_rules_and_the_programs_agree_on_every_kind_of_call() {
    let pod = Pod::new();
    iptables::install(&pod.netns, &Capture::default()).expect("iptables is installed");
    let any = Ipv4Addr::UNSPECIFIED;
    let _listeners = [15_001, 15_006, 8_080].map(|port| pod.listen(any, port));
    let _outside = pod.listen_outside(443);
    let agent = Agent::start(&pod, &["--shadow"]);

    let calls = [
        (
            "O13: an application's call goes to the proxy",
            APP,
            Pod::VIP,
            80,
        ),
        ("O4: its own address does not", APP, Pod::ADDR, 8_080),
        ("O4: nor does loopback", APP, Ipv4Addr::LOCALHOST, 8_080),
        ("O5: the proxy's call leaves", PROXY, Pod::VIP, 443),
        (
            "O5: and reaches its application",
            PROXY,
            Ipv4Addr::LOCALHOST,
            8_080,
        ),
        (
            "O3: to its own pod it comes in again",
            PROXY,
            Pod::ADDR,
            9_090,
        ),
    ];
    for (name, user, addr, port) in calls {
        assert!(pod.dial(user, addr, port), "{name}");
    }
    let count = u64::try_from(calls.len()).expect("a few");
    let report = report(&agent, count);
    assert_eq!(report["agreed"], count, "{report:#}");
    assert_eq!(report["disagreed"], 0, "{report:#}");
    assert_eq!(report["disagreements"], Value::Array(Vec::new()));
    assert!(asked(&agent, &[]).status.success());
    let redirected = iptables::outbound_redirects(&pod.netns).expect("they can be counted");
    assert_eq!(redirected, 1, "it was iptables that acted");
}

#[test]
fn what_only_iptables_knows_is_reported_with_the_rule_and_the_call() {
    let pod = Pod::new();
    let capture = Capture {
        exclude_outbound_ports: vec![3_306],
        ..Capture::default()
    };
    iptables::install(&pod.netns, &capture).expect("iptables is installed");
    let mut stray = pod.netns.command("iptables");
    stray.args(
        "-t nat -I OUTPUT -p tcp -d 198.18.0.1 --dport 8081 -j REDIRECT --to-ports 15001"
            .split(' '),
    );
    shell::capture(&mut stray).expect("the rule can be added");
    let _proxy = pod.listen(Ipv4Addr::UNSPECIFIED, 15_001);
    let _database = pod.listen_outside(3_306);
    let agent = Agent::start(&pod, &["--shadow"]);

    assert!(pod.dial(APP, Pod::VIP, 3_306), "iptables lets it pass");
    assert!(pod.dial(APP, Pod::VIP, 3_306), "and again");
    assert!(pod.dial(APP, Pod::ADDR, 8_081), "iptables captures it");
    assert!(pod.dial(APP, Pod::VIP, 80), "both capture it");
    let report = report(&agent, 4);
    assert_eq!(
        (&report["agreed"], &report["disagreed"]),
        (&1.into(), &3.into()),
        "{report:#}"
    );

    let row = &report["disagreements"][0];
    assert_eq!(row["pod"], "default/app");
    assert_eq!(
        (&row["difference"], &row["calls"]),
        (&"let_pass".into(), &2.into())
    );
    assert_eq!(row["rows"], "O12/O13");
    assert_eq!(row["expected"], "redirect to default/app 127.0.0.1:15001");
    assert_eq!(
        row["observed"],
        "iptables let it pass: accepted by no pod of this node"
    );
    assert_eq!(row["last_dialled"], "198.19.7.9:3306");
    assert_eq!(row["last_caller"]["uid"], APP);

    let row = &report["disagreements"][1];
    assert_eq!(
        (&row["difference"], &row["rows"]),
        (&"captured".into(), &"O2/O4/O7".into())
    );
    assert_eq!(row["expected"], "leave alone: own_address");
    assert_eq!(
        row["observed"],
        "iptables captured it: accepted by default/app 127.0.0.1:15001"
    );
    assert_eq!(row["last_dialled"], "198.18.0.1:8081");

    let output = asked(&agent, &[]);
    assert_eq!(output.status.code(), Some(1), "a script sees it");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("Disagreed:  3 calls"), "{table}");
}

#[test]
fn an_agent_that_acts_has_no_shadow() {
    let pod = Pod::new();
    let agent = Agent::start(&pod, &[]);
    let output = asked(&agent, &[]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("start it with `isthmus-accelerator run --shadow`"),
        "{errors}"
    );
}

#[test]
fn what_arrives_is_left_alone_too() {
    for (args, is_accepted) in [(&["--shadow"][..], true), (&[], false)] {
        let pod = Pod::new();
        let _application = pod.listen(Ipv4Addr::UNSPECIFIED, 8_080);
        let agent = Agent::start(&pod, args);
        let datapath = LinuxDatapath::open_pinned(agent.accelerator.pin_dir()).expect("it runs");
        wait::until("the pod's sk_lookup program", PATIENCE, || {
            ensure!(
                !datapath.loaded()?.steered.is_empty(),
                "it comes after the pod"
            );
            Ok(())
        })
        .expect("it is attached");
        // Nobody listens on 15006, where the programs would send it.
        assert_eq!(pod.dial_from_outside(8_080), is_accepted, "{args:?}");
    }
}
