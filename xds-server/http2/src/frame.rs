//! Frames (RFC 9113, sections 4 and 6): heads, flags, error codes.

use crate::limits;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;
pub(crate) const HAS_PRIORITY: u8 = 0x20;

pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
pub(crate) const ENABLE_PUSH: u16 = 2;
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const MAX_FRAME_SIZE: u16 = 5;
pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// What a client sends first (section 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes before each payload.
pub(crate) const HEAD_BYTES: usize = 9;

/// Largest window, stream identifier and increment: 31 bits.
pub(crate) const MOST: u32 = (1 << 31) - 1;

/// Windows before anything is said (section 6.9.2).
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;

/// Largest `MAX_FRAME_SIZE` that may be announced.
pub(crate) const LARGEST_FRAME: u32 = (1 << 24) - 1;

/// Why a stream or a connection ends (section 7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Nothing went wrong.
    pub const NO_ERROR: Self = Self(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// The service failed.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// The peer sent more than it was allowed, or a window is above 31 bits.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// SETTINGS did not come in time.
    pub const SETTINGS_TIMEOUT: Self = Self(4);
    /// A frame for a stream that has ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame has a length that it cannot have.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// The request was not looked at and can be tried again.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The peer does not want the stream any more.
    pub const CANCEL: Self = Self(8);
    /// A header block cannot be decoded.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The peer keeps the server busy with nothing.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

/// What precedes a payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    /// Reads a head; `None` if it is not whole.
    ///
    /// # Errors
    ///
    /// Returns an error for the connection if the frame is longer than we have allowed.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, ErrorCode> {
        let Some((&[a, b, c, kind, flags, id @ ..], _)) = bytes.split_first_chunk::<HEAD_BYTES>()
        else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([0, a, b, c]);
        if length > limits::FRAME_BYTES {
            return Err(ErrorCode::FRAME_SIZE_ERROR);
        }
        Ok(Some(Self {
            length: length as usize,
            kind,
            flags,
            stream: u32::from_be_bytes(id) & MOST,
        }))
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The head in bytes.
    pub(crate) fn render(&self) -> [u8; HEAD_BYTES] {
        // Nothing longer than a frame is ever put into one.
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        let mut bytes = [0; HEAD_BYTES];
        bytes[..3].copy_from_slice(&length.to_be_bytes()[1..]);
        bytes[3] = self.kind;
        bytes[4] = self.flags;
        bytes[5..].copy_from_slice(&self.stream.to_be_bytes());
        bytes
    }

    /// The payload of a frame that may be padded (section 6.1).
    pub(crate) fn unpad<'a>(&self, payload: &'a [u8]) -> Result<&'a [u8], ErrorCode> {
        if !self.has(PADDED) {
            return Ok(payload);
        }
        let (&padding, rest) = payload.split_first().ok_or(ErrorCode::FRAME_SIZE_ERROR)?;
        let length = rest.len().checked_sub(usize::from(padding));
        length
            .map(|length| &rest[..length])
            .ok_or(ErrorCode::PROTOCOL_ERROR)
    }
}

/// The 32 bits of `RST_STREAM` and `WINDOW_UPDATE`.
pub(crate) fn parse_word(payload: &[u8]) -> Result<u32, ErrorCode> {
    let word = payload
        .try_into()
        .map_err(|_| ErrorCode::FRAME_SIZE_ERROR)?;
    Ok(u32::from_be_bytes(word))
}
