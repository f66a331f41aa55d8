//! The machine against a peer made of bytes.

use proptest::prelude::*;

use super::*;
use crate::frame::{ACK, END_HEADERS, END_STREAM, HAS_PRIORITY, MOST, PADDED, PREFACE};

/// `:method POST`, `:scheme http`, `:path /`.
const REQUEST: [u8; 3] = [0x83, 0x86, 0x84];

/// What happened, without borrows.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Seen {
    Request(usize, String, bool),
    Data(usize, Vec<u8>, bool),
    Trailers(usize, usize),
    Reset(usize, ErrorCode),
}

/// A frame that was sent to the peer.
type Sent = (u8, u8, u32, Vec<u8>);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut outbox = Outbox::default();
    outbox.put_frame(kind, flags, stream, payload);
    read(&outbox)
}

fn word(kind: u8, stream: u32, word: u32) -> Vec<u8> {
    frame(kind, 0, stream, &word.to_be_bytes())
}

fn request(stream: u32, flags: u8) -> Vec<u8> {
    frame(frame::HEADERS, END_HEADERS | flags, stream, &REQUEST)
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(frame::SETTINGS, 0, 0, &payload)
}

fn read(outbox: &Outbox) -> Vec<u8> {
    let mut slices = [IoSlice::new(&[]); 64];
    let count = outbox.slices(&mut slices);
    slices[..count]
        .iter()
        .flat_map(|slice| slice.to_vec())
        .collect()
}

struct Peer {
    connection: Connection,
    now: Duration,
}

impl Peer {
    /// A connection whose beginning is over.
    fn new() -> Self {
        let mut peer = Self {
            connection: Connection::new(),
            now: Duration::ZERO,
        };
        peer.send(&[&PREFACE[..], &frame(frame::SETTINGS, 0, 0, &[])].concat());
        peer.send(&frame(frame::SETTINGS, ACK, 0, &[]));
        peer.sent();
        peer
    }

    fn send(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.connection.handle_bytes(bytes, self.now, &mut |event| {
            seen.push(match event {
                Event::Request { slot, head, is_end } => {
                    Seen::Request(slot.index(), head.uri.to_string(), is_end)
                }
                Event::Data {
                    slot,
                    bytes,
                    is_end,
                } => Seen::Data(slot.index(), bytes.to_vec(), is_end),
                Event::Trailers { slot, fields } => Seen::Trailers(slot.index(), fields.len()),
                Event::Reset { slot, code } => Seen::Reset(slot.index(), code),
            });
        });
        seen
    }

    fn open(&mut self, stream: u32, flags: u8) -> Slot {
        match *self.send(&request(stream, flags)) {
            [Seen::Request(index, ..)] => Slot::from_index(index).unwrap(),
            ref other => panic!("no request: {other:?}"),
        }
    }

    /// The frames that were sent, which are taken.
    fn sent(&mut self) -> Vec<Sent> {
        let mut bytes = Vec::new();
        while self.connection.outbox_len() > 0 {
            let next = read(&self.connection.outbox);
            self.connection.advance(next.len());
            bytes.extend(next);
        }
        let mut rest = &bytes[..];
        let mut sent = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            let stream = u32::from_be_bytes(rest[5..9].try_into().unwrap());
            sent.push((rest[3], rest[4], stream, rest[9..9 + length].to_vec()));
            rest = &rest[9 + length..];
        }
        sent
    }

    /// The code that the connection ended with, and whether GOAWAY says so.
    fn goaway(&mut self) -> Option<ErrorCode> {
        let sent = self.sent();
        let failure = self.connection.failure();
        let told = sent.iter().find(|(kind, ..)| *kind == frame::GOAWAY);
        assert_eq!(
            told.map(|(.., payload)| payload[4..8].to_vec()),
            failure.map(|code| code.0.to_be_bytes().to_vec())
        );
        failure
    }

    /// The code that a stream was reset with.
    fn reset_of(&mut self, stream: u32) -> Option<ErrorCode> {
        let sent = self.sent();
        assert_eq!(self.connection.failure(), None, "the connection goes on");
        sent.iter()
            .find(|(kind, _, id, _)| *kind == frame::RST_STREAM && *id == stream)
            .map(|(.., payload)| ErrorCode(frame::parse_word(payload).unwrap()))
    }
}

