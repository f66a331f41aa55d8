//! Secrets out of what people are shown: fields that Envoy's own protos mark as sensitive
//! (`udpa.annotations.sensitive`), wherever they are nested, all of a secret, and whatever this build
//! has no descriptor of.

mod words;

use isthmus_proto::descriptor_pool;
use isthmus_proto::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use isthmus_xds_core::type_rules;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, ReflectMessage, Value};
use serde_json::json;

pub use words::without_secrets;

const REDACTED: &str = "[redacted]";
const SENSITIVE: &str = "udpa.annotations.sensitive";
const ANY: &str = "google.protobuf.Any";
const STRING: &str = "type.googleapis.com/google.protobuf.StringValue";

/// Levels of nesting that are shown. Envoy's deepest configuration has about 30.
const DEPTH: usize = 100;

/// Renders a resource as proto3 JSON without its secrets. What cannot be rendered is said so.
pub fn render(type_url: &str, value: &[u8]) -> serde_json::Value {
    if type_url == type_rules::SECRET {
        return json!(REDACTED);
    }
    let name = type_url.rsplit('/').next().unwrap_or(type_url);
    let Some(descriptor) = descriptor_pool().get_message_by_name(name) else {
        return json!({ "unrenderable": format!("no descriptor for {name}") });
    };
    let Ok(mut message) = DynamicMessage::decode(descriptor, value) else {
        return json!({ "unrenderable": format!("not a {name}") });
    };
    redact(&mut message, DEPTH);
    serde_json::to_value(&message)
        .unwrap_or_else(|_| json!({ "unrenderable": format!("{name} has no JSON form") }))
}

/// Encodes a resource without its secrets, for tools that read protobuf. Of a secret only its name is
/// left, and nothing of what cannot be read: it may be secret.
pub fn encode(type_url: &str, value: &[u8]) -> Vec<u8> {
    if type_url == type_rules::SECRET {
        let name = Secret::decode(value).map(|secret| secret.name);
        let secret = Secret {
            name: name.unwrap_or_default(),
            ..Secret::default()
        };
        return secret.encode_to_vec();
    }
    let name = type_url.rsplit('/').next().unwrap_or(type_url);
    let descriptor = descriptor_pool().get_message_by_name(name);
    let message = descriptor.and_then(|it| DynamicMessage::decode(it, value).ok());
    message.map_or_else(Vec::new, |mut message| {
        redact(&mut message, DEPTH);
        message.encode_to_vec()
    })
}

fn redact(message: &mut DynamicMessage, depth: usize) {
    drop_unknown(message);
    if message.descriptor().full_name() == ANY {
        redact_any(message, depth);
        return;
    }
    let fields: Vec<FieldDescriptor> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        if depth == 0 || is_sensitive(&field) {
            blank(message.get_field_mut(&field));
        } else {
            descend(message.get_field_mut(&field), depth);
        }
    }
}

fn descend(value: &mut Value, depth: usize) {
    match value {
        Value::Message(inner) => redact(inner, depth - 1),
        Value::List(items) => items.iter_mut().for_each(|item| descend(item, depth)),
        Value::Map(entries) => entries.values_mut().for_each(|item| descend(item, depth)),
        Value::Bool(_)
        | Value::I32(_)
        | Value::I64(_)
        | Value::U32(_)
        | Value::U64(_)
        | Value::F32(_)
        | Value::F64(_)
        | Value::String(_)
        | Value::Bytes(_)
        | Value::EnumNumber(_) => {}
    }
}

fn redact_any(any: &mut DynamicMessage, depth: usize) {
    let type_url = any.get_field_by_name("type_url");
    let type_url = type_url.as_deref().and_then(Value::as_str);
    let type_url = type_url.unwrap_or_default().to_owned();
    let name = type_url.rsplit('/').next().unwrap_or_default();
    let inner = descriptor_pool()
        .get_message_by_name(name)
        .and_then(|descriptor| {
            let value = any.get_field_by_name("value")?;
            DynamicMessage::decode(descriptor, value.as_bytes()?.clone()).ok()
        });
    match inner {
        Some(mut inner) if depth > 0 && type_url != type_rules::SECRET => {
            redact(&mut inner, depth - 1);
            any.set_field_by_name("value", Value::Bytes(inner.encode_to_vec().into()));
        }
        Some(_) => any.set_field_by_name("value", Value::Bytes(Vec::new().into())),
        // Unknown content may be secret, and nothing around it could be shown as JSON.
        None => {
            let shown = format!("[not shown: {type_url}]").encode_to_vec();
            any.set_field_by_name("type_url", Value::String(STRING.to_owned()));
            any.set_field_by_name("value", Value::Bytes(shown.into()));
        }
    }
}

