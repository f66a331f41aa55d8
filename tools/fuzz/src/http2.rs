//! A peer that keeps no rule of HTTP/2, and a service that answers some of what it asks.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use isthmus_http2::connection::{Connection, Event, Slot};
use isthmus_http2::limits;

use crate::input::Input;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NO_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

const HEADERS: u8 = 1;

/// A header block that is a request: POST, http, `/p`, and that the length of the body is open.
const REQUEST: [u8; 6] = [0x83, 0x86, 0x04, 0x02, b'/', b'p'];

/// What may wait in the outbox, when nothing is read while it is clogged: answers, data, and the
/// answers to the bytes that were read last.
const MAX_OUTBOX_BYTES: usize = 512 * 1024;

/// Runs frames, answers and waiting, as `data` says, on one connection.
///
/// # Panics
///
/// If an invariant is broken.
pub fn http2(data: &[u8]) {
    let mut input = Input(data);
    let mut peer = Peer::new();
    if input.byte() & 1 == 0 {
        peer.feed(PREFACE);
        peer.feed(&NO_SETTINGS);
    }
    while let Some(step) = input.next() {
        match step % 8 {
            0 => peer.feed(input.bytes()),
            1..=3 => {
                let frame = frame(&mut input);
                peer.feed_cut(&frame, usize::from(step >> 3));
            }
            4 => peer.respond(&mut input),
            5 => peer.write(usize::from(input.short())),
            6 => {
                peer.now += Duration::from_millis(u64::from(input.short()));
                peer.connection.handle_time(peer.now);
            }
            _ if step >> 6 == 3 => peer.connection.shut_down(),
            _ => peer.release(&mut input),
        }
        peer.check();
    }
    peer.drain();
}

// One frame, well formed on the outside.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.byte() % 11;
    let flags = input.byte();
    let stream = u32::from(input.byte()) % 9;
    let mut payload = Vec::new();
    if kind == HEADERS && flags & 0x80 == 0 {
        payload.extend_from_slice(&REQUEST);
    }
    payload.extend_from_slice(input.bytes());
    let length = u32::try_from(payload.len()).expect("short");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags & 0x7f]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&payload);
    frame
}

#[derive(Clone, Copy, Debug, Default)]
struct Open {
    has_head: bool,
    // Handed out and not given back.
    unread_bytes: u32,
}

struct Peer {
    connection: Connection,
    now: Duration,
    open: BTreeMap<Slot, Open>,
    // The beginning of a frame of ours whose rest was not written.
    unparsed: Vec<u8>,
}

impl Peer {
    fn new() -> Self {
        Self {
            connection: Connection::new(),
            now: Duration::ZERO,
            open: BTreeMap::new(),
            unparsed: Vec::new(),
        }
    }

    fn feed_cut(&mut self, bytes: &[u8], at: usize) {
        let (one, other) = bytes.split_at(at.min(bytes.len()));
        self.feed(one);
        self.feed(other);
    }

    fn feed(&mut self, bytes: &[u8]) {
        let Self {
            connection,
            now,
            open,
            ..
        } = self;
        if connection.is_clogged() || connection.is_done() {
            return;
        }
        connection.handle_bytes(bytes, *now, &mut |event| match event {
            Event::Request { slot, head, .. } => {
                assert!(!head.uri.path().is_empty());
                let before = open.insert(slot, Open::default());
                assert!(before.is_none(), "a slot is given to two streams");
            }
            Event::Data { slot, bytes, .. } => {
                let stream = open.get_mut(&slot).expect("data of an open stream");
                stream.unread_bytes += u32::try_from(bytes.len()).expect("a frame's payload");
            }
            Event::Trailers { slot, .. } => {
                assert!(open.contains_key(&slot), "trailers of an open stream");
            }
            Event::Reset { slot, .. } => {
                assert!(open.remove(&slot).is_some(), "an open stream is reset");
            }
        });
        if connection.failure().is_some() {
            open.clear();
        }
    }

