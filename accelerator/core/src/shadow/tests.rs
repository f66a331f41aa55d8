use std::collections::BTreeMap;

use isthmus_accel_abi::{OriginalDst, SockKey, v4_mapped};
use proptest::prelude::*;

use super::*;

const APP_POD: u64 = 11;
const OTHER_POD: u64 = 12;
const SECOND_NS: u64 = 1_000_000_000;

fn endpoint(addr: [u8; 4], port: u16) -> Endpoint {
    Endpoint {
        addr: v4_mapped(addr),
        port: port.to_be_bytes(),
    }
}

const OWN: [u8; 4] = [198, 18, 0, 1];
const OTHER: [u8; 4] = [198, 18, 0, 2];
const VIP: [u8; 4] = [198, 19, 7, 9];
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

fn event(kind: FlowKind, cookie: u64, time_ns: u64) -> FlowEvent {
    let nowhere = Endpoint {
        addr: [0; 16],
        port: [0; 2],
    };
    FlowEvent {
        time_ns,
        socket_cookie: cookie,
        facts: FlowFacts {
            started_ns: time_ns,
            netns_cookie: APP_POD,
            peer_netns: 0,
            cgroup_id: 0,
            dialled: OriginalDst {
                addr: [0; 16],
                port: [0; 2],
                reserved: [0; 6],
            },
            target_addr: [0; 16],
            target_port: [0; 2],
            reserved: [0; 6],
            pid: 4_242,
            uid: 1_000,
            gid: 1_000,
            verdict: VerdictCode::NONE,
            hop: Hop::NONE,
            flags: FlowFacts::IS_SHADOW,
        },
        key: key(APP_POD, nowhere, nowhere),
        bytes_acked: 0,
        bytes_received: 0,
        bytes_redirected: 0,
        kind,
        connect_us: 0,
        srtt_us: 0,
        on_tcp_because: 0,
    }
}

fn key(netns_cookie: u64, local: Endpoint, peer: Endpoint) -> SockKey {
    SockKey {
        netns_cookie,
        local_addr: local.addr,
        peer_addr: peer.addr,
        local_port: local.port,
        peer_port: peer.port,
        reserved: [0; 4],
    }
}

fn passed(cause: PassCause) -> Decision {
    Decision {
        verdict: VerdictCode::passed(cause),
        target: None,
        hop: Hop::NONE,
    }
}

const TO_PROXY: Decision = Decision {
    verdict: VerdictCode::REDIRECTED,
    target: Some((APP_POD, LOOPBACK, 15_001)),
    hop: Hop::APP_TO_PROXY,
};
const TO_OTHER_PROXY: Decision = Decision {
    verdict: VerdictCode::REDIRECTED,
    target: Some((OTHER_POD, OTHER, 15_006)),
    hop: Hop::PROXY_TO_PROXY_REQUEST,
};
const FOLLOWED: Decision = Decision {
    verdict: VerdictCode::FOLLOWED,
    target: None,
    hop: Hop::PROXY_TO_APP,
};

#[derive(Clone, Copy, Debug)]
struct Decision {
    verdict: VerdictCode,
    target: Option<(u64, [u8; 4], u16)>,
    hop: Hop,
}

fn decided(cookie: u64, time_ns: u64, decision: Decision, dialled: Endpoint) -> FlowEvent {
    let mut event = event(FlowKind::DECIDED, cookie, time_ns);
    event.facts.verdict = decision.verdict;
    event.facts.hop = decision.hop;
    event.facts.dialled.addr = dialled.addr;
    event.facts.dialled.port = dialled.port;
    if let Some((netns, addr, port)) = decision.target {
        let target = endpoint(addr, port);
        event.facts.peer_netns = netns;
        event.facts.target_addr = target.addr;
        event.facts.target_port = target.port;
    }
    event
}

fn established(cookie: u64, time_ns: u64, source: Endpoint) -> FlowEvent {
    let mut event = event(FlowKind::ESTABLISHED, cookie, time_ns);
    event.key = key(APP_POD, source, endpoint(VIP, 80));
    event
}