// A field of a newer Envoy may be secret; kept, it would be encoded again.
fn drop_unknown(message: &mut DynamicMessage) {
    message.take_unknown_fields().for_each(drop);
}

// Puts a marker where a text can stand, and empties the rest.
fn blank(value: &mut Value) {
    match value {
        Value::String(text) => REDACTED.clone_into(text),
        Value::Bytes(bytes) => *bytes = REDACTED.as_bytes().into(),
        Value::Message(message) => {
            drop_unknown(message);
            let fields: Vec<FieldDescriptor> = message.fields().map(|(field, _)| field).collect();
            for field in fields {
                blank(message.get_field_mut(&field));
            }
        }
        Value::List(items) => items.iter_mut().for_each(blank),
        Value::Map(entries) => {
            let keys: Vec<MapKey> = entries.keys().cloned().collect();
            for key in keys {
                entries.entry(key).and_modify(blank);
            }
        }
        Value::Bool(_)
        | Value::I32(_)
        | Value::I64(_)
        | Value::U32(_)
        | Value::U64(_)
        | Value::F32(_)
        | Value::F64(_)
        | Value::EnumNumber(_) => {}
    }
}

fn is_sensitive(field: &FieldDescriptor) -> bool {
    let Some(extension) = descriptor_pool().get_extension_by_name(SENSITIVE) else {
        return true;
    };
    let options = field.options();
    options.get_extension(&extension).as_bool().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
    use isthmus_proto::pb::google::protobuf::Any;

    use super::*;

    #[test]
    fn what_no_descriptor_is_known_of_is_not_shown_and_hides_nothing_around_it() {
        let unknown = Any {
            type_url: "type.googleapis.com/acme.Options".to_owned(),
            value: b"TOP-SECRET".to_vec(),
        };
        let cluster = Cluster {
            name: "backend".to_owned(),
            typed_extension_protocol_options: [("acme".to_owned(), unknown)].into(),
            ..Cluster::default()
        };
        let bytes = cluster.encode_to_vec();
        let shown = render(type_rules::CLUSTER, &bytes);
        let option = &shown["typedExtensionProtocolOptions"]["acme"];
        assert_eq!(shown["name"], "backend");
        assert_eq!(
            option["value"],
            "[not shown: type.googleapis.com/acme.Options]"
        );
        let encoded = encode(type_rules::CLUSTER, &bytes);
        assert!(!String::from_utf8_lossy(&encoded).contains("TOP-SECRET"));
        assert_eq!(Cluster::decode(&*encoded).unwrap().name, "backend");
        assert_eq!(
            encode("type.googleapis.com/acme.Options", b"TOP-SECRET"),
            b""
        );
    }

    #[test]
    fn fields_that_no_descriptor_has_are_dropped_at_every_level() {
        // Field 30000, of bytes.
        let unknown = [b"\x82\xd3\x0e\x0a".as_slice(), b"TOP-SECRET"].concat();
        let nested = |value: Vec<u8>| [value, unknown.clone()].concat();
        let extension = Any {
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
            value: nested(Cluster::default().encode_to_vec()),
        };
        let options = [("x".to_owned(), extension)].into();
        let cluster = Cluster {
            name: "backend".to_owned(),
            typed_extension_protocol_options: options,
            ..Cluster::default()
        };
        // `common_lb_config`, which is field 27, with nothing but the unknown one.
        let common = [b"\xda\x01\x0e".as_slice(), &unknown].concat();
        let bytes = [nested(cluster.encode_to_vec()), common].concat();
        let read = Cluster::decode(&*bytes).unwrap();
        assert!(read.common_lb_config.is_some());
        let encoded = encode(type_rules::CLUSTER, &bytes);
        assert!(!String::from_utf8_lossy(&encoded).contains("TOP-SECRET"));
        assert_eq!(Cluster::decode(&*encoded).unwrap().name, "backend");
    }
}
