//! Ends of connections towards a proxy, as by TCP.
//!
//! What differs is pinned by `sockmap_semantics`: when the *proxy* closes a socket on which redirected
//! bytes lie unread, the application sees the end of the stream instead of a reset.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream},
};

use crate::fixture::{APP, Fixture, PROXY, Pod, VIP, wait_until};
use isthmus_accel_abi::Hop;

const REQUEST: &[u8] = b"request";

/// An application and its proxy, connected, with one request redirected and unread.
fn requested() -> (Fixture, Pod, TcpStream, TcpStream) {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let listener = pod.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001));
    let mut app = pod.connect(APP, VIP).expect("the proxy listens");
    app.set_nodelay(true).expect("TCP");
    let (proxy, _) = listener.accept().expect("a connection");
    app.write_all(REQUEST).expect("the proxy is there");
    let stats = fixture.hop(&pod, Hop::APP_TO_PROXY);
    assert_eq!(stats.bytes_redirected, REQUEST.len() as u64, "{stats:?}");
    (fixture, pod, app, proxy)
}

#[test]
fn data_comes_before_the_end_of_the_stream() {
    let (_fixture, _pod, app, mut proxy) = requested();
    drop(app);
    let mut bytes = Vec::new();
    proxy.read_to_end(&mut bytes).expect("a clean end");
    assert_eq!(bytes, REQUEST);
}

#[test]
fn a_half_closed_connection_carries_the_answer() {
    let (_fixture, _pod, mut app, mut proxy) = requested();
    app.shutdown(Shutdown::Write).expect("it is connected");
    let mut bytes = Vec::new();
    proxy.read_to_end(&mut bytes).expect("a clean end");
    assert_eq!(bytes, REQUEST);
    proxy.write_all(b"answer").expect("the other half is open");
    drop(proxy);
    let mut answer = Vec::new();
    app.read_to_end(&mut answer).expect("a clean end");
    assert_eq!(answer, b"answer");
}

#[test]
fn a_reset_comes_after_the_data() {
    let (_fixture, _pod, app, mut proxy) = requested();
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: a pointer to the option's value and its length.
    let answer = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&app),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            8,
        )
    };
    assert_eq!(answer, 0);
    drop(app);
    let mut buffer = [0; 64];
    let count = proxy.read(&mut buffer).expect("the data first");
    assert_eq!(&buffer[..count], REQUEST);
    let error = proxy.read(&mut buffer).expect_err("then the reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn writing_to_a_proxy_that_is_gone_fails_as_by_tcp() {
    let (_fixture, _pod, mut app, mut proxy) = requested();
    let mut buffer = [0; 64];
    assert_eq!(proxy.read(&mut buffer).expect("the request"), REQUEST.len());
    drop(proxy);
    wait_until("the write fails", || match app.write(b"more") {
        Ok(_) => false,
        Err(error) => {
            let kinds = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
            assert!(kinds.contains(&error.kind()), "{error}");
            true
        }
    });
}
