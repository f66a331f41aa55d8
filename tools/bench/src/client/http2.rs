//! One gRPC call on one HTTP/2 connection, as a state machine without I/O.
//!
//! As little as a client can do: ten thousand of them share the machine with the server that is
//! measured. Headers of the server are skipped, not decoded; nothing but the call uses the
//! connection.

use bytes::{Buf, Bytes};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const FRAME_HEADER_BYTES: usize = 9;
const GRPC_PREFIX_BYTES: usize = 5;

/// The call's stream: the first that a client may open.
const STREAM: u32 = 1;

/// Largest frame that every peer accepts (RFC 9113, section 6.5.2).
const MAX_FRAME_BYTES: usize = 16_384;

/// Windows of both sides before anything is said (section 6.9.2).
const DEFAULT_WINDOW: i64 = 65_535;

/// What the server may send at once: as much as there can be, so that the server is never held
/// up by the client's windows.
const RECEIVE_WINDOW: u32 = (1 << 31) - 1;

/// When that many bytes came, the server is given as many again.
const RENEW_WINDOW_AT: u32 = 1 << 29;

/// Windows of a client that takes next to nothing.
const NARROW_WINDOW: u32 = 4096;

/// What the server may send before the client has read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Windows {
    /// As much as there can be.
    Endless,
    /// One page.
    Narrow,
}

/// A connection that carries one call.
#[derive(Debug)]
pub(crate) struct Connection {
    // The beginning of a frame whose rest has not come.
    partial: Vec<u8>,
    // The beginning of a message whose rest has not come.
    message: Vec<u8>,
    out: Vec<u8>,
    // Requests that wait for the server's windows.
    queued: std::collections::VecDeque<Bytes>,
    session_window: i64,
    stream_window: i64,
    initial_window: i64,
    unrenewed: u32,
    ended: Option<String>,
}

impl Connection {
    /// Opens the call `path`: the preface and the request's headers are ready to be sent.
    pub(crate) fn open(path: &str, windows: Windows) -> Self {
        let window = match windows {
            Windows::Endless => RECEIVE_WINDOW,
            Windows::Narrow => NARROW_WINDOW,
        };
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        put_frame_header(&mut out, 12, SETTINGS, 0, 0);
        // ENABLE_PUSH = 0, INITIAL_WINDOW_SIZE.
        out.extend_from_slice(&[0, 2, 0, 0, 0, 0, 0, 4]);
        out.extend_from_slice(&window.to_be_bytes());
        if windows == Windows::Endless {
            put_window_update(&mut out, 0, RECEIVE_WINDOW - 65_535);
        }
        let headers = header_block(path);
        put_frame_header(&mut out, headers.len(), HEADERS, END_HEADERS, STREAM);
        out.extend_from_slice(&headers);
        Self {
            partial: Vec::new(),
            message: Vec::new(),
            out,
            queued: std::collections::VecDeque::new(),
            session_window: DEFAULT_WINDOW,
            stream_window: DEFAULT_WINDOW,
            initial_window: DEFAULT_WINDOW,
            unrenewed: 0,
            ended: None,
        }
    }

    /// Sends one message; its body is in pieces, so that long shared parts are not copied.
    pub(crate) fn send(&mut self, pieces: impl IntoIterator<Item = Bytes>) {
        let pieces: Vec<Bytes> = pieces.into_iter().collect();
        let length: usize = pieces.iter().map(Bytes::len).sum();
        let length = u32::try_from(length).expect("requests are small");
        let prefix = [&[0][..], &length.to_be_bytes()].concat();
        self.queued.push_back(prefix.into());
        self.queued
            .extend(pieces.into_iter().filter(|it| !it.is_empty()));
        self.flush();
    }

