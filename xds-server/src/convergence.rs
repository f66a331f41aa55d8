//! How far a change came: which clients need it, which have it, which refused it, and when.
//!
//! A commit is pending at a client from the moment at which the client is rung for it until the
//! client has answered all that it wants of it, type by type. The last commits are kept in a ring:
//! who is pending is a bitmap, so that a client that never answers costs some bits, and what was
//! answered costs nothing but its numbers.
//!
//! The lock is taken last of all locks, and only for streams that a change concerns.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isthmus_xds_core::{Name, TypeUrl};
use roaring::RoaringBitmap;
use tokio::sync::{broadcast, watch};

use crate::interest::Slot;
use crate::metrics::ChangeMetrics;

mod commit;

use commit::Commit;

/// Commits that are followed: as many as the history keeps.
pub const COMMITS: usize = 256;

/// Refusals of one commit that are kept with their words; of all, the number is.
pub const REFUSALS_KEPT: usize = 32;

/// Resources of one refusal that are kept by name.
pub const BLAMED_KEPT: usize = 16;

/// Answers that a listener may lag behind before it loses the oldest, and is told so.
const ANSWERS_BUFFERED: usize = 4096;

/// How far the last commits came.
#[derive(Debug)]
pub struct Convergence {
    state: Mutex<State>,
    answers: broadcast::Sender<Answered>,
    metrics: ChangeMetrics,
}

#[derive(Debug, Default)]
struct State {
    // Oldest first.
    commits: VecDeque<Commit>,
    // By the stream's number: the oldest commit that may be pending at it; 0 if none is.
    owed_since: Vec<u64>,
}

/// How far one commit came.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// Number of the commit.
    pub generation: u64,
    /// Clients that were open when it was made and want some of it. One that leaves before it has
    /// answered is not counted any more.
    pub needed: u64,
    /// Clients that have it all and accepted it.
    pub accepted: u64,
    /// Clients that refused it, or a later one by the same response.
    pub refusals: u64,
    /// The first [`REFUSALS_KEPT`] of those.
    pub refused: Vec<RefusedBy>,
    /// Clients that have not answered all of it.
    pub pending: u64,
    /// From the commit to the last answer, or to this moment if some are missing.
    pub elapsed: Duration,
    /// Whether every client that needs it has accepted it.
    pub is_converged: bool,
}

/// One client's refusal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RefusedBy {
    /// Number of its stream.
    pub stream: u64,
    /// `node.id` of the client.
    pub node_id: Arc<str>,
    /// Type of what it refused.
    pub type_url: TypeUrl,
    /// The first [`BLAMED_KEPT`] of the resources that are to blame, as far as they are found.
    pub resources: Vec<Arc<str>>,
    /// The client's words.
    pub message: Arc<str>,
}

/// One client's answer to one type of one commit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answered {
    /// Number of the commit.
    pub generation: u64,
    /// Number of the stream.
    pub stream: u64,
    /// `node.id` of the client.
    pub node_id: Arc<str>,
    /// The type; `None` for all types at once, of a client that moved to other documents.
    pub type_url: Option<TypeUrl>,
    /// From the commit to the answer.
    pub after: Duration,
    /// What it was.
    pub outcome: Outcome,
}

/// What became of a commit at a client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It was accepted, or came to nothing.
    Accepted,
    /// It was refused, in these words.
    Refused(Arc<str>),
    /// The client left.
    Left,
}

/// Who answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answerer<'a> {
    pub(crate) slot: Slot,
    pub(crate) stream: u64,
    pub(crate) node_id: &'a Arc<str>,
}

/// Whether there is more to come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rest {
    /// Nothing is to be sent or answered.
    Quiet,
    /// There is more.
    Busy,
}

impl Convergence {
    pub(crate) fn new(metrics: ChangeMetrics) -> Self {
        Self {
            state: Mutex::default(),
            answers: broadcast::Sender::new(ANSWERS_BUFFERED),
            metrics,
        }
    }

    /// How far a commit came; `None` if it is not among the last [`COMMITS`].
    pub fn progress(&self, generation: u64) -> Option<Progress> {
        let mut state = self.lock();
        let commit = state.commit(generation)?;
        Some(commit.progress(Instant::now()))
    }

