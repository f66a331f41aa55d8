//! A tree in proto3 JSON to the protobuf encoding of the message that a descriptor describes.
//!
//! This walks the tree and the descriptor side by side instead of going through serde, because only so every
//! mistake has an exact path (into nested `Any`s too), all mistakes of a resource are found at once, and the
//! bytes are canonical: fields by number, map entries by key, defaults of fields without presence left out.
//! Equal trees give equal bytes in every process and on every machine, which is what makes a hash of the
//! bytes a version. prost-reflect's own reader is the oracle in the tests.
//!
//! Stricter than proto3 JSON asks: unknown fields, duplicate fields and `Any`s without `@type` are errors.
//! Extensions in brackets and proto2 groups, which Envoy's configuration does not use, are not read.

mod scalar;
mod well_known;

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

use super::error::Problem;
use super::limits::MAX_ERRORS;
use super::path::{push_index, push_key};
use super::suggest::suggest;
use super::yaml::{Content, Entry, Node};

/// What every `@type` starts with.
pub(super) const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

/// A mistake in a resource.
#[derive(Debug)]
pub(super) struct Finding {
    /// 1-based.
    pub(super) line: usize,
    /// From the root of the document.
    pub(super) path: String,
    pub(super) problem: Problem,
}

/// A resource as it goes on the wire.
#[derive(Debug)]
pub(super) struct Encoded {
    /// `None` of a type that no descriptor is known of.
    pub(super) message: Option<MessageDescriptor>,
    pub(super) type_url: Arc<str>,
    pub(super) value: Vec<u8>,
}

/// Encodes a resource, a tree with `@type`, that stands at `path` in its document.
///
/// # Errors
///
/// All mistakes, up to [`MAX_ERRORS`], in the order of the text.
pub(super) fn encode_resource(
    pool: &DescriptorPool,
    node: &Node,
    path: &str,
) -> Result<Encoded, Vec<Finding>> {
    let mut encoder = Encoder {
        findings: Vec::new(),
        path: vec![Segment::Root(path)],
        pool,
    };
    let mut value = Vec::new();
    let message = encoder.any_payload(node, &mut value);
    match message {
        Some((message, url)) if encoder.findings.is_empty() => {
            let type_url = Arc::from(url);
            Ok(Encoded {
                message,
                type_url,
                value,
            })
        }
        Some(_) | None => {
            encoder.findings.sort_by_key(|finding| finding.line);
            Err(encoder.findings)
        }
    }
}

/// The message that a resource says it is, for labels in errors.
pub(super) fn message_of(pool: &DescriptorPool, node: &Node) -> Option<MessageDescriptor> {
    let url = node.lookup("@type")?.text()?;
    pool.get_message_by_name(url.strip_prefix(TYPE_URL_PREFIX)?)
}

#[derive(Clone, Copy, Debug)]
enum Segment<'a> {
    Index(usize),
    Key(&'a str),
    Root(&'a str),
}

#[derive(Debug)]
struct Encoder<'a> {
    findings: Vec<Finding>,
    path: Vec<Segment<'a>>,
    pool: &'a DescriptorPool,
}

impl<'a> Encoder<'a> {
    /// Writes the fields of `desc` that `node` sets, well-known types in their own JSON form.
    fn message(&mut self, desc: &MessageDescriptor, node: &'a Node, out: &mut Vec<u8>) {
        if !self.well_known(desc, node, out) {
            self.fields(desc, node, None, out);
        }
    }

