//! The streams of one scope, and how a change reaches those that want it.
//!
//! No wake-up is lost. [`Scope::announce`] holds the members' lock while it puts the next view in
//! place, asks the index who wants the changes, and rings them. A stream that changes what it
//! wants amends the index under that same lock and reads the view there. So either it comes first,
//! and the announcement finds it in the index; or it comes after, and what it reads is the
//! announced view, to which it moves by a comparison of its own.
//!
//! Locks are taken in this order: a client's, the plane's, the members' of a scope. The one
//! place that goes the other way (`bring_along`) tries and does not wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::task::Context;

use atomic_waker::AtomicWaker;
use isthmus_xds_core::catalog::ResourceChange;
use isthmus_xds_core::stream::Amended;
use isthmus_xds_core::{ScopeKey, Stream, TypeUrl, View};
use roaring::RoaringBitmap;

use crate::canary::Candidate;
use crate::clients::Client;
use crate::convergence::Convergence;
use crate::interest::{InterestIndex, Slot};

/// Changes after which streams that wanted none of them let go of the view that they hold, at
/// least: what was replaced since is kept in memory for them. At most one for each stream, so
/// that a change pays for its share of one of them, however many there are.
const BRING_ALONG_AFTER: usize = 1024;

/// Clients that get the same documents, and the view of those.
#[derive(Debug)]
pub(crate) struct Scope {
    key: ScopeKey,
    offer: RwLock<Offer>,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    index: InterestIndex,
    clients: BTreeMap<Slot, Arc<Client>>,
    // By type of the view, of clients that are gone: what else they asked for is of their choosing,
    // and there is no end to it.
    accepted: BTreeMap<TypeUrl, u64>,
    // Since all streams were at the newest view.
    changes: usize,
}

/// What the clients of a scope should have.
#[derive(Debug)]
struct Offer {
    newest: Arc<View>,
    apart: Option<Apart>,
    held: Option<Held>,
}

/// What most streams have while the newest view is tried on a few, or was refused by those.
#[derive(Debug)]
pub(crate) struct Held {
    /// What all but the canaries should have.
    pub(crate) view: Arc<View>,
    /// Streams that should have the newest view.
    pub(crate) canaries: BTreeSet<u64>,
    /// The last commit of which all have all.
    pub(crate) passed: u64,
    /// Where it is not the newest view.
    pub(crate) changes: Vec<ResourceChange>,
}

/// What newcomers should have while something in the newest view is in quarantine.
#[derive(Debug)]
pub(crate) struct Apart {
    /// Streams with numbers above this are newcomers.
    pub(crate) after_stream: u64,
    /// What they should have.
    pub(crate) view: Arc<View>,
    /// Where that is not the newest view.
    pub(crate) changes: Vec<ResourceChange>,
}

/// Whether a stream has what all have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// It is a newcomer while something is in quarantine.
    Apart,
    /// What is newer than this commit is held back from it, but for endpoints and secrets.
    Held(u64),
    /// It has the newest view.
    Newest,
}

/// What an announcement did.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    /// Streams that slept and were woken.
    pub(crate) woken: usize,
}

impl Scope {
    pub(crate) fn new(key: ScopeKey, view: Arc<View>) -> Self {
        Self {
            key,
            offer: RwLock::new(Offer {
                newest: view,
                apart: None,
                held: None,
            }),
            members: Mutex::default(),
        }
    }

    pub(crate) fn key(&self) -> &ScopeKey {
        &self.key
    }

