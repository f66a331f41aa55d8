//! The budget of a pod: how much may lie unread in its sockets that never went through TCP.
//!
//! Every redirected message is charged to the reader's pod before it is handed over, and given back when
//! the reader's queue is next looked at: by the writer before each message, by the reader when it
//! writes itself (an answer means that the request was read), and when the reader closes.
//!
//! Invariant: the sum of a pod is the sum of what its readers are charged with, and nothing is charged that
//! would take it over a limit. What lies there is never more than that by more than one message for each
//! writer: the one on its way between the charge and the queue, if the queue was seen empty just then.
//! The writer's next look makes good for it.

#![expect(
    clippy::inline_always,
    reason = "a program makes no call while it holds the lock"
)]

use crate::{
    MAX_PARKED_BYTES_PER_POD, MAX_PARKED_MESSAGES, MAX_PARKED_MESSAGES_PER_POD, PassReason,
};

/// Linux' spin lock for map values. The verifier finds it by this name. Linux 5.1.
#[allow(non_camel_case_types, reason = "the kernel looks for this name")]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct bpf_spin_lock {
    val: u32,
}

/// Value of `POD_PARKED`: what all readers of a pod are charged with, under one lock.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PodParked {
    /// Guards [`Self::sum`] and every [`Parked`] of this pod.
    pub lock: bpf_spin_lock,
    /// Always zero.
    pub reserved: u32,
    /// The sum.
    pub sum: ParkedSum,
}

/// Payload bytes and messages.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ParkedSum {
    /// Payload bytes, at most [`MAX_PARKED_BYTES_PER_POD`].
    pub bytes: u64,
    /// Messages, at most [`MAX_PARKED_MESSAGES_PER_POD`]. Each is counted until its queue is seen empty.
    pub messages: u64,
}

/// Value of `PARKED`: what one reader is charged with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Parked {
    /// Namespace of the reader: the pod that is charged.
    pub netns_cookie: u64,
    /// Payload bytes.
    pub bytes: u32,
    /// Messages, at most [`MAX_PARKED_MESSAGES`].
    pub messages: u32,
    /// Not zero once the reader has closed: nobody may charge it any more.
    pub is_closed: u32,
    /// How far the reader is on its way out of the sockmap.
    pub leave: Leave,
}

/// Bits of [`Parked::leave`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Leave(u32);

impl Leave {
    /// The reader stays.
    pub const NONE: Self = Self(0);
    /// The reader sends in bulk, by TCP: whoever writes to it shall do so too.
    pub const IS_WANTED: Self = Self(1);
    /// Whoever writes to the reader uses TCP for good, and all that it has redirected is in the queue.
    pub const IS_SAFE: Self = Self(1 << 1);

    /// Tells whether every bit of `other` is set.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns both sets together.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl PodParked {
    /// A pod without readers.
    pub const NOTHING: Self = Self {
        lock: bpf_spin_lock { val: 0 },
        reserved: 0,
        sum: ParkedSum {
            bytes: 0,
            messages: 0,
        },
    };
}

impl Parked {
    /// Returns a reader of this pod that is charged with nothing.
    #[must_use]
    #[inline]
    pub const fn new(netns_cookie: u64) -> Self {
        Self {
            netns_cookie,
            bytes: 0,
            messages: 0,
            is_closed: 0,
            leave: Leave::NONE,
        }
    }

    /// Charges a message of `size_bytes` for a reader in whose queue `queued_bytes` lie.
    ///
    /// # Errors
    ///
    /// Returns the reason if there is no room, or no reader any more. Nothing is charged then.
    #[inline(always)]
    pub fn charge(
        &mut self,
        sum: &mut ParkedSum,
        queued_bytes: u32,
        size_bytes: u32,
    ) -> Result<(), PassReason> {
        if self.is_closed != 0 {
            return Err(PassReason::PeerGone);
        }
        if self.leave.has(Leave::IS_WANTED) {
            return Err(PassReason::ReaderLeaves);
        }
        self.settle(sum, queued_bytes);
        if self.messages >= MAX_PARKED_MESSAGES {
            return Err(PassReason::TooManyParked);
        }
        let bytes = sum.bytes.wrapping_add(u64::from(size_bytes));
        if bytes > MAX_PARKED_BYTES_PER_POD || sum.messages >= MAX_PARKED_MESSAGES_PER_POD {
            return Err(PassReason::PodBudgetSpent);
        }
        sum.bytes = bytes;
        sum.messages += 1;
        self.bytes = self.bytes.wrapping_add(size_bytes);
        self.messages += 1;
        Ok(())
    }

    /// Corrects the charge to what lies in the queue. Messages cannot be counted there: they are given back
    /// when it is empty.
    #[inline(always)]
    pub fn settle(&mut self, sum: &mut ParkedSum, queued_bytes: u32) {
        let messages = if queued_bytes == 0 { 0 } else { self.messages };
        self.set(sum, queued_bytes, messages);
    }

    /// Takes back the charge for one message that was not handed over.
    #[inline(always)]
    pub fn refund(&mut self, sum: &mut ParkedSum, size_bytes: u32) {
        let bytes = self.bytes.saturating_sub(size_bytes);
        let messages = self.messages.saturating_sub(1);
        self.set(sum, bytes, messages);
    }

    /// Gives everything back: the reader has closed.
    #[inline(always)]
    pub fn close(&mut self, sum: &mut ParkedSum) {
        self.set(sum, 0, 0);
        self.is_closed = 1;
    }

    #[inline(always)]
    fn set(&mut self, sum: &mut ParkedSum, bytes: u32, messages: u32) {
        sum.bytes = sum
            .bytes
            .wrapping_sub(u64::from(self.bytes))
            .wrapping_add(u64::from(bytes));
        sum.messages = sum
            .messages
            .wrapping_sub(u64::from(self.messages))
            .wrapping_add(u64::from(messages));
        self.bytes = bytes;
        self.messages = messages;
    }
}

const _: () = assert!(size_of::<PodParked>() == 24);
const _: () = assert!(size_of::<Parked>() == 24);

#[cfg(test)]
mod tests;
