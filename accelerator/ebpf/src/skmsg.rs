// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `sk_msg`: hands a message to the reader's socket where the latch allows it.
//!
//! `apply_bytes` and `cork_bytes` are never set, data is never pushed or popped: they are where the
//! kernel's defects were.

use core::ptr::{addr_of, from_mut, read_volatile};

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, sk_action::SK_PASS, sk_msg_md},
    helpers::generated::{bpf_get_current_pid_tgid, bpf_msg_redirect_hash},
    macros::sk_msg,
    programs::SkMsgContext,
};
use isthmus_accel_abi::{PassReason, SocketFlags, SocketState};

use crate::{
    budget,
    counters::count_message,
    latch, leave,
    maps::{SOCKET_STATE, SOCKETS},
};

/// Redirects or passes, and counts. Linux 5.10 (socket storage, `bpf_probe_read_kernel`).
#[sk_msg]
pub fn isthmus_skmsg(ctx: SkMsgContext) -> u32 {
    message(ctx.msg);
    // The helper has stored its verdict with the message; SK_PASS does not take it back.
    SK_PASS
}

#[inline(always)]
fn message(msg: *mut sk_msg_md) {
    // SAFETY: reads of context fields of their own width.
    let (sk, size_bytes) = unsafe {
        (
            read_volatile(addr_of!((*msg).__bindgen_anon_3.sk)),
            read_volatile(addr_of!((*msg).size)),
        )
    };
    if sk.is_null() {
        return;
    }
    let state = SOCKET_STATE.of(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: not null, so it is this socket's state, and sendmsg holds its lock.
    let state = unsafe { &mut *state };
    budget::settle_own(state);
    // SAFETY: a read of a field of a socket that the verifier knows, of the field's own width.
    let tcp_state = unsafe { read_volatile(addr_of!((*sk).state)) };
    let outcome = latch::check(state, tcp_state, size_bytes)
        .and_then(|()| redirect(msg, state, size_bytes));
    count_message(state, size_bytes, outcome);
    match outcome {
        Ok(()) => {
            state.bytes_redirected = state.bytes_redirected.wrapping_add(size_bytes.into());
            state.redirects_by(thread());
        }
        Err(reason) => {
            if !state.flags.has(SocketFlags::SLOW) {
                state.on_tcp_because = reason.index() as u16 + 1;
                state.flags = state.flags.with(SocketFlags::SLOW);
                if state.has_handed_over(thread()) {
                    leave::let_reader_go(state);
                }
            }
            if state.is_bulk_with(size_bytes) {
                leave::want(state);
            }
        }
    }
}

#[inline(always)]
fn thread() -> u32 {
    // SAFETY: a helper that takes nothing.
    unsafe { bpf_get_current_pid_tgid() as u32 }
}

#[inline(always)]
fn redirect(
    msg: *mut sk_msg_md,
    state: &mut SocketState,
    size_bytes: u32,
) -> Result<(), PassReason> {
    // SAFETY: our context, our map, and an initialised key.
    let verdict = unsafe {
        bpf_msg_redirect_hash(
            msg,
            SOCKETS.as_ptr(),
            from_mut(&mut state.peer).cast(),
            BPF_F_INGRESS.into(),
        )
    };
    if verdict == i64::from(SK_PASS) {
        Ok(())
    } else {
        budget::refund(state, size_bytes);
        Err(PassReason::RedirectFailed)
    }
}