fn ok() -> response::Parts {
    http::Response::new(()).into_parts().0
}

#[test]
fn a_request_is_answered() {
    let mut peer = Peer::new();
    let seen = peer.send(&[request(1, 0), frame(frame::DATA, END_STREAM, 1, b"hello")].concat());
    let expected = [
        Seen::Request(0, "/".to_owned(), false),
        Seen::Data(0, b"hello".to_vec(), true),
    ];
    assert_eq!(seen, expected);
    let slot = Slot::from_index(0).unwrap();
    peer.connection.send_head(slot, &ok(), false);
    let mut data = Bytes::from_static(b"world");
    peer.connection.send_data(slot, &mut data, false);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", 0.into());
    peer.connection.send_trailers(slot, &trailers);
    let sent = peer.sent();
    assert_eq!(sent[0], (frame::HEADERS, END_HEADERS, 1, vec![0x88]));
    assert_eq!(sent[1], (frame::DATA, 0, 1, b"world".to_vec()));
    assert_eq!(sent[2].1, END_HEADERS | END_STREAM);
    assert_eq!(sent.len(), 3, "both sides have ended: there is no reset");
}

#[test]
fn the_first_settings_announce_the_bounds_and_no_table() {
    let connection = Connection::new();
    let bytes = read(&connection.outbox);
    let expected = [
        [0, 1, 0, 0, 0, 0],
        [0, 3, 0, 0, 1, 0],
        [0, 4, 0, 16, 0, 0],
        [0, 6, 0, 0, 64, 0],
    ];
    assert_eq!(bytes[9..33], expected.concat());
}

