//! Commits and answers without streams: what is counted, kept and forgotten.

use isthmus_xds_core::type_rules::{CLUSTER, ENDPOINT};

use super::*;

fn convergence() -> Convergence {
    Convergence::new(ChangeMetrics::default())
}

fn streams(slots: &[Slot]) -> RoaringBitmap {
    slots.iter().copied().collect()
}

struct Stream {
    slot: Slot,
    node_id: Arc<str>,
}

impl Stream {
    fn new(slot: Slot) -> Self {
        let node_id = format!("node-{slot}").into();
        Self { slot, node_id }
    }

    fn who(&self) -> Answerer<'_> {
        Answerer {
            slot: self.slot,
            stream: u64::from(self.slot) + 100,
            node_id: &self.node_id,
        }
    }

    fn answers(&self, on: &Convergence, type_url: &str, through: u64) -> Rest {
        let types = [(TypeUrl::from(type_url), through)];
        let types = types.iter().map(|(url, through)| (url, *through));
        on.answered(self.who(), types, Rest::Busy, Instant::now())
    }
}

fn owe(on: &Convergence, generation: u64, type_url: &str, slots: &[Slot]) {
    let (type_url, streams) = (TypeUrl::from(type_url), streams(slots));
    on.owe(
        generation,
        &streams,
        BTreeMap::from([(&type_url, streams.clone())]),
    );
}

fn commit(on: &Convergence, generation: u64, needs: &[(&str, &[Slot])]) {
    on.begin(generation, Instant::now());
    for (type_url, slots) in needs {
        owe(on, generation, type_url, slots);
    }
    on.announced(generation, Instant::now());
}

fn numbers(on: &Convergence, generation: u64) -> (u64, u64, u64) {
    let it = on.progress(generation).expect("it is followed");
    (it.needed, it.accepted, it.pending)
}

#[test]
fn a_client_has_a_commit_when_it_has_all_types_of_it() {
    let on = convergence();
    let stream = Stream::new(3);
    commit(&on, 1, &[(CLUSTER, &[3]), (ENDPOINT, &[3, 4])]);
    assert_eq!(numbers(&on, 1), (2, 0, 2));
    assert_eq!(stream.answers(&on, ENDPOINT, 1), Rest::Busy);
    assert_eq!(numbers(&on, 1), (2, 0, 2));
    assert_eq!(stream.answers(&on, CLUSTER, 1), Rest::Quiet);
    assert_eq!(numbers(&on, 1), (2, 1, 1));
}

#[test]
fn an_answer_counts_for_what_it_is_of_and_all_before() {
    let on = convergence();
    let stream = Stream::new(0);
    for generation in 1..=4 {
        commit(&on, generation, &[(ENDPOINT, &[0])]);
    }
    stream.answers(&on, ENDPOINT, 3);
    let accepted = (1..=4).map(|generation| numbers(&on, generation).1);
    assert_eq!(accepted.collect::<Vec<_>>(), [1, 1, 1, 0]);
    stream.answers(&on, CLUSTER, 4);
    assert_eq!(numbers(&on, 4), (1, 0, 1));
}

#[test]
fn a_refusal_counts_up_to_the_generation_that_was_refused() {
    let on = convergence();
    let stream = Stream::new(0);
    for generation in 1..=3 {
        commit(&on, generation, &[(ENDPOINT, &[0])]);
    }
    let type_url = TypeUrl::from(ENDPOINT);
    on.refused(stream.who(), &type_url, 2, &"no".into(), Instant::now());
    stream.answers(&on, ENDPOINT, 3);
    let ends = (1..=3).map(|generation| {
        let it = on.progress(generation).expect("it is followed");
        (it.accepted, it.refusals, it.is_converged)
    });
    assert_eq!(
        ends.collect::<Vec<_>>(),
        [(0, 1, false), (0, 1, false), (1, 0, true)]
    );
}

#[test]
fn refusals_are_counted_all_and_kept_in_part() {
    let on = convergence();
    let many = u32::try_from(REFUSALS_KEPT).unwrap() + 10;
    let slots: Vec<Slot> = (0..many).collect();
    commit(&on, 1, &[(ENDPOINT, &slots)]);
    for slot in slots {
        let stream = Stream::new(slot);
        let type_url = TypeUrl::from(ENDPOINT);
        on.refused(stream.who(), &type_url, 1, &"no".into(), Instant::now());
    }
    let progress = on.progress(1).expect("it is followed");
    assert_eq!(progress.refusals, u64::from(many));
    assert_eq!(progress.refused.len(), REFUSALS_KEPT);
}

#[test]
fn only_the_last_commits_are_followed_and_old_ones_wait_for_nobody() {
    let on = convergence();
    let stream = Stream::new(7);
    let last = COMMITS as u64 + 10;
    let mut oldest = None;
    for generation in 1..=last {
        commit(&on, generation, &[(ENDPOINT, &[7])]);
        if generation == 1 {
            oldest = on.watch(1);
        }
    }
    assert!(on.progress(10).is_none());
    assert_eq!(numbers(&on, 11), (1, 0, 1));
    assert!(
        oldest.expect("it was followed").has_changed().is_err(),
        "nobody waits"
    );
    assert_eq!(stream.answers(&on, ENDPOINT, last), Rest::Quiet);
    assert_eq!(numbers(&on, 11), (1, 1, 0));
    assert_eq!(numbers(&on, last), (1, 1, 0));
}

#[test]
fn nothing_has_converged_before_all_are_asked() {
    let on = convergence();
    let stream = Stream::new(0);
    on.begin(1, Instant::now());
    owe(&on, 1, ENDPOINT, &[0]);
    stream.answers(&on, ENDPOINT, 1);
    assert!(!on.progress(1).expect("it is followed").is_converged);
    owe(&on, 1, ENDPOINT, &[1]);
    on.announced(1, Instant::now());
    assert_eq!(numbers(&on, 1), (2, 1, 1));
}
