//! How a connection's task learns which of its streams have something to do.
//!
//! One bit per stream, so that a wake costs an atomic operation and a poll touches only the streams
//! that were woken. What is woken while the connection is being polled needs no second poll.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use crate::connection::Slot;
use crate::limits;

const WORDS: usize = limits::STREAMS_PER_CONNECTION as usize / 64;

/// A set of slots.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlotSet([u64; WORDS]);

impl SlotSet {
    pub(crate) fn insert(&mut self, slot: Slot) {
        self.0[slot.index() / 64] |= 1 << (slot.index() % 64);
    }

    pub(crate) fn remove(&mut self, slot: Slot) {
        self.0[slot.index() / 64] &= !(1 << (slot.index() % 64));
    }

    pub(crate) fn insert_all(&mut self, others: &Self) {
        for (word, more) in self.0.iter_mut().zip(others.0) {
            *word |= more;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// The first slot at or after `from`.
    pub(crate) fn first_from(&self, from: usize) -> Option<Slot> {
        let mut index = from;
        while index / 64 < WORDS {
            let word = self.0[index / 64] >> (index % 64);
            if word != 0 {
                return Slot::from_index(index + word.trailing_zeros() as usize);
            }
            index = (index / 64 + 1) * 64;
        }
        None
    }
}

/// What the server wants of a connection.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub(crate) enum Phase {
    Serve,
    /// No new streams; those that are open go on.
    Drain,
    /// It ends at once.
    Close,
}

/// Shared by a connection's task and those that wake it.
#[derive(Debug)]
pub(crate) struct Signals {
    ready: [AtomicU64; WORDS],
    is_polling: AtomicBool,
    phase: AtomicU8,
    task: Mutex<Waker>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            ready: Default::default(),
            is_polling: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Serve as u8),
            task: Mutex::new(Waker::noop().clone()),
        }
    }
}

impl Signals {
    /// A poll begins.
    pub(crate) fn enter(&self, task: &Waker) {
        self.is_polling.store(true, Ordering::SeqCst);
        self.lock().clone_from(task);
    }

    /// A poll ends, unless streams were woken meanwhile: then it goes on, and this is false.
    pub(crate) fn leave(&self) -> bool {
        self.is_polling.store(false, Ordering::SeqCst);
        let is_quiet = |word: &AtomicU64| word.load(Ordering::SeqCst) == 0;
        let is_left = self.ready.iter().all(is_quiet);
        if !is_left {
            self.is_polling.store(true, Ordering::SeqCst);
        }
        is_left
    }

    /// Adds the streams that were woken to `ready`.
    pub(crate) fn take_ready(&self, ready: &mut SlotSet) {
        for (word, ready) in self.ready.iter().zip(&mut ready.0) {
            // A load is cheaper than a swap, and most words are empty.
            if word.load(Ordering::SeqCst) != 0 {
                *ready |= word.swap(0, Ordering::SeqCst);
            }
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Serve,
            1 => Phase::Drain,
            _ => Phase::Close,
        }
    }

    pub(crate) fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::SeqCst);
        let task = self.lock().clone();
        task.wake();
    }

    fn wake(&self, slot: Slot) {
        let word = &self.ready[slot.index() / 64];
        word.fetch_or(1 << (slot.index() % 64), Ordering::SeqCst);
        // Whoever polls looks again before it leaves.
        if !self.is_polling.load(Ordering::SeqCst) {
            self.lock().wake_by_ref();
        }
    }

    // Held for no longer than it takes to copy a waker.
    fn lock(&self) -> std::sync::MutexGuard<'_, Waker> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct StreamWaker {
    connection: Arc<Signals>,
    slot: Slot,
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.connection.wake(self.slot);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.connection.wake(self.slot);
    }
}

/// The waker of one stream.
pub(crate) fn stream_waker(connection: &Arc<Signals>, slot: Slot) -> Waker {
    let connection = Arc::clone(connection);
    Waker::from(Arc::new(StreamWaker { connection, slot }))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(AtomicU64);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_during_a_poll_is_seen_and_wakes_nobody() {
        let signals = Arc::new(Signals::default());
        let task = Arc::new(Count(AtomicU64::new(0)));
        let slot = Slot::from_index(70).unwrap();
        let waker = stream_waker(&signals, slot);
        signals.enter(&Waker::from(Arc::clone(&task)));
        waker.wake_by_ref();
        assert_eq!(task.0.load(Ordering::SeqCst), 0);
        assert!(!signals.leave(), "there is something to do");
        let mut ready = SlotSet::default();
        signals.take_ready(&mut ready);
        assert_eq!(ready.first_from(0), Some(slot));
        assert_eq!(ready.first_from(71), None);
        assert!(signals.leave());
        waker.wake_by_ref();
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn every_slot_is_found() {
        let mut set = SlotSet::default();
        for index in [0, 1, 63, 64, 128, 255] {
            set.insert(Slot::from_index(index).unwrap());
        }
        let mut seen = Vec::new();
        while let Some(slot) = set.first_from(0) {
            seen.push(slot.index());
            set.remove(slot);
        }
        assert_eq!(seen, [0, 1, 63, 64, 128, 255]);
        assert!(set.is_empty());
    }
}
