//! Callers that are slower than the fleet, and commits that nobody follows.

use std::collections::BTreeMap;

use isthmus_xds_core::type_rules::ENDPOINT;
use tokio::sync::Semaphore;
use tokio_stream::StreamExt;

use super::*;
use crate::convergence::{Answerer, Rest};

/// More than the plane keeps for a caller.
const CLIENTS: u32 = 6000;

#[tokio::test]
async fn a_caller_that_lags_is_told_of_refusals_and_that_it_lost_something() {
    let plane = Plane::new();
    let on = &plane.convergence;
    let type_url = TypeUrl::from(ENDPOINT);
    on.begin(1, Instant::now().into_std());
    let streams: roaring::RoaringBitmap = (0..CLIENTS).collect();
    on.owe(1, &streams, BTreeMap::from([(&type_url, streams.clone())]));
    on.announced(1, Instant::now().into_std());

    let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
    let (_stop, shutdown) = watch::channel(false);
    let events = follow(&plane, &Recent::default(), 1, shutdown, permit).unwrap();
    // The follower has its first turn when all of this has happened.
    let node_id: Arc<str> = "n".into();
    for slot in 0..CLIENTS {
        let who = Answerer {
            slot,
            stream: u64::from(slot),
            node_id: &node_id,
        };
        let now = Instant::now().into_std();
        if slot == 0 || slot == CLIENTS - 1 {
            on.refused(who, &type_url, 1, &"no".into(), now);
        } else {
            on.answered(who, [(&type_url, 1)].into_iter(), Rest::Quiet, now);
        }
    }

    let events: Vec<Event> = events
        .filter_map(|event| event.unwrap().event)
        .collect()
        .await;
    let outcomes: Vec<&ClientOutcome> = events
        .iter()
        .filter_map(|event| match event {
            Event::Client(outcome) => Some(outcome),
            Event::Totals(_) => None,
        })
        .collect();
    let refused = outcomes
        .iter()
        .filter(|it| it.verdict() == Verdict::Refused);
    let refused: Vec<u64> = refused.map(|it| it.stream).collect();
    assert_eq!(refused, [0, u64::from(CLIENTS) - 1], "each once");
    let Some(Event::Totals(last)) = events.last() else {
        panic!("{:?}", events.last());
    };
    assert_eq!((last.refused, last.waiting), (2, 0));
    // Of the lost answers, one refusal is told, and the other was not lost.
    let told = outcomes.len() as u64;
    assert!(last.skipped > 0);
    assert_eq!(last.skipped + told, u64::from(CLIENTS) + 1);
}

#[tokio::test]
async fn nobody_listens_to_a_commit_that_nobody_follows() {
    let plane = Arc::new(Plane::new());
    let recent = Recent::default();
    for generation in [1, 2] {
        recent.keep(&plane, generation, plane.convergence.answers());
    }
    let now = Instant::now();
    let after = |age: Duration, done: u64| {
        recent.lock().put_away(now + age, |it| it == done);
        let waiting = recent.lock();
        waiting
            .kept
            .iter()
            .map(|it| it.generation)
            .collect::<Vec<_>>()
    };
    assert_eq!(after(FOLLOWABLE_FOR / 2, 1), [1, 2]);
    assert!(plane.convergence.has_listeners());
    assert_eq!(after(FOLLOWABLE_FOR, 1), [2], "one client has not answered");
    assert!(after(FOLLOWABLE_AT_MOST, 1).is_empty());
    assert!(!plane.convergence.has_listeners());
}
