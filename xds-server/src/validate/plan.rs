//! The rules of every message, read from the descriptors once and kept in the form in which they are asked.
//!
//! Messages whose rules can never ask anything, however deep, are not entered at all.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use isthmus_proto::descriptor_pool;
use isthmus_proto::pb::validate::field_rules::Type;
use isthmus_proto::pb::validate::string_rules::WellKnown;
use isthmus_proto::pb::validate::{self as pgv, FieldRules, KnownRegex};
use prost::encoding::WireType;
use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor,
};

use super::range::Range;
use super::requirement::Quantity;
use super::text::{BytesRules, Form, Lengths, Pattern, TextRules};

const ANY: &str = "google.protobuf.Any";

/// Data for whoever looks at it, which Envoy does not read when it takes a configuration.
const UNREAD: &str = "envoy.config.core.v3.Metadata.typed_filter_metadata";

/// The rules of all messages of the pool.
#[derive(Debug)]
pub(super) struct Plans {
    by_name: HashMap<String, usize>,
    messages: Vec<Plan>,
    unsupported: Vec<String>,
}

/// The rules of one message.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// By number. Fields of which nothing is asked are left out.
    pub(super) fields: Vec<FieldPlan>,
    /// Oneofs that must have a member.
    pub(super) oneofs: Vec<OneofPlan>,
}

/// A oneof that must have a member.
#[derive(Debug)]
pub(super) struct OneofPlan {
    pub(super) members: Vec<Arc<str>>,
    pub(super) numbers: Vec<u32>,
}

/// The rules of one field.
#[derive(Debug)]
pub(super) struct FieldPlan {
    pub(super) number: u32,
    pub(super) name: Arc<str>,
    pub(super) json_name: Arc<str>,
    /// Whether being there is asked.
    pub(super) is_required: bool,
    /// Whether "not there" is a value, its type's zero.
    pub(super) is_implicit: bool,
    pub(super) shape: Shape,
    /// Of the value, of each item, or of the value of each entry.
    pub(super) check: Check,
}

#[derive(Debug)]
pub(super) enum Shape {
    List {
        lengths: Lengths,
        is_unique: bool,
        ignores_empty: bool,
        /// How items are encoded if they may be packed.
        packed: Option<WireType>,
    },
    Map {
        lengths: Lengths,
        key: Check,
        key_scalar: Scalar,
        ignores_empty: bool,
    },
    Single,
}

/// How the bits of a field are to be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scalar {
    Double,
    Float,
    LengthDelimited,
    Signed32,
    Signed64,
    Unsigned32,
    Unsigned64,
    ZigZag,
}

/// What is asked of a value.
#[derive(Debug, Default)]
pub(super) enum Check {
    /// The message inside is checked by its own rules.
    Any {
        one_of: Vec<String>,
        not_one_of: Vec<String>,
    },
    Bool(bool),
    Bytes(Box<BytesRules>),
    Duration(Box<Range>),
    Enum(Box<EnumRules>),
    /// By the message's own rules.
    Message(usize),
    #[default]
    Nothing,
    Number(Scalar, Box<Range>),
    Text(Box<TextRules>),
    Time(Box<Range>),
    /// Of the only field of a message such as `google.protobuf.UInt32Value`.
    Wrapped(Box<Self>),
}

/// The rules of an enum field; the values are numbers.
#[derive(Debug, Default)]
pub(super) struct EnumRules {
    pub(super) constant: Option<i32>,
    /// Sorted.
    pub(super) defined: Option<Vec<i32>>,
    pub(super) name: Arc<str>,
    pub(super) one_of: Vec<i32>,
    pub(super) not_one_of: Vec<i32>,
    /// Names of values for people.
    pub(super) labels: Vec<(i32, String)>,
}

static PLANS: LazyLock<Plans> = LazyLock::new(|| Plans::of(descriptor_pool()));

/// The rules of the messages of `isthmus_proto::descriptor_pool`. Made on first use, in milliseconds.
pub(super) fn plans() -> &'static Plans {
    &PLANS
}

