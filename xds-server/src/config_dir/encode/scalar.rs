//! Scalars: numbers, booleans, strings, bytes and enums in proto3 JSON, and map keys.

use std::cmp::Ordering;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::encoding::{WireType, encode_varint};
use prost_reflect::{EnumDescriptor, EnumValueDescriptor, Kind};

use super::{Content, Encoder, Entry, Node, Problem, kind_name, suggest};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_allow_trailing_bits(true)
    .with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);

/// A scalar as the wire has it. Signed numbers are kept sign-extended or zigzagged, as their type wants.
#[derive(Clone, Debug)]
pub(super) enum Scalar {
    Bytes(Vec<u8>),
    Fixed32(u32),
    Fixed64(u64),
    Varint(u64),
}

impl Scalar {
    pub(super) fn wire_type(&self) -> WireType {
        match self {
            Self::Bytes(_) => WireType::LengthDelimited,
            Self::Fixed32(_) => WireType::ThirtyTwoBit,
            Self::Fixed64(_) => WireType::SixtyFourBit,
            Self::Varint(_) => WireType::Varint,
        }
    }

    /// All-zero bits: 0, false, "", +0.0 and the first enum value, but not -0.0.
    pub(super) fn is_default(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Fixed32(bits) => *bits == 0,
            Self::Fixed64(bits) | Self::Varint(bits) => *bits == 0,
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(bytes) => {
                encode_varint(bytes.len() as u64, out);
                out.extend_from_slice(bytes);
            }
            Self::Fixed32(bits) => out.extend_from_slice(&bits.to_le_bytes()),
            Self::Fixed64(bits) => out.extend_from_slice(&bits.to_le_bytes()),
            Self::Varint(bits) => encode_varint(*bits, out),
        }
    }

    /// A total order of the keys of one map, whatever it means to a person.
    pub(super) fn key_order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bytes(left), Self::Bytes(right)) => left.cmp(right),
            (left, right) => left.bits().cmp(&right.bits()),
        }
    }

    fn bits(&self) -> u64 {
        match self {
            Self::Bytes(_) => 0,
            Self::Fixed32(bits) => u64::from(*bits),
            Self::Fixed64(bits) | Self::Varint(bits) => *bits,
        }
    }
}

impl<'a> Encoder<'a> {
    /// Reads a scalar of `kind`; says what is wrong and returns `None` if it is none.
    pub(super) fn scalar(&mut self, kind: &Kind, node: &'a Node) -> Option<Scalar> {
        match kind {
            Kind::Bool => {
                let Content::Bool(value) = node.content else {
                    return self.not_scalar(kind, node);
                };
                Some(Scalar::Varint(u64::from(value)))
            }
            Kind::Bytes => self.base64(kind, node),
            Kind::Double => self
                .float(kind, node)
                .map(|value| Scalar::Fixed64(value.to_bits())),
            Kind::Enum(desc) => self.enumeration(desc, node),
            Kind::Float => self.narrow_float(kind, node),
            Kind::Fixed32
            | Kind::Fixed64
            | Kind::Int32
            | Kind::Int64
            | Kind::Sfixed32
            | Kind::Sfixed64
            | Kind::Sint32
            | Kind::Sint64
            | Kind::Uint32
            | Kind::Uint64 => self.integer(kind, node),
            Kind::Message(_) => None,
            Kind::String => match node.text() {
                Some(text) => Some(Scalar::Bytes(text.as_bytes().to_vec())),
                None => self.not_scalar(kind, node),
            },
        }
    }

    /// Reads the key of a map entry, which JSON spells as a string whatever its type.
    pub(super) fn map_key(&mut self, kind: &Kind, entry: &'a Entry) -> Option<Scalar> {
        let key = &*entry.key;
        let parsed = if matches!(kind, Kind::String) {
            Some(Scalar::Bytes(key.as_bytes().to_vec()))
        } else if matches!(kind, Kind::Bool) {
            key.parse::<bool>()
                .ok()
                .map(|value| Scalar::Varint(u64::from(value)))
        } else {
            key.parse::<i128>()
                .ok()
                .and_then(|value| narrow(kind, value))
        };
        if parsed.is_none() {
            let expected = format!("{} as the key", kind_name(kind));
            self.fail(
                entry.line,
                Problem::WrongType {
                    expected,
                    found: "another key",
                    hint: "",
                },
            );
        }
        parsed
    }

