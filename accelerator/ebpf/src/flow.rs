// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the programs tell about single connections: events into `FLOWS` while flows are on, and how
//! long it took, always.
//!
//! An event is written in place, in the ring: it is too large for the stack.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, bpf_sock, bpf_sock_addr, bpf_sock_ops},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie,
        bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_ringbuf_query, bpf_ringbuf_reserve, bpf_ringbuf_submit,
    },
};
use isthmus_accel_abi::{
    Counter, Dial, FLOW_WAKEUP_BYTES, FlowEvent, FlowFacts, FlowKind, FlowMode, Hop, Measure, PassCause, SockKey,
    SocketState, Verdict, VerdictCode,
};

use crate::{
    counters::{count, count_verdict, record_latency},
    maps::{FLOW_STATE, FLOWS, PODS, SETTINGS, SOCKET_STATE, is_shadow},
    sockops::own_key,
};

/// The context holds eight times the smoothed round-trip time, as the kernel does.
const SRTT_SHIFT: u32 = 3;
const NS_PER_US: u64 = 1_000;

/// Counts the verdict on one connect call and tells of it. Linux 5.8 (ring buffers).
///
/// A function of its own in the object too, with a stack of its own.
#[inline(never)]
pub fn decided(
    addr: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    dial: &Dial,
    verdict: &Verdict,
    outcome: VerdictCode,
) {
    if matches!(verdict, Verdict::Pass(PassCause::NotInPod)) {
        return;
    }
    count_verdict(dial.netns_cookie, outcome);
    if !is_on() {
        return;
    }
    let facts = FLOW_STATE.of_or_new(sk);
    if facts.is_null() {
        count(Counter::FlowsLost);
        return;
    }
    // SAFETY: not null, so it is this socket's, and connect holds its lock.
    let facts = unsafe { &mut *facts };
    fill(facts, dial, verdict, outcome);
    // SAFETY: a helper that takes nothing but the context.
    let cookie = unsafe { bpf_get_socket_cookie(addr.cast()) };
    if let Some(event) = Event::reserve(FlowKind::DECIDED, facts.started_ns, cookie) {
        event.submit(facts, None);
    }
}

#[inline(always)]
fn fill(facts: &mut FlowFacts, dial: &Dial, verdict: &Verdict, outcome: VerdictCode) {
    // SAFETY: helpers that take nothing.
    let (started_ns, cgroup_id, pid) = unsafe {
        (
            bpf_ktime_get_ns(),
            bpf_get_current_cgroup_id(),
            bpf_get_current_pid_tgid(),
        )
    };
    facts.started_ns = started_ns;
    facts.netns_cookie = dial.netns_cookie;
    facts.cgroup_id = cgroup_id;
    facts.dialled.addr = dial.destination;
    facts.dialled.port = dial.port;
    facts.pid = (pid >> 32) as u32;
    facts.uid = dial.uid;
    facts.gid = dial.gid;
    facts.verdict = outcome;
    facts.flags = if is_shadow() { FlowFacts::IS_SHADOW } else { 0 };
    match verdict {
        Verdict::Redirect(redirect) => {
            facts.peer_netns = redirect.peer_netns;
            facts.target_addr = redirect.addr;
            facts.target_port = redirect.port;
            facts.hop = redirect.hop;
        }
        Verdict::Follow => {
            facts.peer_netns = dial.netns_cookie;
            facts.target_addr = [0; 16];
            facts.target_port = [0; 2];
            facts.hop = Hop::PROXY_TO_APP;
        }
        Verdict::Pass(_) => {
            facts.peer_netns = 0;
            facts.target_addr = [0; 16];
            facts.target_port = [0; 2];
            facts.hop = Hop::NONE;
        }
    }
}

/// Tells whether the end of this socket is to be told.
#[inline(always)]
pub fn is_told(sk: *mut bpf_sock) -> bool {
    is_on() && !FLOW_STATE.of(sk).is_null()
}

/// The connecting end is established.
#[inline(never)]
pub fn on_active_established(ops: *mut bpf_sock_ops, sk: *mut bpf_sock) {
    // SAFETY: a helper that takes nothing.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let state = SOCKET_STATE.of(sk);
    if !state.is_null() {
        // SAFETY: not null, so it is this socket's state, and we run under its lock.
        let state = unsafe { &*state };
        if state.started_ns != 0 {
            let connect_us = micros(now_ns, state.started_ns);
            record_latency(state.netns_cookie, state.hop, Measure::CONNECT, connect_us);
        }
    }
    if !is_on() {
        return;
    }
    let facts = FLOW_STATE.of(sk);
    if facts.is_null() {
        return;
    }
    // SAFETY: not null, so it is this socket's, and we run under its lock.
    let facts = unsafe { &*facts };
    let Some(key) = own_key(ops, facts.netns_cookie) else {
        return;
    };
    // SAFETY: a helper that takes nothing but the context.
    let cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    if let Some(event) = Event::reserve(FlowKind::ESTABLISHED, now_ns, cookie) {
        event.0.connect_us = micros(now_ns, facts.started_ns);
        event.submit(facts, Some(&key));
    }
}

