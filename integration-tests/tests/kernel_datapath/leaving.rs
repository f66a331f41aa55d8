//! Sockets that nothing skips TCP to or from leave the sockmap, and lose nothing by it.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    thread,
};

use isthmus_accel_abi::{BULK_MESSAGES, Counter, Hop, LARGE_MESSAGE_BYTES, PassReason, PodFlags};

use crate::fixture::{APP, Fixture, PROXY, Pod, VIP, ping_pong, wait_until};

const BOTH_WAYS: PodFlags = PodFlags::APP_WRITES.with(PodFlags::APP_READS);
/// More than any receive buffer that nobody has enlarged.
const TOO_LARGE_BYTES: usize = 1 << 20;
const SMALL_BYTES: usize = 64;

/// A connection of an application to its proxy.
struct Conversation {
    fixture: Fixture,
    pod: Pod,
    _listener: TcpListener,
    app: TcpStream,
    proxy: TcpStream,
}

impl Conversation {
    fn start(flags: PodFlags) -> Self {
        let pod = Pod::alone([198, 18, 0, 1]);
        let mut fixture = Fixture::load();
        fixture.add_pod_with(&pod, flags);
        let listener = pod.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001));
        let app = pod.connect(APP, VIP).expect("the proxy listens");
        let (proxy, _) = listener.accept().expect("a connection");
        for end in [&app, &proxy] {
            end.set_nodelay(true).expect("TCP");
        }
        Self {
            fixture,
            pod,
            _listener: listener,
            app,
            proxy,
        }
    }

    /// The application sends so much at once that its direction goes over to TCP.
    fn latch_app(&mut self) {
        transfer(&mut self.app, &mut self.proxy, TOO_LARGE_BYTES);
        let stats = self.fixture.hop(&self.pod, Hop::APP_TO_PROXY);
        let on_tcp: u64 = stats.connections_on_tcp.iter().sum();
        assert_eq!(on_tcp, 1, "{stats:?}");
    }

    /// The application sends as much by TCP as makes bulk traffic of it.
    fn send_bulk(&mut self) {
        transfer(&mut self.app, &mut self.proxy, TOO_LARGE_BYTES);
        let chunk = 4 * usize::try_from(LARGE_MESSAGE_BYTES).expect("a size");
        for _ in 0..2 * BULK_MESSAGES {
            transfer(&mut self.app, &mut self.proxy, chunk);
        }
    }

    /// The proxy says something, and the application too.
    fn exchange(&mut self) {
        transfer(&mut self.proxy, &mut self.app, SMALL_BYTES);
        transfer(&mut self.app, &mut self.proxy, SMALL_BYTES);
    }

    fn left(&self) -> u64 {
        self.fixture.counter(Counter::SocketsLeft)
    }

    fn redirected_to_app(&self) -> u64 {
        self.fixture
            .hop(&self.pod, Hop::PROXY_TO_APP_RETURN)
            .bytes_redirected
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..=250).cycle().take(bytes).collect()
}

fn transfer(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) {
    let sent = pattern(bytes);
    let mut received = vec![0; bytes];
    thread::scope(|scope| {
        let reading = scope.spawn(|| to.read_exact(&mut received));
        from.write_all(&sent).expect("it is connected");
        reading
            .join()
            .expect("no panic")
            .expect("everything arrives");
    });
    assert!(received == sent, "{bytes} bytes arrive as they were sent");
}

