//! Sockets that other parts of the kernel own stay out.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
};

use isthmus_accel_abi::Hop;

use crate::fixture::{
    APP, Fixture, PROXY, Pod, SOCKADDR_BYTES, VIP, echo, open_socket, original_dst, ping_pong,
    sockaddr,
};

const IPPROTO_MPTCP: libc::c_int = 262;

/// An MPTCP socket, or `None` on a kernel without.
fn mptcp_socket() -> Option<OwnedFd> {
    open_socket(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_MPTCP).ok()
}

fn mptcp_listener(addr: SocketAddrV4) -> Option<TcpListener> {
    let socket = mptcp_socket()?;
    let addr = sockaddr(addr);
    // SAFETY: an address and its length, and numbers.
    unsafe {
        let bound = libc::bind(socket.as_raw_fd(), (&raw const addr).cast(), SOCKADDR_BYTES);
        assert_eq!(bound, 0, "the address is free");
        assert_eq!(libc::listen(socket.as_raw_fd(), 16), 0);
    }
    Some(socket.into())
}

fn mptcp_connect(to: SocketAddrV4) -> Option<TcpStream> {
    let socket = mptcp_socket()?;
    let to = sockaddr(to);
    // SAFETY: an address and its length.
    let answer =
        unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), SOCKADDR_BYTES) };
    assert_eq!(answer, 0, "somebody listens");
    Some(socket.into())
}

/// A pod whose proxy listens with MPTCP, or `None` on a kernel without.
fn mptcp_proxy() -> Option<(Fixture, Pod, TcpListener)> {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let proxy = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001);
    let listener = pod.run_as(PROXY, move || mptcp_listener(proxy));
    if listener.is_none() {
        eprintln!("skipped: this kernel has no MPTCP");
    }
    Some((fixture, pod, listener?))
}

#[test]
fn a_connection_of_mptcp_is_not_in_the_sockmap() {
    let Some((fixture, pod, listener)) = mptcp_proxy() else {
        return;
    };
    let app = pod.run_as(APP, || mptcp_connect(VIP));
    let mut app = app.expect("MPTCP is there");
    let (accepted, _) = listener.accept().expect("its subflow is redirected");
    let server = std::thread::spawn(move || echo(accepted, 64));
    ping_pong(&mut app, 64, 100);
    drop(app);
    server.join().expect("the end of the stream ends it");
    for hop in Hop::ALL {
        assert_eq!(fixture.hop(&pod, hop).connections, 0, "{hop:?}");
    }
}

/// The listener speaks MPTCP, the client does not: the accepted socket falls back to TCP, which kernels
/// below the floor confuse with the sockmap's calls (CVE-2025-68227).
#[test]
fn a_fallback_from_mptcp_works_as_tcp() {
    let Some((_fixture, pod, listener)) = mptcp_proxy() else {
        return;
    };
    let mut app = pod.connect(APP, VIP).expect("the proxy listens");
    let (accepted, _) = listener.accept().expect("a connection");
    assert_eq!(original_dst(&accepted).expect("it was redirected"), VIP);
    let server = std::thread::spawn(move || echo(accepted, 64));
    ping_pong(&mut app, 64, 100);
    drop(app);
    server.join().expect("the end of the stream ends it");
}