/// The accepting end is established, or made by a SYN with data (Fast Open).
#[inline(never)]
pub fn on_passive_established(ops: *mut bpf_sock_ops, sk: *mut bpf_sock) -> bool {
    if !is_on() {
        return false;
    }
    // SAFETY: a helper that takes nothing but the context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ops.cast()) };
    if !PODS.has(&netns_cookie) {
        return false;
    }
    let Some(key) = own_key(ops, netns_cookie) else {
        return false;
    };
    let facts = FLOW_STATE.of_or_new(sk);
    if facts.is_null() {
        count(Counter::FlowsLost);
        return false;
    }
    // SAFETY: not null, so it is this socket's, and we run under its lock.
    let facts = unsafe { &mut *facts };
    // SAFETY: helpers that take nothing, or nothing but the context.
    let (now_ns, cookie) = unsafe { (bpf_ktime_get_ns(), bpf_get_socket_cookie(ops.cast())) };
    facts.started_ns = now_ns;
    facts.netns_cookie = netns_cookie;
    facts.verdict = VerdictCode::NONE;
    let state = SOCKET_STATE.of(sk);
    if !state.is_null() {
        // SAFETY: not null, so it is this socket's state, and we run under its lock.
        let state = unsafe { &*state };
        facts.dialled = state.original;
        facts.peer_netns = state.peer.netns_cookie;
        facts.hop = state.hop;
    }
    if let Some(event) = Event::reserve(FlowKind::ACCEPTED, now_ns, cookie) {
        event.submit(facts, Some(&key));
    }
    true
}

/// The socket is closed.
#[inline(never)]
pub fn on_close(ops: *mut bpf_sock_ops, sk: *mut bpf_sock) {
    // SAFETY: a read of a context field of its own width.
    let srtt_us = unsafe { read_volatile(addr_of!((*ops).srtt_us)) } >> SRTT_SHIFT;
    let state = SOCKET_STATE.of(sk);
    if !state.is_null() && srtt_us > 0 {
        // SAFETY: not null, so it is this socket's state, and we run under its lock.
        let state = unsafe { &*state };
        record_latency(state.netns_cookie, state.hop, Measure::SRTT, srtt_us);
    }
    if !is_on() {
        return;
    }
    let facts = FLOW_STATE.of(sk);
    if facts.is_null() {
        return;
    }
    // SAFETY: not null, so it is this socket's, and we run under its lock.
    let facts = unsafe { &*facts };
    let Some(key) = own_key(ops, facts.netns_cookie) else {
        return;
    };
    // SAFETY: helpers that take nothing, or nothing but the context, and reads of context fields.
    let (now_ns, cookie, bytes_acked, bytes_received) = unsafe {
        (
            bpf_ktime_get_ns(),
            bpf_get_socket_cookie(ops.cast()),
            read_volatile(addr_of!((*ops).bytes_acked)),
            read_volatile(addr_of!((*ops).bytes_received)),
        )
    };
    if let Some(mut event) = Event::reserve(FlowKind::CLOSED, now_ns, cookie) {
        event.0.srtt_us = srtt_us;
        event.0.bytes_acked = bytes_acked;
        event.0.bytes_received = bytes_received;
        event.add_path(state);
        event.submit(facts, Some(&key));
    }
}

/// Room in the ring that is being written.
struct Event(&'static mut FlowEvent);

impl Event {
    /// Takes room and fills in what every event has; the rest is zero. `None`, and counted, if there is
    /// none.
    #[inline(always)]
    fn reserve(kind: FlowKind, time_ns: u64, socket_cookie: u64) -> Option<Self> {
        // SAFETY: our ring, and the size of what is written below.
        let room = unsafe { bpf_ringbuf_reserve(FLOWS.as_ptr(), size_of::<FlowEvent>() as u64, 0) };
        if room.is_null() {
            count(Counter::FlowsLost);
            return None;
        }
        // SAFETY: not null, so it is room for one event that nobody else has until it is submitted.
        let event = unsafe { &mut *room.cast::<FlowEvent>() };
        event.time_ns = time_ns;
        event.socket_cookie = socket_cookie;
        event.bytes_acked = 0;
        event.bytes_received = 0;
        event.bytes_redirected = 0;
        event.kind = kind;
        event.connect_us = 0;
        event.srtt_us = 0;
        event.on_tcp_because = 0;
        Some(Self(event))
    }

    #[inline(always)]
    fn add_path(&mut self, state: *mut SocketState) {
        if state.is_null() {
            return;
        }
        // SAFETY: not null, so it is this socket's state, and we run under its lock.
        let state = unsafe { &*state };
        self.0.bytes_redirected = state.bytes_redirected;
        self.0.on_tcp_because = state.on_tcp_because.into();
    }

    #[inline(always)]
    fn submit(self, facts: &FlowFacts, key: Option<&SockKey>) {
        self.0.facts = *facts;
        self.0.key = match key {
            Some(key) => *key,
            None => SockKey {
                netns_cookie: facts.netns_cookie,
                local_addr: [0; 16],
                peer_addr: [0; 16],
                local_port: [0; 2],
                peer_port: [0; 2],
                reserved: [0; 4],
            },
        };
        // SAFETY: our ring.
        let waiting_bytes =
            unsafe { bpf_ringbuf_query(FLOWS.as_ptr(), BPF_RB_AVAIL_DATA.into()) };
        let wakeup = if waiting_bytes >= FLOW_WAKEUP_BYTES.into() {
            BPF_RB_FORCE_WAKEUP
        } else {
            BPF_RB_NO_WAKEUP
        };
        // SAFETY: reserved above, and given up here.
        unsafe { bpf_ringbuf_submit(core::ptr::from_mut(self.0).cast(), wakeup.into()) };
    }
}

#[inline(always)]
fn is_on() -> bool {
    SETTINGS
        .get(&0)
        .is_some_and(|settings| settings.flows == FlowMode::ON)
}

#[inline(always)]
fn micros(now_ns: u64, since_ns: u64) -> u32 {
    let micros = now_ns.wrapping_sub(since_ns) / NS_PER_US;
    if micros > u32::MAX as u64 {
        u32::MAX
    } else {
        micros as u32
    }
}
