//! One connection of a server as a state machine (RFC 9113): bytes in, events and bytes out.
//!
//! The caller feeds what it reads, sends what its services answer, and writes what is in the
//! outbox. Times are durations on the caller's monotonic clock, from the beginning of the connection.

mod receive;
mod streams;

use std::io::IoSlice;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::request::Parts as RequestParts;
use http::{HeaderMap, StatusCode, response};

use crate::budget::Budget;
use crate::frame::{self, ErrorCode};
use crate::hpack;
use crate::limits;
use crate::outbox::Outbox;
use receive::Block;
pub use streams::Slot;
use streams::{Receiving, Streams};

/// Payload of the PING that follows the first GOAWAY of a shutdown.
const SHUTDOWN_PING: [u8; 8] = *b"shutdown";

/// Payload of the PING that asks whether the peer lives.
const KEEPALIVE_PING: [u8; 8] = *b"isthmus?";

/// What a peer did.
#[derive(Debug)]
pub enum Event<'a> {
    /// A request. Its body follows, unless `is_end`.
    Request {
        /// Where the stream is, until it ends.
        slot: Slot,
        /// The request without its body.
        head: Box<RequestParts>,
        /// Whether it has no body.
        is_end: bool,
    },
    /// Some of a request's body; [`Connection::release`] is due when it was read.
    Data {
        /// The stream.
        slot: Slot,
        /// The bytes; may be empty at the end.
        bytes: &'a [u8],
        /// Whether they are the last.
        is_end: bool,
    },
    /// The body has ended with trailers.
    Trailers {
        /// The stream.
        slot: Slot,
        /// The trailers.
        fields: HeaderMap,
    },
    /// The stream is over before its end, by the peer's will or fault. Its slot is free.
    Reset {
        /// The stream.
        slot: Slot,
        /// Why.
        code: ErrorCode,
    },
}

/// How far a connection is on its way to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Going {
    /// It goes on.
    On,
    /// The peer was told to open no more streams, and may have some under way.
    Announced,
    /// Streams above this one are not looked at.
    Last(u32),
}

/// A connection. One owner, no sharing.
#[derive(Debug)]
pub struct Connection {
    preface_bytes: usize,
    has_settings: bool,
    // The beginning of a frame whose rest has not come.
    partial: Vec<u8>,
    decoder: hpack::Decoder,
    block: Option<Box<Block>>,
    streams: Streams,
    // What the peer may send, and what it lets us send, on all streams together.
    receiving: Receiving,
    send_window: i64,
    peer_window: u32,
    peer_frame_bytes: usize,
    budget: Budget,
    outbox: Outbox,
    going: Going,
    is_peer_going: bool,
    failed: Option<ErrorCode>,
    heard_at: Duration,
    asked_at: Option<Duration>,
}

impl Default for Connection {
    fn default() -> Self {
        Self::new()
    }
}

impl Connection {
    /// A connection on which nothing was said. Our SETTINGS are in the outbox.
    pub fn new() -> Self {
        let mut outbox = Outbox::default();
        outbox.put_frame(frame::SETTINGS, 0, 0, &our_settings());
        let increment = limits::CONNECTION_WINDOW_BYTES - frame::DEFAULT_WINDOW;
        outbox.put_frame(frame::WINDOW_UPDATE, 0, 0, &increment.to_be_bytes());
        Self {
            preface_bytes: 0,
            has_settings: false,
            partial: Vec::new(),
            decoder: hpack::Decoder::default(),
            block: None,
            streams: Streams::default(),
            receiving: Receiving::new(limits::CONNECTION_WINDOW_BYTES),
            send_window: i64::from(frame::DEFAULT_WINDOW),
            peer_window: frame::DEFAULT_WINDOW,
            peer_frame_bytes: limits::FRAME_BYTES as usize,
            budget: Budget::default(),
            outbox,
            going: Going::On,
            is_peer_going: false,
            failed: None,
            heard_at: Duration::ZERO,
            asked_at: None,
        }
    }

    /// Why the connection failed, if it did. All streams are over then, without an event.
    pub fn failure(&self) -> Option<ErrorCode> {
        self.failed
    }

