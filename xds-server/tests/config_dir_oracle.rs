//! The configuration reader against prost-reflect's: every message of the pool, filled at random, must come
//! to the same message through both.
//!
//! The two share nothing but the descriptors: ours walks a YAML tree and writes bytes, prost-reflect's is a
//! serde visitor that builds a `DynamicMessage`.

use isthmus_proto::descriptor_pool;
use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
use isthmus_xds::config_dir::read_text;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

/// Documents of each message. There are over 1,500 messages, so few of each cover every kind of field.
const ROUNDS: u64 = 3;

/// Levels of messages below the one that is filled.
const MAX_LEVELS: usize = 3;

/// Messages that are put into an `Any`: without maps, whose order prost-reflect does not fix.
const IN_ANY: [&str; 3] = [
    "envoy.config.core.v3.SocketAddress",
    "envoy.extensions.filters.http.router.v3.Router",
    "google.protobuf.Duration",
];

#[test]
fn every_message_is_read_as_prost_reflect_reads_it() {
    let messages: Vec<MessageDescriptor> = descriptor_pool()
        .all_messages()
        .filter(|message| !message.is_map_entry() && !is_left_out(message))
        .collect();
    assert!(
        messages.len() > 1500,
        "the pool is whole: {}",
        messages.len()
    );
    for (index, message) in messages.iter().enumerate() {
        for round in 0..ROUNDS {
            check(message, (index as u64) << 8 | round);
        }
    }
}

/// Groups and extensions, which only proto2's own messages have.
fn is_left_out(message: &MessageDescriptor) -> bool {
    message.parent_file().name().starts_with("google/protobuf/")
        || message.full_name().starts_with("validate.")
}

fn check(message: &MessageDescriptor, seed: u64) {
    let mut random = Random(seed | 1);
    let name = message.full_name();
    let fields = random.message(message, MAX_LEVELS);
    let mut payload = fields.clone();
    payload.insert(
        "@type".to_owned(),
        json!(format!("type.googleapis.com/{name}")),
    );
    let document = json!({
        "apiVersion": "isthmus.io/v1alpha1",
        "kind": "EnvoyResources",
        "metadata": {"name": "a"},
        "spec": {"resources": [{
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "a",
            // The one place where Envoy's rules are not asked, which random messages do not satisfy.
            "metadata": {"typed_filter_metadata": {"a": payload}},
        }]},
    });
    let text = document.to_string();
    let documents =
        read_text("a.json", &text).unwrap_or_else(|errors| panic!("{name}: {}: {text}", errors[0]));
    let cluster = Cluster::decode(documents[0].resources[0].value.clone()).expect("well-formed");
    let metadata = cluster.metadata.expect("metadata");
    let bytes = &*metadata.typed_filter_metadata["a"].value;
    let found = DynamicMessage::decode(message.clone(), bytes).expect("well-formed bytes");
    let wanted = DynamicMessage::deserialize(message.clone(), Value::Object(fields))
        .unwrap_or_else(|error| panic!("{name}: prost-reflect: {error}: {text}"));
    // Over the wire, where an empty list is an absent one.
    let wanted = DynamicMessage::decode(message.clone(), wanted.encode_to_vec().as_slice())
        .expect("well-formed bytes");
    assert_eq!(found, wanted, "{name}: {text}");
}