impl Plans {
    fn of(pool: &DescriptorPool) -> Self {
        let by_name: HashMap<String, usize> = pool
            .all_messages()
            .enumerate()
            .map(|(index, message)| (message.full_name().to_owned(), index))
            .collect();
        let mut unsupported = Vec::new();
        let mut plans = match Extensions::of(pool) {
            Some(extensions) => {
                let mut reader = Reader {
                    by_name: &by_name,
                    extensions,
                    unsupported: &mut unsupported,
                };
                pool.all_messages()
                    .map(|message| reader.message(&message))
                    .collect()
            }
            None => Vec::new(),
        };
        prune(&mut plans);
        Self {
            by_name,
            messages: plans,
            unsupported,
        }
    }

    pub(super) fn of_message(&self, full_name: &str) -> Option<&Plan> {
        self.by_name
            .get(full_name)
            .and_then(|index| self.plan(*index))
    }

    pub(super) fn plan(&self, index: usize) -> Option<&Plan> {
        self.messages.get(index)
    }

    /// Rules that the descriptors have and this program does not know: field and rule.
    pub(super) fn unsupported(&self) -> &[String] {
        &self.unsupported
    }
}

/// Drops what asks nothing: a message asks something if one of its fields does, or one below them.
fn prune(plans: &mut [Plan]) {
    let asks_itself = |plan: &Plan| {
        let asks = |field: &FieldPlan| {
            field.asks_itself() || !matches!(field.check, Check::Nothing | Check::Message(_))
        };
        !plan.oneofs.is_empty() || plan.fields.iter().any(asks)
    };
    let mut asks: Vec<bool> = plans.iter().map(asks_itself).collect();
    loop {
        let mut is_changed = false;
        for (index, plan) in plans
            .iter()
            .enumerate()
            .filter(|(_, plan)| !plan.fields.is_empty())
        {
            let below =
                |field: &FieldPlan| matches!(field.check, Check::Message(below) if asks[below]);
            if !asks[index] && plan.fields.iter().any(below) {
                asks[index] = true;
                is_changed = true;
            }
        }
        if !is_changed {
            break;
        }
    }
    for plan in plans {
        for field in &mut plan.fields {
            if matches!(field.check, Check::Message(below) if !asks[below]) {
                field.check = Check::Nothing;
            }
        }
        plan.fields
            .retain(|field| field.asks_itself() || !matches!(field.check, Check::Nothing));
    }
}

impl FieldPlan {
    /// Whether something is asked apart from what is asked of the value.
    fn asks_itself(&self) -> bool {
        let of_shape = match &self.shape {
            Shape::List {
                lengths, is_unique, ..
            } => *is_unique || lengths.min.is_some() || lengths.max.is_some(),
            Shape::Map { lengths, key, .. } => {
                !matches!(key, Check::Nothing) || lengths.min.is_some() || lengths.max.is_some()
            }
            Shape::Single => false,
        };
        self.is_required || of_shape
    }
}

#[derive(Debug)]
struct Extensions {
    disabled: ExtensionDescriptor,
    ignored: ExtensionDescriptor,
    required: ExtensionDescriptor,
    rules: ExtensionDescriptor,
}

impl Extensions {
    fn of(pool: &DescriptorPool) -> Option<Self> {
        Some(Self {
            disabled: pool.get_extension_by_name("validate.disabled")?,
            ignored: pool.get_extension_by_name("validate.ignored")?,
            required: pool.get_extension_by_name("validate.required")?,
            rules: pool.get_extension_by_name("validate.rules")?,
        })
    }
}

