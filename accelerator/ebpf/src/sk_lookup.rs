// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `sk_lookup`: gives connections that arrive at a pod to its proxy's inbound listener, without NAT; those of
//! virtual machines in the pod to its outbound one.
//!
//! Runs when a packet belongs to no connection, before the kernel looks for a listener. What is
//! established, or in `TIME_WAIT`, never comes here. One instance for each pod, linked to its
//! network namespace: nothing in the context tells namespaces apart, and addresses do not either
//! (link-local ones repeat, secondary ones come and go).

use core::ptr::{addr_of, from_mut, read_volatile};

use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action},
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use isthmus_accel_abi::{
    Arrival, Counter, InboundVerdict, LISTENER_SLOTS, ListenerKey, ListenerKind, SockKey, decide_inbound,
};

use crate::{
    connect::Loaded,
    counters::count,
    maps::{LISTENERS, ORIG_DST_BY_TUPLE, is_shadow},
};

const PASS: u32 = sk_action::SK_PASS;
/// For TCP the kernel answers with a reset, as where nobody listens.
const DROP: u32 = sk_action::SK_DROP;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
/// Third word of a v4-mapped address.
const MAPPED_WORD: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Namespace that this instance is linked to; the loader sets it.
#[unsafe(no_mangle)]
static NETNS_COOKIE: u64 = 0;

/// Steers to the proxy. Linux 6.1 (the interface: 5.17).
///
/// Where the proxy does not listen the connection is refused, as under iptables: an application
/// never gets plaintext that its proxy should have seen.
#[sk_lookup]
pub fn isthmus_sk_lookup(ctx: SkLookupContext) -> u32 {
    let Some((arrival, family)) = arrival(ctx.lookup) else {
        return PASS;
    };
    if is_shadow() {
        return PASS;
    }
    let is_outbound = match decide_inbound(&arrival, &Loaded) {
        InboundVerdict::Pass(_) => return PASS,
        InboundVerdict::SteerUnlessDialledHere if is_dialled_here(ctx.lookup, &arrival) => return PASS,
        InboundVerdict::SteerUnlessDialledHere | InboundVerdict::Steer => false,
        InboundVerdict::SteerOutbound => true,
    };
    let own_kind = if family == AF_INET {
        ListenerKind::V4
    } else {
        ListenerKind::V6
    };
    for kind in [own_kind, ListenerKind::ANY] {
        let kind = if is_outbound { kind.outbound() } else { kind };
        for slot in 0..LISTENER_SLOTS {
            let key = ListenerKey::new(arrival.netns_cookie, kind, slot);
            if assign(ctx.lookup, key) {
                count(Counter::InboundSteered);
                return PASS;
            }
        }
    }
    count(Counter::InboundRefused);
    DROP
}

/// Tells whether a socket of this namespace has sent the packet: what the proxy dials with a client's address
/// is followed from before its SYN until it is accepted.
#[inline(always)]
fn is_dialled_here(ctx: *mut bpf_sk_lookup, arrival: &Arrival) -> bool {
    // SAFETY: a read of a context field of its own width.
    let remote_port = unsafe { read_volatile(addr_of!((*ctx).remote_port)) };
    let accepting_end = SockKey {
        netns_cookie: arrival.netns_cookie,
        local_addr: arrival.local,
        peer_addr: arrival.remote,
        local_port: arrival.port,
        peer_port: remote_port.to_ne_bytes(),
        reserved: [0; 4],
    };
    ORIG_DST_BY_TUPLE
        .get(&accepting_end)
        .is_some_and(|entry| entry.client_netns == arrival.netns_cookie)
}

/// Chooses the socket behind the key; tells whether there is one that takes packets of this family.
#[inline(always)]
fn assign(ctx: *mut bpf_sk_lookup, mut key: ListenerKey) -> bool {
    // SAFETY: the map is ours, the key is initialised; what the lookup returns is a socket that is
    // released on every path, and the context is ours.
    unsafe {
        let sk = bpf_map_lookup_elem(LISTENERS.as_ptr(), from_mut(&mut key).cast());
        if sk.is_null() {
            return false;
        }
        let refused = bpf_sk_assign(ctx.cast(), sk, 0);
        bpf_sk_release(sk);
        refused == 0
    }
}

/// The namespace that this instance is for.
#[inline(always)]
pub fn own_cookie() -> u64 {
    // SAFETY: a static that the loader changes after compilation.
    unsafe { read_volatile(addr_of!(NETNS_COOKIE)) }
}

/// What arrives, and its family; `None` if it is not TCP.
#[inline(always)]
fn arrival(ctx: *mut bpf_sk_lookup) -> Option<(Arrival, u32)> {
    // All of them before the choice: the compiler would choose between addresses in the context, which
    // the verifier refuses.
    // SAFETY: reads of context fields of their own width; volatile, so that the compiler does not
    // merge them.
    let (family, protocol, local_v4, remote_v4, local_v6, remote_v6, port, ifindex) = unsafe {
        (
            read_volatile(addr_of!((*ctx).family)),
            read_volatile(addr_of!((*ctx).protocol)),
            read_volatile(addr_of!((*ctx).local_ip4)),
            read_volatile(addr_of!((*ctx).remote_ip4)),
            [
                read_volatile(addr_of!((*ctx).local_ip6[0])),
                read_volatile(addr_of!((*ctx).local_ip6[1])),
                read_volatile(addr_of!((*ctx).local_ip6[2])),
                read_volatile(addr_of!((*ctx).local_ip6[3])),
            ],
            [
                read_volatile(addr_of!((*ctx).remote_ip6[0])),
                read_volatile(addr_of!((*ctx).remote_ip6[1])),
                read_volatile(addr_of!((*ctx).remote_ip6[2])),
                read_volatile(addr_of!((*ctx).remote_ip6[3])),
            ],
            read_volatile(addr_of!((*ctx).local_port)),
            read_volatile(addr_of!((*ctx).ingress_ifindex)),
        )
    };
    if protocol != IPPROTO_TCP {
        return None;
    }
    let (local, remote) = match family {
        AF_INET => (
            [0, 0, MAPPED_WORD, local_v4],
            [0, 0, MAPPED_WORD, remote_v4],
        ),
        AF_INET6 => (local_v6, remote_v6),
        _ => return None,
    };
    let mut arrival = Arrival {
        netns_cookie: own_cookie(),
        local: [0; 16],
        remote: [0; 16],
        port: (port as u16).to_be_bytes(),
        ingress_ifindex: ifindex,
    };
    set_addrs(&mut arrival, local, remote);
    Some((arrival, family))
}

/// Fills in addresses as they are in the network.
#[inline(always)]
pub fn set_addrs(arrival: &mut Arrival, local: [u32; 4], remote: [u32; 4]) {
    // By words: byte arrays become one stack slot a byte.
    // SAFETY: both addresses are 16 bytes; unaligned writes need nothing else.
    unsafe {
        arrival
            .local
            .as_mut_ptr()
            .cast::<[u32; 4]>()
            .write_unaligned(local);
        arrival
            .remote
            .as_mut_ptr()
            .cast::<[u32; 4]>()
            .write_unaligned(remote);
    }
}
