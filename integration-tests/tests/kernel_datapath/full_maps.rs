//! Full maps leave connections where they would have been without us.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    os::fd::{AsRawFd as _, OwnedFd},
};

use isthmus_accel_abi::{Counter, Hop, PassReason, SettingsMode, map};
use isthmus_accel_datapath::{Datapath as _, linux::LoadOptions};

use crate::fixture::{
    APP, Fixture, PROXY, Pod, SOCKADDR_BYTES, VIP, original_dst, sockaddr, tcp_socket, wait_until,
};

const ROOM: u32 = 4;
const DIALS: u64 = 20;

fn start_connect() -> OwnedFd {
    let socket = tcp_socket(libc::SOCK_NONBLOCK);
    let to = sockaddr(VIP);
    // SAFETY: an address and its length.
    unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const to).cast(), SOCKADDR_BYTES);
    }
    socket
}

/// A listener of the proxy that takes `ROOM` connections and then no SYN.
fn narrow_listener(pod: &Pod) -> TcpListener {
    let listener = pod.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001));
    // SAFETY: a descriptor and a number; the kernel takes one more than the number.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 1) }, 0);
    listener
}

#[test]
fn handshakes_without_room_are_not_redirected() {
    let pod = Pod::alone([198, 18, 0, 1]);
    pod.ip(&["addr", "add", "198.19.7.9/32", "dev", "lo"]);
    let sizes = vec![(map::HANDSHAKES, ROOM), (map::ORIG_DST_BY_TUPLE, ROOM)];
    let mut fixture = Fixture::load_with(LoadOptions {
        mode: SettingsMode::SOCKMAP,
        max_entries: sizes,
        ..LoadOptions::default()
    });
    fixture.add_pod(&pod);
    let proxy = narrow_listener(&pod);
    let direct = pod.listen(0, VIP);

    // Two fill the listener's queue, four wait for an answer to their SYN, the others find no room.
    let sockets = pod.run_as(APP, || {
        (0..DIALS).map(|_| start_connect()).collect::<Vec<_>>()
    });
    let full = fixture.counter(Counter::HandshakesFull);
    assert!(full > 0 && full < DIALS, "{full} of {DIALS} found no room");
    assert_eq!(fixture.counter(Counter::Redirects), DIALS - full);
    assert_eq!(fixture.counter(Counter::TuplesFull), 0);
    for _ in 0..full {
        let (mut stream, _) = direct.accept().expect("what is not redirected arrives");
        stream.write_all(b"direct").expect("it is connected");
    }

    // The queue is served; what the narrow listener has turned away ends with it.
    for _ in 0..2 {
        let (accepted, _) = proxy.accept().expect("the queue holds two");
        assert_eq!(original_dst(&accepted).expect("it was redirected"), VIP);
    }
    drop((proxy, sockets));
    wait_until("nothing is left", || {
        let usage = fixture.datapath.map_usage().expect("the maps can be read");
        let left = |name| {
            usage
                .iter()
                .find(|row| row.name == name)
                .map_or(0, |row| row.entries)
        };
        [
            map::HANDSHAKES,
            map::ORIG_DST_BY_TUPLE,
            map::ENDS,
            map::SOCKETS,
        ]
        .map(left)
            == [0; 4]
    });
}

#[test]
fn sockets_without_room_stay_on_tcp() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let sizes = vec![(map::ENDS, 2), (map::SOCKETS, 2)];
    let mut fixture = Fixture::load_with(LoadOptions {
        mode: SettingsMode::SOCKMAP,
        max_entries: sizes,
        ..LoadOptions::default()
    });
    fixture.add_pod(&pod);
    let listener = pod.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001));
    let mut pairs = Vec::new();
    for round in 0..4_u8 {
        let mut app = pod.connect(APP, VIP).expect("the proxy listens");
        let (mut proxy, _) = listener.accept().expect("a connection");
        app.write_all(&[round]).expect("it is connected");
        let mut byte = [0xff];
        proxy.read_exact(&mut byte).expect("it arrives");
        assert_eq!(byte, [round]);
        pairs.push((app, proxy));
    }
    let stats = fixture.hop(&pod, Hop::APP_TO_PROXY);
    assert_eq!(
        stats.bytes_redirected, 1,
        "only the first pair fits: {stats:?}"
    );
    assert_eq!(stats.passes[PassReason::Latched.index()], 0, "{stats:?}");
    assert!(fixture.counter(Counter::SocketsRefused) >= 6);
}

#[test]
fn a_connect_that_fails_before_its_syn_is_swept() {
    let pod = Pod::new([198, 18, 0, 1]);
    pod.ip(&["link", "set", "lo", "down"]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    pod.run_as(APP, || {
        drop(start_connect());
    });
    let handshakes = |fixture: &Fixture| {
        let usage = fixture.datapath.map_usage().expect("the maps can be read");
        usage
            .iter()
            .find(|row| row.name == map::HANDSHAKES)
            .map_or(0, |row| row.entries)
    };
    let before = handshakes(&fixture);
    let swept = fixture
        .datapath
        .sweep(std::time::Duration::ZERO)
        .expect("the maps can be written");
    assert_eq!(swept, before as usize);
    assert_eq!(handshakes(&fixture), 0);
}