    /// Whether nothing more will come but what is in the outbox.
    pub fn is_done(&self) -> bool {
        let is_going = self.is_peer_going || matches!(self.going, Going::Last(_));
        self.failed.is_some() || (is_going && self.streams.is_empty())
    }

    /// Whether the peer lets so many answers pile up that nothing should be read from it.
    pub fn is_clogged(&self) -> bool {
        self.outbox.len() > limits::UNREAD_ANSWERS_BYTES + 2 * limits::WRITE_BYTES
    }

    /// Bytes to be written.
    pub fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// Fills `slices` with the next bytes to be written; returns how many slices there are.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.outbox.slices(slices)
    }

    /// Takes away what was written.
    pub fn advance(&mut self, written: usize) {
        self.outbox.advance(written);
    }

    /// When [`Connection::handle_time`] has something to do.
    pub fn next_wake(&self) -> Duration {
        if !self.has_settings {
            return limits::FIRST_FRAME_PATIENCE;
        }
        self.asked_at
            .map_or(self.heard_at + limits::KEEPALIVE_INTERVAL, |asked_at| {
                asked_at + limits::KEEPALIVE_TIMEOUT
            })
    }

    /// Asks a silent peer whether it lives, and gives up one that does not answer.
    pub fn handle_time(&mut self, now: Duration) {
        if self.failed.is_some() || now < self.next_wake() {
            return;
        }
        if !self.has_settings {
            self.fail(ErrorCode::SETTINGS_TIMEOUT);
        } else if self.asked_at.is_some() {
            self.fail(ErrorCode::NO_ERROR);
        } else {
            self.asked_at = Some(now);
            self.outbox.put_frame(frame::PING, 0, 0, &KEEPALIVE_PING);
        }
    }

    /// Tells the peer to open no more streams; those that are open go on. What it opens until it
    /// has heard of it is served.
    pub fn shut_down(&mut self) {
        if self.failed.is_none() && self.going == Going::On {
            self.going = Going::Announced;
            self.put_goaway(frame::MOST, ErrorCode::NO_ERROR);
            self.outbox.put_frame(frame::PING, 0, 0, &SHUTDOWN_PING);
        }
    }

    /// Sends the head of a response.
    pub fn send_head(&mut self, slot: Slot, head: &response::Parts, is_end: bool) {
        self.send_fields(slot, Some(head.status), &head.headers, is_end);
    }

    /// Ends a response with trailers.
    pub fn send_trailers(&mut self, slot: Slot, trailers: &HeaderMap) {
        self.send_fields(slot, None, trailers, true);
    }

    /// Bytes that both windows have room for.
    pub fn room(&self, slot: Slot) -> usize {
        let window = self.send_window.min(self.streams.at(slot).send_window);
        usize::try_from(window).unwrap_or(0)
    }

    /// Sends the beginning of `data`: what there is room for, in the windows and in the outbox.
    pub fn send_data(&mut self, slot: Slot, data: &mut Bytes, is_last: bool) {
        let frame_bytes = self.peer_frame_bytes;
        while !data.is_empty() && self.outbox.len() < limits::WRITE_BYTES {
            let length = data.len().min(self.room(slot)).min(frame_bytes);
            if length == 0 {
                return;
            }
            let payload = data.copy_to_bytes(length);
            let is_end = is_last && data.is_empty();
            self.put_data(slot, payload, is_end);
        }
    }

    /// Ends a response that has no trailers.
    pub fn send_end(&mut self, slot: Slot) {
        self.put_data(slot, Bytes::new(), true);
    }

    /// Ends a stream before its end.
    pub fn reset(&mut self, slot: Slot, code: ErrorCode) {
        let stream = self.close(slot);
        self.put_reset(stream, code);
    }

    /// Takes back bytes of a request that were read, so that the peer may send as many more.
    pub fn release(&mut self, slot: Slot, read_bytes: u32) {
        let stream = self.streams.at_mut(slot);
        let read_bytes = read_bytes.min(stream.unread_bytes);
        stream.unread_bytes -= read_bytes;
        // A request that has ended needs no window.
        if !stream.is_remote_closed
            && let Some(increment) = stream.receiving.release(read_bytes)
        {
            let id = stream.id;
            let payload = increment.to_be_bytes();
            self.outbox.put_frame(frame::WINDOW_UPDATE, 0, id, &payload);
        }
        self.release_connection(read_bytes);
    }

    fn release_connection(&mut self, read_bytes: u32) {
        if let Some(increment) = self.receiving.release(read_bytes) {
            let payload = increment.to_be_bytes();
            self.outbox.put_frame(frame::WINDOW_UPDATE, 0, 0, &payload);
        }
    }

    fn put_data(&mut self, slot: Slot, payload: Bytes, is_end: bool) {
        let length = i64::try_from(payload.len()).unwrap_or(i64::MAX);
        self.send_window -= length;
        let stream = self.streams.at_mut(slot);
        stream.send_window -= length;
        let id = stream.id;
        let flags = if is_end { frame::END_STREAM } else { 0 };
        self.outbox
            .put_shared_frame(frame::DATA, flags, id, payload);
        self.budget.earn(limits::DATA_TOKENS);
        if is_end {
            self.end_response(slot);
        }
    }

    fn send_fields(
        &mut self,
        slot: Slot,
        status: Option<StatusCode>,
        fields: &HeaderMap,
        is_end: bool,
    ) {
        let mut block = Vec::new();
        if let Some(status) = status {
            hpack::encode_status(status, &mut block);
        }
        hpack::encode_fields(fields, &mut block);
        let id = self.streams.at(slot).id;
        let mut parts = block.chunks(self.peer_frame_bytes).peekable();
        let mut kind = frame::HEADERS;
        let mut flags = if is_end { frame::END_STREAM } else { 0 };
        if parts.peek().is_none() {
            // Trailers without fields.
            let flags = flags | frame::END_HEADERS;
            self.outbox.put_frame(kind, flags, id, &[]);
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                flags |= frame::END_HEADERS;
            }
            self.outbox.put_frame(kind, flags, id, part);
            (kind, flags) = (frame::CONTINUATION, 0);
        }
        if is_end {
            self.end_response(slot);
        }
    }

    // The stream is over when the response is: a request that goes on is not wanted (RFC 9113,
    // section 8.1).
    fn end_response(&mut self, slot: Slot) {
        self.budget.earn(limits::RESET_TOKENS);
        let is_open = !self.streams.at(slot).is_remote_closed;
        let id = self.close(slot);
        if is_open {
            self.streams.note_reset(id);
            let code = ErrorCode::NO_ERROR.0.to_be_bytes();
            self.outbox.put_frame(frame::RST_STREAM, 0, id, &code);
        }
    }

    // Frees a slot; what was not read is as good as read.
    fn close(&mut self, slot: Slot) -> u32 {
        let stream = self.streams.remove(slot);
        self.release_connection(stream.unread_bytes);
        stream.id
    }

    fn put_reset(&mut self, stream: u32, code: ErrorCode) {
        self.streams.note_reset(stream);
        let payload = code.0.to_be_bytes();
        self.outbox
            .put_frame(frame::RST_STREAM, 0, stream, &payload);
    }

    fn put_goaway(&mut self, last: u32, code: ErrorCode) {
        let payload = [last.to_be_bytes(), code.0.to_be_bytes()].concat();
        self.outbox.put_frame(frame::GOAWAY, 0, 0, &payload);
    }

    fn fail(&mut self, code: ErrorCode) {
        let last = match self.going {
            Going::Last(last) => last,
            Going::On | Going::Announced => self.streams.last_id(),
        };
        self.put_goaway(last, code);
        self.failed = Some(code);
        self.partial = Vec::new();
        self.block = None;
        self.streams.clear();
    }
}

fn our_settings() -> Vec<u8> {
    let settings = [
        (frame::HEADER_TABLE_SIZE, 0),
        (
            frame::MAX_CONCURRENT_STREAMS,
            limits::STREAMS_PER_CONNECTION,
        ),
        (frame::INITIAL_WINDOW_SIZE, limits::STREAM_WINDOW_BYTES),
        (frame::MAX_HEADER_LIST_SIZE, limits::HEADER_LIST_BYTES),
    ];
    let bytes = settings
        .iter()
        .flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes()));
    bytes.collect()
}

#[cfg(test)]
mod tests;