#[derive(Debug)]
struct Reader<'a> {
    by_name: &'a HashMap<String, usize>,
    extensions: Extensions,
    unsupported: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn message(&mut self, message: &MessageDescriptor) -> Plan {
        let options = message.options();
        let is_set = |extension| options.get_extension(extension).as_bool() == Some(true);
        if is_set(&self.extensions.disabled) || is_set(&self.extensions.ignored) {
            return Plan::default();
        }
        let mut fields: Vec<FieldPlan> = message.fields().map(|field| self.field(&field)).collect();
        fields.sort_by_key(|field| field.number);
        let required = |oneof: &prost_reflect::OneofDescriptor| {
            oneof
                .options()
                .get_extension(&self.extensions.required)
                .as_bool()
                == Some(true)
        };
        let oneofs = message.oneofs().filter(required).map(|oneof| OneofPlan {
            members: oneof.fields().map(|field| field.name().into()).collect(),
            numbers: oneof.fields().map(|field| field.number()).collect(),
        });
        Plan {
            oneofs: oneofs.collect(),
            fields,
        }
    }

    fn field(&mut self, field: &FieldDescriptor) -> FieldPlan {
        let options = field.options();
        let rules = options.get_extension(&self.extensions.rules);
        let rules = rules
            .as_message()
            .map(DynamicMessage::transcode_to::<FieldRules>);
        let rules = rules
            .unwrap_or_else(|| Ok(FieldRules::default()))
            .unwrap_or_else(|_| {
                self.refuse::<()>(field, "rules that cannot be read");
                FieldRules::default()
            });
        let (shape, check) = self.shape_and_check(field, &rules);
        FieldPlan {
            number: field.number(),
            name: field.name().into(),
            json_name: field.json_name().into(),
            // Of a oneof's members only the one that is there is asked anything.
            is_required: is_required(&rules) && field.containing_oneof().is_none(),
            is_implicit: !field.supports_presence() && !field.is_list() && !field.is_map(),
            shape,
            check,
        }
    }

    fn shape_and_check(&mut self, field: &FieldDescriptor, rules: &FieldRules) -> (Shape, Check) {
        if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
            let rules = match &rules.r#type {
                Some(Type::Map(rules)) => (**rules).clone(),
                Some(_) => self.refuse(field, "rules of another type"),
                None => pgv::MapRules::default(),
            };
            let pgv::MapRules {
                min_pairs,
                max_pairs,
                no_sparse,
                keys,
                values,
                ignore_empty,
            } = rules;
            if no_sparse == Some(true) {
                self.refuse::<()>(field, "map.no_sparse");
            }
            let key = entry.map_entry_key_field();
            let shape = Shape::Map {
                lengths: Lengths {
                    min: min_pairs,
                    max: max_pairs,
                },
                key: self.check(field, &key.kind(), keys.as_deref()),
                key_scalar: scalar_of(&key.kind()),
                ignores_empty: ignore_empty == Some(true),
            };
            let value = entry.map_entry_value_field().kind();
            return (shape, self.check(field, &value, values.as_deref()));
        }
        if field.is_list() {
            let rules = match &rules.r#type {
                Some(Type::Repeated(rules)) => (**rules).clone(),
                Some(_) => self.refuse(field, "rules of another type"),
                None => pgv::RepeatedRules::default(),
            };
            let pgv::RepeatedRules {
                min_items,
                max_items,
                unique,
                items,
                ignore_empty,
            } = rules;
            let shape = Shape::List {
                lengths: Lengths {
                    min: min_items,
                    max: max_items,
                },
                is_unique: unique == Some(true),
                ignores_empty: ignore_empty == Some(true),
                packed: packed_as(&field.kind()),
            };
            return (shape, self.check(field, &field.kind(), items.as_deref()));
        }
        (Shape::Single, self.check(field, &field.kind(), Some(rules)))
    }

    fn check(&mut self, field: &FieldDescriptor, kind: &Kind, rules: Option<&FieldRules>) -> Check {
        let kind_rules = rules.and_then(|rules| rules.r#type.as_ref());
        let Some(kind_rules) = kind_rules else {
            let skips = rules.and_then(|rules| rules.message.as_ref()?.skip) == Some(true);
            return self.unruled(field, kind, skips);
        };
        if let Some(message) = kind.as_message() {
            return self.message_check(field, message, kind_rules);
        }
        self.scalar_check(field, kind, kind_rules)
    }

    /// Of a message with rules: a well-known type.
    fn message_check(
        &mut self,
        field: &FieldDescriptor,
        message: &MessageDescriptor,
        rules: &Type,
    ) -> Check {
        if let Type::Any(pgv::AnyRules {
            required: _,
            r#in,
            not_in,
        }) = rules
        {
            return Check::Any {
                one_of: r#in.clone(),
                not_one_of: not_in.clone(),
            };
        }
        if let Type::Duration(rules) = rules {
            return Check::Duration(Box::new(duration_range(rules)));
        }
        if let Type::Timestamp(rules) = rules {
            if rules.lt_now.is_some() || rules.gt_now.is_some() || rules.within.is_some() {
                self.refuse::<()>(field, "timestamp rules that ask for the time");
            }
            return Check::Time(Box::new(time_range(rules)));
        }
        match message.get_field(1) {
            Some(inner) => Check::Wrapped(Box::new(self.scalar_check(field, &inner.kind(), rules))),
            None => self.refuse(field, "rules of another type"),
        }
    }

    fn unruled(&self, field: &FieldDescriptor, kind: &Kind, skips: bool) -> Check {
        match kind.as_message() {
            Some(_) if skips || field.full_name() == UNREAD => Check::Nothing,
            Some(message) if message.full_name() == ANY => Check::ANY,
            Some(message) => self
                .by_name
                .get(message.full_name())
                .map_or(Check::Nothing, |index| Check::Message(*index)),
            None => Check::Nothing,
        }
    }

    fn scalar_check(&mut self, field: &FieldDescriptor, kind: &Kind, rules: &Type) -> Check {
        if let Some(range) = number_range(rules) {
            return Check::Number(scalar_of(kind), Box::new(range));
        }
        if let Type::Bool(pgv::BoolRules { r#const }) = rules {
            return r#const.map_or(Check::Nothing, Check::Bool);
        }
        if let Type::String(rules) = rules {
            return self.text(field, rules);
        }
        if let Type::Bytes(rules) = rules {
            return self.bytes(field, rules);
        }
        if let (Type::Enum(rules), Some(desc)) = (rules, kind.as_enum()) {
            return Check::Enum(Box::new(enum_rules(desc, rules)));
        }
        self.refuse(field, "rules of another type")
    }

    fn text(&mut self, field: &FieldDescriptor, rules: &pgv::StringRules) -> Check {
        let is_strict = rules.strict();
        let pgv::StringRules {
            r#const,
            len,
            min_len,
            max_len,
            len_bytes,
            min_bytes,
            max_bytes,
            pattern,
            prefix,
            suffix,
            contains,
            not_contains,
            r#in,
            not_in,
            strict: _,
            ignore_empty,
            well_known,
        } = rules.clone();
        let pattern = pattern.and_then(|pattern| {
            let parsed = Pattern::parse(&pattern);
            if parsed.is_none() {
                self.refuse::<()>(field, "a pattern that is no regular expression");
            }
            parsed
        });
        let form = well_known.and_then(|known| {
            let form = form_of(known, is_strict);
            let is_asked = !matches!(
                known,
                WellKnown::Address(false)
                    | WellKnown::Email(false)
                    | WellKnown::Hostname(false)
                    | WellKnown::Ip(false)
                    | WellKnown::Ipv4(false)
                    | WellKnown::Ipv6(false)
                    | WellKnown::Uri(false)
                    | WellKnown::UriRef(false)
                    | WellKnown::Uuid(false)
            );
            if form.is_none() && is_asked {
                self.refuse::<()>(field, "a well-known form");
            }
            form
        });
        Check::Text(Box::new(TextRules {
            constant: r#const,
            characters: Lengths {
                min: len.or(min_len),
                max: len.or(max_len),
            },
            bytes: Lengths {
                min: len_bytes.or(min_bytes),
                max: len_bytes.or(max_bytes),
            },
            pattern,
            prefix,
            suffix,
            contains,
            not_contains,
            one_of: r#in,
            not_one_of: not_in,
            form,
            ignores_empty: ignore_empty == Some(true),
        }))
    }

    fn bytes(&mut self, field: &FieldDescriptor, rules: &pgv::BytesRules) -> Check {
        let pgv::BytesRules {
            r#const,
            len,
            min_len,
            max_len,
            pattern,
            prefix,
            suffix,
            contains,
            r#in,
            not_in,
            ignore_empty,
            well_known,
        } = rules.clone();
        if pattern.is_some()
            || prefix.is_some()
            || suffix.is_some()
            || contains.is_some()
            || well_known.is_some()
        {
            self.refuse::<()>(field, "a rule of bytes other than lengths and sets");
        }
        Check::Bytes(Box::new(BytesRules {
            constant: r#const,
            lengths: Lengths {
                min: len.or(min_len),
                max: len.or(max_len),
            },
            one_of: r#in,
            not_one_of: not_in,
            ignores_empty: ignore_empty == Some(true),
        }))
    }

    fn refuse<T: Default>(&mut self, field: &FieldDescriptor, what: &str) -> T {
        self.unsupported
            .push(format!("{}: {what}", field.full_name()));
        T::default()
    }
}

impl Check {
    /// Nothing but what the message in it asks.
    pub(super) const ANY: Self = Self::Any {
        one_of: Vec::new(),
        not_one_of: Vec::new(),
    };
}

fn is_required(rules: &FieldRules) -> bool {
    let of_type = match &rules.r#type {
        Some(Type::Any(rules)) => rules.required,
        Some(Type::Duration(rules)) => rules.required,
        Some(Type::Timestamp(rules)) => rules.required,
        Some(_) | None => None,
    };
    let of_message = rules.message.as_ref().and_then(|rules| rules.required);
    of_type == Some(true) || of_message == Some(true)
}

