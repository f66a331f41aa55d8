//! Bytes on a nonblocking socket: written and read in pieces of many sizes, and hashed.

use std::{io, net::TcpStream, os::fd::AsRawFd};

use crate::scenario::Dice;

/// Longest wait for anything to happen on a connection, in milliseconds.
const PATIENCE_MS: libc::c_int = 30_000;
const READ_BYTES: usize = 64 << 10;

/// Bytes of one direction, by position: what was written can be told from what is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    seed: u64,
    at: u64,
}

impl Source {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, at: 0 }
    }

    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        // Words start anew with each message, so that sizes and bytes do not depend on each other.
        let mut dice = Dice::new(self.seed ^ self.at.rotate_left(32));
        while bytes.len() < len {
            bytes.extend_from_slice(&dice.next().to_le_bytes());
        }
        bytes.truncate(len);
        self.at += len as u64;
        bytes
    }
}

/// How much was read, its FNV-1a hash, and how it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Heard {
    pub(crate) bytes: usize,
    pub(crate) hash: u64,
    /// What was seen after the last byte, in the order in which it was seen.
    pub(crate) events: Vec<String>,
}

impl Heard {
    pub(crate) fn nothing() -> Self {
        Self {
            bytes: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            events: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn note(&mut self, event: &str) {
        self.events.push(event.to_owned());
    }
}

/// Waits until `events`, an error or a hang-up.
pub(crate) fn wait_for(socket: &impl AsRawFd, events: libc::c_short) {
    let mut entry = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one element.
    let seen = unsafe { libc::poll(&raw mut entry, 1, PATIENCE_MS) };
    assert_eq!(seen, 1, "something happens: {events}");
}

/// What one call of recv said.
pub(crate) enum Received {
    Bytes(usize),
    Nothing,
    End,
    Error(String),
}

/// One end of a connection.
pub(crate) struct End {
    socket: TcpStream,
    dice: Dice,
    buffer: Vec<u8>,
    pub(crate) heard: Heard,
}

impl End {
    pub(crate) fn new(socket: TcpStream, seed: u64) -> Self {
        socket.set_nonblocking(true).expect("a flag");
        socket.set_nodelay(true).expect("TCP");
        Self {
            socket,
            dice: Dice::new(seed),
            buffer: vec![0; READ_BYTES],
            heard: Heard::nothing(),
        }
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Writes `messages` and reads `expected` bytes, whichever is possible. `on_full` is called once: when
    /// all is written, or nothing more can be.
    pub(crate) fn exchange(
        &mut self,
        messages: &[Vec<u8>],
        expected: usize,
        mut on_full: impl FnMut(),
    ) {
        let until = self.heard.bytes + expected;
        let mut queue = messages.iter();
        let mut rest: &[u8] = &[];
        let mut has_told = false;
        loop {
            while rest.is_empty() {
                let Some(message) = queue.next() else { break };
                rest = message;
            }
            let mut is_stopped = rest.is_empty();
            if !rest.is_empty() {
                // More is to follow: TCP may wait for it, or not.
                let flags = match self.dice.below(8) {
                    0 if queue.len() > 0 => libc::MSG_MORE,
                    _ => 0,
                };
                let written = self.send(rest, flags);
                is_stopped = written == 0;
                rest = &rest[written..];
            }
            if is_stopped && !has_told {
                has_told = true;
                on_full();
            }
            let mut is_empty = true;
            while self.heard.bytes < until {
                match self.receive(until - self.heard.bytes) {
                    Received::Bytes(_) => is_empty = false,
                    Received::Nothing => break,
                    Received::End => panic!("the stream ends too early"),
                    Received::Error(name) => panic!("the stream breaks: {name}"),
                }
            }
            let is_written = rest.is_empty() && queue.len() == 0;
            if is_written && self.heard.bytes == until {
                break;
            }
            if is_stopped && is_empty {
                let writable = if rest.is_empty() { 0 } else { libc::POLLOUT };
                let readable = if self.heard.bytes == until {
                    0
                } else {
                    libc::POLLIN
                };
                self.poll(readable | writable);
            }
        }
        if !has_told {
            on_full();
        }
    }

    /// Writes what there is room for.
    pub(crate) fn send(&self, bytes: &[u8], flags: libc::c_int) -> usize {
        let flags = flags | libc::MSG_NOSIGNAL;
        let fd = self.socket.as_raw_fd();
        // SAFETY: a buffer and its length.
        let count = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
        usize::try_from(count).unwrap_or_else(|_| {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
            0
        })
    }

    /// Reads once, at most `limit` bytes, after a look at them or not.
    fn receive(&mut self, limit: usize) -> Received {
        let most = limit.min(READ_BYTES);
        let len = match self.dice.below(4) {
            0 => most.min(1 + usize::try_from(self.dice.below(64)).expect("a size")),
            _ => most,
        };
        let peeked = match self.dice.below(8) {
            0 => match self.recv(len, libc::MSG_PEEK) {
                Received::Bytes(count) => self.buffer[..count].to_vec(),
                // An error is told once.
                other @ (Received::Nothing | Received::End | Received::Error(_)) => return other,
            },
            _ => Vec::new(),
        };
        let received = self.recv(len, 0);
        if let Received::Bytes(count) = received {
            let seen = peeked.len().min(count);
            assert_eq!(
                self.buffer[..seen],
                peeked[..seen],
                "a look shows what is read"
            );
            self.heard.add(&self.buffer[..count]);
        }
        received
    }

    fn recv(&mut self, len: usize, flags: libc::c_int) -> Received {
        let fd = self.socket.as_raw_fd();
        // SAFETY: a buffer that is at least `len` bytes long.
        let count = unsafe { libc::recv(fd, self.buffer.as_mut_ptr().cast(), len, flags) };
        match usize::try_from(count) {
            Ok(0) => Received::End,
            Ok(count) => Received::Bytes(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::WouldBlock {
                    Received::Nothing
                } else {
                    Received::Error(error.kind().to_string())
                }
            }
        }
    }

    /// Reads until the stream ends, one way or the other, and notes which.
    pub(crate) fn read_to_the_end(&mut self) {
        loop {
            match self.receive(READ_BYTES) {
                Received::Bytes(_) => {}
                Received::Nothing => self.poll(libc::POLLIN),
                Received::End => return self.heard.note("end"),
                Received::Error(name) => return self.heard.note(&name),
            }
        }
    }

    /// Waits until `events`, an error or a hang-up.
    pub(crate) fn poll(&self, events: libc::c_short) {
        wait_for(&self.socket, events);
    }

    /// Writes until the other end's reset has come back, and notes the error.
    pub(crate) fn write_until_it_fails(&mut self) {
        loop {
            let fd = self.socket.as_raw_fd();
            // SAFETY: one byte.
            let count = unsafe { libc::send(fd, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) };
            if count < 0 {
                let kind = io::Error::last_os_error().kind();
                return self.heard.note(&kind.to_string());
            }
            // The answer to a write on a closed connection is a reset.
            self.poll(0);
        }
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) -> Heard {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // SAFETY: a pointer to the option's value and its length.
        let answer = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                8,
            )
        };
        assert_eq!(answer, 0, "{}", io::Error::last_os_error());
        self.heard
    }
}
