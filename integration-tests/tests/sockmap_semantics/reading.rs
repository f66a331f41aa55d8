//! Rows about readers.

use std::{
    io::Write as _,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicI32, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use crate::{
    Sockmap,
    calls::{PATIENCE_MS, errno, ioctl, poll, recv, send, splice, wait_readable},
    check,
    fixture::{set_sockopt, wait_until},
    legs::Pair,
};

/// Whatever wakes a read that waits ends it, where TCP would look again. Nonblocking sockets never notice.
const BLOCKED_READ: Sockmap = Sockmap::Membership {
    by_tcp: &["EAGAIN"],
    redirected: &["EAGAIN"],
};

#[test]
fn a_peek_shows_without_taking() {
    check(
        &["\"data\"", "\"data\"", "\"da\"", "\"ta\"", "EAGAIN"],
        Sockmap::AsTcp,
        |pair| {
            send(&pair.writer, b"data", 0);
            wait_readable(&pair.reader);
            vec![
                recv(&pair.reader, 16, libc::MSG_PEEK),
                recv(&pair.reader, 16, libc::MSG_PEEK),
                recv(&pair.reader, 2, 0),
                recv(&pair.reader, 16, libc::MSG_DONTWAIT),
                recv(&pair.reader, 16, libc::MSG_DONTWAIT),
            ]
        },
    );
}

#[test]
fn the_kernel_counts_what_is_unread() {
    check(
        &["4", "2"],
        Sockmap::Membership {
            by_tcp: &["0", "0"],
            redirected: &["4", "2"],
        },
        |pair| {
            send(&pair.writer, b"data", 0);
            wait_readable(&pair.reader);
            let all = ioctl(&pair.reader, libc::FIONREAD);
            recv(&pair.reader, 2, 0);
            let rest = ioctl(&pair.reader, libc::FIONREAD);
            vec![all.to_string(), rest.to_string()]
        },
    );
}

#[test]
fn one_read_takes_what_several_writes_left() {
    check(&["\"onetwothree\""], Sockmap::AsTcp, |pair| {
        for word in ["one", "two", "three"] {
            send(&pair.writer, word.as_bytes(), 0);
        }
        wait_for(&pair, "\"onetwothree\"");
        vec![recv(&pair.reader, 64, 0)]
    });
}

#[test]
fn an_empty_queue_says_so() {
    check(
        &["EAGAIN", "nothing", "out", "\"x\"", "EAGAIN"],
        Sockmap::AsTcp,
        |pair| {
            let empty = recv(&pair.reader, 16, libc::MSG_DONTWAIT);
            let readable = poll(&pair.reader, libc::POLLIN, 0);
            let writable = poll(&pair.reader, libc::POLLOUT, 0);
            send(&pair.writer, b"x", 0);
            wait_readable(&pair.reader);
            let full = recv(&pair.reader, 16, libc::MSG_DONTWAIT);
            let again = recv(&pair.reader, 16, libc::MSG_DONTWAIT);
            vec![empty, readable, writable, full, again]
        },
    );
}

#[test]
fn edges_of_epoll_come_once_for_each_arrival() {
    check(
        &["1 in", "0", "1 in", "\"ab\"", "0"],
        Sockmap::AsTcp,
        |pair| {
            // SAFETY: a flag; the answer is checked by what follows.
            let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
            let mut event = libc::epoll_event {
                events: (libc::EPOLLIN | libc::EPOLLET).cast_unsigned(),
                u64: 0,
            };
            // SAFETY: a descriptor and an event.
            unsafe {
                libc::epoll_ctl(
                    epoll,
                    libc::EPOLL_CTL_ADD,
                    pair.reader.as_raw_fd(),
                    &raw mut event,
                );
            }
            let wait = |wait_ms| {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                // SAFETY: room for one event.
                let count = unsafe { libc::epoll_wait(epoll, &raw mut event, 1, wait_ms) };
                if count == 0 {
                    return "0".to_owned();
                }
                let is_in = event.events & libc::EPOLLIN.cast_unsigned() != 0;
                format!("{count} {}", if is_in { "in" } else { "other" })
            };
            send(&pair.writer, b"a", 0);
            let first = wait(PATIENCE_MS);
            let none = wait(0);
            send(&pair.writer, b"b", 0);
            let second = wait(PATIENCE_MS);
            let bytes = recv(&pair.reader, 16, 0);
            let seen = vec![first, none, second, bytes, wait(0)];
            // SAFETY: ours.
            unsafe { libc::close(epoll) };
            seen
        },
    );
}

#[test]
fn a_reader_may_wait_for_all_of_it() {
    check(
        &["\"aaaabbbb\""],
        Sockmap::Redirect(&["\"aaaa\""]),
        |mut pair| {
            send(&pair.writer, b"aaaa", 0);
            wait_readable(&pair.reader);
            let reader = pair.reader;
            let reading = Blocked::start(move || recv(&reader, 8, libc::MSG_WAITALL));
            reading.wait_until_it_sleeps_or_ends();
            pair.writer.write_all(b"bbbb").expect("it is connected");
            vec![reading.join()]
        },
    );
}

#[test]
fn a_low_water_mark_is_kept() {
    check(&["nothing", "in"], Sockmap::LeftToTcp, |pair| {
        set_sockopt(&pair.reader, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 8);
        send(&pair.writer, b"abc", 0);
        wait_for(&pair, "\"abc\"");
        let few = poll(&pair.reader, libc::POLLIN, 0);
        send(&pair.writer, b"defgh", 0);
        vec![few, poll(&pair.reader, libc::POLLIN, PATIENCE_MS)]
    });
}

#[test]
fn urgent_data_stays_out_of_band() {
    check(
        &["1", "\"ab\"", "\"!\""],
        Sockmap::Redirect(&["1", "\"ab!\"", "EAGAIN"]),
        |pair| {
            send(&pair.writer, b"ab", 0);
            let sent = send(&pair.writer, b"!", libc::MSG_OOB);
            wait_until("it is there", || {
                poll(&pair.reader, libc::POLLPRI, 0) == "pri"
                    || recv(&pair.reader, 16, libc::MSG_PEEK) == "\"ab!\""
            });
            vec![
                sent,
                recv(&pair.reader, 16, 0),
                recv(&pair.reader, 16, libc::MSG_OOB | libc::MSG_DONTWAIT),
            ]
        },
    );
}

#[test]
fn a_splice_moves_the_bytes() {
    check(
        &["4 bytes", "EAGAIN", "4 bytes", "end"],
        Sockmap::Redirect(&["EAGAIN", "EAGAIN", "end", "end"]),
        |pair| {
            send(&pair.writer, b"data", 0);
            wait_readable(&pair.reader);
            pair.reader.set_nonblocking(true).expect("a flag");
            let first = splice(&pair.reader, 16);
            let empty = splice(&pair.reader, 16);
            send(&pair.writer, b"more", 0);
            drop(pair.writer);
            wait_until("the end is there", || {
                poll(&pair.reader, libc::POLLRDHUP, 0).contains("rdhup")
            });
            vec![
                first,
                empty,
                splice(&pair.reader, 16),
                splice(&pair.reader, 16),
            ]
        },
    );
}

#[test]
fn bytes_can_be_thrown_away_unread() {
    check(&["2", "\"ta\""], Sockmap::AsTcp, |pair| {
        send(&pair.writer, b"data", 0);
        wait_readable(&pair.reader);
        vec![discard(&pair, 2), recv(&pair.reader, 16, 0)]
    });
}

/// Carries one byte, so that the way which bytes take is settled.
fn greet(pair: &Pair) {
    assert_eq!(send(&pair.writer, b"x", 0), "1");
    assert_eq!(recv(&pair.reader, 16, 0), "\"x\"");
}

/// Waits until this is what there is to read.
fn wait_for(pair: &Pair, all: &str) {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    wait_until("all of it is there", || {
        recv(&pair.reader, 64, flags) == all
    });
}

fn discard(pair: &Pair, len: usize) -> String {
    let mut buffer = [0_u8; 16];
    // SAFETY: a buffer that is longer than `len`.
    let count = unsafe {
        libc::recv(
            pair.reader.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            len,
            libc::MSG_TRUNC,
        )
    };
    if count < 0 {
        errno()
    } else {
        count.to_string()
    }
}

#[test]
fn a_read_of_nothing() {
    check(
        &["EAGAIN"],
        Sockmap::Membership {
            by_tcp: &["end"],
            redirected: &["end"],
        },
        |pair| {
            greet(&pair);
            vec![recv(&pair.reader, 0, libc::MSG_DONTWAIT)]
        },
    );
}

#[test]
fn a_receive_timeout_ends_a_read() {
    check(&["EAGAIN", "\"late\""], Sockmap::AsTcp, |pair| {
        let timeout = Some(Duration::from_millis(50));
        pair.reader.set_read_timeout(timeout).expect("a timeout");
        let timed_out = recv(&pair.reader, 16, 0);
        send(&pair.writer, b"late", 0);
        wait_readable(&pair.reader);
        vec![timed_out, recv(&pair.reader, 16, 0)]
    });
}

#[test]
fn a_signal_does_not_end_a_read() {
    check(&["\"data\""], BLOCKED_READ, |pair| {
        greet(&pair);
        let reader = pair.reader;
        let reading = Blocked::start(move || recv(&reader, 16, 0));
        reading.wait_until_it_sleeps_or_ends();
        reading.interrupt();
        reading.wait_until_it_sleeps_or_ends();
        send(&pair.writer, b"data", 0);
        vec![reading.join()]
    });
}

#[test]
fn a_reset_ends_a_read() {
    check(&["ECONNRESET"], BLOCKED_READ, |pair| {
        greet(&pair);
        let reader = pair.reader;
        let reading = Blocked::start(move || recv(&reader, 16, 0));
        reading.wait_until_it_sleeps_or_ends();
        crate::calls::reset_on_close(&pair.writer);
        drop(pair.writer);
        vec![reading.join()]
    });
}

#[test]
fn the_end_of_the_stream_ends_a_read() {
    check(&["end"], Sockmap::AsTcp, |pair| {
        greet(&pair);
        let reader = pair.reader;
        let reading = Blocked::start(move || recv(&reader, 16, 0));
        reading.wait_until_it_sleeps_or_ends();
        drop(pair.writer);
        vec![reading.join()]
    });
}

#[test]
fn room_for_writing_does_not_end_a_read() {
    check(&["\"data\""], BLOCKED_READ, |pair| {
        let reader = pair.reader.try_clone().expect("a descriptor");
        let reading = Blocked::start(move || recv(&reader, 16, 0));
        reading.wait_until_it_sleeps_or_ends();
        let slept = reading.times_slept();
        let chunk = vec![0; 64 << 10];
        while send(&pair.reader, &chunk, libc::MSG_DONTWAIT) != "EAGAIN" {}
        wait_until("there is room again", || {
            recv(&pair.writer, 256, libc::MSG_DONTWAIT);
            poll(&pair.reader, libc::POLLOUT, 0) == "out"
        });
        // The kernel counts the room before it wakes who waits: data in between would end the read too.
        wait_until("the room has woken the reader", || {
            reading.times_slept() > slept
        });
        reading.wait_until_it_sleeps_or_ends();
        send(&pair.writer, b"data", 0);
        vec![reading.join()]
    });
}

static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_interrupt(_: libc::c_int) {
    INTERRUPTS.fetch_add(1, Ordering::SeqCst);
}

/// A thread in a call that waits.
struct Blocked {
    thread: thread::JoinHandle<String>,
    id: libc::pid_t,
}

impl Blocked {
    fn start(work: impl FnOnce() -> String + Send + 'static) -> Self {
        let id = std::sync::Arc::new(AtomicI32::new(0));
        let told = id.clone();
        let thread = thread::spawn(move || {
            // SAFETY: no argument.
            told.store(unsafe { libc::gettid() }, Ordering::SeqCst);
            work()
        });
        wait_until("the thread runs", || id.load(Ordering::SeqCst) != 0);
        let id = id.load(Ordering::SeqCst);
        Self { thread, id }
    }

    fn wait_until_it_sleeps_or_ends(&self) {
        let call = format!("{} ", libc::SYS_recvfrom);
        let path = format!("/proc/self/task/{}/syscall", self.id);
        wait_until("the thread is in recv", || {
            self.thread.is_finished()
                || std::fs::read_to_string(&path).is_ok_and(|text| text.starts_with(&call))
        });
    }

    /// How often the thread has given up its processor; beyond count when it has ended.
    fn times_slept(&self) -> u64 {
        let path = format!("/proc/self/task/{}/status", self.id);
        let status = std::fs::read_to_string(path).unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .map_or(u64::MAX, |count| count.trim().parse().expect("a number"))
    }

    fn interrupt(&self) {
        let before = INTERRUPTS.load(Ordering::SeqCst);
        // SAFETY: a zeroed action with a handler that only adds to a number.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = count_interrupt as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
            libc::syscall(libc::SYS_tgkill, libc::getpid(), self.id, libc::SIGUSR1);
        }
        wait_until("the signal is handled", || {
            INTERRUPTS.load(Ordering::SeqCst) > before
        });
    }

    fn join(self) -> String {
        self.thread.join().expect("the call does not panic")
    }
}
