// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The addresses in the context of a `cgroup_sock_addr` program, by the family of its hook.

use core::{
    mem,
    ptr::{addr_of, addr_of_mut, read_volatile, write_volatile},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::bpf_get_netns_cookie,
    programs::SockAddrContext,
};
use isthmus_accel_abi::{Dial, v4_mapped};

use crate::owner;

/// Family of the socket for which a program runs, which is that of its hook.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`, whose peer may be a v4-mapped address.
    V6,
}

/// Returns what the owner of a socket asks for, as the kernel will route it, from this source; `None` if
/// the socket is the kernel's own.
#[inline(always)]
pub fn dial(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    family: Family,
    source: [u8; 16],
) -> Option<Dial> {
    let addr = ctx.sock_addr;
    let owner = owner::of(sk)?;
    let dial = Dial {
        // SAFETY: a helper that takes nothing but the context.
        netns_cookie: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
        uid: owner.uid,
        gid: owner.gid,
        source,
        destination: address(addr, family),
        port: port(addr),
        // SAFETY: a read of a context field of its own width.
        bound_ifindex: unsafe { read_volatile(addr_of!((*sk).bound_dev_if)) },
    };
    Some(dial.routed())
}

/// Returns the address that the caller gave, or is shown.
#[inline(always)]
pub fn address(addr: *mut bpf_sock_addr, family: Family) -> [u8; 16] {
    // SAFETY: reads of context fields of their own width; volatile, so that the compiler does not merge
    // them into one that the verifier refuses.
    unsafe {
        match family {
            Family::V4 => v4_mapped(read_volatile(addr_of!((*addr).user_ip4)).to_ne_bytes()),
            Family::V6 => from_words([
                read_volatile(addr_of!((*addr).user_ip6[0])),
                read_volatile(addr_of!((*addr).user_ip6[1])),
                read_volatile(addr_of!((*addr).user_ip6[2])),
                read_volatile(addr_of!((*addr).user_ip6[3])),
            ]),
        }
    }
}

/// Returns the port that the caller gave, or is shown, in network order.
#[inline(always)]
pub fn port(addr: *mut bpf_sock_addr) -> [u8; 2] {
    // SAFETY: a read of a context field of its own width.
    (unsafe { read_volatile(addr_of!((*addr).user_port)) } as u16).to_ne_bytes()
}

/// Returns the address that a socket is bound to, unspecified if to none.
#[inline(always)]
pub fn source(sk: *mut bpf_sock, family: Family) -> [u8; 16] {
    // SAFETY: as in `address`.
    unsafe {
        match family {
            Family::V4 => v4_mapped(read_volatile(addr_of!((*sk).src_ip4)).to_ne_bytes()),
            Family::V6 => from_words([
                read_volatile(addr_of!((*sk).src_ip6[0])),
                read_volatile(addr_of!((*sk).src_ip6[1])),
                read_volatile(addr_of!((*sk).src_ip6[2])),
                read_volatile(addr_of!((*sk).src_ip6[3])),
            ]),
        }
    }
}

/// Puts an address and a port in network order into the context. For an IPv4 socket the address must be
/// v4-mapped.
#[inline(always)]
pub fn write(addr: *mut bpf_sock_addr, family: Family, address: [u8; 16], port: [u8; 2]) {
    let words = into_words(address);
    // SAFETY: writes of context fields of their own width; volatile as in `address`.
    unsafe {
        match family {
            Family::V4 => write_volatile(addr_of_mut!((*addr).user_ip4), words[3]),
            Family::V6 => {
                write_volatile(addr_of_mut!((*addr).user_ip6[0]), words[0]);
                write_volatile(addr_of_mut!((*addr).user_ip6[1]), words[1]);
                write_volatile(addr_of_mut!((*addr).user_ip6[2]), words[2]);
                write_volatile(addr_of_mut!((*addr).user_ip6[3]), words[3]);
            }
        }
        write_volatile(
            addr_of_mut!((*addr).user_port),
            u16::from_ne_bytes(port).into(),
        );
    }
}

/// Returns the address that the context holds as words.
#[inline(always)]
pub const fn from_words(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: any sixteen bytes are as good as four words.
    unsafe { mem::transmute(words) }
}

/// Returns the words of an address as the context holds them.
#[inline(always)]
pub const fn into_words(address: [u8; 16]) -> [u32; 4] {
    // SAFETY: any four words are as good as sixteen bytes.
    unsafe { mem::transmute(address) }
}