fn packed_as(kind: &Kind) -> Option<WireType> {
    match kind {
        Kind::Bytes | Kind::Message(_) | Kind::String => None,
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Some(WireType::SixtyFourBit),
        Kind::Fixed32 | Kind::Float | Kind::Sfixed32 => Some(WireType::ThirtyTwoBit),
        Kind::Bool
        | Kind::Enum(_)
        | Kind::Int32
        | Kind::Int64
        | Kind::Sint32
        | Kind::Sint64
        | Kind::Uint32
        | Kind::Uint64 => Some(WireType::Varint),
    }
}

fn scalar_of(kind: &Kind) -> Scalar {
    match kind {
        Kind::Bool | Kind::Fixed64 | Kind::Uint64 => Scalar::Unsigned64,
        Kind::Bytes | Kind::Message(_) | Kind::String => Scalar::LengthDelimited,
        Kind::Double => Scalar::Double,
        Kind::Float => Scalar::Float,
        Kind::Enum(_) | Kind::Int32 | Kind::Sfixed32 => Scalar::Signed32,
        Kind::Int64 | Kind::Sfixed64 => Scalar::Signed64,
        Kind::Fixed32 | Kind::Uint32 => Scalar::Unsigned32,
        Kind::Sint32 | Kind::Sint64 => Scalar::ZigZag,
    }
}

