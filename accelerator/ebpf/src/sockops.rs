// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `sock_ops`: carries the original destination to the accepting end, and pairs the two ends.
//!
//! The connecting end leaves an entry under the tuple that the accepting end should have, before the SYN
//! leaves: with Fast Open the SYN makes the accepting end. Conntrack may show that end another port, where an
//! earlier connection had this one by way of Istio's rules. So once the connecting end is established, which
//! otherwise comes first, it files the entry anew under what NAT does not change: the numbers of the first bytes.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock, bpf_sock_ops,
    },
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sock_hash_update,
        bpf_sock_ops_cb_flags_set,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use isthmus_accel_abi::{
    Counter, End, EndFlags, Hop, PodFlags, Sequences, SockKey, SocketFlags, SocketState, TupleEntry,
};

use crate::{
    budget,
    counters::{count, count_connection},
    flow,
    kernel::KernelSock,
    leave,
    listen::on_listen,
    maps::{ANY, ENDS, HANDSHAKES, ORIG_DST_BY_TUPLE, PODS, SOCKET_STATE, SOCKETS, is_sockmap_on},
};

const HANDLED: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const TCP_CLOSE: u32 = 7;
const EBUSY: i64 = 16;
/// Third word of a v4-mapped address.
const MAPPED_WORD: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
const TCP_FLAG_SYN: u32 = 0x02;

/// Follows connections from SYN to close. Linux 5.15 (netns cookie).
///
/// Each event is a function of its own in the object too: together they need more than the 512 bytes of
/// stack that one may have.
#[sock_ops]
pub fn isthmus_sockops(ctx: SockOpsContext) -> u32 {
    // SAFETY: reads of context fields of their own width.
    let (op, sk) = unsafe {
        (
            read_volatile(addr_of!((*ctx.ops).op)),
            read_volatile(addr_of!((*ctx.ops).__bindgen_anon_2.sk)),
        )
    };
    if sk.is_null() {
        return HANDLED;
    }
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            on_connect(ctx.ops, sk);
            if flow::is_told(sk) {
                ask_for(ctx.ops, BPF_SOCK_OPS_STATE_CB_FLAG);
            }
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => {
            on_active_established(ctx.ops, sk);
            flow::on_active_established(ctx.ops, sk);
        }
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            on_passive_established(ctx.ops, sk);
            if flow::on_passive_established(ctx.ops, sk) {
                ask_for(ctx.ops, BPF_SOCK_OPS_STATE_CB_FLAG);
            }
        }
        BPF_SOCK_OPS_RTT_CB => leave::on_rtt(ctx.ops, sk),
        BPF_SOCK_OPS_STATE_CB => on_state(ctx.ops, sk),
        BPF_SOCK_OPS_TCP_LISTEN_CB => on_listen(ctx.ops, sk),
        _ => {}
    }
    HANDLED
}