    /// How far a commit came, and each step from here on; `None` if it is not among the last
    /// [`COMMITS`]. Ends when the commit is so old that nobody is waited for.
    pub fn watch(&self, generation: u64) -> Option<watch::Receiver<Progress>> {
        let mut state = self.lock();
        let commit = state.commit(generation)?;
        Some(commit.watch(Instant::now()))
    }

    /// Each answer of each client to each commit, from here on.
    pub fn answers(&self) -> broadcast::Receiver<Answered> {
        self.answers.subscribe()
    }

    /// Whether answers are told to anybody; each costs an allocation then.
    pub(crate) fn has_listeners(&self) -> bool {
        self.answers.receiver_count() > 0
    }

    /// Begins to follow a commit, unless it is followed: one that changes nothing makes no new
    /// generation. Commits come in order.
    pub(crate) fn begin(&self, generation: u64, now: Instant) {
        let mut state = self.lock();
        let newest = state.commits.back().map(Commit::generation);
        if newest.is_some_and(|newest| newest >= generation) {
            return;
        }
        if state.commits.len() == COMMITS
            && let Some(oldest) = state.commits.pop_front()
            && !oldest.is_done()
        {
            self.metrics.observe_bytes(oldest.bytes());
        }
        state.commits.push_back(Commit::new(generation, now));
    }

    /// Notes that these streams want something of a commit, type by type. They are not told yet.
    pub(crate) fn owe(
        &self,
        generation: u64,
        streams: &RoaringBitmap,
        types: BTreeMap<&TypeUrl, RoaringBitmap>,
    ) {
        if streams.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.note_owed(generation, streams);
        if let Some(commit) = state.commit(generation) {
            commit.owe(streams, types);
        }
    }

    /// Notes that streams must look whether a commit changed which documents they get.
    pub(crate) fn owe_move(&self, generation: u64, streams: &RoaringBitmap) {
        let mut state = self.lock();
        state.note_owed(generation, streams);
        if let Some(commit) = state.commit(generation) {
            commit.owe_move(streams);
        }
    }

    /// All streams that need a commit are noted.
    pub(crate) fn announced(&self, generation: u64, now: Instant) {
        let mut state = self.lock();
        if let Some(commit) = state.commit(generation) {
            commit.announced();
            self.conclude(commit, now);
        }
    }

    /// A stream has looked up its documents, as they were up to a generation. `Quiet`: it has to be
    /// sent nothing for that.
    pub(crate) fn placed(&self, slot: Slot, through: u64, rest: Rest, now: Instant) {
        let mut state = self.lock();
        // It will be rung for those that came since, and look again.
        let owed = state.owed_to(slot);
        for commit in owed.take_while(|it| it.generation() <= through) {
            if commit.placed(slot, rest) {
                self.conclude(commit, now);
            }
        }
    }

    /// A stream has answered its types up to these generations. `Quiet` if nothing else is waited
    /// for of all that it was rung for until here.
    pub(crate) fn answered<'a>(
        &self,
        who: Answerer<'_>,
        through: impl Iterator<Item = (&'a TypeUrl, u64)>,
        rest: Rest,
        now: Instant,
    ) -> Rest {
        let through: Vec<(&TypeUrl, u64)> = through.collect();
        let mut state = self.lock();
        let mut first_pending = 0;
        for commit in state.owed_to(who.slot) {
            let mut is_answered = false;
            for (type_url, through) in &through {
                if commit.generation() <= *through && commit.accept(who.slot, type_url) {
                    is_answered = true;
                    self.tell(who, commit, Some(type_url), Outcome::Accepted, now);
                    let after = commit.age(now);
                    self.metrics.observe_answer(type_url, after);
                }
            }
            if rest == Rest::Quiet && commit.accept_move(who.slot) {
                is_answered = true;
                self.tell(who, commit, None, Outcome::Accepted, now);
            }
            if is_answered {
                self.conclude(commit, now);
            }
            if first_pending == 0 && commit.is_waiting_for(who.slot) {
                first_pending = commit.generation();
            }
        }
        state.owe_since(who.slot, first_pending);
        match first_pending {
            0 => Rest::Quiet,
            _ => Rest::Busy,
        }
    }