fn form_of(known: WellKnown, is_strict: bool) -> Option<Form> {
    match known {
        WellKnown::Address(true) => Some(Form::Address),
        WellKnown::Hostname(true) => Some(Form::Hostname),
        WellKnown::Ip(true) => Some(Form::Ip),
        WellKnown::Ipv4(true) => Some(Form::Ipv4),
        WellKnown::Ipv6(true) => Some(Form::Ipv6),
        WellKnown::Uuid(true) => Some(Form::Uuid),
        WellKnown::WellKnownRegex(number) => match (KnownRegex::try_from(number), is_strict) {
            (Ok(KnownRegex::HttpHeaderName), true) => Some(Form::HeaderName),
            (Ok(KnownRegex::HttpHeaderValue), true) => Some(Form::HeaderValue),
            (Ok(KnownRegex::HttpHeaderName | KnownRegex::HttpHeaderValue), false) => {
                Some(Form::OneLine)
            }
            (Ok(KnownRegex::Unknown) | Err(_), _) => None,
        },
        WellKnown::Address(false)
        | WellKnown::Email(_)
        | WellKnown::Hostname(false)
        | WellKnown::Ip(false)
        | WellKnown::Ipv4(false)
        | WellKnown::Ipv6(false)
        | WellKnown::Uri(_)
        | WellKnown::UriRef(_)
        | WellKnown::Uuid(false) => None,
    }
}

fn enum_rules(desc: &prost_reflect::EnumDescriptor, rules: &pgv::EnumRules) -> EnumRules {
    let pgv::EnumRules {
        r#const,
        defined_only,
        r#in,
        not_in,
    } = rules.clone();
    let mut defined: Vec<i32> = desc.values().map(|value| value.number()).collect();
    defined.sort_unstable();
    EnumRules {
        constant: r#const,
        defined: (defined_only == Some(true)).then_some(defined),
        name: desc.full_name().into(),
        one_of: r#in,
        not_one_of: not_in,
        labels: desc
            .values()
            .map(|value| (value.number(), value.name().to_owned()))
            .collect(),
    }
}