/// The SYN is about to leave: the tuple is known.
#[inline(never)]
fn on_connect(ops: *mut bpf_sock_ops, sk: *mut bpf_sock) {
    let state = SOCKET_STATE.of(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: not null, so it is this socket's state, and we run under its lock.
    let state = unsafe { &mut *state };
    let Some(own) = own_key(ops, state.netns_cookie) else {
        return;
    };
    state.peer = own.flipped(state.peer.netns_cookie);
    // SAFETY: a helper that takes nothing.
    state.started_ns = unsafe { bpf_ktime_get_ns() };
    file(ops, state, &state.peer);
    ask_for(ops, BPF_SOCK_OPS_STATE_CB_FLAG);
}

/// Leaves the accepting end what it will want to know.
#[inline(always)]
fn file(ops: *mut bpf_sock_ops, state: &SocketState, key: &SockKey) {
    let entry = TupleEntry {
        original: state.original,
        // SAFETY: a helper that takes nothing but the context.
        client_cookie: unsafe { bpf_get_socket_cookie(ops.cast()) },
        client_netns: state.netns_cookie,
        client_addr: state.peer.peer_addr,
        accepted_hop: state.hop.reverse(),
        client_port: state.peer.peer_port,
        reserved: [0; 2],
    };
    if ORIG_DST_BY_TUPLE.update(key, &entry, ANY) != 0 {
        count(Counter::TuplesFull);
    }
}

#[inline(never)]
fn on_active_established(ops: *mut bpf_sock_ops, sk: *mut bpf_sock) {
    let state = SOCKET_STATE.of(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: not null, so it is this socket's state, and we run under its lock.
    let state = unsafe { &mut *state };
    // Only what was redirected can meet what rules of iptables have redirected to the same place.
    if state.flags.has(SocketFlags::HAS_ORIGINAL_DST) {
        file_anew(ops, state);
    }
    enter(ops, sk, state);
}

/// Moves the entry, so that each reservation still is for one. With Fast Open it has been taken.
#[inline(never)]
fn file_anew(ops: *mut bpf_sock_ops, state: &mut SocketState) {
    if !ORIG_DST_BY_TUPLE.delete(&state.peer) {
        return;
    }
    let (sent, received) = sequences(ops);
    state.sequences = Sequences {
        dialler: sent,
        acceptor: received,
    };
    state.flags = state.flags.with(SocketFlags::FILED_BY_SEQUENCES);
    file(ops, state, &filed_under(state));
}

/// Where the entry of a connecting end is, if nobody has taken it.
#[inline(always)]
fn filed_under(state: &SocketState) -> SockKey {
    if state.flags.has(SocketFlags::FILED_BY_SEQUENCES) {
        state.peer.by_sequences(state.sequences)
    } else {
        state.peer
    }
}

/// Numbers of the first bytes that this end sends and receives, while none of them is acknowledged: in the
/// callbacks that say that it is established.
#[inline(always)]
fn sequences(ops: *mut bpf_sock_ops) -> (u32, u32) {
    // SAFETY: reads of context fields of their own width.
    unsafe {
        (
            read_volatile(addr_of!((*ops).snd_una)),
            read_volatile(addr_of!((*ops).rcv_nxt)),
        )
    }
}

#[inline(never)]
fn on_passive_established(ops: *mut bpf_sock_ops, sk: *mut bpf_sock) {
    // SAFETY: a helper that takes nothing but the context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ops.cast()) };
    let Some(own) = own_key(ops, netns_cookie) else {
        return;
    };
    // SAFETY: a read of a context field of its own width.
    let segment_flags = unsafe { read_volatile(addr_of!((*ops).skb_tcp_flags)) };
    // With Fast Open this end is made by the SYN, before the connection is established.
    let is_early = segment_flags & TCP_FLAG_SYN != 0;
    let mut entry = TupleEntry::NOTHING;
    if !take(ops, &own, is_early, &mut entry) {
        return;
    }
    let flags = if is_redirected(&entry) {
        SocketFlags::HAS_ORIGINAL_DST
    } else {
        SocketFlags::NONE
    };
    let peer = SockKey {
        netns_cookie: entry.client_netns,
        local_addr: entry.client_addr,
        peer_addr: own.local_addr,
        local_port: entry.client_port,
        peer_port: own.local_port,
        reserved: [0; 4],
    };
    let slot = SOCKET_STATE.of_or_new(sk);
    // After the entry, so that the tuples are never more than the reservations.
    HANDSHAKES.delete(&entry.client_cookie);
    if slot.is_null() {
        return;
    }
    // SAFETY: not null, so it is this socket's state, and we run under its lock.
    let slot = unsafe { &mut *slot };
    *slot = SocketState::new(
        entry.original,
        peer,
        netns_cookie,
        entry.accepted_hop,
        flags,
    );
    slot.peer_cookie = entry.client_cookie;

    ask_for(ops, BPF_SOCK_OPS_STATE_CB_FLAG);
    if !is_early {
        enter(ops, sk, slot);
    }
}

/// Takes what the other end has left for this one, which accepts, and tells whether it has left anything.
#[inline(never)]
fn take(
    ops: *mut bpf_sock_ops,
    own: &SockKey,
    is_early: bool,
    entry: &mut TupleEntry,
) -> bool {
    let (sent, received) = sequences(ops);
    let by_sequences = own.by_sequences(Sequences {
        dialler: received,
        acceptor: sent,
    });
    if let Some(found) = ORIG_DST_BY_TUPLE.get(&by_sequences) {
        *entry = found;
        return ORIG_DST_BY_TUPLE.delete(&by_sequences);
    }
    let Some(found) = ORIG_DST_BY_TUPLE.get(own) else {
        return false;
    };
    // Redirected, and not filed anew: whoever left it waits for an answer to its SYN, and this is somebody
    // else, to whom conntrack gave its port.
    if is_redirected(&found) && !is_early {
        return false;
    }
    *entry = found;
    ORIG_DST_BY_TUPLE.delete(own)
}

#[inline(always)]
fn is_redirected(entry: &TupleEntry) -> bool {
    entry.accepted_hop != Hop::APP_TO_PROXY_RETURN
}

/// Removes what the maps hold about a socket that is closed. The sockmap forgets it by itself.
#[inline(never)]
fn on_state(ops: *mut bpf_sock_ops, sk: *mut bpf_sock) {
    // SAFETY: a read of a context field of its own width.
    let new_state = unsafe { read_volatile(addr_of!((*ops).__bindgen_anon_1.args[1])) };
    if new_state != TCP_CLOSE {
        return;
    }
    flow::on_close(ops, sk);
    let state = SOCKET_STATE.of(sk);
    if state.is_null() {
        return;
    }
    // SAFETY: not null, so it is this socket's state; a helper that takes nothing but the context.
    let (state, cookie) = unsafe { (&mut *state, bpf_get_socket_cookie(ops.cast())) };
    leave::on_close(ops, state);
    let own = state.peer.flipped(state.netns_cookie);
    if ENDS.get(&own).is_some_and(|end| end.cookie == cookie) {
        ENDS.delete(&own);
        budget::close(&own);
    }
    if state.flags.has(SocketFlags::HAS_CONNECTED) {
        let filed = filed_under(state);
        if ORIG_DST_BY_TUPLE
            .get(&filed)
            .is_some_and(|entry| entry.client_cookie == cookie)
        {
            ORIG_DST_BY_TUPLE.delete(&filed);
        }
        HANDSHAKES.delete(&cookie);
    }
}

/// Puts this end where the other can find it.
#[inline(always)]
fn enter(ops: *mut bpf_sock_ops, sk: *mut bpf_sock, state: &mut SocketState) {
    // By way of the map, so that the verifier sees a number: it allows no arithmetic on sockets.
    // SAFETY: a plain field of this socket's state.
    let own_sk = unsafe {
        write_volatile(addr_of_mut!(state.own_sk), sk as u64);
        read_volatile(addr_of!(state.own_sk))
    };
    let kernel_sock = KernelSock(own_sk);
    if !is_sockmap_on() || kernel_sock.has_ulp() || kernel_sock.is_mptcp() {
        return;
    }
    if !state.hop.is_between_proxies() && !has_opted_in(state) {
        return;
    }
    let mut own = state.peer.flipped(state.netns_cookie);
    if is_taken(&own) {
        count(Counter::SocketsRefused);
        return;
    }
    // SAFETY: our context, our map, and an initialised key.
    let refused = unsafe {
        bpf_sock_hash_update(
            ops,
            SOCKETS.as_ptr(),
            core::ptr::from_mut(&mut own).cast(),
            ANY.into(),
        )
    };
    if refused != 0 {
        count(if refused == -EBUSY {
            Counter::SocketsTaken
        } else {
            Counter::SocketsRefused
        });
        return;
    }

    let is_read_by_proxy = state.hop.reverse().is_read_by_proxy();
    let end = End {
        sk: own_sk,
        // SAFETY: a helper that takes nothing but the context.
        cookie: unsafe { bpf_get_socket_cookie(ops.cast()) },
        peer_cookie: state.peer_cookie,
        flags: if is_read_by_proxy {
            EndFlags::READER_IS_PROXY
        } else {
            EndFlags::NONE
        },
        hop: state.hop,
    };
    if ENDS.update(&own, &end, ANY) != 0 {
        count(Counter::SocketsRefused);
    }
    count_connection(state.netns_cookie, state.hop);
    // Only what TCP carries has a round-trip time.
    ask_for(ops, BPF_SOCK_OPS_RTT_CB_FLAG);
}

/// Tells whether another connection still has this place. Behind NAT an accepting end may outlive the other,
/// whose port then is free for the next one: it keeps its place, or what nobody has read there would be lost.
#[inline(always)]
fn is_taken(own: &SockKey) -> bool {
    ENDS.get(own)
        .is_some_and(|end| KernelSock(end.sk).cookie() == Some(end.cookie))
}

/// Tells whether a connection with an application on one end may use the sockmap. Both ends are in its
/// pod. Being in the sockmap is enough to change what the application's own calls do: `FIONREAD` misses
/// what TCP has delivered, and a read that waits ends with `EAGAIN` on a signal or a reset (Linux 6.18,
/// `net/ipv4/tcp_bpf.c`), redirected or not.
#[inline(always)]
fn has_opted_in(state: &mut SocketState) -> bool {
    let Some(pod) = PODS.get(&state.netns_cookie) else {
        return false;
    };
    if pod.flags.has(PodFlags::APP_READS) {
        state.flags = state.flags.with(SocketFlags::READER_OPTED_IN);
    }
    pod.flags.has(PodFlags::APP_WRITES)
}

#[inline(always)]
fn ask_for(ops: *mut bpf_sock_ops, callbacks: u32) {
    // SAFETY: a read of a context field of its own width, and a helper on our context.
    unsafe {
        let flags = read_volatile(addr_of!((*ops).bpf_sock_ops_cb_flags));
        bpf_sock_ops_cb_flags_set(ops, (flags | callbacks) as i32);
    }
}

/// The tuple of this end, or `None` if it is neither IPv4 nor IPv6.
#[inline(always)]
pub fn own_key(ops: *mut bpf_sock_ops, netns_cookie: u64) -> Option<SockKey> {
    // All of them before the choice: the compiler would choose between addresses in the context, which
    // the verifier refuses.
    // SAFETY: reads of context fields of their own width; volatile, so that the compiler does not
    // merge them.
    let (family, local_v4, peer_v4, local_v6, peer_v6, local_port, peer_port) = unsafe {
        (
            read_volatile(addr_of!((*ops).family)),
            read_volatile(addr_of!((*ops).local_ip4)),
            read_volatile(addr_of!((*ops).remote_ip4)),
            [
                read_volatile(addr_of!((*ops).local_ip6[0])),
                read_volatile(addr_of!((*ops).local_ip6[1])),
                read_volatile(addr_of!((*ops).local_ip6[2])),
                read_volatile(addr_of!((*ops).local_ip6[3])),
            ],
            [
                read_volatile(addr_of!((*ops).remote_ip6[0])),
                read_volatile(addr_of!((*ops).remote_ip6[1])),
                read_volatile(addr_of!((*ops).remote_ip6[2])),
                read_volatile(addr_of!((*ops).remote_ip6[3])),
            ],
            read_volatile(addr_of!((*ops).local_port)),
            read_volatile(addr_of!((*ops).remote_port)),
        )
    };
    let (local_words, peer_words) = match family {
        AF_INET => ([0, 0, MAPPED_WORD, local_v4], [0, 0, MAPPED_WORD, peer_v4]),
        AF_INET6 => (local_v6, peer_v6),
        _ => return None,
    };
    let mut key = SockKey {
        netns_cookie,
        local_addr: [0; 16],
        peer_addr: [0; 16],
        // The context has this one in host order …
        local_port: (local_port as u16).to_be_bytes(),
        // … and this one in network order, in the last two bytes of four.
        peer_port: network_port(peer_port),
        reserved: [0; 4],
    };
    // By words: byte arrays become one stack slot a byte.
    // SAFETY: both addresses are 16 bytes at multiples of 8 in the key.
    unsafe {
        key.local_addr
            .as_mut_ptr()
            .cast::<[u32; 4]>()
            .write(local_words);
        key.peer_addr
            .as_mut_ptr()
            .cast::<[u32; 4]>()
            .write(peer_words);
    }
    Some(key)
}

#[inline(always)]
fn network_port(word: u32) -> [u8; 2] {
    let [.., high, low] = word.to_ne_bytes();
    [high, low]
}