fn accepted(time_ns: u64, netns_cookie: u64, local: Endpoint, source: Endpoint) -> FlowEvent {
    let mut event = event(FlowKind::ACCEPTED, 1_000_000, time_ns);
    event.key = key(netns_cookie, local, source);
    event
}

/// One call from the application's pod, to its end.
fn run(decision: Decision, dialled: Endpoint, observed: Option<(u64, Endpoint)>) -> Judgement {
    let mut judge = Judge::default();
    let source = endpoint(OWN, 40_000);
    assert_eq!(judge.handle(&decided(7, 0, decision, dialled)), None);
    assert_eq!(judge.handle(&established(7, 1_000, source)), None);
    if let Some((netns_cookie, local)) = observed {
        let judgement = judge.handle(&accepted(2_000, netns_cookie, local, source));
        return judgement.expect("both ends are known");
    }
    assert_eq!(judge.expire(1_000 + ACCEPT_PATIENCE_NS - 1), []);
    let judgements = judge.expire(1_000 + ACCEPT_PATIENCE_NS);
    assert_eq!(judge.watched_calls(), 0);
    assert_eq!(judgements.len(), 1);
    judgements[0]
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "a table, a line or seven for each case"
)]
fn a_call_is_judged_by_where_it_is_accepted() {
    let excluded = passed(PassCause::PortExcluded);
    let own = passed(PassCause::OwnAddress);
    let foreign = passed(PassCause::CallerIsProxy);
    let uncaptured = passed(PassCause::NotCapturedInbound);
    let at = |netns, addr, port| Some((netns, endpoint(addr, port)));
    let vip = endpoint(VIP, 80);
    let pod = endpoint(OTHER, 80);
    let cases = [
        (
            "captured, as decided",
            TO_PROXY,
            vip,
            at(APP_POD, LOOPBACK, 15_001),
            None,
        ),
        (
            "it left the node",
            TO_PROXY,
            vip,
            None,
            Some(Difference::LetPass),
        ),
        (
            "it reached another pod",
            TO_PROXY,
            pod,
            at(OTHER_POD, OTHER, 80),
            Some(Difference::LetPass),
        ),
        (
            "another proxy's port",
            TO_PROXY,
            vip,
            at(APP_POD, LOOPBACK, 15_006),
            Some(Difference::OtherListener),
        ),
        (
            "the same port of another pod",
            TO_PROXY,
            vip,
            at(OTHER_POD, OTHER, 15_001),
            Some(Difference::OtherListener),
        ),
        (
            "arrival captured, as decided",
            TO_OTHER_PROXY,
            pod,
            at(OTHER_POD, OTHER, 15_006),
            None,
        ),
        (
            "arrival not captured",
            TO_OTHER_PROXY,
            pod,
            at(OTHER_POD, OTHER, 80),
            Some(Difference::LetPass),
        ),
        (
            "a followed dial",
            FOLLOWED,
            endpoint(LOOPBACK, 8_080),
            at(APP_POD, LOOPBACK, 8_080),
            None,
        ),
        (
            "a followed dial, captured",
            FOLLOWED,
            endpoint(OWN, 8_080),
            at(APP_POD, LOOPBACK, 15_006),
            Some(Difference::Captured),
        ),
        ("left alone, as decided", excluded, vip, None, None),
        (
            "left alone, captured",
            excluded,
            vip,
            at(APP_POD, LOOPBACK, 15_001),
            Some(Difference::Captured),
        ),
        (
            "left alone, and captured where it arrives",
            excluded,
            pod,
            at(OTHER_POD, OTHER, 15_006),
            None,
        ),
        (
            "own address",
            own,
            endpoint(OWN, 80),
            at(APP_POD, OWN, 80),
            None,
        ),
        ("a proxy's dial elsewhere", foreign, vip, None, None),
        (
            "arrival left alone, as decided",
            uncaptured,
            pod,
            at(OTHER_POD, OTHER, 80),
            None,
        ),
        (
            "arrival left alone, captured",
            uncaptured,
            pod,
            at(OTHER_POD, OTHER, 15_006),
            Some(Difference::Captured),
        ),
    ];
    for (name, decision, dialled, observed, expected) in cases {
        let found = match run(decision, dialled, observed) {
            Judgement::Agreed(_) => None,
            Judgement::Disagreed { difference, .. } => Some(difference),
            Judgement::Unobserved(call) => panic!("{name}: {call:?}"),
        };
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_call_that_comes_to_nothing_says_nothing() {
    let mut judge = Judge::default();
    let dialled = endpoint(VIP, 80);
    judge.handle(&decided(1, 0, TO_PROXY, dialled));
    let closed = judge.handle(&event(FlowKind::CLOSED, 1, 10));
    assert!(matches!(closed, Some(Judgement::Unobserved(_))), "refused");

    judge.handle(&decided(2, 0, TO_PROXY, dialled));
    let again = judge.handle(&decided(2, 5, TO_PROXY, dialled));
    assert!(
        matches!(again, Some(Judgement::Unobserved(_))),
        "dialled again"
    );
    assert_eq!(judge.expire(5 + CONNECT_PATIENCE_NS - 1), []);
    let silent = judge.expire(5 + CONNECT_PATIENCE_NS);
    assert!(
        matches!(silent[..], [Judgement::Unobserved(_)]),
        "no answer"
    );

    let mut real = decided(3, 0, TO_PROXY, dialled);
    real.facts.flags = 0;
    judge.handle(&real);
    assert_eq!(judge.watched_calls(), 0, "not of the shadow");
}

#[test]
fn the_order_of_the_two_ends_does_not_matter_and_a_short_life_is_no_miss() {
    let source = endpoint(OWN, 40_000);
    let taken = accepted(5, APP_POD, endpoint(LOOPBACK, 15_001), source);
    let mut judge = Judge::default();
    judge.handle(&decided(1, 0, TO_PROXY, endpoint(VIP, 80)));
    assert_eq!(judge.handle(&taken), None);
    let judgement = judge.handle(&established(1, 6, source));
    assert!(
        matches!(judgement, Some(Judgement::Agreed(_))),
        "{judgement:?}"
    );

    judge.handle(&decided(2, 10, TO_PROXY, endpoint(VIP, 80)));
    judge.handle(&established(2, 11, source));
    assert_eq!(judge.handle(&event(FlowKind::CLOSED, 2, 12)), None);
    let judgement = judge.handle(&taken);
    assert!(
        matches!(judgement, Some(Judgement::Agreed(_))),
        "{judgement:?}"
    );

    // An end that came too early belongs to nobody.
    judge.handle(&taken);
    judge.expire(5 + ACCEPT_PATIENCE_NS);
    judge.handle(&decided(3, 3 * SECOND_NS, TO_PROXY, endpoint(VIP, 80)));
    assert_eq!(judge.handle(&established(3, 3 * SECOND_NS, source)), None);
}

#[test]
fn loopback_addresses_are_told_apart_by_the_pod_and_destinations_by_what_was_dialled() {
    let source = endpoint(LOOPBACK, 40_000);
    let mut judge = Judge::default();
    judge.handle(&decided(1, 0, FOLLOWED, endpoint(LOOPBACK, 8_080)));
    judge.handle(&established(1, 1, source));
    let foreign = accepted(2, OTHER_POD, endpoint(LOOPBACK, 9_090), source);
    assert_eq!(judge.handle(&foreign), None);
    let own = accepted(3, APP_POD, endpoint(LOOPBACK, 8_080), source);
    assert!(matches!(judge.handle(&own), Some(Judgement::Agreed(_))));

    // One address that dials two destinations, which are accepted in the other order.
    let source = endpoint(OWN, 40_000);
    let excluded = passed(PassCause::PortExcluded);
    judge.handle(&decided(2, 0, TO_PROXY, endpoint(VIP, 80)));
    judge.handle(&established(2, 1, source));
    judge.handle(&decided(3, 0, excluded, endpoint(OTHER, 3_306)));
    judge.handle(&established(3, 1, source));
    let direct = accepted(2, OTHER_POD, endpoint(OTHER, 3_306), source);
    let Some(Judgement::Agreed(call)) = judge.handle(&direct) else {
        panic!("it went where it was dialled");
    };
    assert_eq!(call.dialled, endpoint(OTHER, 3_306));
    let proxied = accepted(2, APP_POD, endpoint(LOOPBACK, 15_001), source);
    assert!(matches!(judge.handle(&proxied), Some(Judgement::Agreed(_))));
}

#[test]
fn rows_say_by_which_rule() {
    let rows = |decision: Decision, dialled| call(&decided(1, 0, decision, dialled)).rows();
    let vip = endpoint(VIP, 80);
    assert_eq!(rows(TO_PROXY, vip), "O12/O13");
    assert_eq!(rows(TO_PROXY, endpoint(VIP, 53)), "D1/O12/O13");
    assert_eq!(rows(TO_OTHER_PROXY, endpoint(OTHER, 80)), "I5/I6");
    assert_eq!(rows(passed(PassCause::PortExcluded), vip), "O1");
    assert_eq!(rows(passed(PassCause::LinkLocal), vip), "link_local");
    let own = Decision {
        target: Some((APP_POD, LOOPBACK, 15_006)),
        ..TO_OTHER_PROXY
    };
    assert_eq!(rows(own, vip), "O3/O6");
}

#[test]
fn it_never_watches_more_than_it_may() {
    let mut judge = Judge::default();
    let mut unobserved = 0;
    for cookie in 0..MAX_WATCHED_CALLS as u64 + 100 {
        let judgement = judge.handle(&decided(cookie, cookie, TO_PROXY, endpoint(VIP, 80)));
        unobserved += usize::from(judgement.is_some());
        let source = endpoint(OTHER, 1);
        let mut stranger = accepted(cookie, APP_POD, endpoint(OWN, 80), source);
        stranger.key.peer_addr[..8].copy_from_slice(&cookie.to_be_bytes());
        judge.handle(&stranger);
    }
    assert_eq!(
        (judge.watched_calls(), unobserved),
        (MAX_WATCHED_CALLS, 100)
    );
    assert_eq!(judge.early.len(), MAX_EARLY_ENDS);
    assert_eq!(judge.expire(u64::MAX).len(), MAX_WATCHED_CALLS);
    assert!(judge.due.is_empty() && judge.by_source.is_empty() && judge.early.is_empty());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Decide,
    Establish,
    Accept,
    Close,
}

proptest! {
    /// Whatever comes in whatever order, every call is reported once, and nothing is left behind.
    #[test]
    fn every_call_is_reported_once(
        steps in prop::collection::vec(
            (
                prop_oneof![
                    Just(Step::Decide),
                    Just(Step::Establish),
                    Just(Step::Accept),
                    Just(Step::Close),
                ],
                0_u64..6,
                0..2 * SECOND_NS,
            ),
            0..200,
        ),
    ) {
        let mut judge = Judge::default();
        let mut now_ns = 0;
        let mut open: BTreeMap<u64, u32> = BTreeMap::new();
        let mut reported: BTreeMap<u64, u32> = BTreeMap::new();
        let mut report = |judgements: Vec<Judgement>| {
            for judgement in judgements {
                let call = match judgement {
                    Judgement::Agreed(call)
                    | Judgement::Disagreed { call, .. }
                    | Judgement::Unobserved(call) => call,
                };
                // The user names the socket.
                *reported.entry(call.uid.into()).or_default() += 1;
            }
        };
        for (step, cookie, pause_ns) in steps {
            now_ns += pause_ns;
            report(judge.expire(now_ns));
            // Pairs of sockets share a source, as different destinations allow.
            let source = endpoint(OWN, u16::try_from(cookie / 2).expect("six sockets"));
            let event = match step {
                Step::Decide => {
                    *open.entry(cookie).or_default() += 1;
                    let mut event = decided(cookie, now_ns, TO_PROXY, endpoint(VIP, 80));
                    event.facts.uid = u32::try_from(cookie).expect("six sockets");
                    event
                }
                Step::Establish => established(cookie, now_ns, source),
                Step::Accept => accepted(now_ns, APP_POD, endpoint(LOOPBACK, 15_001), source),
                Step::Close => event(FlowKind::CLOSED, cookie, now_ns),
            };
            report(judge.handle(&event).into_iter().collect());
        }
        report(judge.expire(u64::MAX));
        prop_assert_eq!(reported, open);
        prop_assert!(judge.due.is_empty() && judge.by_source.is_empty());
    }
}
