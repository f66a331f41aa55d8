// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A question that only the kernel can answer: how many redirected bytes lie unread at a socket.
//!
//! Attached nowhere. The agent runs it with `BPF_PROG_TEST_RUN`: the packet is a [`SockKey`], the
//! verdict is the number of bytes.

use core::ptr::from_mut;

use aya_ebpf::{
    bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes, macros::classifier,
    programs::TcContext,
};
use isthmus_accel_abi::SockKey;

use crate::{kernel::KernelSock, maps::ENDS};

/// Returns the bytes that lie unread at the socket whose key is the packet, if some of them were
/// redirected; 0 if none were, or there is no such socket.
/// Linux 5.10 (`bpf_probe_read_kernel`).
#[classifier]
pub fn isthmus_parked(ctx: TcContext) -> i32 {
    parked(ctx.skb.skb).unwrap_or(0) as i32
}

#[inline(always)]
fn parked(skb: *mut __sk_buff) -> Option<u32> {
    let mut key = SockKey {
        netns_cookie: 0,
        local_addr: [0; 16],
        peer_addr: [0; 16],
        local_port: [0; 2],
        peer_port: [0; 2],
        reserved: [0; 4],
    };
    // SAFETY: our context, and a buffer of the length that is passed.
    let failed = unsafe {
        bpf_skb_load_bytes(
            skb.cast(),
            0,
            from_mut(&mut key).cast(),
            size_of::<SockKey>() as u32,
        )
    };
    if failed != 0 {
        return None;
    }
    let end = ENDS.get(&key)?;
    let sock = KernelSock(end.sk);
    if sock.cookie()? != end.cookie || !sock.has_parked()? {
        return None;
    }
    // What TCP has delivered behind it is charged to the same account.
    sock.rmem_alloc()
}