    /// A stream refused what it was sent of a type, up to a generation. Returns from which to which
    /// commits that were waited for were refused by it, if any.
    pub(crate) fn refused(
        &self,
        who: Answerer<'_>,
        type_url: &TypeUrl,
        through: u64,
        message: &Arc<str>,
        now: Instant,
    ) -> Option<RangeInclusive<u64>> {
        let mut state = self.lock();
        let mut concerned: Option<RangeInclusive<u64>> = None;
        for commit in state.owed_to(who.slot) {
            if commit.generation() > through {
                break;
            }
            let refusal = || RefusedBy {
                stream: who.stream,
                node_id: Arc::clone(who.node_id),
                type_url: TypeUrl::clone(type_url),
                resources: Vec::new(),
                message: Arc::clone(message),
            };
            if commit.refuse(who.slot, type_url, refusal) {
                let number = commit.generation();
                concerned = Some(*concerned.as_ref().map_or(&number, |it| it.start())..=number);
                let outcome = Outcome::Refused(Arc::clone(message));
                self.tell(who, commit, Some(type_url), outcome, now);
                self.conclude(commit, now);
            }
        }
        concerned
    }

    /// A resource is found to be to blame for what a stream refused of these commits.
    pub(crate) fn blamed(
        &self,
        who: Answerer<'_>,
        type_url: &TypeUrl,
        commits: &RangeInclusive<u64>,
        name: &Name,
    ) {
        let mut state = self.lock();
        let first = state
            .commits
            .partition_point(|it| it.generation() < *commits.start());
        let concerned = state.commits.range_mut(first..);
        for commit in concerned.take_while(|it| it.generation() <= *commits.end()) {
            commit.blame(who.stream, type_url, name);
        }
    }

    /// Notes bytes that were sent to a stream because of the newest commit that it owes an answer.
    pub(crate) fn sent(&self, slot: Slot, size_bytes: usize) {
        let mut state = self.lock();
        let newest = state.owed_to(slot).rfind(|it| it.is_waiting_for(slot));
        if let Some(commit) = newest {
            commit.sent(size_bytes);
        }
    }

    /// A stream is gone: nobody waits for it any more, and its number is free.
    pub(crate) fn left(&self, who: Answerer<'_>, now: Instant) {
        let mut state = self.lock();
        for commit in state.owed_to(who.slot) {
            if commit.leave(who.slot) {
                self.tell(who, commit, None, Outcome::Left, now);
                self.conclude(commit, now);
            }
        }
        state.owe_since(who.slot, 0);
    }

    // Tells who watches, and counts what has come to its end.
    fn conclude(&self, commit: &mut Commit, now: Instant) {
        if commit.conclude(now) {
            self.metrics.observe_bytes(commit.bytes());
            if let Some(elapsed) = commit.converged_after() {
                self.metrics.observe_converged(elapsed);
            }
        }
    }

    fn tell(
        &self,
        who: Answerer<'_>,
        commit: &Commit,
        type_url: Option<&TypeUrl>,
        outcome: Outcome,
        now: Instant,
    ) {
        if !self.has_listeners() {
            return;
        }
        let answered = Answered {
            generation: commit.generation(),
            stream: who.stream,
            node_id: Arc::clone(who.node_id),
            type_url: type_url.cloned(),
            after: commit.age(now),
            outcome,
        };
        // Fails only if the last listener has just gone.
        let _ = self.answers.send(answered);
    }

    // A panic while the lock was held leaves numbers that may be off by one client.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn commit(&mut self, generation: u64) -> Option<&mut Commit> {
        let found = self
            .commits
            .binary_search_by_key(&generation, Commit::generation);
        self.commits.get_mut(found.ok()?)
    }

    // The commits that may be pending at a stream, oldest first.
    fn owed_to(&mut self, slot: Slot) -> impl DoubleEndedIterator<Item = &mut Commit> {
        let since = self.owed_since.get(slot as usize).copied().unwrap_or(0);
        let skipped = match since {
            0 => self.commits.len(),
            since => self.commits.partition_point(|it| it.generation() < since),
        };
        self.commits.range_mut(skipped..)
    }

    fn note_owed(&mut self, generation: u64, streams: &RoaringBitmap) {
        for slot in streams {
            if self.owed_since.get(slot as usize).is_none_or(|it| *it == 0) {
                self.owe_since(slot, generation);
            }
        }
    }

    fn owe_since(&mut self, slot: Slot, generation: u64) {
        let place = slot as usize;
        if self.owed_since.len() <= place {
            self.owed_since.resize(place + 1, 0);
        }
        self.owed_since[place] = generation;
    }
}

#[cfg(test)]
mod tests;
