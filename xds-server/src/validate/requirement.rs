//! What a rule asks of a value, in words that tell how to satisfy it. Never holds the value.

use std::fmt;
use std::sync::Arc;

/// Values of a closed set that a requirement spells out; the rest is counted.
const MAX_LISTED: usize = 40;

/// A number, a length of time or a point in time.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Quantity {
    /// In nanoseconds.
    Duration(i128),
    /// Of 32 or 64 bits.
    Float(f64),
    /// Of 32 or 64 bits, with or without a sign.
    Integer(i128),
    /// In nanoseconds since 1970.
    Time(i128),
}

/// One end of a range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Whether the value itself is allowed.
    pub is_inclusive: bool,
    /// Where the range ends.
    pub value: Quantity,
}

/// What a length counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Counted {
    /// Of a text or of bytes.
    Bytes,
    /// Of a text: Unicode scalar values.
    Characters,
    /// Of a map.
    Entries,
    /// Of a list.
    Items,
}

/// What a rule asks. Its `Display` completes "the field ...".
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Requirement {
    /// `address`
    Address,
    /// `contains`
    Contains(String),
    /// `defined_only`, with the enum's full name
    Defined(Arc<str>),
    /// `suffix`
    EndsWith(String),
    /// `const`
    Equal(String),
    /// `well_known_regex: HTTP_HEADER_NAME`
    HeaderName,
    /// `well_known_regex: HTTP_HEADER_VALUE`
    HeaderValue,
    /// `hostname`
    Hostname,
    /// `ip`
    Ip,
    /// `ipv4`
    Ipv4,
    /// `ipv6`
    Ipv6,
    /// Of the key of a map's entry.
    Key(Box<Self>),
    /// `len`, `min_len`, `max_len` and their kind
    Length {
        /// What is counted.
        counted: Counted,
        /// At least.
        min: Option<u64>,
        /// At most.
        max: Option<u64>,
    },
    /// Well-formed protobuf, which every message of a file is.
    Message,
    /// `not_contains`
    NotContains(String),
    /// `not_in`
    NotOneOf(Vec<String>),
    /// No more than [`MAX_DEPTH`](super::MAX_DEPTH) levels.
    NotSoDeep,
    /// `well_known_regex` with `strict: false`
    OneLine,
    /// `in`
    OneOf(Vec<String>),
    /// `validate.required` of a oneof, with its members
    OneOfFields(Vec<Arc<str>>),
    /// `lt` and its kind that meet from the other side: all but a range is allowed
    Outside {
        /// Allowed up to here.
        low: Bound,
        /// Allowed from here on.
        high: Bound,
    },
    /// `pattern`
    Pattern(String),
    /// `required`
    Present,
    /// `lt`, `lte`, `gt`, `gte`
    Range {
        /// The lower end.
        low: Option<Bound>,
        /// The upper end.
        high: Option<Bound>,
    },
    /// `prefix`
    StartsWith(String),
    /// `unique`
    Unique,
    /// `uuid`
    Uuid,
}

