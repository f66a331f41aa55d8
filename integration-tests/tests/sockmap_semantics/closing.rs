//! Rows about the end of a connection.

use std::net::Shutdown;

use crate::{
    Sockmap,
    calls::{poll, recv, reset_on_close, send, wait_readable},
    check,
    fixture::wait_until,
};

#[test]
fn data_comes_before_the_end() {
    check(&["\"data\"", "end", "end"], Sockmap::AsTcp, |pair| {
        send(&pair.writer, b"data", 0);
        drop(pair.writer);
        vec![
            recv(&pair.reader, 16, 0),
            recv(&pair.reader, 16, 0),
            recv(&pair.reader, 16, 0),
        ]
    });
}

#[test]
fn a_half_closed_connection_carries_the_answer() {
    check(
        &["\"data\"", "end", "\"answer\"", "end"],
        Sockmap::AsTcp,
        |pair| {
            send(&pair.writer, b"data", 0);
            pair.writer
                .shutdown(Shutdown::Write)
                .expect("it is connected");
            let data = recv(&pair.reader, 16, 0);
            let end = recv(&pair.reader, 16, 0);
            send(&pair.reader, b"answer", 0);
            drop(pair.reader);
            vec![
                data,
                end,
                recv(&pair.writer, 16, 0),
                recv(&pair.writer, 16, 0),
            ]
        },
    );
}

#[test]
fn a_reset_comes_after_the_data() {
    check(&["\"data\"", "ECONNRESET", "end"], Sockmap::AsTcp, |pair| {
        send(&pair.writer, b"data", 0);
        wait_readable(&pair.reader);
        reset_on_close(&pair.writer);
        drop(pair.writer);
        wait_until("the reset is there", || {
            poll(&pair.reader, 0, 0).contains("err")
        });
        vec![
            recv(&pair.reader, 16, 0),
            recv(&pair.reader, 16, 0),
            recv(&pair.reader, 16, 0),
        ]
    });
}

#[test]
fn a_close_with_unread_data_resets() {
    check(
        &["ECONNRESET", "EPIPE"],
        Sockmap::Redirect(&["end", "4"]),
        |pair| {
            send(&pair.writer, b"data", 0);
            wait_readable(&pair.reader);
            drop(pair.reader);
            wait_readable(&pair.writer);
            vec![recv(&pair.writer, 16, 0), send(&pair.writer, b"more", 0)]
        },
    );
}

#[test]
fn a_close_with_linger_zero_resets() {
    check(&["ECONNRESET", "EPIPE"], Sockmap::AsTcp, |pair| {
        send(&pair.writer, b"data", 0);
        wait_readable(&pair.reader);
        reset_on_close(&pair.reader);
        drop(pair.reader);
        wait_readable(&pair.writer);
        vec![recv(&pair.writer, 16, 0), send(&pair.writer, b"more", 0)]
    });
}

#[test]
fn a_reader_that_hears_no_more_still_gets_what_is_there() {
    check(&["\"data\"", "end"], Sockmap::AsTcp, |pair| {
        send(&pair.writer, b"data", 0);
        wait_readable(&pair.reader);
        pair.reader
            .shutdown(Shutdown::Read)
            .expect("it is connected");
        vec![recv(&pair.reader, 16, 0), recv(&pair.reader, 16, 0)]
    });
}

#[test]
fn poll_tells_the_end() {
    check(&["in+rdhup", "in+out+hup+rdhup"], Sockmap::AsTcp, |pair| {
        let all = libc::POLLIN | libc::POLLRDHUP;
        send(&pair.writer, b"data", 0);
        pair.writer
            .shutdown(Shutdown::Write)
            .expect("it is connected");
        wait_until("the end is there", || {
            poll(&pair.reader, libc::POLLRDHUP, 0) == "rdhup"
        });
        let half = poll(&pair.reader, all, 0);
        pair.reader
            .shutdown(Shutdown::Write)
            .expect("it is connected");
        vec![half, poll(&pair.reader, all | libc::POLLOUT, 0)]
    });
}
