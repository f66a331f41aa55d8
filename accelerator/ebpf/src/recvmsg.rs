// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `cgroup/recvmsg4` and `6`: an answer of the agent comes from the server that was asked, as it does
//! behind NAT.
//!
//! An IPv6 socket that hears from an IPv4 address comes to recvmsg6, with that address v4-mapped.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{sock_addr::Family, udp::show};

const ALLOW: i32 = 1;

/// Shows the server that was asked as the source of its answer. Linux 5.10 (socket storage).
#[cgroup_sock_addr(recvmsg4)]
pub fn isthmus_recvmsg4(ctx: SockAddrContext) -> i32 {
    show(&ctx, Family::V4);
    ALLOW
}

/// The same for IPv6 sockets. Linux 5.10 (socket storage).
#[cgroup_sock_addr(recvmsg6)]
pub fn isthmus_recvmsg6(ctx: SockAddrContext) -> i32 {
    show(&ctx, Family::V6);
    ALLOW
}