    fn integer(&mut self, kind: &Kind, node: &'a Node) -> Option<Scalar> {
        let value = if let Some(number) = node.number() {
            let Some(value) = integer_of(number) else {
                self.fail(
                    node.line,
                    Problem::NotWhole {
                        expected: kind_name(kind),
                    },
                );
                return None;
            };
            value
        } else if let Some(text) = node.text().filter(|text| is_decimal(text)) {
            // Proto3 JSON writes 64-bit numbers as strings.
            text.parse().unwrap_or(i128::MAX)
        } else {
            return self.not_scalar(kind, node);
        };
        match narrow(kind, value) {
            Some(scalar) => Some(scalar),
            None => self.out_of_range(range_name(kind), node),
        }
    }

    fn float(&mut self, kind: &Kind, node: &'a Node) -> Option<f64> {
        if let Some(number) = node.number() {
            return match float_of(number) {
                Some(value) => Some(value),
                None => self.out_of_range("a 64-bit floating-point number", node),
            };
        }
        let starts_as_number =
            |text: &&str| text.starts_with(|char: char| char.is_ascii_digit() || char == '-');
        let value = match node.text() {
            Some("Infinity") => Some(f64::INFINITY),
            Some("-Infinity") => Some(f64::NEG_INFINITY),
            Some("NaN") => Some(f64::NAN),
            // Rust's parser knows words that JSON does not.
            text => text
                .filter(starts_as_number)
                .and_then(|text| text.parse().ok())
                .filter(|value: &f64| value.is_finite()),
        };
        match value {
            Some(value) => Some(value),
            None => self.not_scalar(kind, node),
        }
    }

    fn narrow_float(&mut self, kind: &Kind, node: &'a Node) -> Option<Scalar> {
        let wide = self.float(kind, node)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding is meant, overflow is checked"
        )]
        let narrow = wide as f32;
        if wide.is_finite() && narrow.is_infinite() {
            return self.out_of_range("a 32-bit floating-point number", node);
        }
        Some(Scalar::Fixed32(narrow.to_bits()))
    }

    fn enumeration(&mut self, desc: &EnumDescriptor, node: &'a Node) -> Option<Scalar> {
        let number = if let Some(name) = node.text() {
            let Some(value) = desc.get_value_by_name(name) else {
                let values: Vec<EnumValueDescriptor> = desc.values().collect();
                let suggestion = suggest(name, values.iter().map(EnumValueDescriptor::name));
                let (found, of) = (name.to_owned(), Some(desc.full_name().to_owned()));
                self.fail(
                    node.line,
                    Problem::Unknown {
                        found,
                        suggestion,
                        of,
                        what: "value",
                    },
                );
                return None;
            };
            value.number()
        } else if let Some(number) = node.number() {
            // Open enums take any number: the proxy may be newer than this program.
            match integer_of(number).and_then(|value| i32::try_from(value).ok()) {
                Some(number) => number,
                None => return self.out_of_range(range_name(&Kind::Int32), node),
            }
        } else if matches!(node.content, Content::Null)
            && desc.full_name() == "google.protobuf.NullValue"
        {
            0
        } else {
            return self.not_scalar(&Kind::Enum(desc.clone()), node);
        };
        Some(Scalar::Varint(sign_extend(i64::from(number))))
    }

    fn base64(&mut self, kind: &Kind, node: &Node) -> Option<Scalar> {
        let Some(text) = node.text() else {
            return self.not_scalar(kind, node);
        };
        let engine = if text.contains(['-', '_']) {
            URL_SAFE
        } else {
            STANDARD
        };
        let Ok(bytes) = engine.decode(text) else {
            self.fail(node.line, Problem::BadBase64);
            return None;
        };
        Some(Scalar::Bytes(bytes))
    }

    fn not_scalar<T>(&mut self, kind: &Kind, node: &Node) -> Option<T> {
        self.wrong_type(node, kind_name(kind));
        None
    }

    fn out_of_range<T>(&mut self, expected: &'static str, node: &Node) -> Option<T> {
        self.fail(node.line, Problem::OutOfRange { expected });
        None
    }

    pub(super) fn bad_format<T>(&mut self, expected: &'static str, node: &Node) -> Option<T> {
        self.fail(node.line, Problem::BadFormat { expected });
        None
    }
}

