// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The kernel programs of the Isthmus accelerator.
//!
//! ```text
//!  connect(2) ─▶ connect ── rewrites ─▶ SYN ─▶ sockops ── pairs the ends ─▶ SOCKETS
//!  send(2)    ─▶ skmsg ── latch ─▶ reader's queue, or TCP
//!  getsockopt(SO_ORIGINAL_DST) ─▶ getsockopt ── SOCKET_STATE
//!  getpeername(2) ─▶ getpeername ── SOCKET_STATE
//!  a virtual machine's packet ─▶ virtual_machines ── marks ─▶ delivered in the pod ─▶ sk_lookup
//!  listen(2)  ─▶ sockops ─▶ LISTENERS ◀─ sk_lookup ◀─ a SYN that arrives at a pod
//! ```
//!
//! Invariant: every miss passes. A program never delays or drops anything, whatever is missing, full
//! or stale: the worst it may do is to leave a connection to iptables and to TCP. There is one refusal:
//! a connection for a proxy that does not listen, which iptables would refuse as well.
#![no_std]
#![no_main]

mod budget;
mod connect;
mod counters;
mod flow;
mod getpeername;
mod getsockopt;
mod kernel;
mod latch;
mod leave;
mod listen;
mod live;
mod maps;
mod owner;
mod parked;
mod recvmsg;
mod sendmsg;
mod sk_lookup;
mod skmsg;
mod sock_addr;
mod sockops;
mod udp;
mod virtual_machines;

/// Helpers that read kernel memory are for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the programs hold no expression that can panic; the verifier refuses an object in which
    // this function is reachable.
    unsafe { core::hint::unreachable_unchecked() }
}
