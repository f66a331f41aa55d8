// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Writing the address that a `cgroup_sock_addr` program gives or shows.

use core::ptr::{addr_of_mut, write_volatile};

use aya_ebpf::bindings::bpf_sock_addr;

/// Puts an IPv4 address, v4-mapped, and a port in network order into the context.
#[inline(always)]
pub fn write_v4(addr: *mut bpf_sock_addr, address: [u8; 16], port: [u8; 2]) {
    let [.., a, b, c, d] = address;
    // SAFETY: writes of context fields of their own width; volatile, so that the compiler does not
    // merge them into one that the verifier refuses.
    unsafe {
        write_volatile(
            addr_of_mut!((*addr).user_ip4),
            u32::from_ne_bytes([a, b, c, d]),
        );
        write_volatile(
            addr_of_mut!((*addr).user_port),
            u16::from_ne_bytes(port).into(),
        );
    }
}
