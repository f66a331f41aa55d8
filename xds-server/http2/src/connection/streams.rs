//! The streams of a connection, and the windows of each.

use std::collections::VecDeque;

use crate::limits;

/// Where a stream is kept while it is open.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Slot(u8);

impl Slot {
    /// Below [`limits::STREAMS_PER_CONNECTION`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(crate) fn from_index(index: usize) -> Option<Self> {
        u8::try_from(index).ok().map(Self)
    }
}

/// What a peer may send.
#[derive(Debug)]
pub(super) struct Receiving {
    window: u32,
    // Read and not yet given back.
    unreleased: u32,
}

impl Receiving {
    pub(super) fn new(window: u32) -> Self {
        Self {
            window,
            unreleased: 0,
        }
    }

    /// Takes what came; `None` if it is more than was allowed.
    pub(super) fn take(&mut self, length: u32) -> Option<()> {
        self.window = self.window.checked_sub(length)?;
        Some(())
    }

    /// Gives back what was read; returns the increment to send when there is enough for one.
    pub(super) fn release(&mut self, length: u32) -> Option<u32> {
        self.unreleased += length;
        if self.unreleased < limits::RENEW_AT_BYTES {
            return None;
        }
        let increment = std::mem::take(&mut self.unreleased);
        self.window += increment;
        Some(increment)
    }
}

/// An open stream. It is over when its response is.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) send_window: i64,
    pub(super) receiving: Receiving,
    // Bytes that were handed out and not released.
    pub(super) unread_bytes: u32,
    pub(super) is_remote_closed: bool,
    // Of the request's body, if its length was said.
    pub(super) missing_bytes: Option<u64>,
}

/// All streams of a connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Option<Stream>>,
    open: usize,
    last_id: u32,
    // Streams that we have reset, whose frames may be under way.
    reset: VecDeque<u32>,
}

impl Streams {
    pub(super) fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Highest number that the peer has used.
    pub(super) fn last_id(&self) -> u32 {
        self.last_id
    }

    pub(super) fn note_last(&mut self, id: u32) {
        self.last_id = id;
    }

    pub(super) fn find(&self, id: u32) -> Option<Slot> {
        let is_it = |stream: &Option<Stream>| stream.as_ref().is_some_and(|it| it.id == id);
        Slot::from_index(self.slots.iter().position(is_it)?)
    }

    pub(super) fn at(&self, slot: Slot) -> &Stream {
        let stream = self.slots.get(slot.index()).and_then(Option::as_ref);
        stream.expect("a slot is used while its stream is open")
    }

    pub(super) fn at_mut(&mut self, slot: Slot) -> &mut Stream {
        let stream = self.slots.get_mut(slot.index()).and_then(Option::as_mut);
        stream.expect("a slot is used while its stream is open")
    }

    /// Opens a stream; `None` if there are as many as there may be.
    pub(super) fn insert(&mut self, stream: Stream) -> Option<Slot> {
        let vacant = self.slots.iter().position(Option::is_none);
        let index = vacant.unwrap_or(self.slots.len());
        let slot = Slot::from_index(index)?;
        if index == self.slots.len() {
            if self.slots.is_empty() {
                // Most connections have one stream for all their life.
                self.slots.reserve_exact(1);
            }
            self.slots.push(Some(stream));
        } else {
            self.slots[index] = Some(stream);
        }
        self.open += 1;
        Some(slot)
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Stream {
        let stream = self.slots[slot.index()].take();
        self.open -= 1;
        stream.expect("a slot is used while its stream is open")
    }

    pub(super) fn clear(&mut self) {
        self.slots = Vec::new();
        self.open = 0;
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.slots.iter_mut().flatten()
    }

    pub(super) fn note_reset(&mut self, id: u32) {
        if self.reset.len() == limits::REMEMBERED_RESETS {
            self.reset.pop_front();
        }
        self.reset.push_back(id);
    }

    /// Whether we have ended the stream, and the peer may not know.
    pub(super) fn was_reset(&self, id: u32) -> bool {
        self.reset.contains(&id)
    }
}