#[test]
#[allow(clippy::too_many_lines, reason = "it is a table")]
fn breaches_end_the_connection() {
    use ErrorCode as E;
    let long = vec![0; 16_385];
    let request_1 = request(1, END_STREAM);
    let headers = |flags, payload: &[u8]| frame(frame::HEADERS, flags, 1, payload);
    let over = [
        word(frame::WINDOW_UPDATE, 0, MOST),
        word(frame::WINDOW_UPDATE, 0, 1),
    ];
    let cases: Vec<(&str, Vec<u8>, ErrorCode)> = vec![
        (
            "a frame that is too long",
            frame(frame::DATA, 0, 1, &long),
            E::FRAME_SIZE_ERROR,
        ),
        (
            "DATA on no stream",
            frame(frame::DATA, 0, 0, &[]),
            E::PROTOCOL_ERROR,
        ),
        (
            "DATA on an idle stream",
            frame(frame::DATA, 0, 1, &[]),
            E::PROTOCOL_ERROR,
        ),
        (
            "HEADERS on no stream",
            frame(frame::HEADERS, END_HEADERS, 0, &REQUEST),
            E::PROTOCOL_ERROR,
        ),
        ("a stream of a server", request(2, 0), E::PROTOCOL_ERROR),
        (
            "a lower stream",
            [request(5, 0), request(3, 0)].concat(),
            E::PROTOCOL_ERROR,
        ),
        (
            "padding longer than the frame",
            headers(END_HEADERS | PADDED, &[9, 0x83]),
            E::PROTOCOL_ERROR,
        ),
        (
            "a priority that is cut",
            headers(END_HEADERS | HAS_PRIORITY, &[0; 4]),
            E::FRAME_SIZE_ERROR,
        ),
        (
            "a block that is not HPACK",
            headers(END_HEADERS, &[0x80]),
            E::COMPRESSION_ERROR,
        ),
        (
            "a block that refers to a table",
            headers(END_HEADERS, &[0xbe]),
            E::COMPRESSION_ERROR,
        ),
        (
            "a frame inside a block",
            [headers(0, &REQUEST), frame(frame::PING, 0, 0, &[0; 8])].concat(),
            E::PROTOCOL_ERROR,
        ),
        (
            "another stream inside a block",
            [headers(0, &REQUEST), frame(frame::CONTINUATION, 4, 3, &[])].concat(),
            E::PROTOCOL_ERROR,
        ),
        (
            "CONTINUATION of nothing",
            frame(frame::CONTINUATION, 4, 1, &[]),
            E::PROTOCOL_ERROR,
        ),
        (
            "RST_STREAM of an idle stream",
            word(frame::RST_STREAM, 1, 8),
            E::PROTOCOL_ERROR,
        ),
        (
            "RST_STREAM that is cut",
            [&request_1[..], &frame(frame::RST_STREAM, 0, 1, &[0; 3])].concat(),
            E::FRAME_SIZE_ERROR,
        ),
        (
            "SETTINGS on a stream",
            frame(frame::SETTINGS, 0, 1, &[]),
            E::PROTOCOL_ERROR,
        ),
        (
            "SETTINGS that are cut",
            frame(frame::SETTINGS, 0, 0, &[0; 5]),
            E::FRAME_SIZE_ERROR,
        ),
        (
            "an acknowledgement that says something",
            frame(frame::SETTINGS, ACK, 0, &[0; 6]),
            E::FRAME_SIZE_ERROR,
        ),
        (
            "ENABLE_PUSH of 2",
            setting(frame::ENABLE_PUSH, 2),
            E::PROTOCOL_ERROR,
        ),
        (
            "a frame size that is too small",
            setting(frame::MAX_FRAME_SIZE, 16_383),
            E::PROTOCOL_ERROR,
        ),
        (
            "a frame size that is too large",
            setting(frame::MAX_FRAME_SIZE, 1 << 24),
            E::PROTOCOL_ERROR,
        ),
        (
            "a window that is too large",
            setting(frame::INITIAL_WINDOW_SIZE, MOST + 1),
            E::FLOW_CONTROL_ERROR,
        ),
        (
            "the connection's window overflows",
            over.concat(),
            E::FLOW_CONTROL_ERROR,
        ),
        (
            "an increment of 0",
            word(frame::WINDOW_UPDATE, 0, 0),
            E::PROTOCOL_ERROR,
        ),
        (
            "WINDOW_UPDATE of an idle stream",
            word(frame::WINDOW_UPDATE, 1, 1),
            E::PROTOCOL_ERROR,
        ),
        (
            "PING that is cut",
            frame(frame::PING, 0, 0, &[0; 7]),
            E::FRAME_SIZE_ERROR,
        ),
        (
            "PING on a stream",
            frame(frame::PING, 0, 1, &[0; 8]),
            E::PROTOCOL_ERROR,
        ),
        (
            "PUSH_PROMISE",
            frame(frame::PUSH_PROMISE, 4, 1, &REQUEST),
            E::PROTOCOL_ERROR,
        ),
        (
            "PRIORITY on no stream",
            frame(frame::PRIORITY, 0, 0, &[0; 5]),
            E::PROTOCOL_ERROR,
        ),
        (
            "GOAWAY on a stream",
            frame(frame::GOAWAY, 0, 1, &[0; 8]),
            E::PROTOCOL_ERROR,
        ),
    ];
    for (name, bytes, code) in cases {
        let mut peer = Peer::new();
        peer.send(&bytes);
        assert_eq!(peer.goaway(), Some(code), "{name}");
        assert_eq!(
            peer.send(&request(7, 0)),
            [],
            "{name}: nothing is heard any more"
        );
    }
}

