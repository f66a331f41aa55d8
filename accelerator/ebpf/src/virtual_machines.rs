// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `tcx/ingress`: marks what virtual machines send to the proxy, so that a rule of the namespace delivers it
//! there instead of forwarding it.
//!
//! A route by the interface alone would do so with what a virtual machine answers to those who dial it, too,
//! and their connections would end. So it is told packet by packet: what begins a connection, by
//! `decide_inbound()`, as `sk_lookup` will decide again; everything else by whether a socket of the
//! namespace has the connection.

use core::ptr::{addr_of, addr_of_mut, from_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock_tuple},
    helpers::generated::{bpf_sk_release, bpf_skb_load_bytes_relative, bpf_skc_lookup_tcp},
    macros::classifier,
    programs::TcContext,
};
use isthmus_accel_abi::{Arrival, InboundVerdict, VIRTUAL_MARK, decide_inbound};

use crate::{connect::Loaded, maps::is_shadow, sk_lookup::{own_cookie, set_addrs}};

/// Leave the packet to the next program (Linux, `TCX_NEXT`).
const NEXT: i32 = -1;
/// Offsets count from the network header (Linux, `BPF_HDR_START_NET`).
const FROM_NETWORK_HEADER: u32 = 1;
/// The namespace of the interface (Linux, `BPF_F_CURRENT_NETNS`).
const CURRENT_NETNS: u64 = u64::MAX;
const PROTOCOL_IPV4: u32 = 0x0800_u16.to_be() as u32;
const PROTOCOL_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const IPPROTO_TCP: u8 = 6;
const TCP_LISTEN: u32 = 10;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// More fragments follow, or this is not the first.
const FRAGMENT: u16 = 0x3fff;
const IPV6_HEADER_BYTES: u32 = 40;
const TUPLE_V4_BYTES: u32 = 12;
const TUPLE_V6_BYTES: u32 = 36;

/// Marks it. Linux 6.6.
///
/// Fragments, and IPv6 packets with extension headers, are forwarded: TCP sends neither.
#[classifier]
pub fn isthmus_virtual(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: reads and a write of context fields of their own width.
    unsafe {
        let is_for_proxy = match read_volatile(addr_of!((*skb).protocol)) {
            PROTOCOL_IPV4 => is_v4_for_proxy(skb),
            PROTOCOL_IPV6 => is_v6_for_proxy(skb),
            _ => false,
        };
        if is_for_proxy && !is_shadow() {
            write_volatile(addr_of_mut!((*skb).mark), VIRTUAL_MARK);
        }
    }
    NEXT
}

/// `struct iphdr`, as bytes of the network.
#[repr(C)]
struct V4Header {
    version_and_words: u8,
    tos: u8,
    len: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

/// `struct ipv6hdr`, as bytes of the network.
#[repr(C)]
struct V6Header {
    begin: u32,
    len: u16,
    protocol: u8,
    hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// The begin of `struct tcphdr`, as bytes of the network.
#[repr(C)]
struct TcpHeader {
    source: u16,
    destination: u16,
    sequence: u32,
    acknowledged: u32,
    offset: u8,
    flags: u8,
}

#[inline(never)]
fn is_v4_for_proxy(skb: *mut __sk_buff) -> bool {
    // SAFETY: all zeroes is a value of these structures of numbers.
    let (mut ip, mut tcp): (V4Header, TcpHeader) = unsafe { core::mem::zeroed() };
    if !load(skb, 0, &mut ip)
        || ip.protocol != IPPROTO_TCP
        || u16::from_be(ip.fragment) & FRAGMENT != 0
        || !load(skb, u32::from(ip.version_and_words & 0xf) * 4, &mut tcp)
    {
        return false;
    }
    if tcp.flags & (SYN | ACK) == SYN {
        let mapped = |addr| [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), addr];
        return begins_for_proxy(skb, &mapped(ip.source), &mapped(ip.destination), &tcp);
    }
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    tuple.__bindgen_anon_1.ipv4.saddr = ip.source;
    tuple.__bindgen_anon_1.ipv4.daddr = ip.destination;
    tuple.__bindgen_anon_1.ipv4.sport = tcp.source;
    tuple.__bindgen_anon_1.ipv4.dport = tcp.destination;
    has_socket(skb, &mut tuple, TUPLE_V4_BYTES)
}

#[inline(never)]
fn is_v6_for_proxy(skb: *mut __sk_buff) -> bool {
    // SAFETY: as above.
    let (mut ip, mut tcp): (V6Header, TcpHeader) = unsafe { core::mem::zeroed() };
    if !load(skb, 0, &mut ip)
        || ip.protocol != IPPROTO_TCP
        || !load(skb, IPV6_HEADER_BYTES, &mut tcp)
    {
        return false;
    }
    if tcp.flags & (SYN | ACK) == SYN {
        return begins_for_proxy(skb, &ip.source, &ip.destination, &tcp);
    }
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    tuple.__bindgen_anon_1.ipv6.saddr = ip.source;
    tuple.__bindgen_anon_1.ipv6.daddr = ip.destination;
    tuple.__bindgen_anon_1.ipv6.sport = tcp.source;
    tuple.__bindgen_anon_1.ipv6.dport = tcp.destination;
    has_socket(skb, &mut tuple, TUPLE_V6_BYTES)
}

/// Reads a header, and tells whether it is there.
#[inline(always)]
fn load<T>(skb: *mut __sk_buff, offset: u32, header: &mut T) -> bool {
    // SAFETY: our context, and a buffer of the length that is passed, which any bytes may fill.
    let failed = unsafe {
        bpf_skb_load_bytes_relative(
            skb.cast(),
            offset,
            from_mut(header).cast(),
            size_of::<T>() as u32,
            FROM_NETWORK_HEADER,
        )
    };
    failed == 0
}

/// Decides about a SYN.
#[inline(always)]
fn begins_for_proxy(
    skb: *mut __sk_buff,
    source: &[u32; 4],
    destination: &[u32; 4],
    tcp: &TcpHeader,
) -> bool {
    let mut arrival = Arrival {
        netns_cookie: own_cookie(),
        local: [0; 16],
        remote: [0; 16],
        port: tcp.destination.to_ne_bytes(),
        // SAFETY: a read of a context field of its own width.
        ingress_ifindex: unsafe { read_volatile(addr_of!((*skb).ifindex)) },
    };
    set_addrs(&mut arrival, *destination, *source);
    decide_inbound(&arrival, &Loaded) == InboundVerdict::SteerOutbound
}

/// Tells whether the namespace has a socket of this very connection.
#[inline(always)]
fn has_socket(skb: *mut __sk_buff, tuple: &mut bpf_sock_tuple, len: u32) -> bool {
    // SAFETY: our context and a tuple of the length that is passed; the socket is released on the one path
    // on which there is one.
    unsafe {
        let sk = bpf_skc_lookup_tcp(skb.cast(), from_mut(tuple), len, CURRENT_NETNS, 0);
        if sk.is_null() {
            return false;
        }
        let state = read_volatile(addr_of!((*sk).state));
        bpf_sk_release(sk.cast());
        state != TCP_LISTEN
    }
}