    /// The newest view.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.read_offer().newest)
    }

    /// The view that a stream should have, and whether that is another than the newest.
    pub(crate) fn view_for(&self, stream: u64) -> (Arc<View>, Standing) {
        let offer = self.read_offer();
        let held = offer.held.as_ref();
        let held = held.filter(|it| !it.canaries.contains(&stream));
        let is_canary = held.is_none() && offer.held.is_some();
        match (&offer.apart, held) {
            // It differs from what is held, if anything is.
            (Some(apart), _) if stream > apart.after_stream && !is_canary => {
                let standing = held.map_or(Standing::Apart, |it| Standing::Held(it.passed));
                (Arc::clone(&apart.view), standing)
            }
            (_, Some(held)) => (Arc::clone(&held.view), Standing::Held(held.passed)),
            (_, None) => (Arc::clone(&offer.newest), Standing::Newest),
        }
    }

    /// What streams have that are neither canaries nor newcomers.
    pub(crate) fn view_of_most(&self) -> Arc<View> {
        Arc::clone(self.read_offer().of_most())
    }

    /// Whether a stream is given the newest view before the others.
    pub(crate) fn is_canary(&self, stream: u64) -> bool {
        let offer = self.read_offer();
        let held = offer.held.as_ref();
        held.is_some_and(|it| it.canaries.contains(&stream))
    }

    /// The streams that want any of some resources.
    pub(crate) fn wanting(&self, changes: &[ResourceChange]) -> Vec<Candidate> {
        let members = self.lock();
        let slots = union(members.index.wanting(changes).values());
        let clients = slots.iter().filter_map(|slot| members.clients.get(&slot));
        clients
            .map(|client| Candidate {
                node_id: Arc::clone(&client.node_id),
                stream: client.id,
            })
            .collect()
    }

    /// The newest generation of each type that a client accepted which is gone.
    pub(crate) fn accepted(&self) -> BTreeMap<TypeUrl, u64> {
        self.lock().accepted.clone()
    }

    /// Has newcomers get something else than the newest view, or that again, and wakes those for
    /// whom it makes a difference.
    pub(crate) fn set_apart(&self, apart: Option<Apart>) -> usize {
        let members = self.lock();
        let newest = self.view();
        let mut offer = self.offer.write().unwrap_or_else(PoisonError::into_inner);
        let mut changes = offer.differing();
        offer.apart = apart;
        changes.extend(offer.differing());
        drop(offer);
        members.ring(&union(members.index.wanting(&changes).values()), &newest)
    }

    /// Has newcomers, and all but the canaries, get something else than the newest view, or that
    /// again, and wakes those for whom it makes a difference.
    pub(crate) fn set_offer(&self, apart: Option<Apart>, held: Option<Held>) -> usize {
        let members = self.lock();
        let newest = self.view();
        let mut offer = self.offer.write().unwrap_or_else(PoisonError::into_inner);
        let mut changes = offer.differing();
        offer.apart = apart;
        offer.held = held;
        changes.extend(offer.differing());
        drop(offer);
        members.ring(&union(members.index.wanting(&changes).values()), &newest)
    }

    fn read_offer(&self) -> RwLockReadGuard<'_, Offer> {
        self.offer.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the next view in place and wakes the streams that want any of what changed.
    pub(crate) fn announce(
        &self,
        view: Arc<View>,
        changes: &[ResourceChange],
        apart: Option<Apart>,
        held: Option<Held>,
        convergence: &Convergence,
    ) -> Announced {
        let mut members = self.lock();
        let wanting = members.index.wanting(changes);
        let generation = view.generation();
        let concerned = union(wanting.values());
        // Before anybody can answer.
        convergence.owe(generation, &concerned, wanting);
        for slot in &concerned {
            if let Some(client) = members.clients.get(&slot) {
                client.bell.owe(generation);
            }
        }
        // Nobody may see the one without the other.
        let mut offer = self.offer.write().unwrap_or_else(PoisonError::into_inner);
        let previous = std::mem::replace(&mut offer.newest, view);
        let before = Offer {
            newest: Arc::clone(&previous),
            apart: std::mem::replace(&mut offer.apart, apart),
            held: std::mem::replace(&mut offer.held, held),
        };
        // Those that do not have the newest are woken by what changes for all, and by what is given
        // instead if it does.
        let differing = before.changes_to(&offer);
        drop(offer);
        let mut woken = members.ring(&concerned, &previous);
        if !differing.is_empty() {
            let wanting = members.index.wanting(&differing);
            woken += members.ring(&union(wanting.values()), &previous);
        }
        members.changes += changes.len();
        if members.changes > BRING_ALONG_AFTER.max(members.clients.len()) {
            members.changes = 0;
            self.bring_along(&members);
        }
        Announced { woken }
    }

    /// Notes that every stream will have to look up its scope again.
    pub(crate) fn owe_move(&self, generation: u64, convergence: &Convergence) {
        let members = self.lock();
        let streams: RoaringBitmap = members.clients.keys().collect();
        convergence.owe_move(generation, &streams);
        for client in members.clients.values() {
            client.bell.owe(generation);
        }
    }

    /// Has every stream look up its scope again.
    pub(crate) fn ring_moved(&self) -> usize {
        let members = self.lock();
        let clients = members.clients.values();
        clients.filter(|client| client.bell.ring_moved()).count()
    }

    /// Takes in a client and what its stream wants. It reads the view after that.
    pub(crate) fn join(&self, client: &Arc<Client>, stream: &Stream) {
        let mut members = self.lock();
        for (type_url, wanted) in stream.subscriptions() {
            members.index.insert(client.slot, type_url, wanted);
        }
        members.clients.insert(client.slot, Arc::clone(client));
    }

    /// Takes note of what a stream wants from here on. It reads the view after that.
    pub(crate) fn amend(&self, slot: Slot, amended: &Amended) {
        let mut members = self.lock();
        let (type_url, change) = (&amended.type_url, &amended.change);
        members.index.amend(slot, type_url, change);
    }

    /// Lets a client go; it is not rung any more.
    pub(crate) fn leave(&self, slot: Slot, stream: &Stream) {
        let mut members = self.lock();
        for (type_url, wanted) in stream.subscriptions() {
            members.index.remove(slot, type_url, wanted);
        }
        let view = self.view();
        for status in stream.status() {
            let is_served = view.type_set(&status.type_url).is_some();
            if let Some(generation) = status.acked_generation.filter(|_| is_served) {
                let newest = members.accepted.entry(status.type_url).or_default();
                *newest = generation.max(*newest);
            }
        }
        members.clients.remove(&slot);
    }

    /// Entries of the index.
    pub(crate) fn interest_entries(&self) -> usize {
        self.lock().index.len()
    }

    // Nothing between the view that a silent stream has and the newest concerns it, since it was
    // not rung. A client that is busy brings itself along.
    fn bring_along(&self, members: &Members) {
        let newest = self.view();
        for client in members.clients.values() {
            client.skip_to(&newest);
        }
    }

    // A panic while the lock was held can leave a stream unrung; the others must go on.
    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Offer {
    // What streams have that are neither canaries nor newcomers.
    fn of_most(&self) -> &Arc<View> {
        self.held.as_ref().map_or(&self.newest, |it| &it.view)
    }

    // What changes for streams that do not have the newest, other than what changes in that.
    fn changes_to(&self, next: &Self) -> Vec<ResourceChange> {
        let version_in = |view: &View, it: &ResourceChange| {
            let resource = view.resource(&it.type_url, &it.name);
            resource.map(|it| it.version())
        };
        let apart_in = |offer: &Self| {
            let apart = offer.apart.as_ref().map(|it| Arc::clone(&it.view));
            apart.unwrap_or_else(|| Arc::clone(offer.of_most()))
        };
        let (had, has) = (apart_in(self), apart_in(next));
        let apart = self.apart.iter().chain(&next.apart);
        let apart = apart
            .flat_map(|it| &it.changes)
            .filter(|it| version_in(&had, it) != version_in(&has, it));
        let canaries = |offer: &Self| offer.held.as_ref().map(|it| it.canaries.clone());
        // A canary more moves to the newest, whatever changes.
        let are_others = canaries(self) != canaries(next);
        let (had, has) = (self.of_most(), next.of_most());
        let held = self.held.iter().chain(&next.held);
        let held = held
            .flat_map(|it| &it.changes)
            .filter(|it| are_others || version_in(had, it) != version_in(has, it));
        apart.chain(held).cloned().collect()
    }

    // Where some streams should not have what is in the newest view.
    fn differing(&self) -> Vec<ResourceChange> {
        let apart = self.apart.iter().flat_map(|it| &it.changes);
        let held = self.held.iter().flat_map(|it| &it.changes);
        apart.chain(held).cloned().collect()
    }
}

