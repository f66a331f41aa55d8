// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Finding the listeners of proxies that arriving connections are steered to: when they begin to listen, and, for those that did
//! before their pod was loaded, by a walk over the namespace's sockets.

use core::{ffi::c_void, ptr::from_mut};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_ops},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sock_hash_update},
};
use isthmus_accel_abi::{Counter, INBOUND_SOCKET, ListenerKey, ListenerKind, PodFlags};

use crate::{
    counters::count,
    kernel::KernelSock,
    maps::{ANY, INBOUND_SOCKETS, LISTENERS, PODS},
    sockops::own_key,
};

const TCP_LISTEN: u8 = 10;

/// `BPF_SOCK_OPS_TCP_LISTEN_CB`: remembers the socket if it is such a listener of a pod.
#[inline(never)]
pub fn on_listen(ops: *mut bpf_sock_ops, sk: *mut bpf_sock) {
    // SAFETY: a helper that takes nothing but the context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ops.cast()) };
    let Some(own) = own_key(ops, netns_cookie) else {
        return;
    };
    // SAFETY: as above.
    let socket_cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    let Some(mut key) = listener_key(netns_cookie, own.local_port, &own.local_addr, socket_cookie)
    else {
        return;
    };
    // The mark first: what is accepted from the socket inherits it.
    let mark = INBOUND_SOCKETS.of_or_new(sk);
    if !mark.is_null() {
        // SAFETY: not null, so it is this socket's mark, and we run under its lock.
        unsafe { *mark = INBOUND_SOCKET };
    }
    // SAFETY: our context, our map, and an initialised key.
    let refused = unsafe {
        bpf_sock_hash_update(
            ops,
            LISTENERS.as_ptr(),
            from_mut(&mut key).cast(),
            ANY.into(),
        )
    };
    if refused != 0 {
        count(Counter::ListenersRefused);
    }
}

/// What `iter/tcp` gives its program (Linux, `struct bpf_iter__tcp`).
#[repr(C)]
struct TcpIteration {
    meta: *mut c_void,
    sk_common: *mut c_void,
    uid: u32,
}

/// Looks at one socket of the namespace of whoever reads the iterator. Linux 6.1 (5.12 with socket
/// cookies, 5.15 with sockets that stay what they are meanwhile).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
extern "C" fn isthmus_listeners(ctx: *mut c_void) -> i32 {
    // SAFETY: the kernel passes this structure.
    let sk = unsafe { (*ctx.cast::<TcpIteration>()).sk_common };
    if !sk.is_null() {
        remember(sk);
    }
    0
}

#[inline(always)]
fn remember(sk: *mut c_void) {
    let sock = KernelSock(sk as u64);
    if sock.state() != Some(TCP_LISTEN) {
        return;
    }
    let (Some(netns_cookie), Some(port), Some(addr)) =
        (sock.netns_cookie(), sock.local_port(), sock.local_addr())
    else {
        return;
    };
    // SAFETY: the verifier accepts only a socket here.
    let socket_cookie = unsafe { bpf_get_socket_cookie(sk) };
    let Some(key) = listener_key(netns_cookie, port.to_be_bytes(), &addr, socket_cookie) else {
        return;
    };
    let mark = INBOUND_SOCKETS.of_or_new(sk.cast());
    if !mark.is_null() {
        // SAFETY: not null, so it is this socket's mark; the kernel holds its lock meanwhile.
        unsafe { *mark = INBOUND_SOCKET };
    }
    if LISTENERS.update_socket(&key, sk) != 0 {
        count(Counter::ListenersRefused);
    }
}

/// The place of a socket among its pod's listeners, or `None` if it is none. Outbound ones matter to virtual
/// machines only.
#[inline(always)]
fn listener_key(
    netns_cookie: u64,
    port: [u8; 2],
    addr: &[u8; 16],
    socket_cookie: u64,
) -> Option<ListenerKey> {
    let pod = PODS.get(&netns_cookie)?;
    let kind = ListenerKind::of(addr)?;
    let kind = if port == pod.inbound_port {
        kind
    } else if port == pod.outbound_port && pod.flags.has(PodFlags::VIRTUAL_INTERFACES) {
        kind.outbound()
    } else {
        return None;
    };
    Some(ListenerKey::of_socket(netns_cookie, kind, socket_cookie))
}