#[test]
fn what_comes_before_settings_is_refused() {
    let cases = [
        ("HTTP/1", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a request first", [&PREFACE[..], &request(1, 0)].concat()),
        (
            "an acknowledgement first",
            [&PREFACE[..], &frame(frame::SETTINGS, ACK, 0, &[])].concat(),
        ),
    ];
    for (name, bytes) in cases {
        let mut peer = Peer {
            connection: Connection::new(),
            now: Duration::ZERO,
        };
        peer.send(&bytes);
        assert_eq!(peer.goaway(), Some(ErrorCode::PROTOCOL_ERROR), "{name}");
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "it is a table")]
fn faults_of_one_stream_leave_the_others_alone() {
    use ErrorCode as E;
    let data = |flags, payload: &[u8]| frame(frame::DATA, flags, 3, payload);
    let length = [&REQUEST[..], &[0x0f, 0x0d, 1, b'3']].concat();
    let with_length = |flags| frame(frame::HEADERS, END_HEADERS | flags, 3, &length);
    let cases: Vec<(&str, Vec<u8>, ErrorCode)> = vec![
        (
            "no request",
            frame(frame::HEADERS, END_HEADERS, 3, &[0x83]),
            E::PROTOCOL_ERROR,
        ),
        (
            "DATA after the end",
            [request(3, END_STREAM), data(0, b"x")].concat(),
            E::STREAM_CLOSED,
        ),
        (
            "HEADERS after the end",
            [request(3, END_STREAM), request(3, END_STREAM)].concat(),
            E::STREAM_CLOSED,
        ),
        (
            "trailers that do not end it",
            [request(3, 0), frame(frame::HEADERS, END_HEADERS, 3, &[])].concat(),
            E::PROTOCOL_ERROR,
        ),
        (
            "a pseudo-header in the trailers",
            [request(3, 0), request(3, END_STREAM)].concat(),
            E::PROTOCOL_ERROR,
        ),
        (
            "less than was said",
            [with_length(0), data(END_STREAM, b"ab")].concat(),
            E::PROTOCOL_ERROR,
        ),
        (
            "more than was said",
            [with_length(0), data(0, b"abcd")].concat(),
            E::PROTOCOL_ERROR,
        ),
        (
            "nothing of what was said",
            with_length(END_STREAM),
            E::PROTOCOL_ERROR,
        ),
        (
            "an increment of 0",
            [request(3, 0), word(frame::WINDOW_UPDATE, 3, 0)].concat(),
            E::PROTOCOL_ERROR,
        ),
        (
            "a window that overflows",
            [request(3, 0), word(frame::WINDOW_UPDATE, 3, MOST)].concat(),
            E::FLOW_CONTROL_ERROR,
        ),
    ];
    for (name, bytes, code) in cases {
        let mut peer = Peer::new();
        let other = peer.open(1, 0);
        peer.send(&bytes);
        assert_eq!(peer.reset_of(3), Some(code), "{name}");
        peer.connection.send_head(other, &ok(), true);
        assert!(!peer.sent().is_empty(), "{name}");
        assert_eq!(peer.send(&data(0, b"under way")), [], "{name}: is ignored");
        assert_eq!(peer.connection.failure(), None, "{name}");
    }
}

#[test]
fn padding_priority_and_unknown_frames_mean_nothing() {
    let mut peer = Peer::new();
    let padded = [&[2, 0, 0, 0, 0, 16][..], &REQUEST, &[0, 0]].concat();
    let flags = END_HEADERS | PADDED | HAS_PRIORITY;
    let bytes = [
        frame(frame::PRIORITY, 0, 9, &[0, 0, 0, 7, 1]),
        frame(0x42, 0xff, 77, b"whatever"),
        frame(frame::HEADERS, flags, 1, &padded),
        frame(frame::DATA, PADDED, 1, &[3, b'a', b'b', 0, 0, 0]),
        frame(frame::SETTINGS, 0, 0, &[0, 99, 0, 0, 0, 1]),
        frame(
            frame::HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &[0, 1, b'a', 1, b'b'],
        ),
    ];
    let expected = [
        Seen::Request(0, "/".to_owned(), false),
        Seen::Data(0, b"ab".to_vec(), false),
        Seen::Trailers(0, 1),
    ];
    assert_eq!(peer.send(&bytes.concat()), expected);
    assert_eq!(peer.goaway(), None);
}

#[test]
fn responses_stay_inside_both_windows_and_the_frame_size() {
    let mut peer = Peer::new();
    peer.send(&setting(frame::INITIAL_WINDOW_SIZE, 20_000));
    let slot = peer.open(1, END_STREAM);
    let mut data = Bytes::from(vec![7; 50_000]);
    let lengths = |peer: &mut Peer| -> Vec<usize> {
        let sent = peer.sent();
        let data = sent.iter().filter(|(kind, ..)| *kind == frame::DATA);
        data.map(|(.., payload)| payload.len()).collect()
    };
    peer.connection.send_data(slot, &mut data, true);
    assert_eq!(lengths(&mut peer), [16_384, 3_616]);
    assert_eq!(peer.connection.room(slot), 0);

    peer.send(&setting(frame::INITIAL_WINDOW_SIZE, 10_000));
    peer.send(&word(frame::WINDOW_UPDATE, 1, 5_000));
    assert_eq!(peer.connection.room(slot), 0, "the window is below zero");
    peer.send(&setting(frame::MAX_FRAME_SIZE, 30_000));
    peer.send(&word(frame::WINDOW_UPDATE, 1, 45_000));
    peer.connection.send_data(slot, &mut data, true);
    assert_eq!(lengths(&mut peer), [30_000], "the last ended the stream");
    assert!(data.is_empty());

    let slot = peer.open(3, END_STREAM);
    peer.send(&word(frame::WINDOW_UPDATE, 3, 1 << 20));
    let mut data = Bytes::from(vec![7; 50_000]);
    peer.connection.send_data(slot, &mut data, true);
    assert_eq!(lengths(&mut peer), [15_535], "what the connection had left");
}

#[test]
fn requests_get_windows_as_they_are_read_and_not_before() {
    let mut peer = Peer::new();
    let slot = peer.open(1, 0);
    let chunk = vec![0; 16_384];
    for _ in 0..64 {
        peer.send(&frame(frame::DATA, 0, 1, &chunk));
    }
    assert_eq!(peer.sent(), [], "nothing was read");
    peer.connection.release(slot, 512 * 1024);
    let increment = (512_u32 * 1024).to_be_bytes().to_vec();
    assert_eq!(
        peer.sent(),
        [
            (frame::WINDOW_UPDATE, 0, 1, increment.clone()),
            (frame::WINDOW_UPDATE, 0, 0, increment)
        ]
    );
    for _ in 0..32 {
        peer.send(&frame(frame::DATA, 0, 1, &chunk));
    }
    peer.send(&frame(frame::DATA, 0, 1, b"x"));
    assert_eq!(peer.reset_of(1), Some(ErrorCode::FLOW_CONTROL_ERROR));
}

#[test]
fn all_streams_together_have_a_window_too() {
    let mut peer = Peer::new();
    let chunk = vec![0; 16_384];
    for stream in [1, 3, 5] {
        peer.open(stream, 0);
    }
    for index in 0..128 {
        peer.send(&frame(frame::DATA, 0, 1 + 2 * (index % 3), &chunk));
    }
    assert_eq!(peer.goaway(), None);
    peer.send(&frame(frame::DATA, 0, 1, b"x"));
    assert_eq!(peer.goaway(), Some(ErrorCode::FLOW_CONTROL_ERROR));
}

#[test]
fn what_a_stream_left_unread_is_given_back_when_it_ends() {
    let mut peer = Peer::new();
    let chunk = vec![0; 16_384];
    for stream in (1..200).step_by(2) {
        let slot = peer.open(stream, 0);
        for _ in 0..60 {
            peer.send(&frame(frame::DATA, 0, stream, &chunk));
        }
        peer.connection.send_head(slot, &ok(), true);
    }
    assert_eq!(peer.goaway(), None, "a hundred times a window went through");
}

#[test]
fn a_response_that_ends_first_ends_the_request_without_an_error() {
    let mut peer = Peer::new();
    let slot = peer.open(1, 0);
    peer.connection.send_head(slot, &ok(), true);
    assert_eq!(peer.reset_of(1), Some(ErrorCode::NO_ERROR));
    let late = [frame(frame::DATA, 0, 1, b"late"), request(1, END_STREAM)];
    assert_eq!(peer.send(&late.concat()), []);
    assert_eq!(peer.goaway(), None);
}

#[test]
fn streams_above_the_bound_are_refused_and_places_are_used_again() {
    let mut peer = Peer::new();
    let mut slots = Vec::new();
    for index in 0..256 {
        slots.push(peer.open(1 + 2 * index, END_STREAM));
    }
    assert_eq!(peer.send(&request(601, 0)), []);
    assert_eq!(peer.reset_of(601), Some(ErrorCode::REFUSED_STREAM));
    peer.connection.send_head(slots[7], &ok(), true);
    assert_eq!(peer.open(603, 0), slots[7]);
}

#[test]
fn floods_end_the_connection() {
    let reset = |stream: u32| [request(stream, 0), word(frame::RST_STREAM, stream, 8)].concat();
    let flood = |one: &dyn Fn(u32) -> Vec<u8>| -> Vec<u8> {
        (0..1010).flat_map(|index| one(1 + 2 * index)).collect()
    };
    let fields = [0, 1, b'a', 1, b'b'].repeat(1000);
    let open = [request(1, 0), request(3, 0)].concat();
    let begun = frame(frame::HEADERS, 0, 5, &REQUEST);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("rapid reset", flood(&reset)),
        ("PING", flood(&|_| frame(frame::PING, 0, 0, &[0; 8]))),
        ("SETTINGS", flood(&|_| frame(frame::SETTINGS, 0, 0, &[]))),
        (
            "PRIORITY",
            flood(&|_| frame(frame::PRIORITY, 0, 1, &[0; 5])),
        ),
        (
            "WINDOW_UPDATE",
            flood(&|_| word(frame::WINDOW_UPDATE, 0, 1)),
        ),
        ("WINDOW_UPDATE of a stream that has ended", {
            let over = [request(5, END_STREAM), word(frame::RST_STREAM, 5, 8)].concat();
            [over, flood(&|_| word(frame::WINDOW_UPDATE, 5, 4096))].concat()
        }),
        ("unknown frames", flood(&|_| frame(99, 0, 0, &[]))),
        ("empty DATA", flood(&|_| frame(frame::DATA, 0, 1, &[]))),
        (
            "errors of streams",
            flood(&|id| frame(frame::HEADERS, END_HEADERS, 4 + id, &[0x83])),
        ),
        (
            "CONTINUATION",
            [
                begun.clone(),
                frame(frame::CONTINUATION, 0, 5, &fields).repeat(8),
            ]
            .concat(),
        ),
        (
            "empty CONTINUATION",
            [begun, frame(frame::CONTINUATION, 0, 5, &[]).repeat(1010)].concat(),
        ),
    ];
    for (name, bytes) in cases {
        let mut peer = Peer::new();
        let prelude = if name == "rapid reset" {
            &[][..]
        } else {
            &open
        };
        peer.send(&[prelude, &bytes].concat());
        assert_eq!(peer.goaway(), Some(ErrorCode::ENHANCE_YOUR_CALM), "{name}");
    }
}