/// All numeric rules have the same fields.
macro_rules! range {
    ($rules:expr, $quantity:expr) => {{
        let quantity = $quantity;
        Some(Range {
            constant: $rules.r#const.map(quantity),
            less: $rules.lt.map(quantity),
            at_most: $rules.lte.map(quantity),
            greater: $rules.gt.map(quantity),
            at_least: $rules.gte.map(quantity),
            one_of: $rules.r#in.iter().copied().map(quantity).collect(),
            not_one_of: $rules.not_in.iter().copied().map(quantity).collect(),
            ignores_zero: $rules.ignore_empty == Some(true),
        })
    }};
}

fn number_range(rules: &Type) -> Option<Range> {
    match rules {
        Type::Float(rules) => range!(rules, |value: f32| Quantity::Float(value.into())),
        Type::Double(rules) => range!(rules, Quantity::Float),
        Type::Int32(rules) => range!(rules, |value: i32| Quantity::Integer(value.into())),
        Type::Int64(rules) => range!(rules, |value: i64| Quantity::Integer(value.into())),
        Type::Uint32(rules) => range!(rules, |value: u32| Quantity::Integer(value.into())),
        Type::Uint64(rules) => range!(rules, |value: u64| Quantity::Integer(value.into())),
        Type::Sint32(rules) => range!(rules, |value: i32| Quantity::Integer(value.into())),
        Type::Sint64(rules) => range!(rules, |value: i64| Quantity::Integer(value.into())),
        Type::Fixed32(rules) => range!(rules, |value: u32| Quantity::Integer(value.into())),
        Type::Fixed64(rules) => range!(rules, |value: u64| Quantity::Integer(value.into())),
        Type::Sfixed32(rules) => range!(rules, |value: i32| Quantity::Integer(value.into())),
        Type::Sfixed64(rules) => range!(rules, |value: i64| Quantity::Integer(value.into())),
        Type::Any(_)
        | Type::Bool(_)
        | Type::Bytes(_)
        | Type::Duration(_)
        | Type::Enum(_)
        | Type::Map(_)
        | Type::Repeated(_)
        | Type::String(_)
        | Type::Timestamp(_) => None,
    }
}

fn duration_range(rules: &pgv::DurationRules) -> Range {
    let nanos = |time: &isthmus_proto::pb::google::protobuf::Duration| {
        Quantity::Duration(nanos_of(time.seconds, time.nanos))
    };
    Range {
        constant: rules.r#const.as_ref().map(nanos),
        less: rules.lt.as_ref().map(nanos),
        at_most: rules.lte.as_ref().map(nanos),
        greater: rules.gt.as_ref().map(nanos),
        at_least: rules.gte.as_ref().map(nanos),
        one_of: rules.r#in.iter().map(nanos).collect(),
        not_one_of: rules.not_in.iter().map(nanos).collect(),
        ignores_zero: false,
    }
}

fn time_range(rules: &pgv::TimestampRules) -> Range {
    let nanos = |time: &isthmus_proto::pb::google::protobuf::Timestamp| {
        Quantity::Time(nanos_of(time.seconds, time.nanos))
    };
    Range {
        constant: rules.r#const.as_ref().map(nanos),
        less: rules.lt.as_ref().map(nanos),
        at_most: rules.lte.as_ref().map(nanos),
        greater: rules.gt.as_ref().map(nanos),
        at_least: rules.gte.as_ref().map(nanos),
        ..Range::default()
    }
}

/// Nanoseconds of a `Duration` or `Timestamp`.
pub(super) fn nanos_of(seconds: i64, nanos: i32) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a newer set of descriptors has a rule that this program would not ask.
    #[test]
    fn every_rule_of_envoys_descriptors_is_known() {
        let plans = plans();
        assert!(plans.unsupported().is_empty(), "{:#?}", plans.unsupported());
        assert!(plans.messages.iter().any(|plan| !plan.fields.is_empty()));
    }
}
