use isthmus_accel_abi::{FlowFacts, FlowKind, PassCause, VerdictCode};
use isthmus_accel_core::{ACCEPT_PATIENCE_NS, Judge};

use super::*;
use crate::{
    flows::tests::event,
    runtime_dir::{Roster, RosterPod},
};

const NETNS: u64 = 11;

fn names() -> Names {
    let pod = RosterPod {
        addresses: Vec::new(),
        condition: "accelerated".to_owned(),
        netns: "/run/netns/x".into(),
        netns_cookie: Some(NETNS),
        reason: None,
    };
    Names::from(&Roster {
        config: "/etc/isthmus/node.yaml".into(),
        pods: [("default/client".to_owned(), pod)].into(),
    })
}

/// Judges `count` calls to a port that are accepted by nobody of this node.
fn elsewhere(tally: &mut Tally, verdict: VerdictCode, port: u16, count: u64) {
    let mut judge = Judge::default();
    for cookie in 0..count {
        for kind in [FlowKind::DECIDED, FlowKind::ESTABLISHED] {
            let mut event = event(kind, verdict);
            event.socket_cookie = cookie;
            event.facts.flags = FlowFacts::IS_SHADOW;
            event.facts.dialled.port = port.to_be_bytes();
            assert_eq!(judge.handle(&event), None);
        }
    }
    let due = judge.expire(1_000_000_123_456 + ACCEPT_PATIENCE_NS);
    for judgement in due {
        tally.record(&judgement, &names(), 0);
    }
}

#[test]
fn a_disagreement_says_who_called_what_and_what_both_did() {
    let mut tally = Tally::new(1_795_759_200_000_000_000);
    elsewhere(&mut tally, VerdictCode::REDIRECTED, 3_306, 2);
    elsewhere(&mut tally, VerdictCode::REDIRECTED, 80, 3);
    let excluded = VerdictCode::passed(PassCause::PortExcluded);
    elsewhere(&mut tally, excluded, 22, 4);
    let report = tally.report(7);
    assert_eq!((report.agreed, report.disagreed), (4, 5));
    assert_eq!(report.since, "2026-11-27T06:00:00.000000000Z");
    let calls: Vec<u64> = report.disagreements.iter().map(|row| row.calls).collect();
    assert_eq!(calls, [3, 2], "the most frequent first");
    let row = &report.disagreements[1];
    assert_eq!(row.pod.as_deref(), Some("default/client"));
    assert_eq!(
        (row.difference.as_str(), row.rows.as_str()),
        ("let_pass", "O12/O13")
    );
    assert_eq!(row.expected, "redirect to default/client 127.0.0.1:15001");
    assert_eq!(
        row.observed,
        "iptables let it pass: accepted by no pod of this node"
    );
    assert_eq!(row.last_dialled, "198.19.7.9:3306");
    assert_eq!(row.last_caller.uid, 1_000);

    let table = render_table(&report);
    assert!(table.contains("\nLost:       7 events"), "{table}");
    let last = table.lines().last().unwrap_or_default();
    assert_eq!(
        last.split_whitespace().collect::<Vec<_>>().join(" "),
        "default/client 2 O12/O13 redirect to default/client 127.0.0.1:15001 iptables let it pass: \
         accepted by no pod of this node 198.19.7.9:3306 pid 4242 uid 1000 gid 1001 \
         1970-01-01T00:16:40.000123456Z"
    );
}

#[test]
fn a_capture_names_the_socket_that_took_it() {
    let mut judge = Judge::default();
    let excluded = VerdictCode::passed(PassCause::PortExcluded);
    let mut tally = Tally::default();
    for (kind, verdict) in [
        (FlowKind::DECIDED, excluded),
        (FlowKind::ESTABLISHED, excluded),
        (FlowKind::ACCEPTED, VerdictCode::NONE),
    ] {
        let mut event = event(kind, verdict);
        event.facts.flags = FlowFacts::IS_SHADOW;
        if let Some(judgement) = judge.handle(&event) {
            tally.record(&judgement, &Names::default(), 0);
        }
    }
    let report = tally.report(0);
    let row = &report.disagreements[0];
    assert_eq!(row.expected, "leave alone: port_excluded");
    assert_eq!(
        row.observed,
        "iptables captured it: accepted by netns:11 127.0.0.1:15001"
    );
    assert_eq!(row.rows, "O1");
}

#[test]
fn kinds_beyond_the_list_are_counted() {
    let mut tally = Tally::default();
    let listed = u16::try_from(MAX_LISTED).expect("a few hundred");
    for port in 1..listed + 10 {
        elsewhere(&mut tally, VerdictCode::REDIRECTED, port, 1);
    }
    elsewhere(&mut tally, VerdictCode::REDIRECTED, 1, 1);
    let report = tally.report(0);
    assert_eq!(report.disagreements.len(), MAX_LISTED);
    assert_eq!(report.unlisted, 9);
    assert_eq!(report.disagreed, u64::from(listed) + 10);
    assert!(render_table(&report).ends_with("  and 9 calls of other kinds\n"));
}