impl Members {
    fn ring(&self, slots: &RoaringBitmap, previous: &Arc<View>) -> usize {
        let clients = slots.iter().filter_map(|slot| self.clients.get(&slot));
        clients
            .filter(|client| client.bell.ring_change(previous))
            .count()
    }
}

fn union<'a>(mut sets: impl Iterator<Item = &'a RoaringBitmap>) -> RoaringBitmap {
    let first = sets.next().cloned().unwrap_or_default();
    sets.fold(first, |all, set| all | set)
}

/// Where a stream is rung when there is something for it.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    reasons: AtomicU8,
    waker: AtomicWaker,
    // The last view before the first change that the stream was rung for and has not looked at:
    // up to there nothing concerns it.
    unconcerned: Mutex<Option<Arc<View>>>,
    // The newest commit that somebody waits for the stream to answer.
    owed: AtomicU64,
}

const CHANGE: u8 = 1;
const MOVED: u8 = 2;

impl Bell {
    /// Has the task of `context` woken by the next ring. To be called before the bell is looked
    /// at, so that no ring falls between the two.
    pub(crate) fn listen(&self, context: &Context<'_>) {
        self.waker.register(context.waker());
    }

    /// Whether the stream must look up its scope; asked once for each ring.
    pub(crate) fn take_moved(&self) -> bool {
        self.take(MOVED)
    }

