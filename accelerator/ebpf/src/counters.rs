// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Per-CPU counts. No atomics: a CPU only ever adds to its own.

use core::ptr::read_volatile;

use isthmus_accel_abi::{
    Counter, Histogram, Hop, HopKey, HopStats, LatencyKey, Measure, PassReason, PodVerdicts,
    SocketFlags, SocketState, VerdictCode,
};

use crate::maps::{ANY, COUNTERS, HOP_STATS, LATENCY, Map, NO_PREALLOC, PERCPU_HASH, VERDICTS};

// In the object's data, because the stack has no room for them.
static NO_LATENCY: Histogram = Histogram::EMPTY;
static NO_STATS: HopStats = HopStats::EMPTY;
static NO_VERDICTS: PodVerdicts = PodVerdicts::EMPTY;

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
    let stats = row(&HOP_STATS, &HopKey::new(netns_cookie, hop), &NO_STATS);
    if !stats.is_null() {
        // SAFETY: not null, so it is this CPU's value.
        unsafe { (*stats).connections = (*stats).connections.wrapping_add(1) };
    }
}

/// Counts one message and what became of it, and the connection if this message is the first one that
/// TCP carries.
#[inline(always)]
pub fn count_message(state: &SocketState, size: u32, outcome: Result<(), PassReason>) {
    let key = HopKey::new(state.netns_cookie, state.hop);
    let stats = row(&HOP_STATS, &key, &NO_STATS);
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
            let is_first = !state.flags.has(SocketFlags::SLOW);
            if is_first && let Some(count) = stats.connections_on_tcp.get_mut(reason.index()) {
                *count = count.wrapping_add(1);
            }
        }
    }
}

/// Counts bytes that TCP carried for a socket which is not in the sockmap any more.
#[inline(always)]
pub fn count_bytes(state: &SocketState, bytes: u64) {
    let key = HopKey::new(state.netns_cookie, state.hop);
    let stats = row(&HOP_STATS, &key, &NO_STATS);
    if !stats.is_null() {
        // SAFETY: not null, so it is this CPU's value.
        unsafe { (*stats).bytes_total = (*stats).bytes_total.wrapping_add(bytes) };
    }
}

/// Counts the verdict on one connect call.
#[inline(always)]
pub fn count_verdict(netns_cookie: u64, verdict: VerdictCode) {
    let verdicts = row(&VERDICTS, &netns_cookie, &NO_VERDICTS);
    if verdicts.is_null() {
        return;
    }
    let index = verdict.index();
    // The compiler knows that the index fits and would leave out the comparison, which the verifier
    // wants to see.
    // SAFETY: a plain read of a local.
    let index = unsafe { read_volatile(&raw const index) };
    // SAFETY: not null, so it is this CPU's value.
    if let Some(count) = unsafe { (*verdicts).counts.get_mut(index) } {
        *count = count.wrapping_add(1);
    }
}

/// Adds one value to a histogram.
#[inline(always)]
pub fn record_latency(netns_cookie: u64, hop: Hop, measure: Measure, value_us: u32) {
    let key = LatencyKey {
        netns_cookie,
        hop,
        measure,
    };
    let histogram = row(&LATENCY, &key, &NO_LATENCY);
    if histogram.is_null() {
        return;
    }
    // SAFETY: not null, so it is this CPU's value.
    let histogram = unsafe { &mut *histogram };
    histogram.sum_us = histogram.sum_us.wrapping_add(value_us.into());
    if let Some(count) = histogram.counts.get_mut(Histogram::bucket(value_us)) {
        *count = count.wrapping_add(1);
    }
}

/// Returns this CPU's value behind `key`, made from `empty` if there is none, or null if the map is
/// full.
#[inline(always)]
fn row<K, V, const ENTRIES: usize>(
    map: &Map<K, V, PERCPU_HASH, ENTRIES, NO_PREALLOC>,
    key: &K,
    empty: &'static V,
) -> *mut V {
    let value = map.lookup(key);
    if !value.is_null() {
        return value;
    }
    map.update(key, empty, ANY);
    map.lookup(key)
}
