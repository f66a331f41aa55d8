// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The latch: when a message may skip TCP without overtaking a byte or evading flow control.
//!
//! A reader with a sockmap drains redirected messages before TCP's queue (Linux,
//! `net/ipv4/tcp_bpf.c`, `tcp_bpf_recvmsg`). So TCP after a redirect keeps the order, a redirect after
//! TCP does not: once a direction has used TCP, it stays there. And a redirect has no flow control of
//! its own, so it ends where the reader's receive buffer does.

use isthmus_accel_abi::{End, PassReason, SocketFlags, SocketState};

use crate::{
    budget,
    kernel::KernelSock,
    maps::{ENDS, is_sockmap_on},
};

/// States in which a socket may send (Linux, `include/net/tcp_states.h`).
const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE_WAIT: u32 = 8;

/// Says whether a message of `size_bytes` may be redirected, and charges it to the reader's pod if so. The
/// caller holds the sender's lock.
///
/// Nothing is overtaken: what is acknowledged has entered the reader's queue before, so that, once
/// everything is, the queue can only shrink, and a queue that is empty then stays empty. (The
/// reader's backlog says nothing more: what waits there is not acknowledged yet, or is a duplicate,
/// or carries no data. It is not looked at, because acknowledgements of the reader's own messages
/// pass through it all the time.)
#[inline(always)]
pub fn check(
    state: &mut SocketState,
    tcp_state: u32,
    size_bytes: u32,
) -> Result<(), PassReason> {
    if !state.hop.is_read_by_proxy() && !state.flags.has(SocketFlags::READER_OPTED_IN) {
        return Err(PassReason::ReaderIsApp);
    }
    if state.flags.has(SocketFlags::SLOW) {
        return Err(PassReason::Latched);
    }
    if !is_sockmap_on() {
        return Err(PassReason::SockmapOff);
    }
    // After shutdown(2), tcp_sendmsg gives EPIPE and a redirect does not (Linux, `tcp_bpf_sendmsg`).
    if !matches!(tcp_state, TCP_ESTABLISHED | TCP_CLOSE_WAIT) {
        return Err(PassReason::WriterHasEnded);
    }

    let peer = peer(state)?;
    if peer.has_low_water_mark() {
        return Err(PassReason::ReaderHasLowWaterMark);
    }
    let own = KernelSock(state.own_sk);
    if own.uses_zero_copy() {
        return Err(PassReason::WriterUsesZeroCopy);
    }
    let snd_una = own.snd_una().ok_or(PassReason::BytesInFlight)?;
    if own.write_seq() != Some(snd_una) {
        return Err(PassReason::BytesInFlight);
    }
    if peer.receive_queue_len() != Some(0) {
        return Err(PassReason::PeerHasTcpBytes);
    }

    let (Some(used), Some(room)) = (peer.rmem_alloc(), peer.rcvbuf()) else {
        return Err(PassReason::PeerBufferFull);
    };
    if u64::from(used) + u64::from(size_bytes) > u64::from(room) {
        return Err(PassReason::PeerBufferFull);
    }
    budget::charge(state, used, size_bytes)
}

/// Finds the other end, and makes sure that its memory still is its.
#[inline(always)]
fn peer(state: &mut SocketState) -> Result<KernelSock, PassReason> {
    if state.peer_sk == 0 {
        let end = ENDS
            .get(&state.peer)
            .filter(|end| is_peer(state, end))
            .ok_or(PassReason::PeerUnknown)?;
        state.peer_sk = end.sk;
        state.peer_cookie = end.cookie;
    }
    let peer = KernelSock(state.peer_sk);
    if peer.cookie() != Some(state.peer_cookie) {
        return Err(PassReason::PeerGone);
    }
    Ok(peer)
}

/// Tells whether an end is this connection's other one: the accepting end knows who has dialled it.
#[inline(always)]
fn is_peer(state: &SocketState, end: &End) -> bool {
    if state.peer_cookie == 0 {
        KernelSock(state.own_sk).cookie() == Some(end.peer_cookie)
    } else {
        end.cookie == state.peer_cookie
    }
}
