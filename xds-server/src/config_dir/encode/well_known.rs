//! The messages of `google.protobuf` that have a JSON form of their own.
//!
//! <https://protobuf.dev/programming-guides/json/> lists them.

use prost_reflect::prost_types::Timestamp;
use prost_reflect::{Kind, MessageDescriptor};

use super::scalar::Scalar;
use super::{Content, Encoder, Entry, Node, Problem, Segment, TYPE_URL_PREFIX, put_bytes, suggest};

const DURATION: &str = "a duration as seconds with the suffix s, such as \"1.5s\"";
const TIMESTAMP: &str = "a time in RFC 3339, such as \"2030-01-02T03:04:05Z\"";

/// Seconds that a `Duration` may have either way: 10,000 years, by its definition.
const MAX_DURATION_SECONDS: i64 = 315_576_000_000;
/// First and last second that a `Timestamp` may have: the years 1 and 9999.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

impl<'a> Encoder<'a> {
    /// Writes `node` if `desc` is a well-known type; false if it is an ordinary message.
    pub(super) fn well_known(
        &mut self,
        desc: &MessageDescriptor,
        node: &'a Node,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(name) = desc.full_name().strip_prefix("google.protobuf.") else {
            return false;
        };
        match name {
            "Any" => self.any(node, out),
            "BoolValue" | "BytesValue" | "DoubleValue" | "FloatValue" | "Int32Value"
            | "Int64Value" | "StringValue" | "UInt32Value" | "UInt64Value" => {
                self.wrapper(desc, node, out);
            }
            "Duration" => self.duration(node, out),
            "FieldMask" => self.field_mask(node, out),
            "ListValue" => self.list_value(node, out),
            "Struct" => self.structure(node, out),
            "Timestamp" => self.timestamp(node, out),
            "Value" => self.value(node, out),
            _ => return false,
        }
        true
    }

    /// Writes the message that a mapping with `@type` holds, and tells which one and its `@type`.
    pub(super) fn any_payload(
        &mut self,
        node: &'a Node,
        out: &mut Vec<u8>,
    ) -> Option<(Option<MessageDescriptor>, &'a str)> {
        let Content::Mapping(entries) = &node.content else {
            self.wrong_type(node, "a mapping with \"@type\"");
            return None;
        };
        let mut types = entries.iter().filter(|entry| &*entry.key == "@type");
        let Some(first) = types.next() else {
            self.fail(node.line, Problem::MissingType);
            return None;
        };
        if let Some(second) = types.next() {
            self.within(Segment::Key("@type"), |encoder| {
                encoder.fail(
                    second.line,
                    Problem::DuplicateKey {
                        line: first.line,
                        what: "key",
                    },
                );
            });
        }
        if let Some((url, value)) = self.unknown_payload(first, entries) {
            let payload = self.within_value(value);
            out.extend_from_slice(&payload?);
            return Some((None, url));
        }
        let (desc, url) = self.type_of(first)?;
        if desc.full_name().starts_with("google.protobuf.") && has_json_form(&desc) {
            self.boxed_well_known(&desc, node, entries, out);
        } else {
            self.fields(&desc, node, Some("@type"), out);
        }
        Some((Some(desc), url))
    }

    /// Recognizes what JSON has no form for: bytes of a type that no descriptor is known of. Such a mapping has
    /// `value` and nothing else beside its `@type`, so that a misspelled type is still found.
    fn unknown_payload(
        &self,
        kind: &'a Entry,
        entries: &'a [Entry],
    ) -> Option<(&'a str, &'a Node)> {
        let url = kind.value.text()?;
        let name = url.strip_prefix(TYPE_URL_PREFIX)?;
        let is_word = |word: &str| {
            !word.is_empty()
                && word
                    .chars()
                    .all(|char| char.is_ascii_alphanumeric() || char == '_')
        };
        let is_name = name.contains('.') && name.split('.').all(is_word);
        let mut others = entries.iter().filter(|entry| &*entry.key != "@type");
        let value = others.next().filter(|entry| &*entry.key == "value")?;
        let is_known = self.pool.get_message_by_name(name).is_some();
        let is_opaque = is_name && !is_known && others.next().is_none();
        (is_opaque && value.value.text().is_some()).then_some((url, &value.value))
    }

    fn within_value(&mut self, value: &'a Node) -> Option<Vec<u8>> {
        let mut payload = None;
        self.within(Segment::Key("value"), |encoder| {
            if let Some(Scalar::Bytes(bytes)) = encoder.scalar(&Kind::Bytes, value) {
                payload = Some(bytes);
            }
        });
        payload
    }

    fn type_of(&mut self, entry: &'a Entry) -> Option<(MessageDescriptor, &'a str)> {
        let mut found = None;
        self.within(Segment::Key("@type"), |encoder| {
            let Some(url) = entry.value.text() else {
                return encoder.wrong_type(&entry.value, "a string");
            };
            let Some(name) = url.strip_prefix(TYPE_URL_PREFIX) else {
                let expected =
                    "a type URL, such as \"type.googleapis.com/envoy.config.cluster.v3.Cluster\"";
                return encoder.fail(entry.value.line, Problem::BadFormat { expected });
            };
            found = encoder
                .pool
                .get_message_by_name(name)
                .map(|desc| (desc, url));
            if found.is_none() {
                let messages: Vec<MessageDescriptor> = encoder.pool.all_messages().collect();
                let names = messages.iter().map(MessageDescriptor::full_name);
                // Comparing with thousands of long names takes a while; a typing mistake is short.
                let near = names.filter(|other| other.len().abs_diff(name.len()) <= 8);
                let suggestion = suggest(name, near);
                let (of, what) = (None, "message type");
                encoder.fail(
                    entry.value.line,
                    Problem::Unknown {
                        found: name.to_owned(),
                        suggestion,
                        of,
                        what,
                    },
                );
            }
        });
        found
    }

    /// A well-known type inside an `Any` has its JSON form under the key `value`.
    fn boxed_well_known(
        &mut self,
        desc: &MessageDescriptor,
        node: &'a Node,
        entries: &'a [Entry],
        out: &mut Vec<u8>,
    ) {
        for entry in entries
            .iter()
            .filter(|entry| !matches!(&*entry.key, "@type" | "value"))
        {
            self.within(Segment::Key(&entry.key), |encoder| {
                let suggestion = suggest(&entry.key, ["value"].into_iter());
                let (of, what) = (Some(format!("{} in an Any", desc.full_name())), "key");
                encoder.fail(
                    entry.line,
                    Problem::Unknown {
                        found: entry.key.to_string(),
                        suggestion,
                        of,
                        what,
                    },
                );
            });
        }
        match node.lookup("value") {
            Some(value) => {
                self.within(Segment::Key("value"), |encoder| {
                    encoder.message(desc, value, out);
                });
            }
            None => self.fail(node.line, Problem::MissingKey { key: "value" }),
        }
    }

    fn any(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        if let Some((_, url)) = self.any_payload(node, &mut payload) {
            put_bytes(1, url.as_bytes(), out);
            if !payload.is_empty() {
                put_bytes(2, &payload, out);
            }
        }
    }

    fn wrapper(&mut self, desc: &MessageDescriptor, node: &'a Node, out: &mut Vec<u8>) {
        if let Some(field) = desc.get_field(1) {
            self.singular(1, &field.kind(), node, false, out);
        }
    }

    fn duration(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        let Some(text) = node.text() else {
            return self.wrong_type(node, DURATION);
        };
        match parse_duration(text) {
            Some((seconds, nanos)) => put_time(seconds, nanos, out),
            None => {
                self.bad_format::<()>(DURATION, node);
            }
        }
    }

    fn timestamp(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        let Some(text) = node.text() else {
            return self.wrong_type(node, TIMESTAMP);
        };
        // The parser would take a date alone.
        let time = text
            .contains('T')
            .then(|| text.parse::<Timestamp>().ok())
            .flatten();
        match time.filter(|time| TIMESTAMP_SECONDS.contains(&time.seconds)) {
            Some(time) => put_time(time.seconds, time.nanos, out),
            None => {
                self.bad_format::<()>(TIMESTAMP, node);
            }
        }
    }

    fn field_mask(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        let Some(text) = node.text() else {
            return self.wrong_type(node, "a string of field paths, separated by commas");
        };
        for path in text.split(',').filter(|path| !path.is_empty()) {
            let mut snake = String::with_capacity(path.len());
            for char in path.chars() {
                if char.is_ascii_uppercase() {
                    snake.push('_');
                }
                snake.push(char.to_ascii_lowercase());
            }
            put_bytes(1, snake.as_bytes(), out);
        }
    }

    fn structure(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        let Content::Mapping(entries) = &node.content else {
            return self.wrong_type(node, "a mapping");
        };
        let mut fields: Vec<&'a Entry> = entries.iter().collect();
        fields.sort_by(|left, right| left.key.cmp(&right.key));
        for pair in fields.windows(2).filter(|pair| pair[0].key == pair[1].key) {
            self.within(Segment::Key(&pair[1].key), |encoder| {
                encoder.fail(
                    pair[1].line,
                    Problem::DuplicateKey {
                        line: pair[0].line,
                        what: "key",
                    },
                );
            });
        }
        for field in fields {
            let (mut pair, mut value) = (Vec::new(), Vec::new());
            put_bytes(1, field.key.as_bytes(), &mut pair);
            self.within(Segment::Key(&field.key), |encoder| {
                encoder.value(&field.value, &mut value);
            });
            put_bytes(2, &value, &mut pair);
            put_bytes(1, &pair, out);
        }
    }

    fn list_value(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        let Content::Sequence(items) = &node.content else {
            return self.wrong_type(node, "a list");
        };
        for (index, item) in items.iter().enumerate() {
            let mut value = Vec::new();
            self.within(Segment::Index(index), |encoder| {
                encoder.value(item, &mut value);
            });
            put_bytes(1, &value, out);
        }
    }

    /// A `Value` is a oneof: null 1, number 2, string 3, bool 4, struct 5, list 6.
    fn value(&mut self, node: &'a Node, out: &mut Vec<u8>) {
        match &node.content {
            // A member of a oneof is written even if it is zero.
            Content::Null => out.extend_from_slice(&[1 << 3, 0]),
            Content::Number(_) => self.singular(2, &Kind::Double, node, true, out),
            Content::Text(text) => put_bytes(3, text.as_bytes(), out),
            Content::Bool(_) => self.singular(4, &Kind::Bool, node, true, out),
            Content::Mapping(_) => {
                let mut fields = Vec::new();
                self.structure(node, &mut fields);
                put_bytes(5, &fields, out);
            }
            Content::Sequence(_) => {
                let mut values = Vec::new();
                self.list_value(node, &mut values);
                put_bytes(6, &values, out);
            }
        }
    }
}