/// A generator of numbers that is the same everywhere (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits fit") % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let index = self.below(from.len());
        &from[index]
    }

    fn message(&mut self, message: &MessageDescriptor, levels: usize) -> Map<String, Value> {
        let mut json = Map::new();
        let mut set = Vec::new();
        for field in message.fields() {
            let oneof = field
                .containing_oneof()
                .map(|oneof| oneof.name().to_owned());
            if self.below(3) == 0 || oneof.as_ref().is_some_and(|oneof| set.contains(oneof)) {
                continue;
            }
            let Some(value) = self.field(&field, levels) else {
                continue;
            };
            set.extend(oneof);
            let names = [field.name().to_owned(), field.json_name().to_owned()];
            json.insert(self.pick(&names).clone(), value);
        }
        json
    }

    fn field(&mut self, field: &FieldDescriptor, levels: usize) -> Option<Value> {
        if field.is_map() {
            let kind = field.kind();
            let entry = kind.as_message()?;
            let mut json = Map::new();
            for key in 1..=self.below(3) {
                let is_text = matches!(entry.map_entry_key_field().kind(), Kind::String);
                let key = if is_text {
                    format!("key-{key}")
                } else {
                    key.to_string()
                };
                json.insert(
                    key,
                    self.value(&entry.map_entry_value_field().kind(), levels)?,
                );
            }
            return Some(Value::Object(json));
        }
        if field.is_list() {
            let count = self.below(3);
            let items: Option<Vec<Value>> = (0..count)
                .map(|_| self.value(&field.kind(), levels))
                .collect();
            return items.map(Value::Array);
        }
        self.value(&field.kind(), levels)
    }

    fn value(&mut self, kind: &Kind, levels: usize) -> Option<Value> {
        Some(match kind {
            Kind::Bool => self.pick(&[json!(true), json!(false)]).clone(),
            Kind::Bytes => self
                .pick(&[json!(""), json!("aGk="), json!("_-8"), json!("/+8")])
                .clone(),
            // Not -0.0: prost-reflect takes it for the default, protoc does not.
            Kind::Double => self
                .pick(&[json!(0.0), json!(1.5), json!("-2.25"), json!(1e100)])
                .clone(),
            Kind::Float => self
                .pick(&[json!(0), json!(0.1), json!("3.5"), json!(-1e30)])
                .clone(),
            Kind::Enum(desc) if desc.full_name() == "google.protobuf.NullValue" => Value::Null,
            Kind::Enum(desc) => {
                let values: Vec<_> = desc.values().collect();
                let value = self.pick(&values);
                if self.0.is_multiple_of(2) {
                    json!(value.name())
                } else {
                    json!(value.number())
                }
            }
            Kind::Int32 | Kind::Sfixed32 | Kind::Sint32 => self
                .pick(&[
                    json!(0),
                    json!(i32::MIN),
                    json!(i32::MAX),
                    json!("-7"),
                    json!(2.0),
                ])
                .clone(),
            Kind::Int64 | Kind::Sfixed64 | Kind::Sint64 => self
                .pick(&[
                    json!(0),
                    json!(i64::MIN),
                    json!("9223372036854775807"),
                    json!(-1),
                ])
                .clone(),
            Kind::Fixed32 | Kind::Uint32 => self
                .pick(&[json!(0), json!(u32::MAX), json!("7"), json!(1e3)])
                .clone(),
            Kind::Fixed64 | Kind::Uint64 => self
                .pick(&[json!(0), json!(u64::MAX), json!("18446744073709551615")])
                .clone(),
            Kind::String => self
                .pick(&[
                    json!(""),
                    json!("a"),
                    json!("né\n\t\"\u{1f600}"),
                    json!("null"),
                ])
                .clone(),
            Kind::Message(desc) => return self.nested(desc, levels),
        })
    }

    fn nested(&mut self, message: &MessageDescriptor, levels: usize) -> Option<Value> {
        Some(match message.full_name() {
            "google.protobuf.Any" => self.any(levels),
            "google.protobuf.BoolValue" => return self.value(&Kind::Bool, levels),
            "google.protobuf.BytesValue" => return self.value(&Kind::Bytes, levels),
            "google.protobuf.DoubleValue" => return self.value(&Kind::Double, levels),
            "google.protobuf.Duration" => self
                .pick(&[
                    json!("0s"),
                    json!("1.5s"),
                    json!("-0.000000001s"),
                    json!("315576000000s"),
                ])
                .clone(),
            "google.protobuf.Empty" => json!({}),
            "google.protobuf.FieldMask" => self.pick(&[json!(""), json!("fooBar.baz,a")]).clone(),
            "google.protobuf.FloatValue" => return self.value(&Kind::Float, levels),
            "google.protobuf.Int32Value" => return self.value(&Kind::Int32, levels),
            "google.protobuf.Int64Value" => return self.value(&Kind::Int64, levels),
            "google.protobuf.ListValue" => json!([1, [null], {"a": true}]),
            "google.protobuf.StringValue" => return self.value(&Kind::String, levels),
            "google.protobuf.Struct" => self
                .pick(&[
                    json!({}),
                    json!({"b": 1.5, "a": {"d": [], "c": "x"}, "": null}),
                ])
                .clone(),
            "google.protobuf.Timestamp" => self
                .pick(&[
                    json!("1970-01-01T00:00:00Z"),
                    json!("2030-06-05T04:03:02.000000001+01:00"),
                ])
                .clone(),
            "google.protobuf.UInt32Value" => return self.value(&Kind::Uint32, levels),
            "google.protobuf.UInt64Value" => return self.value(&Kind::Uint64, levels),
            "google.protobuf.Value" => self
                .pick(&[json!(true), json!([]), json!("x"), json!(0)])
                .clone(),
            _ if levels == 0 || is_left_out(message) => return None,
            _ => Value::Object(self.message(message, levels - 1)),
        })
    }

    fn any(&mut self, levels: usize) -> Value {
        let name = *self.pick(&IN_ANY);
        let url = format!("type.googleapis.com/{name}");
        if name == "google.protobuf.Duration" {
            return json!({"@type": url, "value": "2s"});
        }
        let message = descriptor_pool()
            .get_message_by_name(name)
            .expect("in the pool");
        let mut json = self.message(&message, levels.min(1));
        json.insert("@type".to_owned(), json!(url));
        Value::Object(json)
    }
}
