//! Who is given a change first, and when the others get it: the states of one scope's trials.
//!
//! Invariant: no clock, no I/O, no lock, no log. What each state means for views is in
//! `plane/trials.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_xds_core::type_rules::{ENDPOINT, LOCALITY_ENDPOINT, SECRET};

/// How changes are tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Clients of a scope that are given a change first.
    pub(crate) clients: NonZeroUsize,
    /// How long they may leave it unanswered. After that it goes on to the rest: a proxy that is
    /// slow, or that waits for a cluster to warm, has not refused it, and a fleet that no change
    /// reaches any more because one proxy hangs is worse than a change that was not tried.
    pub(crate) patience: Duration,
}

/// A stream that wants what is to be tried.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Candidate {
    /// `node.id` of its client, which may have several streams.
    pub(crate) node_id: Arc<str>,
    /// Number of the stream.
    pub(crate) stream: u64,
}

/// Where the changes of one scope are.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) enum Rollout {
    /// All have the newest.
    #[default]
    Idle,
    /// Canaries have the newest, the rest what passed last.
    Trying(Trial),
    /// All have what passed last, until the next change.
    Refused {
        /// The commit that was on trial.
        generation: u64,
    },
}

/// A change that some clients have and the rest does not. Commits that come meanwhile join it.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Trial {
    // Of the first commit: the rest waits for that one, however many join.
    since: Instant,
    first: u64,
    generation: u64,
    // By stream.
    canaries: BTreeMap<u64, Arc<str>>,
    waiting: BTreeSet<u64>,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// All canaries accepted it.
    Passed,
    /// A canary refused it.
    Refused,
    /// Nobody refused it, but not all answered in time, or the last of them left.
    Unanswered,
}

/// Whether a type is never held back (R53): a fleet without fresh endpoints fails by itself.
pub(crate) fn flows(type_url: &str) -> bool {
    matches!(type_url, ENDPOINT | LOCALITY_ENDPOINT | SECRET)
}

impl Rollout {
    /// Tries a commit on some of those who want what is to be tried. If nobody does, there is
    /// nothing to wait for.
    pub(crate) fn commit(
        &mut self,
        generation: u64,
        candidates: &[Candidate],
        settings: Settings,
        now: Instant,
    ) {
        let mut trial = match std::mem::take(self) {
            Self::Trying(trial) => trial,
            Self::Idle | Self::Refused { .. } => Trial {
                since: now,
                first: generation,
                generation,
                canaries: BTreeMap::new(),
                waiting: BTreeSet::new(),
            },
        };
        trial.generation = generation;
        trial.top_up(candidates, settings.clients);
        trial.waiting = trial.canaries.keys().copied().collect();
        if !trial.canaries.is_empty() {
            *self = Self::Trying(trial);
        }
    }

    /// A stream has accepted all that it wants, up to a commit.
    pub(crate) fn accepted(&mut self, stream: u64, through: u64) -> Option<Outcome> {
        let Self::Trying(trial) = self else {
            return None;
        };
        if through < trial.generation || !trial.waiting.remove(&stream) {
            return None;
        }
        self.end_if_nobody_is_waited_for(Outcome::Passed)
    }

    /// A stream has refused what it was sent of a commit.
    pub(crate) fn refused(&mut self, stream: u64, generation: u64) -> Option<Outcome> {
        let Self::Trying(trial) = self else {
            return None;
        };
        // What it refused from before the trial is what the rest has too.
        if generation < trial.first || !trial.canaries.contains_key(&stream) {
            return None;
        }
        let generation = trial.generation;
        *self = Self::Refused { generation };
        Some(Outcome::Refused)
    }

    /// A stream has left the scope. Another takes its place, if there is one that wants it.
    pub(crate) fn left(
        &mut self,
        stream: u64,
        candidates: &[Candidate],
        settings: Settings,
    ) -> Option<Outcome> {
        let Self::Trying(trial) = self else {
            return None;
        };
        trial.canaries.remove(&stream)?;
        if !trial.waiting.remove(&stream) {
            return None;
        }
        let before: BTreeSet<u64> = trial.canaries.keys().copied().collect();
        trial.top_up(candidates, settings.clients);
        let new = trial.canaries.keys().filter(|it| !before.contains(it));
        trial.waiting.extend(new);
        let outcome = if trial.canaries.is_empty() {
            Outcome::Unanswered
        } else {
            Outcome::Passed
        };
        self.end_if_nobody_is_waited_for(outcome)
    }

    /// Ends a trial whose time is up.
    pub(crate) fn expire(&mut self, now: Instant, settings: Settings) -> Option<Outcome> {
        let is_over = self.deadline(settings).is_some_and(|at| at <= now);
        is_over.then(|| {
            *self = Self::Idle;
            Outcome::Unanswered
        })
    }

