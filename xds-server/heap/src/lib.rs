//! The system's allocator with counters: what the heap holds, and what a piece of work allocated.
//!
//! A program that wants the numbers installs [`CountingAllocator`] as its global allocator; in any
//! other program they are all zero. The crate is its own so that the one `unsafe impl` that a
//! global allocator needs stands alone.
//!
//! Invariant: nothing in here allocates, locks, or runs a destructor of a thread.
#![warn(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Sub;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Threads with counters of their own, which cost plain stores. More threads share one set and
/// pay for atomic additions: a server has a worker per core and a few threads beside them.
const OWN_SLOTS: usize = 63;

/// The system's allocator, counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

/// What was allocated and freed up to now, by the process or by one thread.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Allocations and reallocations.
    pub allocations: u64,
    /// Bytes that they asked for.
    pub allocated_bytes: u64,
    /// Bytes that were given back.
    pub freed_bytes: u64,
}

impl Counts {
    /// Of all threads, those that ended included. Each counter is read on its own: while other
    /// threads run, the three are of slightly different moments.
    pub fn of_process() -> Self {
        let mut sum = Self::default();
        for slot in &SLOTS {
            sum.allocations += slot.allocations.load(Ordering::Relaxed);
            sum.allocated_bytes += slot.allocated_bytes.load(Ordering::Relaxed);
            sum.freed_bytes += slot.freed_bytes.load(Ordering::Relaxed);
        }
        sum
    }

    /// Of the thread that asks: the difference of two of these is what the work between them cost.
    pub fn of_thread() -> Self {
        THREAD.with(|thread| thread.counts.get())
    }

    /// Bytes that are allocated and not freed. Of a thread it may be less than nothing, which is
    /// shown as nothing: a thread may free what others allocated.
    pub fn live_bytes(&self) -> u64 {
        self.allocated_bytes.saturating_sub(self.freed_bytes)
    }

    fn note(&mut self, allocations: u64, allocated: usize, freed: usize) {
        self.allocations += allocations;
        self.allocated_bytes += allocated as u64;
        self.freed_bytes += freed as u64;
    }
}

impl Sub for Counts {
    type Output = Self;

    /// What happened since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self {
            allocations: self.allocations.saturating_sub(earlier.allocations),
            allocated_bytes: self.allocated_bytes.saturating_sub(earlier.allocated_bytes),
            freed_bytes: self.freed_bytes.saturating_sub(earlier.freed_bytes),
        }
    }
}

// One cache line and its neighbour, which is fetched with it: no two threads write to the same.
#[derive(Debug)]
#[repr(align(128))]
struct Slot {
    allocations: AtomicU64,
    allocated_bytes: AtomicU64,
    freed_bytes: AtomicU64,
}

// The last is shared by all threads that came too late for one of their own.
static SLOTS: [Slot; OWN_SLOTS + 1] = [const {
    Slot {
        allocations: AtomicU64::new(0),
        allocated_bytes: AtomicU64::new(0),
        freed_bytes: AtomicU64::new(0),
    }
}; OWN_SLOTS + 1];

static SLOTS_TAKEN: AtomicUsize = AtomicUsize::new(0);

struct Thread {
    // Index into `SLOTS`, plus one; zero before the first allocation.
    slot: Cell<usize>,
    counts: Cell<Counts>,
}

thread_local! {
    // Constant and without a destructor: an allocator may touch it at any time of a thread's life.
    static THREAD: Thread = const {
        Thread {
            slot: Cell::new(0),
            counts: Cell::new(Counts {
                allocations: 0,
                allocated_bytes: 0,
                freed_bytes: 0,
            }),
        }
    };
}

#[inline]
fn note(allocations: u64, allocated: usize, freed: usize) {
    THREAD.with(|thread| {
        let mut counts = thread.counts.get();
        counts.note(allocations, allocated, freed);
        thread.counts.set(counts);
        let index = match thread.slot.get() {
            0 => take_slot(thread),
            taken => taken - 1,
        };
        let slot = &SLOTS[index];
        if index < OWN_SLOTS {
            // This thread alone writes here, so that what it wrote is what it counted.
            slot.allocations
                .store(counts.allocations, Ordering::Relaxed);
            slot.allocated_bytes
                .store(counts.allocated_bytes, Ordering::Relaxed);
            slot.freed_bytes
                .store(counts.freed_bytes, Ordering::Relaxed);
        } else {
            slot.allocations.fetch_add(allocations, Ordering::Relaxed);
            slot.allocated_bytes
                .fetch_add(allocated as u64, Ordering::Relaxed);
            slot.freed_bytes.fetch_add(freed as u64, Ordering::Relaxed);
        }
    });
}

#[cold]
fn take_slot(thread: &Thread) -> usize {
    let index = SLOTS_TAKEN.fetch_add(1, Ordering::Relaxed).min(OWN_SLOTS);
    thread.slot.set(index + 1);
    index
}

// SAFETY: every call goes to `System` with the caller's own arguments, and its answer is returned
// as it is; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(1, layout.size(), 0);
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { System.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(1, layout.size(), 0);
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { System.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(0, 0, layout.size());
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { System.dealloc(pointer, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(1, size, layout.size());
        // SAFETY: the caller keeps the contract of this very method.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
