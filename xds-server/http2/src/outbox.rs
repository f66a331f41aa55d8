//! What is to be written: frames of our own, and shared bytes that are not copied.
//!
//! Holds no memory while it is empty.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use crate::frame::Head;
use crate::limits;

/// Bytes on their way to the socket, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    own: Vec<u8>,
    // Bytes of `own` that are written.
    written: usize,
    segments: VecDeque<Segment>,
    len: usize,
}

#[derive(Debug)]
enum Segment {
    // The next so many bytes of `own`.
    Own(usize),
    Shared(Bytes),
}

impl Outbox {
    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a frame with a short payload, which is copied.
    pub(crate) fn put_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.put_head(kind, flags, stream, payload.len());
        self.put(payload);
    }

    /// Adds a frame whose payload is shared if it is long enough to be worth it.
    pub(crate) fn put_shared_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: Bytes) {
        if payload.len() <= limits::COPIED_BYTES {
            return self.put_frame(kind, flags, stream, &payload);
        }
        self.put_head(kind, flags, stream, payload.len());
        self.len += payload.len();
        self.segments.push_back(Segment::Shared(payload));
    }

    fn put_head(&mut self, kind: u8, flags: u8, stream: u32, length: usize) {
        let head = Head {
            length,
            kind,
            flags,
            stream,
        };
        self.put(&head.render());
    }

    /// Fills `slices` with what comes next; returns how many there are.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut own = &self.own[self.written..];
        let mut filled = 0;
        for (segment, slice) in self.segments.iter().zip(slices) {
            *slice = IoSlice::new(match segment {
                Segment::Own(length) => {
                    let (first, rest) = own.split_at(*length);
                    own = rest;
                    first
                }
                Segment::Shared(bytes) => bytes,
            });
            filled += 1;
        }
        filled
    }

    /// Takes away what was written.
    pub(crate) fn advance(&mut self, mut written: usize) {
        self.len -= written;
        if self.len == 0 {
            *self = Self::default();
            return;
        }
        while written > 0 {
            let Some(first) = self.segments.front_mut() else {
                return;
            };
            let (part, is_done) = match first {
                Segment::Own(length) => {
                    let part = written.min(*length);
                    *length -= part;
                    self.written += part;
                    (part, *length == 0)
                }
                Segment::Shared(bytes) => {
                    let part = written.min(bytes.len());
                    bytes.advance(part);
                    (part, bytes.is_empty())
                }
            };
            written -= part;
            if is_done {
                self.segments.pop_front();
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.own.extend_from_slice(bytes);
        self.len += bytes.len();
        if let Some(Segment::Own(length)) = self.segments.back_mut() {
            *length += bytes.len();
        } else {
            self.segments.push_back(Segment::Own(bytes.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(outbox: &Outbox) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = outbox.slices(&mut slices);
        slices[..count]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect()
    }

    #[test]
    fn bytes_leave_in_order_wherever_a_write_ends() {
        let long = Bytes::from(vec![7; 1000]);
        let filled = || {
            let mut outbox = Outbox::default();
            outbox.put_frame(6, 0, 0, b"12345678");
            outbox.put_shared_frame(0, 0, 1, long.clone());
            outbox.put_shared_frame(0, 1, 1, Bytes::from_static(b"short"));
            outbox.put_frame(3, 0, 3, b"");
            outbox
        };
        let whole = read(&filled());
        assert_eq!(whole.len(), filled().len());
        assert_eq!(filled().segments.len(), 3, "short data is copied");
        for step in [1, 7, 9, 500, 2000] {
            let mut outbox = filled();
            let mut seen = Vec::new();
            while outbox.len() > 0 {
                let next = read(&outbox);
                let length = step.min(next.len());
                seen.extend_from_slice(&next[..length]);
                outbox.advance(length);
            }
            assert_eq!(seen, whole, "{step} at a time");
            assert_eq!(outbox.own.capacity() + outbox.segments.capacity(), 0);
        }
    }
}