    fn pick(&self, input: &mut Input<'_>) -> Option<Slot> {
        let index = usize::from(input.byte());
        let count = self.open.len().max(1);
        self.open.keys().nth(index % count).copied()
    }

    fn respond(&mut self, input: &mut Input<'_>) {
        let Some(slot) = self.pick(input) else { return };
        let stream = self.open.get_mut(&slot).expect("it was picked");
        let how = input.byte();
        if how & 0xf0 == 0xf0 {
            self.connection.reset(slot, isthmus_http2::ErrorCode(0));
            self.open.remove(&slot);
            return;
        }
        if !stream.has_head {
            stream.has_head = true;
            let mut response = Response::new(());
            let length = usize::from(how >> 4) * 1500;
            let value = HeaderValue::from_bytes(&vec![b'v'; length]).expect("it is text");
            response.headers_mut().insert("x-long", value);
            let (head, ()) = response.into_parts();
            self.connection.send_head(slot, &head, how & 1 != 0);
            if how & 1 != 0 {
                self.open.remove(&slot);
            }
            return;
        }
        match how & 3 {
            0 => {
                self.connection.send_end(slot);
                self.open.remove(&slot);
            }
            1 => {
                self.connection.send_trailers(slot, &HeaderMap::new());
                self.open.remove(&slot);
            }
            _ => {
                let mut data = Bytes::from(vec![7; usize::from(input.short())]);
                let (room, length) = (self.connection.room(slot), data.len());
                let is_last = how & 4 != 0 && length > 0;
                self.connection.send_data(slot, &mut data, is_last);
                assert!(length - data.len() <= room, "more than there is room for");
                if is_last && data.is_empty() {
                    self.open.remove(&slot);
                }
            }
        }
    }

    fn release(&mut self, input: &mut Input<'_>) {
        let Some(slot) = self.pick(input) else { return };
        let stream = self.open.get_mut(&slot).expect("it was picked");
        let read = stream.unread_bytes.min(u32::from(input.short()));
        stream.unread_bytes -= read;
        self.connection.release(slot, read);
    }

    fn write(&mut self, most: usize) {
        let mut slices = [IoSlice::new(&[]); 8];
        let count = self.connection.slices(&mut slices);
        let mut written = 0;
        for slice in &slices[..count] {
            let part = &slice[..slice.len().min(most - written)];
            self.unparsed.extend_from_slice(part);
            written += part.len();
        }
        self.connection.advance(written);
        self.parse();
    }

    // What is written is frames, whole and no longer than any peer must accept by default; that a
    // peer's SETTINGS allow longer ones is its own word.
    fn parse(&mut self) {
        let mut bytes = &self.unparsed[..];
        while let Some(head) = bytes.first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            assert!(head[3] <= 9, "a kind of frame that nobody knows: {head:?}");
            let Some(rest) = bytes.get(9 + length..) else {
                break;
            };
            bytes = rest;
        }
        let parsed = self.unparsed.len() - bytes.len();
        self.unparsed.drain(..parsed);
    }

    fn check(&self) {
        let outbox = self.connection.outbox_len();
        assert!(
            outbox <= MAX_OUTBOX_BYTES,
            "{outbox} bytes wait to be written"
        );
        assert!(self.open.len() <= limits::STREAMS_PER_CONNECTION as usize);
        let unread: u32 = self.open.values().map(|it| it.unread_bytes).sum();
        assert!(
            unread <= limits::CONNECTION_WINDOW_BYTES,
            "{unread} bytes wait to be read"
        );
        for slot in self.open.keys() {
            self.connection.room(*slot);
        }
    }

    fn drain(&mut self) {
        while self.connection.outbox_len() > 0 {
            let before = self.connection.outbox_len();
            self.write(usize::MAX);
            assert!(self.connection.outbox_len() < before, "the outbox is stuck");
        }
        assert!(self.unparsed.is_empty(), "half a frame was the last");
    }
}