    /// When a trial's time is up.
    pub(crate) fn deadline(&self, settings: Settings) -> Option<Instant> {
        match self {
            Self::Trying(trial) => Some(trial.since + settings.patience),
            Self::Idle | Self::Refused { .. } => None,
        }
    }

    /// Whether a stream is given the newest before the rest.
    pub(crate) fn is_canary(&self, stream: u64) -> bool {
        matches!(self, Self::Trying(trial) if trial.canaries.contains_key(&stream))
    }

    /// The streams that are given the newest before the rest.
    pub(crate) fn canaries(&self) -> BTreeSet<u64> {
        match self {
            Self::Trying(trial) => trial.canaries.keys().copied().collect(),
            Self::Idle | Self::Refused { .. } => BTreeSet::new(),
        }
    }

    fn end_if_nobody_is_waited_for(&mut self, outcome: Outcome) -> Option<Outcome> {
        let is_over = matches!(self, Self::Trying(trial) if trial.waiting.is_empty());
        is_over.then(|| {
            *self = Self::Idle;
            outcome
        })
    }
}

impl Trial {
    // All streams of a client are in it, or none: a proxy with a stream per type is one proxy.
    fn top_up(&mut self, candidates: &[Candidate], clients: NonZeroUsize) {
        let mut nodes: BTreeSet<Arc<str>> = self.canaries.values().cloned().collect();
        let mut order: Vec<(u64, &Candidate)> = candidates
            .iter()
            .map(|it| (rank(&it.node_id), it))
            .collect();
        order.sort_by(|(a, x), (b, y)| (a, &x.node_id, x.stream).cmp(&(b, &y.node_id, y.stream)));
        for (_, candidate) in order {
            if nodes.len() < clients.get() || nodes.contains(&candidate.node_id) {
                nodes.insert(Arc::clone(&candidate.node_id));
                let node_id = Arc::clone(&candidate.node_id);
                self.canaries.insert(candidate.stream, node_id);
            }
        }
    }
}

