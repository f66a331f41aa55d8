//! Streams of random shape through the sockmap and through plain TCP: what both ends see must be the same.
//!
//! `ISTHMUS_TORTURE_SEED` repeats a run. Needs root, BPF and iproute2; fails with the reason where something
//! is missing.

#[path = "kernel_datapath/fixture.rs"]
#[allow(dead_code, reason = "shared with the suites of the other programs")]
mod fixture;
#[path = "sockmap_torture/run.rs"]
mod run;
#[path = "sockmap_torture/scenario.rs"]
mod scenario;
#[path = "sockmap_torture/stream.rs"]
mod stream;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    thread::JoinHandle,
    time::{SystemTime, UNIX_EPOCH},
};

use fixture::{APP, Fixture, PROXY, Pod, VIP};
use isthmus_accel_abi::{Counter, Hop, PodFlags};
use run::{Outcome, Route, start};
use scenario::{Dice, Ending, Scenario};

/// Accelerated connections. As many go over plain TCP beside them.
const CONNECTIONS: usize = 24_000;
/// Pairs of legs that run at the same time.
const LANES: usize = 8;
const SEED_VARIABLE: &str = "ISTHMUS_TORTURE_SEED";
const OUTBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001);

#[test]
fn every_stream_is_the_one_of_plain_tcp() {
    let seed = seed();
    eprintln!("{SEED_VARIABLE}={seed}");
    let mut dice = Dice::new(seed);
    let mut fixture = Fixture::load();
    let mut lanes = Vec::new();
    for lane in 0..LANES {
        let draw = |_| Scenario::draw(dice.next());
        let scenarios = Arc::new((0..CONNECTIONS / LANES).map(draw).collect());
        // One of them is between proxies of two pods; there is one pair of addresses for it.
        lanes.push(match lane {
            0 => Lane::between_pods(&mut fixture, scenarios),
            _ => Lane::in_a_pod(&mut fixture, lane, scenarios),
        });
    }
    let mut wrong = Vec::new();
    for lane in &mut lanes {
        wrong.extend(lane.differences());
    }
    let count = wrong.len();
    wrong.truncate(3);
    assert!(wrong.is_empty(), "{count} differ:\n{}", wrong.join("\n"));

    let mut bytes = 0;
    for (pod, hop) in lanes.iter().flat_map(|lane| lane.hops.iter()) {
        let stats = fixture.hop(pod, *hop);
        let passed: u64 = stats.passes.iter().sum();
        assert!(
            (stats.messages - passed) * 5 > stats.messages,
            "it is the redirect that is tested: {hop:?} {stats:?}"
        );
        bytes += stats.bytes_redirected;
    }
    let left = fixture.counter(Counter::SocketsLeft);
    assert!(left > 0, "it is tested too that sockets leave the sockmap");
    eprintln!(
        "{CONNECTIONS} connections, {bytes} bytes of them skipped TCP, {left} sockets left the sockmap"
    );
}

/// The same scenarios over plain TCP and over the sockmap, both directions of it.
struct Lane {
    scenarios: Arc<Vec<Scenario>>,
    by_tcp: Option<JoinHandle<Vec<Outcome>>>,
    by_sockmap: Option<JoinHandle<Vec<Outcome>>>,
    /// The pods that are governed, each with the hop of what it sends.
    hops: Vec<(Arc<Pod>, Hop)>,
}

impl Lane {
    /// An application that has opted in, and its proxy.
    fn in_a_pod(fixture: &mut Fixture, lane: usize, scenarios: Arc<Vec<Scenario>>) -> Self {
        let last = u8::try_from(lane).expect("a few lanes");
        let plain = Pod::alone([198, 18, 1, last]);
        let pod = Arc::new(Pod::alone([198, 18, 2, last]));
        fixture.add_pod_with(&pod, PodFlags::APP_WRITES.with(PodFlags::APP_READS));
        let route = |dials| Route {
            client: APP,
            server: PROXY,
            dials,
            listens: OUTBOUND,
        };
        Self {
            by_tcp: Some(start((&plain, &plain), route(OUTBOUND), &scenarios)),
            by_sockmap: Some(start((&pod, &pod), route(VIP), &scenarios)),
            hops: vec![
                (pod.clone(), Hop::APP_TO_PROXY),
                (pod, Hop::PROXY_TO_APP_RETURN),
            ],
            scenarios,
        }
    }

    /// The proxies of two pods.
    fn between_pods(fixture: &mut Fixture, scenarios: Arc<Vec<Scenario>>) -> Self {
        let plain = Pod::pair();
        let (client, server) = Pod::pair();
        let (client, server) = (Arc::new(client), Arc::new(server));
        fixture.add_pod_with(&client, PodFlags::NONE);
        fixture.add_pod_with(&server, PodFlags::NONE);
        let route = |port| Route {
            client: PROXY,
            server: PROXY,
            dials: SocketAddrV4::new(server.addr, port),
            listens: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 15_006),
        };
        Self {
            by_tcp: Some(start((&plain.0, &plain.1), route(15_006), &scenarios)),
            by_sockmap: Some(start((&client, &server), route(8080), &scenarios)),
            hops: vec![
                (client, Hop::PROXY_TO_PROXY_REQUEST),
                (server, Hop::PROXY_TO_PROXY_RESPONSE),
            ],
            scenarios,
        }
    }

    /// Waits for both, and describes each scenario that came out differently.
    fn differences(&mut self) -> Vec<String> {
        let outcomes = |leg: &str, thread: Option<JoinHandle<Vec<Outcome>>>| {
            let thread = thread.expect("asked for once");
            thread.join().unwrap_or_else(|_| panic!("{leg} works"))
        };
        let by_tcp = outcomes("plain TCP", self.by_tcp.take());
        let by_sockmap = outcomes("the sockmap", self.by_sockmap.take());
        let pairs = by_tcp.iter().zip(&by_sockmap);
        let all = self.scenarios.iter().zip(pairs);
        all.filter(|(scenario, (expected, seen))| !is_same(scenario, expected, seen))
            .map(|(scenario, (expected, seen))| {
                format!("{scenario:?}\n TCP {expected:?}\n got {seen:?}")
            })
            .collect()
    }
}

/// Compares, and allows the one documented difference: who closes with a redirected message unread shows
/// the end of the stream, not a reset.
fn is_same(scenario: &Scenario, by_tcp: &Outcome, by_sockmap: &Outcome) -> bool {
    if scenario.ending != Ending::CloseUnread {
        return by_tcp == by_sockmap;
    }
    let (tcp, seen) = (&by_tcp.connector, &by_sockmap.connector);
    by_tcp.acceptor == by_sockmap.acceptor
        && (tcp.bytes, tcp.hash) == (seen.bytes, seen.hash)
        && tcp.events == ["connection reset"]
        && (seen.events == tcp.events || seen.events == ["end"])
}

fn seed() -> u64 {
    if let Ok(text) = std::env::var(SEED_VARIABLE) {
        return text.parse().expect("a seed is a number");
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970");
    now.as_secs()
}
