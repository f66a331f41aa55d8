// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `cgroup/getpeername4` and `6`: a caller sees the address that it dialled, as it does behind NAT.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use isthmus_accel_abi::SocketFlags;

use crate::{
    maps::SOCKET_STATE,
    sock_addr::{Family, write},
    udp::show,
};

const ALLOW: i32 = 1;

/// Shows the original destination to the end that dialled it (row X3). Linux 5.10 (socket storage).
#[cgroup_sock_addr(getpeername4)]
pub fn isthmus_getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername(&ctx, Family::V4)
}

/// The same for IPv6 sockets, whose peer may be a v4-mapped address. Linux 5.10 (socket storage).
#[cgroup_sock_addr(getpeername6)]
pub fn isthmus_getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername(&ctx, Family::V6)
}

#[inline(always)]
fn getpeername(ctx: &SockAddrContext, family: Family) -> i32 {
    show(ctx, family);
    let addr = ctx.sock_addr;
    // SAFETY: a read of a context field of its own width.
    let sk = unsafe { read_volatile(addr_of!((*addr).__bindgen_anon_1.sk)) };
    if sk.is_null() {
        return ALLOW;
    }
    let state = SOCKET_STATE.of(sk);
    if state.is_null() {
        return ALLOW;
    }
    // SAFETY: not null, so it is this socket's state.
    let (original, flags) = unsafe { ((*state).original, (*state).flags) };
    // The accepting end has an original destination as well, and its peer is who it is.
    if !flags.has(SocketFlags::HAS_ORIGINAL_DST.with(SocketFlags::HAS_CONNECTED)) {
        return ALLOW;
    }
    write(addr, family, original.addr, original.port);
    ALLOW
}
