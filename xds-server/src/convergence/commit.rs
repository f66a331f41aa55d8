//! One commit: who is pending with what of it, and what became of the others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use isthmus_xds_core::{Name, TypeUrl};
use roaring::RoaringBitmap;
use tokio::sync::watch;

use super::{BLAMED_KEPT, Progress, REFUSALS_KEPT, RefusedBy, Rest};
use crate::interest::Slot;

/// How far one commit came.
#[derive(Debug)]
pub(super) struct Commit {
    generation: u64,
    at: Instant,
    // Who has not answered, by what; a stream is in `waiting` as long as it is in any other.
    waiting: RoaringBitmap,
    types: Vec<(TypeUrl, RoaringBitmap)>,
    unplaced: RoaringBitmap,
    moved: RoaringBitmap,
    // Refused some of it, and may still have to answer the rest.
    refusing: RoaringBitmap,
    needed: u64,
    accepted: u64,
    refusals: u64,
    refused: Vec<RefusedBy>,
    bytes: u64,
    is_announced: bool,
    // When the last one answered.
    done_after: Option<Duration>,
    watchers: Option<watch::Sender<Progress>>,
}

impl Commit {
    pub(super) fn new(generation: u64, at: Instant) -> Self {
        Self {
            generation,
            at,
            waiting: RoaringBitmap::new(),
            types: Vec::new(),
            unplaced: RoaringBitmap::new(),
            moved: RoaringBitmap::new(),
            refusing: RoaringBitmap::new(),
            needed: 0,
            accepted: 0,
            refusals: 0,
            refused: Vec::new(),
            bytes: 0,
            is_announced: false,
            done_after: None,
            watchers: None,
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn sent(&mut self, size_bytes: usize) {
        self.bytes += size_bytes as u64;
    }

    pub(super) fn owe(
        &mut self,
        streams: &RoaringBitmap,
        types: BTreeMap<&TypeUrl, RoaringBitmap>,
    ) {
        for (type_url, streams) in types {
            match self.types.iter_mut().find(|(url, _)| url == type_url) {
                Some((_, owing)) => *owing |= streams,
                None => self.types.push((TypeUrl::clone(type_url), streams)),
            }
        }
        self.wait_for(streams);
    }

    pub(super) fn owe_move(&mut self, streams: &RoaringBitmap) {
        self.unplaced |= streams;
        self.wait_for(streams);
    }

    fn wait_for(&mut self, streams: &RoaringBitmap) {
        self.needed += streams.len() - streams.intersection_len(&self.waiting);
        self.waiting |= streams;
    }

    pub(super) fn is_waiting_for(&self, slot: Slot) -> bool {
        self.waiting.contains(slot)
    }

    /// The stream knows its place. Tells whether that was waited for.
    pub(super) fn placed(&mut self, slot: Slot, rest: Rest) -> bool {
        let was_waited_for = self.unplaced.remove(slot);
        if was_waited_for && rest == Rest::Busy {
            self.moved.insert(slot);
        }
        // It has the same documents as before, and nothing else to answer: it never needed this.
        if was_waited_for && !self.is_owing(slot) && !self.refusing.contains(slot) {
            self.waiting.remove(slot);
            self.needed -= 1;
        }
        was_waited_for
    }

    /// The stream has all it wants of a type. Tells whether that was waited for.
    pub(super) fn accept(&mut self, slot: Slot, type_url: &TypeUrl) -> bool {
        let was_waited_for = self.settle_type(slot, type_url);
        if was_waited_for {
            // It needed this, whatever comes of the look at its place.
            if self.unplaced.contains(slot) {
                self.moved.insert(slot);
            }
            self.count_if_done(slot);
        }
        was_waited_for
    }

    /// The stream has all that came by its move. Tells whether that was waited for.
    pub(super) fn accept_move(&mut self, slot: Slot) -> bool {
        let was_waited_for = !self.unplaced.contains(slot) && self.moved.remove(slot);
        if was_waited_for {
            self.count_if_done(slot);
        }
        was_waited_for
    }

    /// The stream refused what it was sent of a type. Tells whether that was waited for.
    pub(super) fn refuse(
        &mut self,
        slot: Slot,
        type_url: &TypeUrl,
        refusal: impl FnOnce() -> RefusedBy,
    ) -> bool {
        // After a move, any type may be the one that was waited for.
        if !self.settle_type(slot, type_url) && !self.moved.contains(slot) {
            return false;
        }
        if self.refusing.insert(slot) {
            self.refusals += 1;
        }
        if self.refused.len() < REFUSALS_KEPT {
            self.refused.push(refusal());
        }
        self.count_if_done(slot);
        true
    }

    /// Names what a stream refused, if its refusal is kept.
    pub(super) fn blame(&mut self, stream: u64, type_url: &TypeUrl, name: &Name) {
        let mut refused = self.refused.iter_mut();
        let refused = refused.find(|it| it.stream == stream && it.type_url == *type_url);
        let Some(RefusedBy { resources, .. }) = refused else {
            return;
        };
        if resources.len() < BLAMED_KEPT && !resources.contains(name) {
            resources.push(Name::clone(name));
            if let Some(watchers) = &self.watchers {
                let refused = self.refused.clone();
                watchers.send_modify(|progress| progress.refused = refused);
            }
        }
    }

    /// Nobody waits for the stream any more. Tells whether somebody did.
    pub(super) fn leave(&mut self, slot: Slot) -> bool {
        if !self.waiting.remove(slot) {
            self.refusing.remove(slot);
            return false;
        }
        for (_, owing) in &mut self.types {
            owing.remove(slot);
        }
        self.unplaced.remove(slot);
        self.moved.remove(slot);
        // What it refused stays refused; of others there is nothing to count.
        if !self.refusing.remove(slot) {
            self.needed -= 1;
        }
        true
    }

    pub(super) fn announced(&mut self) {
        self.is_announced = true;
    }

    /// Tells who watches how far it came. Returns whether it has just come to its end.
    pub(super) fn conclude(&mut self, now: Instant) -> bool {
        let is_end = self.is_announced && self.waiting.is_empty() && self.done_after.is_none();
        if is_end {
            self.done_after = Some(self.age(now));
            // Empty sets, which have no use from here on.
            self.types = Vec::new();
        }
        if let Some(watchers) = &self.watchers {
            watchers.send_replace(self.progress(now));
        }
        is_end && self.needed > 0
    }

    /// Whether nobody is waited for.
    pub(super) fn is_done(&self) -> bool {
        self.done_after.is_some()
    }

    /// How long it took until every client that needs it had accepted it.
    pub(super) fn converged_after(&self) -> Option<Duration> {
        self.done_after.filter(|_| self.refusals == 0)
    }

    pub(super) fn progress(&self, now: Instant) -> Progress {
        Progress {
            generation: self.generation,
            needed: self.needed,
            accepted: self.accepted,
            refusals: self.refusals,
            refused: self.refused.clone(),
            pending: self.waiting.len(),
            elapsed: self.done_after.unwrap_or_else(|| self.age(now)),
            is_converged: self.converged_after().is_some(),
        }
    }

    pub(super) fn watch(&mut self, now: Instant) -> watch::Receiver<Progress> {
        let progress = self.progress(now);
        let watchers = self
            .watchers
            .get_or_insert_with(|| watch::Sender::new(Progress::default()));
        watchers.send_replace(progress);
        watchers.subscribe()
    }

    fn settle_type(&mut self, slot: Slot, type_url: &TypeUrl) -> bool {
        let mut types = self.types.iter_mut();
        types.any(|(url, owing)| url == type_url && owing.remove(slot))
    }

    fn count_if_done(&mut self, slot: Slot) {
        if self.is_owing(slot) {
            return;
        }
        self.waiting.remove(slot);
        // Who refused any of it has not accepted it.
        self.accepted += u64::from(!self.refusing.contains(slot));
    }

    fn is_owing(&self, slot: Slot) -> bool {
        let is_owing_type = self.types.iter().any(|(_, owing)| owing.contains(slot));
        is_owing_type || self.unplaced.contains(slot) || self.moved.contains(slot)
    }
}
