// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The budget of parked bytes and messages of each pod, in the maps. Linux 5.1 (spin locks in map values).

use core::ptr::{addr_of_mut, read_volatile};

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated};
use isthmus_accel_abi::{
    Parked, ParkedSum, PassReason, PodParked, SockKey, SocketState, bpf_spin_lock,
};

use crate::{
    kernel::KernelSock,
    maps::{PARKED, POD_PARKED},
};

/// Charges a message to the reader's pod before it is handed over.
#[inline(always)]
pub fn charge(state: &SocketState, queued_bytes: u32, size_bytes: u32) -> Result<(), PassReason> {
    with_account(&state.peer, Missing::Made, |reader, sum| {
        reader.charge(sum, queued_bytes, size_bytes)
    })
    .unwrap_or(Err(PassReason::PodBudgetSpent))
}

/// Takes back the charge for a message that the kernel did not take.
#[inline(always)]
pub fn refund(state: &SocketState, size_bytes: u32) {
    with_account(&state.peer, Missing::Passed, |reader, sum| {
        reader.refund(sum, size_bytes);
    });
}

/// Gives back what this socket's own queue was charged with, if it has been read to the end.
#[inline(always)]
pub fn settle_own(state: &SocketState) {
    let own = state.peer.flipped(state.netns_cookie);
    let reader = PARKED.lookup(&own);
    // SAFETY: not null, so it is a value of the map; a stale number costs a look at most.
    if reader.is_null() || unsafe { read_volatile(addr_of_mut!((*reader).messages)) } == 0 {
        return;
    }
    if KernelSock(state.own_sk).rmem_alloc() == Some(0) {
        with_account(&own, Missing::Passed, |reader, sum| reader.settle(sum, 0));
    }
}

/// Gives back everything that a socket was charged with, which is closed.
#[inline(always)]
pub fn close(own: &SockKey) {
    with_account(own, Missing::Passed, Parked::close);
    PARKED.delete(own);
}

/// What to do about a reader without an account.
#[derive(Clone, Copy)]
pub enum Missing {
    Made,
    Passed,
}

/// Runs `change` under the lock of the reader's pod; `None` if there is no account, or no room for one.
#[inline(always)]
pub fn with_account<T>(
    reader: &SockKey,
    missing: Missing,
    change: impl FnOnce(&mut Parked, &mut ParkedSum) -> T,
) -> Option<T> {
    let mut parked = PARKED.lookup(reader);
    if parked.is_null() {
        if matches!(missing, Missing::Passed) {
            return None;
        }
        PARKED.update(reader, &Parked::new(reader.netns_cookie), BPF_NOEXIST);
        parked = PARKED.lookup(reader);
        if parked.is_null() {
            return None;
        }
    }
    let pod = pod(reader.netns_cookie);
    if pod.is_null() {
        return None;
    }
    // SAFETY: neither is null, so they are values of the maps, which change under this lock only. The
    // verifier takes the lock of a value that was looked up, once, and no call before it is given back.
    unsafe {
        let lock: *mut bpf_spin_lock = addr_of_mut!((*pod).lock);
        generated::bpf_spin_lock(lock.cast());
        // A reader that closed meanwhile may have left its memory to one of another pod.
        let result = ((*parked).netns_cookie == reader.netns_cookie)
            .then(|| change(&mut *parked, &mut (*pod).sum));
        generated::bpf_spin_unlock(lock.cast());
        result
    }
}

#[inline(always)]
fn pod(netns_cookie: u64) -> *mut PodParked {
    let pod = POD_PARKED.lookup(&netns_cookie);
    if !pod.is_null() {
        return pod;
    }
    POD_PARKED.update(&netns_cookie, &PodParked::NOTHING, BPF_NOEXIST);
    POD_PARKED.lookup(&netns_cookie)
}