#[test]
fn streams_that_end_in_order_are_no_flood() {
    let mut peer = Peer::new();
    for index in 0..5000 {
        let id = 1 + 2 * index;
        let slot = peer.open(id, END_STREAM);
        peer.connection.send_head(slot, &ok(), false);
        let mut data = Bytes::from_static(b"x");
        peer.connection.send_data(slot, &mut data, false);
        peer.connection.send_end(slot);
        peer.sent();
        let window = word(frame::WINDOW_UPDATE, 0, 1);
        peer.send(&[window, frame(frame::PING, 0, 0, &[0; 8])].concat());
    }
    assert_eq!(peer.goaway(), None);
}

#[test]
fn a_reader_that_renews_its_windows_in_small_steps_is_no_flood() {
    let mut peer = Peer::new();
    let slot = peer.open(1, END_STREAM);
    for _ in 0..5000 {
        let mut data = Bytes::from(vec![7; 16_384]);
        peer.connection.send_data(slot, &mut data, false);
        assert!(data.is_empty());
        peer.sent();
        let updates = [
            word(frame::WINDOW_UPDATE, 0, 4096),
            word(frame::WINDOW_UPDATE, 1, 4096),
        ];
        peer.send(&updates.concat().repeat(4));
    }
    assert_eq!(peer.goaway(), None);
}

