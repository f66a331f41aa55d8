// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Whose socket it is.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::{bpf_get_current_uid_gid, bpf_skc_to_tcp_sock},
};

use crate::kernel::KernelSock;

/// User and group that the rules go by.
#[derive(Clone, Copy)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Returns who made a TCP socket, or `None` if the kernel made it for itself: clients of NFS, SMB and
/// Ceph, or further paths of an MPTCP connection. Where the kernel does not let us see, it is the caller.
/// Linux 5.10 (`bpf_skc_to_tcp_sock` in `cgroup_sock_addr`).
#[inline(always)]
pub fn of(sk: *mut bpf_sock) -> Option<Owner> {
    // SAFETY: a helper that takes a socket; what it returns is read by `bpf_probe_read_kernel` only.
    let kernel_sock = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
    if kernel_sock.is_null() {
        return Some(caller());
    }
    let Some(file) = KernelSock(kernel_sock as u64).file() else {
        return Some(caller());
    };
    if file.0 == 0 {
        return None;
    }
    let Some((uid, gid)) = file.owner() else {
        return Some(caller());
    };
    Some(Owner { uid, gid })
}

#[inline(always)]
fn caller() -> Owner {
    // SAFETY: a helper without arguments.
    let ids = unsafe { bpf_get_current_uid_gid() };
    Owner {
        uid: ids as u32,
        gid: (ids >> 32) as u32,
    }
}