    /// Takes what has to be written to the socket.
    pub(crate) fn take_out(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Why the call is over, if it is.
    pub(crate) fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// Takes bytes from the socket; calls `on_message` with each whole message.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut on_message: impl FnMut(&[u8])) {
        if self.partial.is_empty() {
            let used = self.feed_frames(bytes, &mut on_message);
            self.partial.extend_from_slice(&bytes[used..]);
        } else {
            let mut partial = std::mem::take(&mut self.partial);
            partial.extend_from_slice(bytes);
            let used = self.feed_frames(&partial, &mut on_message);
            if used < partial.len() {
                partial.drain(..used);
                self.partial = partial;
            }
        }
        self.flush();
    }

    fn feed_frames(&mut self, mut bytes: &[u8], on_message: &mut impl FnMut(&[u8])) -> usize {
        let total = bytes.len();
        while let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() {
            let [a, b, c, kind, flags, id @ ..] = *header;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some((payload, rest)) = rest.split_at_checked(length) else {
                break;
            };
            self.handle_frame(kind, flags, u32::from_be_bytes(id), payload, on_message);
            bytes = rest;
        }
        total - bytes.len()
    }

    fn handle_frame(
        &mut self,
        kind: u8,
        flags: u8,
        id: u32,
        payload: &[u8],
        on_message: &mut impl FnMut(&[u8]),
    ) {
        match kind {
            DATA if flags & PADDED != 0 => self.end("the server pads its frames"),
            DATA => {
                self.renew_windows(payload.len());
                self.feed_message(payload, on_message);
            }
            SETTINGS if flags & ACK == 0 => self.handle_settings(payload),
            PING if flags & ACK == 0 => {
                put_frame_header(&mut self.out, payload.len(), PING, ACK, 0);
                self.out.extend_from_slice(payload);
            }
            WINDOW_UPDATE if payload.len() == 4 => {
                let increment = i64::from((&mut &*payload).get_u32() & RECEIVE_WINDOW);
                if id == 0 {
                    self.session_window += increment;
                } else {
                    self.stream_window += increment;
                }
            }
            RST_STREAM => self.end("the server reset the stream"),
            GOAWAY => self.end("the server closed the connection"),
            _ => {}
        }
        if flags & END_STREAM != 0 && matches!(kind, DATA | HEADERS) {
            self.end("the server ended the stream");
        }
    }

    fn end(&mut self, reason: &str) {
        self.ended.get_or_insert_with(|| reason.to_owned());
    }

    fn handle_settings(&mut self, payload: &[u8]) {
        for setting in payload.chunks_exact(6) {
            let mut setting = setting;
            let (id, value) = (setting.get_u16(), setting.get_u32());
            if id == 4 {
                self.stream_window += i64::from(value) - self.initial_window;
                self.initial_window = i64::from(value);
            }
        }
        put_frame_header(&mut self.out, 0, SETTINGS, ACK, 0);
    }

    fn feed_message(&mut self, payload: &[u8], on_message: &mut impl FnMut(&[u8])) {
        if self.message.is_empty() {
            let rest = each_message(payload, on_message);
            self.message.extend_from_slice(rest);
            return;
        }
        self.message.extend_from_slice(payload);
        if is_whole(&self.message) {
            let message = std::mem::take(&mut self.message);
            self.message = each_message(&message, on_message).to_vec();
        }
    }

    fn renew_windows(&mut self, received: usize) {
        self.unrenewed += u32::try_from(received).expect("a frame is below 16 MiB");
        if self.unrenewed >= RENEW_WINDOW_AT {
            put_window_update(&mut self.out, 0, self.unrenewed);
            put_window_update(&mut self.out, STREAM, self.unrenewed);
            self.unrenewed = 0;
        }
    }

    fn flush(&mut self) {
        while !self.queued.is_empty() {
            let window = self.session_window.min(self.stream_window);
            let queued: usize = self.queued.iter().map(Bytes::len).sum();
            let allowed = usize::try_from(window).unwrap_or(0);
            let mut length = queued.min(allowed).min(MAX_FRAME_BYTES);
            if length == 0 {
                return;
            }
            put_frame_header(&mut self.out, length, DATA, 0, STREAM);
            self.session_window -= i64::try_from(length).expect("at most a frame");
            self.stream_window -= i64::try_from(length).expect("at most a frame");
            while length > 0 {
                let first = self.queued.front_mut().expect("as many bytes are queued");
                let piece = first.split_to(length.min(first.len()));
                self.out.extend_from_slice(&piece);
                length -= piece.len();
                if first.is_empty() {
                    self.queued.pop_front();
                }
            }
        }
    }
}

