// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Datagrams, for all hooks: what is decided about one, and what its socket remembers of it.
//!
//! Connected sockets come here from connect, the others from sendmsg; what both are shown as the source
//! of an answer, or as their peer, comes from the same state.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    programs::SockAddrContext,
};
use isthmus_accel_abi::{
    Counter, DNS_AGENT_PORT, DNS_PORT, Dial, DnsSocket, DnsVerdict, decide_datagram, dns_agent_addr,
};

use crate::{
    connect::Loaded,
    counters::count,
    maps::{DNS_SOCKETS, is_shadow},
    sock_addr::{Family, address, port, write},
};

const SOCK_DGRAM: u32 = 2;
const IPPROTO_UDP: u32 = 17;
/// A UDP socket with a peer, in the kernel's numbers for TCP.
const TCP_ESTABLISHED: u32 = 1;

/// The socket of the call, if it is one of UDP.
#[inline(always)]
pub fn udp_socket(addr: *mut bpf_sock_addr) -> Option<*mut bpf_sock> {
    // SAFETY: reads of context fields of their own width, which the verifier checks.
    let (kind, protocol, sk) = unsafe {
        (
            read_volatile(addr_of!((*addr).type_)),
            read_volatile(addr_of!((*addr).protocol)),
            read_volatile(addr_of!((*addr).__bindgen_anon_1.sk)),
        )
    };
    (kind == SOCK_DGRAM && protocol == IPPROTO_UDP && !sk.is_null()).then_some(sk)
}

/// Decides about everything that a socket will send to its peer; returns the agent's address if that
/// shall be the peer.
#[inline(always)]
pub fn connect(sk: *mut bpf_sock, query: &Dial) -> Option<[u8; 16]> {
    if !is_for_agent(query) {
        // The socket may have had another peer before.
        DNS_SOCKETS.forget(sk);
        return None;
    }
    let mut asked = DnsSocket::default();
    asked.ask(query.destination);
    let socket = DNS_SOCKETS.of_or_new(sk);
    if socket.is_null() {
        return None;
    }
    // SAFETY: not null, so it is this socket's state, and connect holds its lock.
    unsafe { *socket = asked };
    count(Counter::DnsQueries);
    Some(dns_agent_addr(query.destination))
}

/// Decides about one datagram; returns the agent's address if it shall go there.
#[inline(always)]
pub fn send(sk: *mut bpf_sock, query: &Dial) -> Option<[u8; 16]> {
    let is_for_agent = is_for_agent(query);
    let socket = if is_for_agent && !has_peer(sk) {
        DNS_SOCKETS.of_or_new(sk)
    } else {
        DNS_SOCKETS.of(sk)
    };
    if socket.is_null() {
        return None;
    }
    // A socket that has a peer hears from its peer alone. What it sends to others goes where that goes,
    // and what is known of the peer stays. (The kernel asks about each datagram of an IPv6 socket with
    // an IPv4 peer.)
    if !has_peer(sk) {
        // SAFETY: not null, so it is this socket's state, and sendmsg holds its lock.
        let socket = unsafe { &mut *socket };
        if is_for_agent {
            socket.ask(query.destination);
        } else {
            socket.forget(query.destination, query.port);
        }
    }
    if !is_for_agent {
        return None;
    }
    count(Counter::DnsQueries);
    Some(dns_agent_addr(query.destination))
}

#[inline(always)]
fn is_for_agent(query: &Dial) -> bool {
    !is_shadow() && decide_datagram(query, &Loaded) == DnsVerdict::ToAgent
}

#[inline(always)]
fn has_peer(sk: *mut bpf_sock) -> bool {
    // SAFETY: a read of a field of its own width, of a socket that is not null.
    let state = unsafe { read_volatile(addr_of!((*sk).state)) };
    state == TCP_ESTABLISHED
}

/// Puts the server that was asked in place of the agent's address, where the call is about to show that
/// to a UDP socket: as the source of an answer, or as the peer.
#[inline(always)]
pub fn show(ctx: &SockAddrContext, family: Family) {
    let addr = ctx.sock_addr;
    // First, for every datagram of every socket comes here.
    let port = port(addr);
    if port != DNS_AGENT_PORT {
        return;
    }
    let Some(sk) = udp_socket(addr) else {
        return;
    };
    let socket = DNS_SOCKETS.of(sk);
    if socket.is_null() {
        return;
    }
    // SAFETY: not null, so it is this socket's state.
    if let Some(server) = unsafe { (*socket).shown(address(addr, family), port) } {
        write(addr, family, server, DNS_PORT);
    }
}