#[test]
fn both_ends_leave_once_neither_direction_skips_tcp() {
    // What the proxy sends to an application that has not promised how it reads goes by TCP anyway.
    let mut it = Conversation::start(PodFlags::APP_WRITES);
    it.exchange();
    assert_eq!(it.left(), 0, "what the application sends skips TCP");
    it.latch_app();
    wait_until("both have left", || {
        it.exchange();
        it.left() == 2
    });
    let stats = |it: &Conversation| it.fixture.hop(&it.pod, Hop::APP_TO_PROXY);
    let before = stats(&it);
    it.exchange();
    transfer(&mut it.app, &mut it.proxy, TOO_LARGE_BYTES);
    assert_eq!(
        stats(&it),
        before,
        "no program sees a plain socket's messages"
    );
    it.app.shutdown(Shutdown::Both).expect("it is connected");
    it.proxy.shutdown(Shutdown::Both).expect("it is connected");
    let least = before.bytes_total + (TOO_LARGE_BYTES + SMALL_BYTES) as u64;
    wait_until("its bytes are counted when it is closed", || {
        stats(&it).bytes_total >= least
    });
}

#[test]
fn a_direction_that_skips_tcp_keeps_both_ends() {
    let mut it = Conversation::start(BOTH_WAYS);
    it.latch_app();
    let before = it.redirected_to_app();
    for _ in 0..1_000 {
        it.exchange();
    }
    assert_eq!(it.redirected_to_app() - before, 1_000 * SMALL_BYTES as u64);
    assert_eq!(it.left(), 0);
}

#[test]
fn bulk_one_way_takes_the_other_along() {
    let mut it = Conversation::start(BOTH_WAYS);
    it.exchange();
    it.send_bulk();
    wait_until("both have left", || {
        it.exchange();
        it.left() == 2
    });
    let stats = it.fixture.hop(&it.pod, Hop::PROXY_TO_APP_RETURN);
    let reason = PassReason::ReaderLeaves.index();
    assert_eq!(stats.connections_on_tcp[reason], 1, "{stats:?}");
    it.send_bulk();
    it.exchange();
}

#[test]
fn nobody_leaves_what_is_unread() {
    let mut it = Conversation::start(BOTH_WAYS);
    let unread = pattern(SMALL_BYTES);
    it.proxy.write_all(&unread).expect("it is connected");
    assert_eq!(it.redirected_to_app(), SMALL_BYTES as u64);
    it.send_bulk();
    // By TCP, since the application wants to leave.
    it.proxy.write_all(&unread).expect("it is connected");
    it.send_bulk();
    assert_eq!(it.redirected_to_app(), SMALL_BYTES as u64);
    assert_eq!(it.left(), 1, "the proxy has read everything");
    let mut read = vec![0; 2 * SMALL_BYTES];
    it.app.read_exact(&mut read).expect("nothing is lost");
    assert_eq!(read, [&unread[..], &unread].concat());
    wait_until("the application has left too", || {
        it.exchange();
        it.left() == 2
    });
}

#[test]
fn nobody_leaves_what_another_thread_may_be_about_to_send() {
    let mut it = Conversation::start(BOTH_WAYS);
    it.exchange();
    let (app, proxy) = (&mut it.app, &mut it.proxy);
    thread::scope(|scope| {
        scope.spawn(|| transfer(proxy, app, SMALL_BYTES));
    });
    it.send_bulk();
    for _ in 0..100 {
        it.exchange();
    }
    assert_eq!(it.left(), 1, "the proxy, to which one thread has written");
}

#[test]
fn leaving_ends_by_a_plain_close() {
    let mut it = Conversation::start(BOTH_WAYS);
    it.send_bulk();
    wait_until("both have left", || {
        it.exchange();
        it.left() == 2
    });
    ping_pong_with_echo(&mut it);
    it.app.write_all(b"last").expect("it is connected");
    drop(it.app);
    let mut rest = Vec::new();
    it.proxy.read_to_end(&mut rest).expect("a clean end");
    assert_eq!(rest, b"last");
}

fn ping_pong_with_echo(it: &mut Conversation) {
    let mut echoing = it.proxy.try_clone().expect("a descriptor");
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; SMALL_BYTES];
            for _ in 0..100 {
                echoing.read_exact(&mut buffer).expect("a message");
                echoing.write_all(&buffer).expect("it is connected");
            }
        });
        ping_pong(&mut it.app, SMALL_BYTES, 100);
    });
}