// Calls back with each whole message, returns what is left.
fn each_message<'a>(mut bytes: &'a [u8], on_message: &mut impl FnMut(&[u8])) -> &'a [u8] {
    while is_whole(bytes) {
        let (message, rest) = bytes[GRPC_PREFIX_BYTES..].split_at(message_len(bytes));
        on_message(message);
        bytes = rest;
    }
    bytes
}

fn is_whole(bytes: &[u8]) -> bool {
    bytes.len() >= GRPC_PREFIX_BYTES && bytes.len() - GRPC_PREFIX_BYTES >= message_len(bytes)
}

fn message_len(bytes: &[u8]) -> usize {
    u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize
}

fn put_frame_header(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let length = u32::try_from(length).expect("frames are small");
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put_frame_header(out, 4, WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

// HPACK without the dynamic table and without Huffman codes (RFC 7541, section 6.2.2).
fn header_block(path: &str) -> Vec<u8> {
    let mut out = vec![0x83, 0x86]; // :method POST, :scheme http
    put_text(&mut out, &[0x04], path);
    put_text(&mut out, &[0x01], "bench"); // :authority
    put_text(&mut out, &[0x0f, 0x10], "application/grpc"); // content-type
    out.push(0x00);
    put_text(&mut out, &[], "te");
    put_text(&mut out, &[], "trailers");
    out
}

fn put_text(out: &mut Vec<u8>, name: &[u8], text: &str) {
    out.extend_from_slice(name);
    let length = u8::try_from(text.len()).expect("header values are short");
    assert!(length < 127, "a longer one needs more length bytes");
    out.push(length);
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_frame_header(&mut out, payload.len(), kind, flags, STREAM);
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn messages_are_whole_wherever_the_bytes_are_cut() {
        let bytes = [
            frame(SETTINGS, 0, &[0, 4, 0, 1, 0, 0]),
            frame(DATA, 0, &[0, 0, 0, 0, 3, b'a', b'b']),
            frame(DATA, 0, &[b'c', 0, 0, 0, 0, 1, b'd', 0]),
            frame(DATA, 0, &[0, 0, 0, 0]),
        ]
        .concat();
        for step in 1..=bytes.len() {
            let mut connection = Connection::open("/p", Windows::Endless);
            let mut messages = Vec::new();
            for piece in bytes.chunks(step) {
                connection.feed(piece, |message| messages.push(message.to_vec()));
            }
            assert_eq!(messages, [&b"abc"[..], b"d", b""], "cut every {step}");
            assert!(connection.ended().is_none());
        }
    }

    #[test]
    fn requests_wait_for_the_window() {
        let mut connection = Connection::open("/p", Windows::Endless);
        connection.take_out();
        connection.send([Bytes::from(vec![7; 100_000])]);
        let first = connection.take_out().len();
        assert_eq!(first, 65_535 + 4 * FRAME_HEADER_BYTES);
        let mut updates = Vec::new();
        put_window_update(&mut updates, 0, 100_000);
        put_window_update(&mut updates, STREAM, 100_000);
        connection.feed(&updates, |_| {});
        let rest = 100_005 - 65_535;
        let frames = usize::div_ceil(rest, MAX_FRAME_BYTES);
        assert_eq!(
            connection.take_out().len(),
            rest + frames * FRAME_HEADER_BYTES
        );
    }

    #[test]
    fn the_end_is_noticed() {
        let mut connection = Connection::open("/p", Windows::Endless);
        connection.feed(&frame(HEADERS, END_STREAM | END_HEADERS, &[]), |_| {});
        assert!(connection.ended().is_some());
    }
}