impl fmt::Display for Requirement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => out.write_str("must be an IP address or a host name"),
            Self::Contains(text) => write!(out, "must contain {text:?}"),
            Self::Defined(name) => write!(out, "must be one of the values that {name} defines"),
            Self::EndsWith(text) => write!(out, "must end with {text:?}"),
            Self::Equal(value) => write!(out, "must be {value}"),
            Self::HeaderName => out.write_str(
                "must be the name of an HTTP header: letters, digits and !#$%&'*+,-.^_|~`, perhaps with a colon in front",
            ),
            Self::HeaderValue => out.write_str(
                "must be the value of an HTTP header: no control characters other than tab",
            ),
            Self::Hostname => out.write_str("must be a host name"),
            Self::Ip => out.write_str("must be an IP address, without brackets or port"),
            Self::Ipv4 => out.write_str("must be an IPv4 address"),
            Self::Ipv6 => out.write_str("must be an IPv6 address, without brackets or port"),
            Self::Key(requirement) => write!(out, "the key {requirement}"),
            Self::Length { counted, min, max } => display_length(out, *counted, *min, *max),
            Self::Message => out.write_str("must be a well-formed protobuf message"),
            Self::NotContains(text) => write!(out, "must not contain {text:?}"),
            Self::NotOneOf(values) => {
                out.write_str("must not be ")?;
                display_list(out, values)
            }
            Self::NotSoDeep => write!(out, "must not be nested deeper than {} levels", super::MAX_DEPTH),
            Self::OneLine => {
                out.write_str("must not contain line breaks or characters of value 0")
            }
            Self::OneOf(values) => {
                out.write_str("must be ")?;
                display_list(out, values)
            }
            Self::OneOfFields(names) => {
                out.write_str(if names.len() == 1 { "must have " } else { "must have one of " })?;
                display_list(out, names)
            }
            Self::Outside { low, high } => {
                display_bound(out, low, End::High)?;
                out.write_str(" or ")?;
                display_bound(out, high, End::Low)
            }
            Self::Pattern(pattern) => {
                write!(out, "must as a whole match the regular expression {pattern}")
            }
            Self::Present => out.write_str("is required"),
            Self::Range { low, high } => {
                if let Some(low) = low {
                    display_bound(out, low, End::Low)?;
                }
                if let (Some(_), Some(_)) = (low, high) {
                    out.write_str(" and ")?;
                }
                high.as_ref()
                    .map_or(Ok(()), |high| display_bound(out, high, End::High))
            }
            Self::StartsWith(text) => write!(out, "must start with {text:?}"),
            Self::Unique => out.write_str("must not have an item twice, and this one was given before"),
            Self::Uuid => out.write_str("must be a UUID"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum End {
    High,
    Low,
}

fn display_bound(out: &mut fmt::Formatter<'_>, bound: &Bound, end: End) -> fmt::Result {
    let words = match (end, bound.is_inclusive) {
        (End::High, false) => "less than",
        (End::High, true) => "at most",
        (End::Low, false) => "greater than",
        (End::Low, true) => "at least",
    };
    write!(out, "must be {words} {}", bound.value)
}

fn display_length(
    out: &mut fmt::Formatter<'_>,
    counted: Counted,
    min: Option<u64>,
    max: Option<u64>,
) -> fmt::Result {
    let unit = |count| match (counted, count) {
        (Counted::Bytes, 1) => "byte",
        (Counted::Bytes, _) => "bytes",
        (Counted::Characters, 1) => "character",
        (Counted::Characters, _) => "characters",
        (Counted::Entries, 1) => "entry",
        (Counted::Entries, _) => "entries",
        (Counted::Items, 1) => "item",
        (Counted::Items, _) => "items",
    };
    match (min, max) {
        (Some(1), None) => out.write_str("must not be empty"),
        (Some(min), None) => write!(out, "must have at least {min} {}", unit(min)),
        (Some(min), Some(max)) if min == max => write!(out, "must have {min} {}", unit(min)),
        (Some(min), Some(max)) => write!(out, "must have {min} to {max} {}", unit(max)),
        (None, Some(max)) => write!(out, "must have at most {max} {}", unit(max)),
        (None, None) => Ok(()),
    }
}

fn display_list(out: &mut fmt::Formatter<'_>, values: &[impl fmt::Display]) -> fmt::Result {
    for (index, value) in values.iter().take(MAX_LISTED).enumerate() {
        let separator = match index {
            0 => "",
            _ if index + 1 == values.len() => " or ",
            _ => ", ",
        };
        write!(out, "{separator}{value}")?;
    }
    match values.len().checked_sub(MAX_LISTED) {
        None | Some(0) => Ok(()),
        Some(more) => write!(out, " or one of {more} more"),
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duration(nanos) => {
                display_seconds(out, *nanos)?;
                out.write_str("s")
            }
            Self::Float(value) => write!(out, "{value}"),
            Self::Integer(value) => write!(out, "{value}"),
            Self::Time(nanos) => {
                display_seconds(out, *nanos)?;
                out.write_str(" seconds after 1970")
            }
        }
    }
}

fn display_seconds(out: &mut fmt::Formatter<'_>, nanos: i128) -> fmt::Result {
    const NANOS: u128 = 1_000_000_000;
    let (sign, size) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    write!(out, "{sign}{}", size / NANOS)?;
    if size % NANOS == 0 {
        return Ok(());
    }
    let fraction = format!("{:09}", size % NANOS);
    write!(out, ".{}", fraction.trim_end_matches('0'))
}
