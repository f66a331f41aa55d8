//! Protobuf bytes as fields, without copying or allocating.

use prost::encoding::{WireType, decode_key, decode_varint};

/// Bytes that are no protobuf message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Malformed;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Wire<'a> {
    Bytes(&'a [u8]),
    Fixed32(u32),
    Fixed64(u64),
    Varint(u64),
}

impl<'a> Wire<'a> {
    /// The content of a length-delimited field; empty for another type of field.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Fixed32(_) | Self::Fixed64(_) | Self::Varint(_) => &[],
        }
    }

    /// The bits of a number; 0 for a length-delimited field.
    pub(super) fn bits(self) -> u64 {
        match self {
            Self::Bytes(_) => 0,
            Self::Fixed32(bits) => u64::from(bits),
            Self::Fixed64(bits) | Self::Varint(bits) => bits,
        }
    }
}

/// The fields of a message in the order of the bytes. Ends after the first error.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>), Malformed> {
        let (number, wire_type) = decode_key(&mut self.rest).map_err(|_| Malformed)?;
        let value = read(wire_type, &mut self.rest)?;
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Reads one value off the front of `rest`. Groups, which proto3 does not have, are malformed.
pub(super) fn read<'a>(wire_type: WireType, rest: &mut &'a [u8]) -> Result<Wire<'a>, Malformed> {
    match wire_type {
        WireType::Varint => decode_varint(rest).map(Wire::Varint).map_err(|_| Malformed),
        WireType::ThirtyTwoBit => {
            let (bits, after) = rest.split_first_chunk().ok_or(Malformed)?;
            *rest = after;
            Ok(Wire::Fixed32(u32::from_le_bytes(*bits)))
        }
        WireType::SixtyFourBit => {
            let (bits, after) = rest.split_first_chunk().ok_or(Malformed)?;
            *rest = after;
            Ok(Wire::Fixed64(u64::from_le_bytes(*bits)))
        }
        WireType::LengthDelimited => {
            let length = decode_varint(rest).map_err(|_| Malformed)?;
            let length = usize::try_from(length).map_err(|_| Malformed)?;
            let (bytes, after) = rest.split_at_checked(length).ok_or(Malformed)?;
            *rest = after;
            Ok(Wire::Bytes(bytes))
        }
        WireType::StartGroup | WireType::EndGroup => Err(Malformed),
    }
}

/// The last value of a field, which is the one that counts.
pub(super) fn last(message: &[u8], number: u32) -> Option<Wire<'_>> {
    let fields = Fields::new(message).filter_map(Result::ok);
    fields
        .filter(|(found, _)| *found == number)
        .map(|(_, value)| value)
        .last()
}