/// A whole number in any form that YAML's core schema has, such as `12`, `0x0c` or `1.2e1`.
fn integer_of(text: &str) -> Option<i128> {
    if let Some(digits) = text.strip_prefix("0x") {
        return i128::from_str_radix(digits, 16).ok();
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return i128::from_str_radix(digits, 8).ok();
    }
    // What has more digits than i128 is out of every range.
    let is_decimal = text
        .trim_start_matches(['-', '+'])
        .bytes()
        .all(|byte| byte.is_ascii_digit());
    if is_decimal {
        return Some(text.parse().unwrap_or(i128::MAX));
    }
    let value: f64 = text.parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "whole, and `as` saturates to what is out of range"
    )]
    (value.is_finite() && value.fract() == 0.0).then_some(value as i128)
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn float_of(text: &str) -> Option<f64> {
    match text {
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Some(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Some(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => Some(f64::NAN),
        _ if text.starts_with("0x") || text.starts_with("0o") =>
        {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a number for a floating-point field"
            )]
            integer_of(text).map(|value| value as f64)
        }
        _ => text.parse().ok().filter(|value: &f64| value.is_finite()),
    }
}

fn narrow(kind: &Kind, value: i128) -> Option<Scalar> {
    match kind {
        Kind::Fixed32 => u32::try_from(value).ok().map(Scalar::Fixed32),
        Kind::Fixed64 => u64::try_from(value).ok().map(Scalar::Fixed64),
        Kind::Int32 => i32::try_from(value)
            .ok()
            .map(|value| Scalar::Varint(sign_extend(value.into()))),
        Kind::Int64 => i64::try_from(value)
            .ok()
            .map(|value| Scalar::Varint(sign_extend(value))),
        Kind::Sfixed32 => i32::try_from(value)
            .ok()
            .map(|value| Scalar::Fixed32(value.cast_unsigned())),
        Kind::Sfixed64 => i64::try_from(value)
            .ok()
            .map(|value| Scalar::Fixed64(value.cast_unsigned())),
        Kind::Sint32 => {
            let value = i32::try_from(value).ok()?;
            Some(Scalar::Varint(u64::from(
                ((value << 1) ^ (value >> 31)).cast_unsigned(),
            )))
        }
        Kind::Sint64 => {
            let value = i64::try_from(value).ok()?;
            Some(Scalar::Varint(
                ((value << 1) ^ (value >> 63)).cast_unsigned(),
            ))
        }
        Kind::Uint32 => u32::try_from(value)
            .ok()
            .map(|value| Scalar::Varint(value.into())),
        Kind::Uint64 => u64::try_from(value).ok().map(Scalar::Varint),
        Kind::Bool
        | Kind::Bytes
        | Kind::Double
        | Kind::Enum(_)
        | Kind::Float
        | Kind::Message(_)
        | Kind::String => None,
    }
}

fn sign_extend(value: i64) -> u64 {
    value.cast_unsigned()
}

/// The range of an integer type, for an error.
fn range_name(kind: &Kind) -> &'static str {
    if matches!(kind, Kind::Int32 | Kind::Sfixed32 | Kind::Sint32) {
        "a 32-bit integer (-2147483648 to 2147483647)"
    } else if matches!(kind, Kind::Int64 | Kind::Sfixed64 | Kind::Sint64) {
        "a 64-bit integer (-9223372036854775808 to 9223372036854775807)"
    } else if matches!(kind, Kind::Fixed32 | Kind::Uint32) {
        "an unsigned 32-bit integer (0 to 4294967295)"
    } else {
        "an unsigned 64-bit integer (0 to 18446744073709551615)"
    }
}
