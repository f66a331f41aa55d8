// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Another question that only the kernel can answer: how many sockets have a state in `SOCKET_STATE`, of
//! this version or of any other.
//!
//! Attached nowhere. The agent makes an iterator over the storage map of its choice and reads it: one byte
//! for each socket.

use core::{
    ffi::c_void,
    ptr::{addr_of, read_volatile},
};

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};

/// Linux, `include/linux/bpf.h`, `struct bpf_iter_meta`.
#[repr(C)]
pub struct IterMeta {
    seq: *mut seq_file,
    session_id: u64,
    seq_num: u64,
}

/// Linux, `net/core/bpf_sk_storage.c`, `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub struct StorageIter {
    meta: *mut IterMeta,
    map: *mut c_void,
    sk: *mut c_void,
    value: *mut c_void,
}

/// Writes one byte for a socket. Linux 5.9.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn isthmus_live(ctx: *mut StorageIter) -> i32 {
    // SAFETY: reads of context fields of their own width, and of a field of what one of them points to.
    let (sk, seq) = unsafe {
        let meta = read_volatile(addr_of!((*ctx).meta));
        (
            read_volatile(addr_of!((*ctx).sk)),
            read_volatile(addr_of!((*meta).seq)),
        )
    };
    // The last call says that there is no more.
    if !sk.is_null() {
        let mark = 1_u8;
        // SAFETY: the iterator's own file, and one initialised byte. A full buffer is emptied, and this
        // socket asked about again, by the kernel.
        unsafe { bpf_seq_write(seq, addr_of!(mark).cast_mut().cast(), 1) };
    }
    0
}