// FNV-1a: the same nodes on every replica and after every restart.
fn rank(node_id: &str) -> u64 {
    node_id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        Commit(u64),
        Accept(u64, u64),
        Refuse(u64, u64),
        // A stream leaves, and these are left.
        Leave(u64, &'static [u64]),
        Seconds(u64),
    }
    use Step::{Accept, Commit, Leave, Refuse, Seconds};

    fn settings(clients: usize) -> Settings {
        Settings {
            clients: NonZeroUsize::new(clients).expect("tests try on somebody"),
            patience: Duration::from_secs(10),
        }
    }

    fn candidates(streams: &[u64]) -> Vec<Candidate> {
        let streams = streams.iter();
        streams
            .map(|stream| Candidate {
                node_id: format!("node-{stream}").into(),
                stream: *stream,
            })
            .collect()
    }

    // The states that a rollout on two of `streams` goes through, shortly.
    fn run(streams: &[u64], steps: &[Step]) -> Vec<String> {
        let (mut rollout, settings) = (Rollout::default(), settings(2));
        let start = Instant::now();
        let mut now = start;
        let mut seen = Vec::new();
        for step in steps {
            let outcome = match step {
                Commit(generation) => {
                    rollout.commit(*generation, &candidates(streams), settings, now);
                    None
                }
                Accept(stream, through) => rollout.accepted(*stream, *through),
                Refuse(stream, generation) => rollout.refused(*stream, *generation),
                Leave(stream, left) => rollout.left(*stream, &candidates(left), settings),
                Seconds(seconds) => {
                    now = start + Duration::from_secs(*seconds);
                    rollout.expire(now, settings)
                }
            };
            let state = match &rollout {
                Rollout::Idle => "idle".to_owned(),
                Rollout::Trying(trial) => {
                    format!("trying {} waits {:?}", trial.generation, trial.waiting)
                }
                Rollout::Refused { generation } => format!("refused {generation}"),
            };
            seen.push(match outcome {
                Some(outcome) => format!("{state}, {outcome:?}"),
                None => state,
            });
        }
        seen
    }

    // Streams, steps, and the state after each.
    type Case = (&'static [u64], &'static [Step], &'static [&'static str]);

    fn check(cases: &[Case]) {
        for (number, (streams, steps, expected)) in cases.iter().enumerate() {
            assert_eq!(run(streams, steps), *expected, "case {number}");
        }
    }

    #[test]
    fn a_change_goes_on_when_all_canaries_accepted_the_newest() {
        let cases: [Case; 6] = [
            // Nobody wants it.
            (&[], &[Commit(1)], &["idle"]),
            // Fewer than are asked for: all of them.
            (
                &[1],
                &[Commit(1), Accept(1, 1)],
                &["trying 1 waits {1}", "idle, Passed"],
            ),
            (
                &[1, 2, 3],
                &[
                    Commit(5),
                    Accept(1, 4),
                    Accept(1, 5),
                    Accept(3, 5),
                    Accept(2, 5),
                ],
                &[
                    "trying 5 waits {1, 2}",
                    "trying 5 waits {1, 2}",
                    "trying 5 waits {2}",
                    "trying 5 waits {2}",
                    "idle, Passed",
                ],
            ),
            // A commit joins: what was accepted was not the newest.
            (
                &[1, 2, 3],
                &[
                    Commit(5),
                    Accept(1, 5),
                    Commit(6),
                    Accept(2, 6),
                    Accept(1, 6),
                ],
                &[
                    "trying 5 waits {1, 2}",
                    "trying 5 waits {2}",
                    "trying 6 waits {1, 2}",
                    "trying 6 waits {1}",
                    "idle, Passed",
                ],
            ),
            // One refusal is enough; the next change is tried again.
            (
                &[1, 2, 3],
                &[
                    Commit(5),
                    Accept(1, 5),
                    Refuse(3, 5),
                    Refuse(2, 4),
                    Refuse(2, 5),
                    Commit(7),
                ],
                &[
                    "trying 5 waits {1, 2}",
                    "trying 5 waits {2}",
                    "trying 5 waits {2}",
                    "trying 5 waits {2}",
                    "refused 5, Refused",
                    "trying 7 waits {1, 2}",
                ],
            ),
            // Who accepted may refuse what comes with the next answer.
            (
                &[1, 2, 3],
                &[Commit(5), Accept(1, 5), Refuse(1, 5)],
                &[
                    "trying 5 waits {1, 2}",
                    "trying 5 waits {2}",
                    "refused 5, Refused",
                ],
            ),
        ];
        check(&cases);
    }

    #[test]
    fn who_leaves_is_replaced_and_who_is_silent_is_not_waited_for() {
        let cases: [Case; 3] = [
            // Another takes the place of one that leaves, once it waits for it.
            (
                &[1, 2, 3],
                &[
                    Commit(5),
                    Leave(1, &[2, 3]),
                    Accept(2, 5),
                    Leave(2, &[3]),
                    Leave(3, &[]),
                ],
                &[
                    "trying 5 waits {1, 2}",
                    "trying 5 waits {2, 3}",
                    "trying 5 waits {3}",
                    "trying 5 waits {3}",
                    "idle, Unanswered",
                ],
            ),
            // One that leaves was the last that was waited for.
            (
                &[1, 2],
                &[Commit(5), Accept(2, 5), Leave(1, &[2])],
                &[
                    "trying 5 waits {1, 2}",
                    "trying 5 waits {1}",
                    "idle, Passed",
                ],
            ),
            // Commits that join give it no more time.
            (
                &[1, 2, 3],
                &[Commit(5), Seconds(9), Commit(6), Seconds(10), Accept(1, 6)],
                &[
                    "trying 5 waits {1, 2}",
                    "trying 5 waits {1, 2}",
                    "trying 6 waits {1, 2}",
                    "idle, Unanswered",
                    "idle",
                ],
            ),
        ];
        check(&cases);
    }

    #[test]
    fn canaries_are_clients_and_the_same_ones_in_any_order() {
        let candidate = |node: &str, stream| Candidate {
            node_id: node.into(),
            stream,
        };
        let mut all = vec![
            candidate("a", 1),
            candidate("b", 2),
            candidate("a", 3),
            candidate("c", 4),
            candidate("b", 5),
        ];
        let chosen = |candidates: &[Candidate], clients| {
            let mut rollout = Rollout::default();
            rollout.commit(1, candidates, settings(clients), Instant::now());
            rollout.canaries()
        };
        let one = chosen(&all, 1);
        let two = chosen(&all, 2);
        all.reverse();
        assert_eq!(one, chosen(&all, 1));
        assert_eq!(two, chosen(&all, 2));
        assert!(one.is_subset(&two));
        let nodes = |streams: &BTreeSet<u64>| {
            let of = all.iter().filter(|it| streams.contains(&it.stream));
            of.map(|it| &*it.node_id).collect::<BTreeSet<_>>().len()
        };
        assert_eq!((nodes(&one), nodes(&two)), (1, 2));
        let is_whole = |streams: &BTreeSet<u64>| {
            [[1, 3], [2, 5]]
                .iter()
                .all(|of| streams.contains(&of[0]) == streams.contains(&of[1]))
        };
        assert!(is_whole(&one) && is_whole(&two));
    }
}