    /// Rings for a move of this very stream.
    pub(crate) fn ring_moved(&self) -> bool {
        self.ring(MOVED)
    }

    // Called with the view in place already: who takes the ring reads that or a newer one.
    fn ring_change(&self, previous: &Arc<View>) -> bool {
        self.lock().get_or_insert_with(|| Arc::clone(previous));
        self.ring(CHANGE)
    }

    /// If something changed that the stream wants: the view up to which nothing did. Asked once for
    /// each ring; who takes that view must read the newest after.
    pub(crate) fn take_change(&self) -> Option<Arc<View>> {
        // If another ring was taken together with the view, the newest was read after both.
        self.take(CHANGE).then(|| self.lock().take()).flatten()
    }

    /// The newest commit that the stream was ever rung for.
    pub(crate) fn owed(&self) -> u64 {
        self.owed.load(Ordering::Acquire)
    }

    // Called before the ring, in the order of commits.
    fn owe(&self, generation: u64) {
        self.owed.store(generation, Ordering::Release);
    }

    pub(crate) fn has_change(&self) -> bool {
        self.reasons.load(Ordering::Acquire) & CHANGE != 0
    }

    fn take(&self, reason: u8) -> bool {
        // Read first: most looks find nothing, and a read costs the other cores nothing.
        self.reasons.load(Ordering::Acquire) & reason != 0
            && self.reasons.fetch_and(!reason, Ordering::AcqRel) & reason != 0
    }

    // Whoever rang before wakes the stream, or has; it looks after that.
    fn ring(&self, reason: u8) -> bool {
        let is_first = self.reasons.fetch_or(reason, Ordering::AcqRel) & reason == 0;
        if is_first {
            self.waker.wake();
        }
        is_first
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<View>>> {
        self.unconcerned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
