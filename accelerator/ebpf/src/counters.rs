// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Per-CPU counts. No atomics: a CPU only ever adds to its own.

use isthmus_accel_abi::{Counter, Hop, HopKey, HopStats, PassReason};

use crate::maps::{ANY, COUNTERS, HOP_STATS};

/// Counts one event of the node.
#[inline(always)]
pub fn count(counter: Counter) {
    let value = COUNTERS.lookup(&counter.index());
    if !value.is_null() {
        // SAFETY: not null, so it is this CPU's element of the array.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}

/// Counts a connection whose sending end entered the sockmap.
#[inline(always)]
pub fn count_connection(netns_cookie: u64, hop: Hop) {
    let stats = row(netns_cookie, hop);
    if !stats.is_null() {
        // SAFETY: not null, so it is this CPU's value.
        unsafe { (*stats).connections = (*stats).connections.wrapping_add(1) };
    }
}

/// Counts one message and what became of it.
#[inline(always)]
pub fn count_message(netns_cookie: u64, hop: Hop, size: u32, outcome: Result<(), PassReason>) {
    let stats = row(netns_cookie, hop);
    if stats.is_null() {
        return;
    }
    // SAFETY: not null, so it is this CPU's value.
    let stats = unsafe { &mut *stats };
    stats.messages = stats.messages.wrapping_add(1);
    stats.bytes_total = stats.bytes_total.wrapping_add(size.into());
    match outcome {
        Ok(()) => stats.bytes_redirected = stats.bytes_redirected.wrapping_add(size.into()),
        Err(reason) => {
            if let Some(passes) = stats.passes.get_mut(reason.index()) {
                *passes = passes.wrapping_add(1);
            }
        }
    }
}

#[inline(always)]
fn row(netns_cookie: u64, hop: Hop) -> *mut HopStats {
    let key = HopKey::new(netns_cookie, hop);
    let stats = HOP_STATS.lookup(&key);
    if !stats.is_null() {
        return stats;
    }
    let empty = HopStats {
        connections: 0,
        messages: 0,
        bytes_total: 0,
        bytes_redirected: 0,
        passes: [0; PassReason::COUNT],
    };
    HOP_STATS.update(&key, &empty, ANY);
    HOP_STATS.lookup(&key)
}