/// Whether proto3 JSON gives the message a form that is not its fields.
fn has_json_form(desc: &MessageDescriptor) -> bool {
    matches!(
        desc.name(),
        "Any"
            | "BoolValue"
            | "BytesValue"
            | "DoubleValue"
            | "Duration"
            | "Empty"
            | "FieldMask"
            | "FloatValue"
            | "Int32Value"
            | "Int64Value"
            | "ListValue"
            | "StringValue"
            | "Struct"
            | "Timestamp"
            | "UInt32Value"
            | "UInt64Value"
            | "Value"
    )
}

/// Reads `-?digits[.1 to 9 digits]s`; both parts have the sign.
fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let text = text.strip_suffix('s')?;
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (whole, fraction) = match digits.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (digits, ""),
    };
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() > 9 || !are_digits(whole) || !are_digits(fraction) {
        return None;
    }
    let seconds: i64 = whole
        .parse()
        .ok()
        .filter(|seconds| *seconds <= MAX_DURATION_SECONDS)?;
    let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
    Some((sign * seconds, i32::try_from(sign).ok()? * nanos))
}

/// `Duration` and `Timestamp` have the same fields: seconds 1, nanos 2.
fn put_time(seconds: i64, nanos: i32, out: &mut Vec<u8>) {
    if seconds != 0 {
        prost::encoding::int64::encode(1, &seconds, out);
    }
    if nanos != 0 {
        prost::encoding::int32::encode(2, &nanos, out);
    }
}