#[test]
fn a_large_header_list_is_answered_and_nothing_is_kept() {
    let mut peer = Peer::new();
    let fields = [0, 1, b'a', 1, b'b'].repeat(1000);
    let block = [&REQUEST[..], &fields].concat();
    let seen = peer.send(&frame(frame::HEADERS, END_HEADERS | END_STREAM, 1, &block));
    assert_eq!(seen, []);
    let sent = peer.sent();
    assert_eq!(sent[0].1, END_HEADERS | END_STREAM);
    assert_eq!(sent[0].3[2..], *b"431");
}

#[test]
fn blocks_and_bytes_may_be_cut_anywhere() {
    let block = [&REQUEST[..], &[0, 1, b'a', 1, b'b']].concat();
    let bytes = [
        &PREFACE[..],
        &frame(frame::SETTINGS, 0, 0, &[]),
        &frame(frame::HEADERS, 0, 1, &block[..1]),
        &frame(frame::CONTINUATION, 0, 1, &block[1..5]),
        &frame(frame::CONTINUATION, END_HEADERS, 1, &block[5..]),
        &frame(frame::DATA, END_STREAM, 1, b"abc"),
        &frame(frame::PING, 0, 0, b"12345678"),
    ]
    .concat();
    let expected = [
        Seen::Request(0, "/".to_owned(), false),
        Seen::Data(0, b"abc".to_vec(), true),
    ];
    for step in 1..bytes.len() {
        let mut peer = Peer {
            connection: Connection::new(),
            now: Duration::ZERO,
        };
        let parts = bytes.chunks(step);
        let seen: Vec<Seen> = parts.flat_map(|part| peer.send(part)).collect();
        assert_eq!(seen, expected, "{step} bytes at a time");
        let answer = (frame::PING, ACK, 0, b"12345678".to_vec());
        assert!(peer.sent().contains(&answer));
        assert_eq!(peer.connection.partial.capacity(), 0, "idle holds nothing");
    }
}