    /// Writes the fields of `desc`; `skip` is a key that is no field.
    fn fields(
        &mut self,
        desc: &MessageDescriptor,
        node: &'a Node,
        skip: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        let Content::Mapping(entries) = &node.content else {
            return self.wrong_type(node, &format!("a mapping ({})", desc.full_name()));
        };
        let mut fields: Vec<(FieldDescriptor, &'a Entry)> = Vec::with_capacity(entries.len());
        for entry in entries.iter().filter(|entry| skip != Some(&*entry.key)) {
            if let Some(field) = self.field(desc, entry) {
                fields.push((field, entry));
            }
        }
        self.check_repeats(&fields);
        // Stable, so that of a duplicate the first in the text comes first.
        fields.sort_by_key(|(field, _)| field.number());
        for (field, entry) in fields {
            self.within(Segment::Key(&entry.key), |encoder| {
                encoder.field_value(&field, &entry.value, out);
            });
        }
    }

    fn field(&mut self, desc: &MessageDescriptor, entry: &'a Entry) -> Option<FieldDescriptor> {
        let field = desc
            .get_field_by_json_name(&entry.key)
            .or_else(|| desc.get_field_by_name(&entry.key));
        if field.is_none() {
            let names: Vec<FieldDescriptor> = desc.fields().collect();
            // Speak the dialect of the file.
            let suggestion = if entry.key.contains('_') {
                suggest(&entry.key, names.iter().map(FieldDescriptor::name))
            } else {
                suggest(&entry.key, names.iter().map(FieldDescriptor::json_name))
            };
            let (of, what) = (Some(desc.full_name().to_owned()), "field");
            self.within(Segment::Key(&entry.key), |encoder| {
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
        field
    }

    /// Finds fields that are set twice and oneofs of which two members are set.
    fn check_repeats(&mut self, fields: &[(FieldDescriptor, &'a Entry)]) {
        let mut numbers: BTreeMap<u32, &'a Entry> = BTreeMap::new();
        let mut oneofs: BTreeMap<String, &'a Entry> = BTreeMap::new();
        for (field, entry) in fields {
            if let Some(first) = numbers.get(&field.number()) {
                let problem = Problem::DuplicateKey {
                    line: first.line,
                    what: "field",
                };
                self.within(Segment::Key(&entry.key), |encoder| {
                    encoder.fail(entry.line, problem);
                });
                continue;
            }
            numbers.insert(field.number(), entry);
            let Some(oneof) = field
                .containing_oneof()
                .filter(|_| !is_unset(field, &entry.value))
            else {
                continue;
            };
            let oneof = oneof.name().to_owned();
            if let Some(first) = oneofs.get(&oneof) {
                let other = first.key.to_string();
                let problem = Problem::ConflictingFields {
                    line: first.line,
                    oneof,
                    other,
                };
                self.within(Segment::Key(&entry.key), |encoder| {
                    encoder.fail(entry.line, problem);
                });
            } else {
                oneofs.insert(oneof, entry);
            }
        }
    }

    fn field_value(&mut self, field: &FieldDescriptor, node: &'a Node, out: &mut Vec<u8>) {
        if is_unset(field, node) {
            return;
        }
        if field.is_group() {
            return self.fail(
                node.line,
                Problem::Unsupported {
                    what: "proto2 groups",
                },
            );
        }
        if field.is_map() {
            self.map(field, node, out);
        } else if field.is_list() {
            self.list(field, node, out);
        } else {
            let keeps_default = field.supports_presence();
            self.singular(field.number(), &field.kind(), node, keeps_default, out);
        }
    }

    fn singular(
        &mut self,
        number: u32,
        kind: &Kind,
        node: &'a Node,
        keeps_default: bool,
        out: &mut Vec<u8>,
    ) {
        if let Kind::Message(desc) = kind {
            let mut value = Vec::new();
            self.message(desc, node, &mut value);
            put_bytes(number, &value, out);
            return;
        }
        if let Some(scalar) = self.scalar(kind, node)
            && (keeps_default || !scalar.is_default())
        {
            encode_key(number, scalar.wire_type(), out);
            scalar.put(out);
        }
    }

    fn list(&mut self, field: &FieldDescriptor, node: &'a Node, out: &mut Vec<u8>) {
        let Content::Sequence(items) = &node.content else {
            return self.wrong_type(node, "a list");
        };
        let kind = field.kind();
        let mut packed = Vec::new();
        for (index, item) in items.iter().enumerate() {
            self.within(Segment::Index(index), |encoder| {
                if matches!(item.content, Content::Null) && !takes_null(&kind) {
                    encoder.wrong_type(item, kind_name(&kind));
                } else if field.is_packed() {
                    if let Some(scalar) = encoder.scalar(&kind, item) {
                        scalar.put(&mut packed);
                    }
                } else {
                    encoder.singular(field.number(), &kind, item, true, out);
                }
            });
        }
        if !packed.is_empty() {
            put_bytes(field.number(), &packed, out);
        }
    }

    fn map(&mut self, field: &FieldDescriptor, node: &'a Node, out: &mut Vec<u8>) {
        let Kind::Message(entry_desc) = field.kind() else {
            return;
        };
        let Content::Mapping(entries) = &node.content else {
            return self.wrong_type(node, "a mapping");
        };
        let value_field = entry_desc.map_entry_value_field();
        let (key_kind, value_kind) = (entry_desc.map_entry_key_field().kind(), value_field.kind());
        let mut encoded = Vec::with_capacity(entries.len());
        for entry in entries {
            self.within(Segment::Key(&entry.key), |encoder| {
                let Some(key) = encoder.map_key(&key_kind, entry) else {
                    return;
                };
                if matches!(entry.value.content, Content::Null) && !takes_null(&value_kind) {
                    return encoder.wrong_type(&entry.value, kind_name(&value_kind));
                }
                let mut pair = Vec::new();
                encode_key(1, key.wire_type(), &mut pair);
                key.put(&mut pair);
                encoder.singular(2, &value_kind, &entry.value, true, &mut pair);
                encoded.push((key, entry, pair));
            });
        }
        encoded.sort_by(|left, right| left.0.key_order(&right.0));
        for pair in encoded.windows(2) {
            let [(left, first, _), (right, second, _)] = pair else {
                continue;
            };
            if left.key_order(right).is_eq() {
                let problem = Problem::DuplicateKey {
                    line: first.line,
                    what: "key",
                };
                self.within(Segment::Key(&second.key), |encoder| {
                    encoder.fail(second.line, problem);
                });
            }
        }
        for (_, _, pair) in encoded {
            put_bytes(field.number(), &pair, out);
        }
    }

    fn within(&mut self, segment: Segment<'a>, visit: impl FnOnce(&mut Self)) {
        self.path.push(segment);
        visit(self);
        self.path.pop();
    }

    fn wrong_type(&mut self, node: &Node, expected: &str) {
        let hint = match (&node.content, expected) {
            (Content::Bool(_) | Content::Number(_) | Content::Null, "a string") => {
                ": put it in quotes"
            }
            (Content::Text(_), "true or false") => ": write true or false without quotes",
            (
                Content::Bool(_)
                | Content::Mapping(_)
                | Content::Null
                | Content::Number(_)
                | Content::Sequence(_)
                | Content::Text(_),
                _,
            ) => "",
        };
        let expected = expected.to_owned();
        self.fail(
            node.line,
            Problem::WrongType {
                expected,
                found: node.type_name(),
                hint,
            },
        );
    }

    fn fail(&mut self, line: usize, problem: Problem) {
        if self.findings.len() < MAX_ERRORS {
            let path = render_path(&self.path);
            self.findings.push(Finding {
                line,
                path,
                problem,
            });
        }
    }
}

fn render_path(segments: &[Segment<'_>]) -> String {
    let mut path = String::new();
    for segment in segments {
        match segment {
            Segment::Root(root) => path.push_str(root),
            Segment::Index(index) => push_index(&mut path, *index),
            Segment::Key(key) => push_key(&mut path, key),
        }
    }
    path
}

/// In proto3 JSON `null` is "not set", except for the types that have a null of their own.
fn is_unset(field: &FieldDescriptor, node: &Node) -> bool {
    matches!(node.content, Content::Null)
        && (field.is_list() || field.is_map() || !takes_null(&field.kind()))
}

fn takes_null(kind: &Kind) -> bool {
    let is_null_enum = kind
        .as_enum()
        .is_some_and(|desc| desc.full_name() == "google.protobuf.NullValue");
    is_null_enum
        || kind
            .as_message()
            .is_some_and(|desc| desc.full_name() == "google.protobuf.Value")
}

fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "true or false",
        Kind::Bytes => "bytes as a base64 string",
        Kind::Double | Kind::Float => "a number",
        Kind::Enum(_) => "the name or number of an enum value",
        Kind::Fixed32 | Kind::Uint32 | Kind::Fixed64 | Kind::Uint64 => {
            "a whole number that is not negative"
        }
        Kind::Int32
        | Kind::Sfixed32
        | Kind::Sint32
        | Kind::Int64
        | Kind::Sfixed64
        | Kind::Sint64 => "a whole number",
        Kind::Message(_) => "a mapping",
        Kind::String => "a string",
    }
}
