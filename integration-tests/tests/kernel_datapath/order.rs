//! No byte overtakes another: where the usual `sk_msg` program corrupts streams, this one must not.
//!
//! Linux drains redirected messages before those of TCP, so that a redirect after unread TCP bytes
//! swaps them. It takes two writes before the first read, which `TCP_DEFER_ACCEPT` and Fast Open make
//! usual. With the checks of the latch taken out, 977 of 1,000 deferred connections here were wrong.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use isthmus_accel_abi::Hop;

use crate::fixture::{
    APP, Fixture, PROXY, Pod, SOCKADDR_BYTES, VIP, set_sockopt, sockaddr, sockopt, tcp_socket,
};

/// Of each kind that begins with TCP, for a prompt and for a late reader: 10,000 together.
const CONNECTIONS: u32 = 2_500;
const WRITES: [&[u8]; 3] = [b"1111", b"2222", b"3333"];
/// How late a late reader is: longer than all writes take.
const LATE: Duration = Duration::from_micros(300);
/// Client and server, each without asking for a cookie (Linux, `ip-sysctl.rst`, `tcp_fastopen`).
const FAST_OPEN_WITHOUT_COOKIE: &str = "519";
const TCPI_OPT_SYN_DATA: u8 = 32;

#[derive(Clone, Copy, Debug)]
enum Listener {
    Plain,
    DeferAccept,
    FastOpen,
}

#[derive(Clone, Copy, Debug)]
enum Reader {
    Prompt,
    Late,
}

#[test]
fn a_plain_listener_keeps_the_order_and_skips_tcp() {
    for reader in [Reader::Prompt, Reader::Late] {
        let redirected = check_order(Listener::Plain, reader);
        assert!(redirected > 0, "it is the redirect that is tested");
    }
}

#[test]
fn a_deferred_accept_keeps_the_order() {
    for reader in [Reader::Prompt, Reader::Late] {
        check_order(Listener::DeferAccept, reader);
    }
}

#[test]
fn a_fast_open_keeps_the_order() {
    for reader in [Reader::Prompt, Reader::Late] {
        check_order(Listener::FastOpen, reader);
    }
}

#[test]
fn the_check_finds_what_a_redirect_after_tcp_does() {
    let swapped = [WRITES[1], WRITES[0], WRITES[2]].concat();
    assert!(!is_in_order(&swapped));
    assert!(!is_in_order(&swapped[..8]));
    assert!(is_in_order(&WRITES.concat()));
}

/// Sends three writes on each connection; returns how many bytes were redirected.
fn check_order(kind: Listener, reader: Reader) -> u64 {
    let pod = Pod::alone([198, 18, 0, 1]);
    pod.run_as(0, || {
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN_WITHOUT_COOKIE)
            .expect("a namespace has its own setting");
    });
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let listener = pod.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001));
    match kind {
        Listener::Plain => {}
        Listener::DeferAccept => {
            set_sockopt(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5);
        }
        Listener::FastOpen => set_sockopt(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 256),
    }

    let client = pod.spawn_as(APP, APP, move || {
        (0..CONNECTIONS)
            .map(|_| write_three(kind).expect("the proxy listens"))
            .filter(|is| *is)
            .count()
    });
    let wrong = (0..CONNECTIONS)
        .filter(|_| !is_in_order(&read_all(&listener, reader)))
        .count();
    let fast_opened = client.join().expect("the client ends");

    assert_eq!(
        wrong, 0,
        "{wrong} of {CONNECTIONS} streams are corrupt: {kind:?}, {reader:?}"
    );
    if matches!(kind, Listener::FastOpen) {
        // The kernel falls back to a plain SYN while too many of these wait to be accepted.
        assert!(
            fast_opened * 10 >= CONNECTIONS as usize * 9,
            "{fast_opened} SYNs carried data"
        );
    }
    fixture.hop(&pod, Hop::APP_TO_PROXY).bytes_redirected
}

fn read_all(listener: &TcpListener, reader: Reader) -> Vec<u8> {
    let (mut stream, _) = listener.accept().expect("a connection");
    if matches!(reader, Reader::Late) {
        let start = Instant::now();
        while start.elapsed() < LATE {
            thread::yield_now();
        }
    }
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the client closes");
    bytes
}

fn is_in_order(bytes: &[u8]) -> bool {
    bytes == WRITES.concat()
}

/// Tells whether the SYN carried data.
fn write_three(kind: Listener) -> io::Result<bool> {
    let mut stream = match kind {
        Listener::Plain | Listener::DeferAccept => {
            let mut stream = TcpStream::connect(VIP)?;
            stream.set_nodelay(true)?;
            stream.write_all(WRITES[0])?;
            stream
        }
        Listener::FastOpen => fast_open()?,
    };
    for bytes in &WRITES[1..] {
        stream.write_all(bytes)?;
    }
    let info = sockopt(&stream, libc::IPPROTO_TCP, libc::TCP_INFO, 64)?;
    Ok(info[5] & TCPI_OPT_SYN_DATA != 0)
}

fn fast_open() -> io::Result<TcpStream> {
    let socket = tcp_socket(0);
    set_sockopt(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    let to = sockaddr(VIP);
    // SAFETY: a buffer and an address with their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            WRITES[0].as_ptr().cast(),
            WRITES[0].len(),
            libc::MSG_FASTOPEN,
            (&raw const to).cast(),
            SOCKADDR_BYTES,
        )
    };
    if usize::try_from(sent) != Ok(WRITES[0].len()) {
        return Err(io::Error::last_os_error());
    }
    Ok(socket.into())
}
