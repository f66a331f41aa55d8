//! A reader that stalls stops its writer, as by TCP; and nothing is lost.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use isthmus_accel_abi::{Hop, MAX_PARKED_MESSAGES, PassReason};

use crate::fixture::{APP, Fixture, PROXY, Pod, VIP, wait_until};

/// More than the largest send and receive buffers of a machine with default settings together (4 and
/// 6 MiB), far less than what a queue without flow control takes in the same time.
const BOUND_BYTES: usize = 16 << 20;

/// An application and its proxy, connected.
fn connected() -> (Fixture, Pod, TcpStream, TcpStream) {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let listener = pod.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001));
    let writer = pod.connect(APP, VIP).expect("the proxy listens");
    writer.set_nodelay(true).expect("TCP");
    let (reader, _) = listener.accept().expect("a connection");
    (fixture, pod, writer, reader)
}

/// Byte number `at` of the stream: a pattern without a short period.
fn pattern(at: usize) -> u8 {
    at.wrapping_mul(2_654_435_761).to_le_bytes()[1]
}

fn is_writable(stream: &TcpStream) -> bool {
    is_writable_within(stream, Duration::ZERO)
}

fn is_writable_within(stream: &TcpStream, patience: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    let patience_ms = libc::c_int::try_from(patience.as_millis()).expect("some seconds");
    // SAFETY: one element.
    unsafe { libc::poll(&raw mut poll, 1, patience_ms) == 1 && poll.revents & libc::POLLOUT != 0 }
}

#[test]
fn a_stalled_reader_stops_the_writer_and_loses_nothing() {
    let (fixture, pod, mut writer, reader) = connected();
    writer.set_nonblocking(true).expect("a flag");
    let chunk = 16 << 10;
    let mut written = 0;
    // Blocked is blocked for good only when what is on its way has arrived.
    wait_until("the writer is stopped", || {
        let bytes: Vec<u8> = (written..written + chunk).map(pattern).collect();
        match writer.write(&bytes) {
            Ok(count) => written += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        assert!(
            written < BOUND_BYTES,
            "{written} bytes were taken without a reader"
        );
        !is_writable(&writer)
    });

    let stats = fixture.hop(&pod, Hop::APP_TO_PROXY);
    assert!(stats.bytes_redirected > 0, "{stats:?}");
    assert_eq!(
        stats.passes[PassReason::PeerBufferFull.index()],
        1,
        "{stats:?}"
    );

    resume(writer, reader, written);
    let after = fixture.hop(&pod, Hop::APP_TO_PROXY);
    assert_eq!(
        after.bytes_redirected, stats.bytes_redirected,
        "TCP takes over for good: {after:?}"
    );
}

/// The reader reads at last, the writer sends the rest of its stream, and all of it arrives.
fn resume(mut writer: TcpStream, mut reader: TcpStream, written: usize) {
    let rest = thread::spawn(move || {
        writer.set_nonblocking(false).expect("a flag");
        let bytes: Vec<u8> = (written..BOUND_BYTES).map(pattern).collect();
        writer.write_all(&bytes).expect("the reader has woken up");
    });
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("the writer closes");
    rest.join().expect("the writer ends");
    assert_eq!(bytes.len(), BOUND_BYTES);
    let wrong = (0..BOUND_BYTES).find(|at| bytes[*at] != pattern(*at));
    assert_eq!(wrong, None, "position of the first wrong byte");
}

#[test]
fn tiny_messages_are_parked_up_to_a_number() {
    const MESSAGES: usize = 20_000;
    let (fixture, pod, mut writer, mut reader) = connected();
    for at in 0..MESSAGES {
        writer
            .write_all(&[pattern(at)])
            .expect("TCP has room for these");
    }
    let stats = fixture.hop(&pod, Hop::APP_TO_PROXY);
    assert_eq!(
        stats.bytes_redirected,
        u64::from(MAX_PARKED_MESSAGES),
        "{stats:?}"
    );
    assert_eq!(
        stats.passes[PassReason::TooManyParked.index()],
        1,
        "{stats:?}"
    );

    drop(writer);
    let mut bytes = Vec::new();
    reader
        .read_to_end(&mut bytes)
        .expect("the writer has closed");
    assert!(
        bytes.iter().copied().eq((0..MESSAGES).map(pattern)),
        "{} bytes",
        bytes.len()
    );
}

#[test]
fn random_sizes_arrive_whole() {
    const TOTAL: usize = 64 << 20;
    let (_fixture, _pod, mut writer, mut reader) = connected();
    let sender = thread::spawn(move || {
        let (mut at, mut size) = (0, 1_usize);
        while at < TOTAL {
            size = size.wrapping_mul(1_103_515_245).wrapping_add(12_345) % 70_000;
            let end = (at + size + 1).min(TOTAL);
            let bytes: Vec<u8> = (at..end).map(pattern).collect();
            writer.write_all(&bytes).expect("the reader reads");
            at = end;
        }
    });
    let (mut at, mut buffer) = (0, vec![0; 32 << 10]);
    loop {
        let count = reader.read(&mut buffer).expect("the stream is whole");
        if count == 0 {
            break;
        }
        let is_right = buffer[..count]
            .iter()
            .enumerate()
            .all(|(i, byte)| *byte == pattern(at + i));
        assert!(is_right, "wrong bytes between {at} and {}", at + count);
        at += count;
    }
    sender.join().expect("the sender ends");
    assert_eq!(at, TOTAL);
}

const STALL: Duration = Duration::from_mins(1);
/// What this and the tests beside it may add to the kernel's memory: a writer that nothing stops adds more
/// in a second.
const MEMORY_BYTES: u64 = 128 << 20;

#[test]
fn case_11_a_reader_that_stalls_for_a_minute_holds_a_writer_at_full_speed() {
    let before = kernel_memory_bytes();
    let (_fixture, _pod, mut writer, reader) = connected();
    writer.set_nonblocking(true).expect("a flag");
    let stream: Vec<u8> = (0..BOUND_BYTES).map(pattern).collect();
    let (start, mut written, mut refused) = (Instant::now(), 0, 0);
    while start.elapsed() < STALL {
        let end = stream.len().min(written + (16 << 10));
        match writer.write(&stream[written..end]) {
            Ok(count) => written += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                refused += 1;
                is_writable_within(&writer, Duration::from_millis(100));
            }
        }
        assert!(
            written < BOUND_BYTES,
            "{written} bytes were taken without a reader"
        );
    }
    assert!(!is_writable(&writer), "after {written} bytes");
    // It waits for the signal that it asks for, which does not come.
    assert!(refused < 2 * STALL.as_secs() * 10, "{refused} wake-ups");
    let used = kernel_memory_bytes().saturating_sub(before);
    assert!(used < MEMORY_BYTES, "{used} bytes of the kernel's memory");
    resume(writer, reader, written);
}

/// What TCP and the slab allocator hold on this machine, in bytes.
fn kernel_memory_bytes() -> u64 {
    const PAGE_BYTES: u64 = 4 << 10;
    let number_after = |path: &str, line: &str, name: &str| -> u64 {
        let text = fs::read_to_string(path).expect("procfs is mounted");
        let mut words = text
            .lines()
            .find(|found| found.starts_with(line))
            .expect("it has such a line")
            .split_whitespace()
            .skip_while(|word| *word != name);
        let number = words.nth(1).expect("a number follows");
        number.parse().expect("it is a number")
    };
    number_after("/proc/net/sockstat", "TCP:", "mem") * PAGE_BYTES
        + number_after("/proc/meminfo", "SUnreclaim:", "SUnreclaim:") * 1024
}
