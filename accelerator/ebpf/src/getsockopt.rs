// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `cgroup/getsockopt`: answers `SO_ORIGINAL_DST` for sockets that were redirected, and nothing else.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext};
use isthmus_accel_abi::{Counter, SocketFlags};

use crate::{counters::count, maps::SOCKET_STATE};

const ALLOW: i32 = 1;
const SOL_IP: i32 = 0;
const SO_ORIGINAL_DST: i32 = 80;
const AF_INET: u16 = 2;
const SOCKADDR_IN_BYTES: usize = 16;

/// The kernel shows a program at most this much of the buffer, and fails the call of a program that
/// leaves a longer length in place (before Linux 5.8 silently, later with a log line).
const VISIBLE_BYTES: i32 = 4096;

/// Answers what NAT would have known. Linux 5.10 (socket storage).
#[cgroup_sockopt(getsockopt)]
pub fn isthmus_getsockopt(ctx: SockoptContext) -> i32 {
    let opt = ctx.sockopt;
    // SAFETY: reads of context fields of their own width.
    let (level, name, len) = unsafe {
        (
            read_volatile(addr_of!((*opt).level)),
            read_volatile(addr_of!((*opt).optname)),
            read_volatile(addr_of!((*opt).optlen)),
        )
    };
    if level == SOL_IP && name == SO_ORIGINAL_DST {
        answer(opt);
    } else if len > VISIBLE_BYTES {
        // Zero means: hand out what the kernel wrote, untouched.
        // SAFETY: a write of a context field of its own width.
        unsafe { write_volatile(addr_of_mut!((*opt).optlen), 0) };
    }
    ALLOW
}

#[inline(always)]
fn answer(opt: *mut bpf_sockopt) {
    // SAFETY: reads of context fields of their own width.
    let (sk, buffer, end) = unsafe {
        (
            read_volatile(addr_of!((*opt).__bindgen_anon_1.sk)),
            read_volatile(addr_of!((*opt).__bindgen_anon_2.optval)),
            read_volatile(addr_of!((*opt).__bindgen_anon_3.optval_end)),
        )
    };
    if sk.is_null() {
        return;
    }
    let state = SOCKET_STATE.of(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: not null, so it is this socket's state.
    let (original, flags) = unsafe { ((*state).original, (*state).flags) };
    // With less room the kernel says EINVAL, which stays.
    if !flags.has(SocketFlags::HAS_ORIGINAL_DST)
        || buffer as usize + SOCKADDR_IN_BYTES > end as usize
    {
        return;
    }

    let [.., a, b, c, d] = original.addr;
    let out = buffer.cast::<u8>();
    // SAFETY: the buffer has 16 bytes, checked above. The two stores to the context are volatile, so
    // that the compiler does not merge them into one that the verifier refuses.
    unsafe {
        out.cast::<u16>().write(AF_INET);
        out.add(2).cast::<[u8; 2]>().write(original.port);
        out.add(4).cast::<[u8; 4]>().write([a, b, c, d]);
        out.add(8).cast::<u64>().write(0);
        write_volatile(addr_of_mut!((*opt).optlen), SOCKADDR_IN_BYTES as i32);
        write_volatile(addr_of_mut!((*opt).retval), 0);
    }
    count(Counter::OriginalDstAnswers);
}
