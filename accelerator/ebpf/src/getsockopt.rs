// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `cgroup/getsockopt`: answers `SO_ORIGINAL_DST` for sockets that were redirected, and nothing else.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sockopt},
    macros::cgroup_sockopt,
    programs::SockoptContext,
};
use isthmus_accel_abi::{Counter, OriginalDst, SocketFlags, is_v4, v4_mapped};

use crate::{
    counters::count,
    maps::{INBOUND_SOCKETS, SOCKET_STATE},
    sock_addr::Family,
};

const ALLOW: i32 = 1;
const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `IP6T_SO_ORIGINAL_DST` as well.
const SO_ORIGINAL_DST: i32 = 80;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCKADDR_IN_BYTES: usize = 16;
const SOCKADDR_IN6_BYTES: usize = 28;

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
    let is_answered = name == SO_ORIGINAL_DST
        && match level {
            SOL_IP => answer(opt, Family::V4),
            SOL_IPV6 => answer(opt, Family::V6),
            _ => false,
        };
    if is_answered {
        count(Counter::OriginalDstAnswers);
    } else if len > VISIBLE_BYTES {
        // Zero means: hand out what the kernel wrote, untouched.
        // SAFETY: a write of a context field of its own width.
        unsafe { write_volatile(addr_of_mut!((*opt).optlen), 0) };
    }
    ALLOW
}

/// Answers on a socket whose original destination is of this family, and tells whether it did.
#[inline(always)]
fn answer(opt: *mut bpf_sockopt, family: Family) -> bool {
    // SAFETY: reads of context fields of their own width.
    let (sk, out, end) = unsafe {
        (
            read_volatile(addr_of!((*opt).__bindgen_anon_1.sk)),
            read_volatile(addr_of!((*opt).__bindgen_anon_2.optval)).cast::<u8>(),
            read_volatile(addr_of!((*opt).__bindgen_anon_3.optval_end)),
        )
    };
    if sk.is_null() {
        return false;
    }
    let Some(original) = original(opt, sk) else {
        return false;
    };
    if is_v4(&original.addr) != (family == Family::V4) {
        return false;
    }

    // With less room the kernel says EINVAL, which stays. The stores to the context are volatile, so that
    // the compiler does not merge them into one that the verifier refuses.
    match family {
        Family::V4 => {
            if out as usize + SOCKADDR_IN_BYTES > end as usize {
                return false;
            }
            let [.., a, b, c, d] = original.addr;
            // SAFETY: the buffer has 16 bytes, checked above.
            unsafe {
                out.cast::<u16>().write(AF_INET);
                out.add(2).cast::<[u8; 2]>().write(original.port);
                out.add(4).cast::<[u8; 4]>().write([a, b, c, d]);
                out.add(8).cast::<u64>().write(0);
                write_volatile(addr_of_mut!((*opt).optlen), SOCKADDR_IN_BYTES as i32);
            }
        }
        Family::V6 => {
            if out as usize + SOCKADDR_IN6_BYTES > end as usize {
                return false;
            }
            // SAFETY: the buffer has 28 bytes, checked above.
            unsafe {
                out.cast::<u16>().write(AF_INET6);
                out.add(2).cast::<[u8; 2]>().write(original.port);
                out.add(4).cast::<u32>().write(0);
                out.add(8).cast::<[u8; 16]>().write(original.addr);
                out.add(24).cast::<u32>().write(0);
                write_volatile(addr_of_mut!((*opt).optlen), SOCKADDR_IN6_BYTES as i32);
            }
        }
    }
    // SAFETY: a write of a context field of its own width.
    unsafe { write_volatile(addr_of_mut!((*opt).retval), 0) };
    true
}

/// What the connection was for, where that is known.
#[inline(always)]
fn original(opt: *mut bpf_sockopt, sk: *mut bpf_sock) -> Option<OriginalDst> {
    let state = SOCKET_STATE.of(sk);
    if !state.is_null() {
        // SAFETY: not null, so it is this socket's state.
        let (original, flags) = unsafe { ((*state).original, (*state).flags) };
        return flags.has(SocketFlags::HAS_ORIGINAL_DST).then_some(original);
    }
    // SAFETY: a read of a context field of its own width.
    let refused = unsafe { read_volatile(addr_of!((*opt).retval)) };
    // Steered here without NAT, so it was for its own address. Where NAT took part the kernel knows.
    if refused == 0 || INBOUND_SOCKETS.of(sk).is_null() {
        return None;
    }
    Some(own_address(sk))
}

#[inline(always)]
fn own_address(sk: *mut bpf_sock) -> OriginalDst {
    // SAFETY: reads of fields of their own width, which the verifier checks.
    let (family, v4, v6, port) = unsafe {
        (
            read_volatile(addr_of!((*sk).family)),
            read_volatile(addr_of!((*sk).src_ip4)),
            [
                read_volatile(addr_of!((*sk).src_ip6[0])),
                read_volatile(addr_of!((*sk).src_ip6[1])),
                read_volatile(addr_of!((*sk).src_ip6[2])),
                read_volatile(addr_of!((*sk).src_ip6[3])),
            ],
            read_volatile(addr_of!((*sk).src_port)),
        )
    };
    let mut original = OriginalDst {
        addr: v4_mapped(v4.to_ne_bytes()),
        port: (port as u16).to_be_bytes(),
        reserved: [0; 6],
    };
    if family == u32::from(AF_INET6) {
        // SAFETY: 16 bytes either way; an unaligned write needs nothing else.
        unsafe {
            original
                .addr
                .as_mut_ptr()
                .cast::<[u32; 4]>()
                .write_unaligned(v6)
        };
    }
    original
}
