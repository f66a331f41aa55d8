// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Leaving the sockmap: a socket that no message skips TCP to or from is better off without it.
//!
//! What a sockmap's socket sends by TCP costs more than on any other (Linux, `tcp_bpf_push`: a segment for each
//! 32 KiB, where TCP itself makes one of 64), and a direction that has gone over to TCP does not come back. So
//! once both have, the socket leaves, and is a plain one. A socket that sends in bulk asks the other end to go over
//! too: what that would gain from a short request is less than what this one loses by the answer.
//!
//! A socket that leaves loses what was redirected to it and not read. So it leaves only when the other end says, under the
//! lock of the budget, that it has handed over its last message, and when its queue is empty.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_RTT_CB_FLAG, bpf_sock, bpf_sock_ops},
    helpers::generated::{bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set},
};
use isthmus_accel_abi::{Counter, Leave, SockKey, SocketFlags, SocketState};

use crate::{
    budget::{Missing, with_account},
    counters::{count, count_bytes},
    kernel::KernelSock,
    maps::{ENDS, SOCKET_STATE, SOCKETS},
};

/// Tells the other end that nothing will be redirected to it any more. One that was never found was never
/// redirected to, and stays.
#[inline(always)]
pub fn let_reader_go(state: &SocketState) {
    let is_known =
        state.peer_sk != 0 && KernelSock(state.peer_sk).cookie() == Some(state.peer_cookie);
    if is_known {
        mark(&state.peer, Leave::IS_SAFE);
    }
}

/// Asks the other end to redirect nothing any more.
#[inline(always)]
pub fn want(state: &SocketState) {
    if state.may_be_redirected_to() {
        mark(&state.peer.flipped(state.netns_cookie), Leave::IS_WANTED);
    }
}

/// A function of its own in the object too.
#[inline(never)]
fn mark(reader: &SockKey, leave: Leave) -> u32 {
    with_account(reader, Missing::Made, |reader, _| {
        reader.leave = reader.leave.with(leave);
    });
    0
}

/// Something that this socket has sent by TCP was acknowledged: leaves if it can. Linux 5.3 (the callback).
#[inline(never)]
pub fn on_rtt(ops: *mut bpf_sock_ops, sk: *mut bpf_sock) {
    let state = SOCKET_STATE.of(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: not null, so it is this socket's state, and we run under its lock.
    let state = unsafe { &mut *state };
    if !state.flags.has(SocketFlags::SLOW) {
        return;
    }
    let own = state.peer.flipped(state.netns_cookie);
    let is_safe = || {
        with_account(&own, Missing::Passed, |reader, _| {
            reader.leave.has(Leave::IS_SAFE)
        })
    };
    if state.may_be_redirected_to() && is_safe() != Some(true) {
        return;
    }
    if KernelSock(state.own_sk).has_parked() != Some(false) {
        return;
    }
    // SAFETY: a helper that takes nothing but the context, and a read of a context field of its own width.
    let (cookie, bytes_acked) = unsafe {
        (
            bpf_get_socket_cookie(ops.cast()),
            read_volatile(addr_of!((*ops).bytes_acked)),
        )
    };
    let is_own = ENDS.get(&own).is_some_and(|end| end.cookie == cookie);
    if is_own && SOCKETS.delete(&own) {
        state.flags = state.flags.with(SocketFlags::HAS_LEFT);
        state.bytes_when_left = bytes_acked;
        count(Counter::SocketsLeft);
    }
    // SAFETY: a read of a context field of its own width, and a helper on our context.
    unsafe {
        let flags = read_volatile(addr_of!((*ops).bpf_sock_ops_cb_flags));
        bpf_sock_ops_cb_flags_set(ops, (flags & !BPF_SOCK_OPS_RTT_CB_FLAG) as i32);
    }
}

/// A socket is closed: counts what it has sent since it left, which no other program has seen.
#[inline(always)]
pub fn on_close(ops: *mut bpf_sock_ops, state: &SocketState) {
    if state.flags.has(SocketFlags::HAS_LEFT) {
        // SAFETY: a read of a context field of its own width.
        let bytes_acked = unsafe { read_volatile(addr_of!((*ops).bytes_acked)) };
        count_bytes(state, bytes_acked.wrapping_sub(state.bytes_when_left));
    }
}