#[test]
fn shutting_down_serves_what_is_under_way() {
    let mut peer = Peer::new();
    let first = peer.open(1, END_STREAM);
    peer.connection.shut_down();
    peer.connection.shut_down();
    let sent = peer.sent();
    let announced = [MOST.to_be_bytes(), [0; 4]].concat();
    assert_eq!(sent[0], (frame::GOAWAY, 0, 0, announced));
    let (ping, .., payload) = &sent[1];
    assert_eq!((*ping, sent.len()), (frame::PING, 2));
    let second = peer.open(3, END_STREAM);
    peer.send(&frame(frame::PING, ACK, 0, payload));
    let last = [3_u32.to_be_bytes(), [0; 4]].concat();
    assert_eq!(peer.sent(), [(frame::GOAWAY, 0, 0, last)]);
    assert_eq!(peer.send(&request(5, 0)), [], "the peer was told");
    assert_eq!(peer.send(&frame(frame::DATA, 0, 5, b"x")), []);
    assert!(!peer.connection.is_done());
    for slot in [first, second] {
        peer.connection.send_head(slot, &ok(), true);
    }
    assert!(peer.connection.is_done());
    assert_eq!(peer.connection.failure(), None);
}

#[test]
fn silent_peers_are_asked_and_then_given_up() {
    let mut peer = Peer::new();
    let ask = |peer: &mut Peer| {
        peer.now = peer.connection.next_wake();
        peer.connection.handle_time(peer.now);
        peer.sent()
    };
    assert_eq!(ask(&mut peer)[0].0, frame::PING);
    assert_eq!(peer.now, limits::KEEPALIVE_INTERVAL);
    peer.send(&frame(frame::PING, ACK, 0, &KEEPALIVE_PING));
    assert_eq!(
        ask(&mut peer)[0].0,
        frame::PING,
        "it lives, and is asked again"
    );
    let asked = peer.now;
    peer.now = peer.connection.next_wake();
    assert_eq!(peer.now, asked + limits::KEEPALIVE_TIMEOUT);
    peer.connection.handle_time(peer.now);
    assert!(peer.connection.is_done());
}

