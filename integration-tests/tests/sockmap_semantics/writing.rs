//! Rows about writers.

use std::{io::Read as _, net::Shutdown, thread};

use crate::{
    Sockmap,
    calls::{PATIENCE_MS, poll, recv, send, sendfile, wait_readable},
    check,
    fixture::{set_sockopt, sockopt, wait_until},
};

/// More than the largest buffers of a machine with default settings together (4 and 6 MiB).
const BOUND_BYTES: usize = 16 << 20;

/// State in `TCP_INFO` of a socket whose FIN is acknowledged.
const TCP_FIN_WAIT2: u8 = 5;

#[test]
fn a_reader_that_stalls_stops_its_writer() {
    check(
        &["EAGAIN", "nothing", "all read", "out"],
        Sockmap::AsTcp,
        |mut pair| {
            let chunk = vec![0x5a; 16 << 10];
            let mut written = 0;
            let mut stop = String::new();
            wait_until("the writer is stopped", || {
                stop = send(&pair.writer, &chunk, libc::MSG_DONTWAIT);
                written += stop.parse().unwrap_or(0);
                assert!(written < BOUND_BYTES, "{written} bytes without a reader");
                stop == "EAGAIN" && poll(&pair.writer, libc::POLLOUT, 0) == "nothing"
            });
            let seen = vec![stop, poll(&pair.writer, libc::POLLOUT, 0)];
            let mut rest = vec![0; written];
            pair.reader.read_exact(&mut rest).expect("nothing is lost");
            let is_whole = rest.iter().all(|byte| *byte == 0x5a)
                && recv(&pair.reader, 1, libc::MSG_DONTWAIT) == "EAGAIN";
            let writable = poll(&pair.writer, libc::POLLOUT, PATIENCE_MS);
            let whole = if is_whole { "all read" } else { "torn" };
            seen.into_iter()
                .chain([whole.to_owned(), writable])
                .collect()
        },
    );
}

#[test]
fn a_file_can_be_sent() {
    check(&["200000", "as the file"], Sockmap::AsTcp, |mut pair| {
        const LEN: usize = 200_000;
        let writer = pair.writer;
        let sending = thread::spawn(move || sendfile(&writer, LEN));
        let mut bytes = vec![0; LEN];
        pair.reader.read_exact(&mut bytes).expect("it arrives");
        let mut file = vec![0; LEN];
        std::fs::File::open("/proc/self/exe")
            .and_then(|mut exe| exe.read_exact(&mut file))
            .expect("a program has a file");
        let is_same = bytes == file;
        vec![
            sending.join().expect("it ends"),
            if is_same {
                "as the file"
            } else {
                "other bytes"
            }
            .to_owned(),
        ]
    });
}

#[test]
fn a_send_without_copy_tells_when_it_is_done() {
    check(&["8192", "err"], Sockmap::LeftToTcp, |mut pair| {
        set_sockopt(&pair.writer, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1);
        let bytes = [7; 8192];
        let sent = send(&pair.writer, &bytes, libc::MSG_ZEROCOPY);
        let mut read = [0; 8192];
        pair.reader.read_exact(&mut read).expect("it arrives");
        assert_eq!(read, bytes);
        vec![sent, poll(&pair.writer, 0, 1_000)]
    });
}

#[test]
fn nothing_can_be_written_after_the_end() {
    check(
        &["\"last\"", "end", "EPIPE", "end"],
        Sockmap::AsTcp,
        |pair| {
            send(&pair.writer, b"last", 0);
            pair.writer
                .shutdown(Shutdown::Write)
                .expect("it is connected");
            let bytes = recv(&pair.reader, 16, 0);
            let end = recv(&pair.reader, 16, 0);
            // Until then the unacknowledged FIN alone keeps a message on TCP.
            wait_until("the end is acknowledged", || {
                let info = sockopt(&pair.writer, libc::IPPROTO_TCP, libc::TCP_INFO, 8);
                info.expect("Linux 2.4").first() == Some(&TCP_FIN_WAIT2)
            });
            let late = send(&pair.writer, b"late", 0);
            vec![bytes, end, late, recv(&pair.reader, 16, libc::MSG_DONTWAIT)]
        },
    );
}

#[test]
fn a_reader_that_is_gone_fails_the_second_write() {
    check(&["\"data\"", "4", "EPIPE", "end"], Sockmap::AsTcp, |pair| {
        send(&pair.writer, b"data", 0);
        let bytes = recv(&pair.reader, 16, 0);
        drop(pair.reader);
        wait_readable(&pair.writer);
        let first = send(&pair.writer, b"more", 0);
        wait_until("the reset is there", || {
            poll(&pair.writer, 0, 0).contains("err") || poll(&pair.writer, 0, 0).contains("hup")
        });
        vec![
            bytes,
            first,
            send(&pair.writer, b"more", 0),
            recv(&pair.writer, 16, 0),
        ]
    });
}

#[test]
fn tcp_counts_what_it_carries() {
    check(&["4", "4"], Sockmap::Redirect(&["0", "0"]), |pair| {
        send(&pair.writer, b"data", 0);
        wait_readable(&pair.reader);
        let info = |socket, at: usize| {
            let bytes =
                sockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, 208).expect("Linux 4.19");
            let field = bytes[at..at + 8].try_into().expect("8 bytes");
            u64::from_ne_bytes(field).to_string()
        };
        // Linux, include/uapi/linux/tcp.h, struct tcp_info: tcpi_bytes_received, tcpi_bytes_sent.
        vec![info(&pair.reader, 128), info(&pair.writer, 200)]
    });
}
