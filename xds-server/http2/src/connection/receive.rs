//! What a peer sends, frame by frame.

use std::time::Duration;

use http::StatusCode;

use super::streams::{Receiving, Slot, Stream};
use super::{Connection, Event, Going, SHUTDOWN_PING};
use crate::frame::{self, ErrorCode, HEAD_BYTES, Head};
use crate::limits;
use crate::request::{Fault as BadFields, Fields, content_length};

/// A header block whose end has not come (RFC 9113, section 6.10).
#[derive(Debug)]
pub(super) struct Block {
    stream: u32,
    is_end: bool,
    bytes: Vec<u8>,
}

/// Why a frame ends something.
enum Fault {
    Connection(ErrorCode),
    Stream(u32, ErrorCode),
}

impl From<ErrorCode> for Fault {
    fn from(code: ErrorCode) -> Self {
        Self::Connection(code)
    }
}

impl Connection {
    /// Takes bytes as they were read; calls `on_event` for what they bring.
    pub fn handle_bytes(
        &mut self,
        mut bytes: &[u8],
        now: Duration,
        on_event: &mut impl FnMut(Event<'_>),
    ) {
        self.heard_at = now;
        self.asked_at = None;
        self.budget.handle_time(now);
        while !bytes.is_empty() && self.failed.is_none() {
            if let Err(code) = self.handle_next(&mut bytes, on_event) {
                self.fail(code);
            }
        }
    }

    // Takes the preface, a frame, or the part of one that is there.
    fn handle_next(
        &mut self,
        bytes: &mut &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ErrorCode> {
        let preface = &frame::PREFACE[self.preface_bytes..];
        if !preface.is_empty() {
            let (part, rest) = bytes.split_at(preface.len().min(bytes.len()));
            if !preface.starts_with(part) {
                return Err(ErrorCode::PROTOCOL_ERROR);
            }
            self.preface_bytes += part.len();
            *bytes = rest;
            return Ok(());
        }
        if self.partial.is_empty() {
            let head = Head::parse(bytes)?;
            let whole = head.filter(|head| bytes.len() >= HEAD_BYTES + head.length);
            let Some(head) = whole else {
                self.partial.extend_from_slice(bytes);
                *bytes = &[];
                return Ok(());
            };
            let (frame, rest) = bytes.split_at(HEAD_BYTES + head.length);
            *bytes = rest;
            return self.handle_frame(head, &frame[HEAD_BYTES..], on_event);
        }
        let head = Head::parse(&self.partial)?;
        let wanted = HEAD_BYTES + head.map_or(0, |head| head.length);
        let missing = wanted - self.partial.len();
        let (part, rest) = bytes.split_at(missing.min(bytes.len()));
        self.partial.extend_from_slice(part);
        *bytes = rest;
        match Head::parse(&self.partial)? {
            Some(head) if self.partial.len() == HEAD_BYTES + head.length => {
                let frame = std::mem::take(&mut self.partial);
                self.handle_frame(head, &frame[HEAD_BYTES..], on_event)
            }
            _ => Ok(()),
        }
    }

    fn handle_frame(
        &mut self,
        head: Head,
        payload: &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), ErrorCode> {
        let is_first = !self.has_settings;
        if is_first && (head.kind != frame::SETTINGS || head.has(frame::ACK)) {
            return Err(ErrorCode::PROTOCOL_ERROR);
        }
        let awaited = self.block.as_ref().map(|block| block.stream);
        let continues = (head.kind == frame::CONTINUATION).then_some(head.stream);
        if awaited != continues {
            return Err(ErrorCode::PROTOCOL_ERROR);
        }
        let handled = match head.kind {
            frame::DATA => self.handle_data(head, payload, on_event),
            frame::HEADERS => self.handle_headers(head, payload, on_event),
            frame::CONTINUATION => self.handle_continuation(head, payload, on_event),
            frame::RST_STREAM => self.handle_reset(head, payload, on_event),
            frame::SETTINGS => self.handle_settings(head, payload),
            frame::PING => self.handle_ping(head, payload),
            frame::WINDOW_UPDATE => self.handle_window_update(head, payload),
            frame::PRIORITY => self.handle_priority(head, payload),
            frame::GOAWAY if head.stream != 0 => Err(ErrorCode::PROTOCOL_ERROR.into()),
            frame::GOAWAY => {
                self.is_peer_going = true;
                Ok(())
            }
            frame::PUSH_PROMISE => Err(ErrorCode::PROTOCOL_ERROR.into()),
            _ => self.spend(1),
        };
        match handled {
            Ok(()) => Ok(()),
            Err(Fault::Connection(code)) => Err(code),
            Err(Fault::Stream(id, code)) => {
                self.fail_stream(id, code, on_event);
                self.budget
                    .spend(limits::RESET_TOKENS)
                    .ok_or(ErrorCode::ENHANCE_YOUR_CALM)
            }
        }
    }

    fn fail_stream(&mut self, id: u32, code: ErrorCode, on_event: &mut impl FnMut(Event<'_>)) {
        if let Some(slot) = self.streams.find(id) {
            self.close(slot);
            on_event(Event::Reset { slot, code });
        }
        self.put_reset(id, code);
    }

    fn spend(&mut self, tokens: u32) -> Result<(), Fault> {
        let spent = self.budget.spend(tokens);
        spent.ok_or(Fault::Connection(ErrorCode::ENHANCE_YOUR_CALM))
    }

    // Whether frames of a stream that is not open mean nothing: we have ended it, or said that it
    // would not be looked at.
    fn is_ignored(&self, id: u32) -> bool {
        self.streams.was_reset(id) || matches!(self.going, Going::Last(last) if id > last)
    }

    fn handle_data(
        &mut self,
        head: Head,
        payload: &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Fault> {
        if head.stream == 0 || head.stream > self.streams.last_id() {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        }
        let data = head.unpad(payload)?;
        let is_end = head.has(frame::END_STREAM);
        if data.is_empty() && !is_end {
            self.spend(1)?;
        }
        // A frame is below 2^14.
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let useful = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let taken = self.receiving.take(length);
        taken.ok_or(ErrorCode::FLOW_CONTROL_ERROR)?;

        let id = head.stream;
        let slot = self.streams.find(id);
        let is_open = |slot: &Slot| !self.streams.at(*slot).is_remote_closed;
        let Some(slot) = slot.filter(is_open) else {
            self.release_connection(length);
            if slot.is_none() && self.is_ignored(id) {
                return Ok(());
            }
            return Err(Fault::Stream(id, ErrorCode::STREAM_CLOSED));
        };
        let stream = self.streams.at_mut(slot);
        stream.unread_bytes += length;
        let taken = stream.receiving.take(length);
        taken.ok_or(Fault::Stream(id, ErrorCode::FLOW_CONTROL_ERROR))?;
        if let Some(missing) = &mut stream.missing_bytes {
            let left = missing.checked_sub(u64::from(useful));
            *missing = left
                .filter(|left| !is_end || *left == 0)
                .ok_or(Fault::Stream(id, ErrorCode::PROTOCOL_ERROR))?;
        }
        stream.is_remote_closed = is_end;
        if length > useful {
            self.release(slot, length - useful);
        }
        on_event(Event::Data {
            slot,
            bytes: data,
            is_end,
        });
        Ok(())
    }

    fn handle_headers(
        &mut self,
        head: Head,
        payload: &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Fault> {
        // Streams of a client have odd numbers.
        if head.stream.is_multiple_of(2) {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        }
        let mut fragment = head.unpad(payload)?;
        if head.has(frame::HAS_PRIORITY) {
            let (_, rest) = fragment
                .split_at_checked(5)
                .ok_or(ErrorCode::FRAME_SIZE_ERROR)?;
            fragment = rest;
        }
        let is_end = head.has(frame::END_STREAM);
        if head.has(frame::END_HEADERS) {
            return self.handle_block(head.stream, is_end, fragment, on_event);
        }
        self.block = Some(Box::new(Block {
            stream: head.stream,
            is_end,
            bytes: fragment.to_vec(),
        }));
        Ok(())
    }

    fn handle_continuation(
        &mut self,
        head: Head,
        payload: &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Fault> {
        self.spend(1)?;
        let Some(mut block) = self.block.take() else {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        };
        if block.bytes.len() + payload.len() > limits::HEADER_BLOCK_BYTES {
            return Err(ErrorCode::ENHANCE_YOUR_CALM.into());
        }
        block.bytes.extend_from_slice(payload);
        if head.has(frame::END_HEADERS) {
            return self.handle_block(block.stream, block.is_end, &block.bytes, on_event);
        }
        self.block = Some(block);
        Ok(())
    }

    fn handle_block(
        &mut self,
        id: u32,
        is_end: bool,
        block: &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Fault> {
        // Decoded in any case: later blocks may refer to it.
        let mut fields = Fields::default();
        self.decoder
            .decode(block, |name, value| fields.handle(name, value))
            .map_err(|_| ErrorCode::COMPRESSION_ERROR)?;
        if let Some(slot) = self.streams.find(id) {
            return self.handle_trailers(slot, is_end, fields, on_event);
        }
        let last_id = self.streams.last_id();
        if id <= last_id {
            return match self.is_ignored(id) {
                true => Ok(()),
                false if id == last_id => Err(ErrorCode::STREAM_CLOSED.into()),
                false => Err(ErrorCode::PROTOCOL_ERROR.into()),
            };
        }
        self.streams.note_last(id);
        if self.is_ignored(id) {
            return Ok(());
        }
        let head = fields.into_request();
        let (head, missing_bytes) = match head.and_then(|head| {
            let length = content_length(&head.headers)?;
            Ok((head, length))
        }) {
            Ok((_, Some(1..))) if is_end => {
                return Err(Fault::Stream(id, ErrorCode::PROTOCOL_ERROR));
            }
            Ok((head, length)) => (Some(head), length),
            Err(BadFields::TooLarge) => (None, None),
            Err(BadFields::Malformed) => {
                return Err(Fault::Stream(id, ErrorCode::PROTOCOL_ERROR));
            }
        };
        let opened = self.streams.insert(Stream {
            id,
            send_window: i64::from(self.peer_window),
            receiving: Receiving::new(limits::STREAM_WINDOW_BYTES),
            unread_bytes: 0,
            is_remote_closed: is_end,
            missing_bytes,
        });
        let slot = opened.ok_or(Fault::Stream(id, ErrorCode::REFUSED_STREAM))?;
        match head {
            Some(head) => on_event(Event::Request {
                slot,
                head: Box::new(head),
                is_end,
            }),
            None => self.refuse_large(slot),
        }
        Ok(())
    }

    fn refuse_large(&mut self, slot: Slot) {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        self.send_fields(slot, Some(status), &http::HeaderMap::new(), true);
    }

    fn handle_trailers(
        &mut self,
        slot: Slot,
        is_end: bool,
        fields: Fields,
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Fault> {
        let stream = self.streams.at_mut(slot);
        let fault = |code| Fault::Stream(stream.id, code);
        if stream.is_remote_closed {
            return Err(fault(ErrorCode::STREAM_CLOSED));
        }
        let is_short = stream.missing_bytes.is_some_and(|missing| missing > 0);
        let trailers = fields.into_trailers();
        let Some(trailers) = trailers.ok().filter(|_| is_end && !is_short) else {
            return Err(fault(ErrorCode::PROTOCOL_ERROR));
        };
        stream.is_remote_closed = true;
        on_event(Event::Trailers {
            slot,
            fields: trailers,
        });
        Ok(())
    }

    fn handle_reset(
        &mut self,
        head: Head,
        payload: &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Fault> {
        let code = ErrorCode(frame::parse_word(payload)?);
        if head.stream == 0 || head.stream > self.streams.last_id() {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        }
        self.spend(limits::RESET_TOKENS)?;
        if let Some(slot) = self.streams.find(head.stream) {
            self.close(slot);
            on_event(Event::Reset { slot, code });
        }
        Ok(())
    }

    fn handle_settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        }
        if head.has(frame::ACK) {
            if !payload.is_empty() {
                return Err(ErrorCode::FRAME_SIZE_ERROR.into());
            }
            self.decoder.drop_table();
            return Ok(());
        }
        self.spend(1)?;
        let (settings, []) = payload.as_chunks::<6>() else {
            return Err(ErrorCode::FRAME_SIZE_ERROR.into());
        };
        for [a, b, value @ ..] in settings {
            let value = u32::from_be_bytes(*value);
            match u16::from_be_bytes([*a, *b]) {
                frame::ENABLE_PUSH if value > 1 => return Err(ErrorCode::PROTOCOL_ERROR.into()),
                frame::INITIAL_WINDOW_SIZE => self.handle_initial_window(value)?,
                frame::MAX_FRAME_SIZE => {
                    if !(limits::FRAME_BYTES..=frame::LARGEST_FRAME).contains(&value) {
                        return Err(ErrorCode::PROTOCOL_ERROR.into());
                    }
                    // Longer ones would only keep the other streams waiting.
                    self.peer_frame_bytes = limits::WRITE_BYTES.min(value as usize);
                }
                // Ours have no table, we push nothing, and what is unknown is ignored.
                _ => {}
            }
        }
        self.has_settings = true;
        self.outbox.put_frame(frame::SETTINGS, frame::ACK, 0, &[]);
        Ok(())
    }

    // Section 6.9.2: it changes the windows of open streams as well, below zero if need be.
    fn handle_initial_window(&mut self, window: u32) -> Result<(), Fault> {
        if window > frame::MOST {
            return Err(ErrorCode::FLOW_CONTROL_ERROR.into());
        }
        let more = i64::from(window) - i64::from(self.peer_window);
        self.peer_window = window;
        for stream in self.streams.iter_mut() {
            stream.send_window += more;
            if stream.send_window > i64::from(frame::MOST) {
                return Err(ErrorCode::FLOW_CONTROL_ERROR.into());
            }
        }
        Ok(())
    }

    fn handle_ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if payload.len() != SHUTDOWN_PING.len() {
            return Err(ErrorCode::FRAME_SIZE_ERROR.into());
        }
        if head.stream != 0 {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        }
        self.spend(1)?;
        if !head.has(frame::ACK) {
            self.outbox.put_frame(frame::PING, frame::ACK, 0, payload);
        } else if payload == SHUTDOWN_PING && self.going == Going::Announced {
            // The peer has heard of the first GOAWAY: what it had under way is here.
            let last = self.streams.last_id();
            self.going = Going::Last(last);
            self.put_goaway(last, ErrorCode::NO_ERROR);
        }
        Ok(())
    }

    fn handle_window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let increment = frame::parse_word(payload)? & frame::MOST;
        let id = head.stream;
        if id > self.streams.last_id() {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        }
        let slot = self.streams.find(id);
        if increment < limits::SMALL_INCREMENT_BYTES || (id != 0 && slot.is_none()) {
            self.spend(1)?;
        }
        let (window, fault): (_, fn(u32, ErrorCode) -> Fault) = if id == 0 {
            (&mut self.send_window, |_, code| code.into())
        } else if let Some(slot) = slot {
            (&mut self.streams.at_mut(slot).send_window, Fault::Stream)
        } else {
            // It crossed the end of the stream.
            return Ok(());
        };
        if increment == 0 {
            return Err(fault(id, ErrorCode::PROTOCOL_ERROR));
        }
        *window += i64::from(increment);
        if *window > i64::from(frame::MOST) {
            return Err(fault(id, ErrorCode::FLOW_CONTROL_ERROR));
        }
        Ok(())
    }

    // Section 5.3.2: read, and of no effect.
    fn handle_priority(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err(ErrorCode::PROTOCOL_ERROR.into());
        }
        if payload.len() != 5 {
            return Err(ErrorCode::FRAME_SIZE_ERROR.into());
        }
        self.spend(1)
    }
}