#[test]
fn a_slow_beginning_is_given_up() {
    let mut connection = Connection::new();
    connection.handle_bytes(&PREFACE[..20], Duration::from_secs(1), &mut |_| {});
    assert_eq!(connection.next_wake(), limits::FIRST_FRAME_PATIENCE);
    connection.handle_time(limits::FIRST_FRAME_PATIENCE);
    assert_eq!(connection.failure(), Some(ErrorCode::SETTINGS_TIMEOUT));
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        Just(REQUEST.to_vec()),
        Just(vec![0; 5]),
        Just(vec![0, 4, 0, 0, 1, 0]),
        Just(vec![0, 0, 0, 9]),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    let kinds = 0_u8..11;
    let flags = prop_oneof![Just(0), Just(1), Just(4), Just(5), any::<u8>()];
    let streams = 0_u32..8;
    (kinds, flags, streams, payload)
        .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload))
}

proptest! {
    // Whatever comes, in whatever pieces: the same happens, slots are used as they must be, and
    // nothing is sent beyond the windows.
    #[test]
    fn any_frames_in_any_pieces_do_the_same(
        frames in proptest::collection::vec(any_frame(), 0..40),
        step in 1_usize..50,
    ) {
        let bytes = frames.concat();
        let mut whole = Peer::new();
        let mut pieces = Peer::new();
        let seen = whole.send(&bytes);
        let in_pieces: Vec<Seen> = bytes
            .chunks(step)
            .flat_map(|piece| pieces.send(piece))
            .collect();
        prop_assert_eq!(&seen, &in_pieces);
        prop_assert_eq!(whole.connection.failure(), pieces.connection.failure());
        if whole.connection.failure().is_none() {
            let mut open = std::collections::BTreeSet::new();
            for event in seen {
                match event {
                    Seen::Request(slot, ..) => prop_assert!(open.insert(slot)),
                    Seen::Reset(slot, _) => prop_assert!(open.remove(&slot)),
                    Seen::Data(slot, ..) | Seen::Trailers(slot, _) => {
                        prop_assert!(open.contains(&slot));
                    }
                }
            }
            for slot in open {
                let slot = Slot::from_index(slot).unwrap();
                let room = whole.connection.room(slot);
                let mut data = Bytes::from(vec![0; 100_000]);
                whole.connection.send_data(slot, &mut data, false);
                prop_assert!(100_000 - data.len() <= room);
                whole.connection.send_end(slot);
            }
        }
    }
}
