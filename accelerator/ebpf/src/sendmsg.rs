// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `cgroup/sendmsg4` and `6`: decide where a datagram with an address of its own goes.
//!
//! The kernel asks sendmsg4 about IPv4 addresses on IPv6 sockets too.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use isthmus_accel_abi::{DNS_AGENT_PORT, DNS_PORT, Source, query_source, v4_mapped};

use crate::{
    connect::{Loaded, default_source},
    sock_addr::{Family, dial, from_words, into_words, port, write},
    udp::{send, udp_socket},
};

const ALLOW: i32 = 1;

/// Sends DNS queries to the pod's agent. Linux 5.10 (socket storage).
#[cgroup_sock_addr(sendmsg4)]
pub fn isthmus_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, Family::V4)
}

/// The same for IPv6 addresses. Linux 5.10 (socket storage).
#[cgroup_sock_addr(sendmsg6)]
pub fn isthmus_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, Family::V6)
}

#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    let addr = ctx.sock_addr;
    // First, for every datagram of every socket comes here.
    let port = port(addr);
    if port != DNS_PORT && port != DNS_AGENT_PORT {
        return ALLOW;
    }
    let Some(sk) = udp_socket(addr) else {
        return ALLOW;
    };
    if let Some(query) = dial(ctx, sk, family, message_source(addr, family))
        && let Some(agent) = send(sk, &query)
    {
        match query_source(&query, &Loaded) {
            Source::DESTINATION => come_from(addr, family, query.destination),
            Source::DEFAULT => come_from(addr, family, default_source(&query)),
            _ => {}
        }
        write(addr, family, agent, DNS_AGENT_PORT);
    }
    ALLOW
}

/// Makes this one datagram come from an address; an unspecified one leaves the choice to the kernel.
#[inline(always)]
fn come_from(addr: *mut bpf_sock_addr, family: Family, source: [u8; 16]) {
    let words = into_words(source);
    // SAFETY: writes of context fields of their own width; volatile, so that the compiler does not merge
    // them into one that the verifier refuses.
    unsafe {
        match family {
            Family::V4 => write_volatile(addr_of_mut!((*addr).msg_src_ip4), words[3]),
            Family::V6 => {
                write_volatile(addr_of_mut!((*addr).msg_src_ip6[0]), words[0]);
                write_volatile(addr_of_mut!((*addr).msg_src_ip6[1]), words[1]);
                write_volatile(addr_of_mut!((*addr).msg_src_ip6[2]), words[2]);
                write_volatile(addr_of_mut!((*addr).msg_src_ip6[3]), words[3]);
            }
        }
    }
}

/// Returns the address that this one datagram is to come from, unspecified if from any.
#[inline(always)]
fn message_source(addr: *mut bpf_sock_addr, family: Family) -> [u8; 16] {
    // SAFETY: reads of context fields of their own width; volatile, so that the compiler does not merge
    // them into one that the verifier refuses.
    unsafe {
        match family {
            Family::V4 => v4_mapped(read_volatile(addr_of!((*addr).msg_src_ip4)).to_ne_bytes()),
            Family::V6 => from_words([
                read_volatile(addr_of!((*addr).msg_src_ip6[0])),
                read_volatile(addr_of!((*addr).msg_src_ip6[1])),
                read_volatile(addr_of!((*addr).msg_src_ip6[2])),
                read_volatile(addr_of!((*addr).msg_src_ip6[3])),
            ]),
        }
    }
}
