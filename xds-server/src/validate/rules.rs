//! Asks a message everything that Envoy's descriptors ask of it.
//!
//! What is protoc-gen-validate's and may surprise:
//!
//! * A field without presence (`string`, `uint32` ...) that is not given has its type's zero, and that is
//!   checked: `min_len: 1` makes a string required. A message, a member of a oneof, and an `optional` that
//!   is not given is not checked unless it is required.
//! * Rules of a number on a message such as `UInt32Value` are asked of the number in it.
//! * Patterns match the whole value. Lengths of strings count characters unless they say bytes.
//! * `Any`s are checked by the rules of the message in them, which Envoy does when an extension reads it.

use std::collections::HashSet;

use super::path::Step;
use super::plan::{Check, EnumRules, FieldPlan, Plan, Plans, Scalar, Shape, nanos_of, plans};
use super::requirement::{Counted, Quantity, Requirement};
use super::wire::{Fields, Wire, last, read};
use super::{MAX_DEPTH, MAX_VIOLATIONS};
use isthmus_proto::descriptor_pool;

const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

static ANY: Check = Check::ANY;

/// A rule that a message does not satisfy.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// From the message to the field that is asked about, which may be absent.
    pub path: Vec<Step>,
    /// What was asked.
    pub requirement: Requirement,
}

/// Checks an encoded message of a type, and every message inside it.
///
/// Returns what is violated, up to [`MAX_VIOLATIONS`], in the order of the bytes; nothing for a type that is not
/// in the pool. Takes any bytes; what is no message is a violation. Costs one pass over the bytes.
pub fn check(full_name: &str, message: &[u8]) -> Vec<Violation> {
    let plans = plans();
    let mut walk = Walk {
        depth: 0,
        path: Vec::new(),
        plans,
        violations: Vec::new(),
    };
    if let Some(plan) = plans.of_message(full_name) {
        walk.message(plan, message);
    }
    walk.violations
}

/// Rules of the descriptors that [`check`] does not ask, by field; a test holds this empty.
pub fn unsupported() -> &'static [String] {
    // The pool is what the rules are read from.
    let _ = descriptor_pool();
    plans().unsupported()
}

#[derive(Clone, Copy, Debug)]
enum At<'a> {
    Field(&'a FieldPlan),
    Index(usize),
    Key(Scalar, Wire<'a>),
}

#[derive(Debug)]
struct Walk<'a> {
    depth: usize,
    path: Vec<At<'a>>,
    plans: &'static Plans,
    violations: Vec<Violation>,
}

/// What was seen of a field of one message.
#[derive(Debug, Default)]
struct Seen<'a> {
    count: usize,
    distinct: HashSet<Vec<u8>>,
    value: Option<Wire<'a>>,
}

impl<'a> Walk<'a> {
    fn message(&mut self, plan: &'static Plan, message: &'a [u8]) {
        if plan.fields.is_empty() && plan.oneofs.is_empty() {
            return;
        }
        let mut seen: Vec<Seen<'a>> = Vec::new();
        seen.resize_with(plan.fields.len(), Seen::default);
        let mut has_member = vec![false; plan.oneofs.len()];
        for field in Fields::new(message) {
            let Ok((number, value)) = field else {
                return self.fail(Requirement::Message);
            };
            for (oneof, has_member) in plan.oneofs.iter().zip(&mut has_member) {
                *has_member |= oneof.numbers.contains(&number);
            }
            let found = plan
                .fields
                .binary_search_by_key(&number, |field| field.number);
            let Ok(index) = found else { continue };
            let (field, seen) = (&plan.fields[index], &mut seen[index]);
            self.within(At::Field(field), |walk| walk.occurrence(field, value, seen));
        }
        for (field, seen) in plan.fields.iter().zip(&seen) {
            self.within(At::Field(field), |walk| walk.whole(field, seen));
        }
        for (oneof, _) in plan.oneofs.iter().zip(has_member).filter(|(_, has)| !has) {
            self.fail(Requirement::OneOfFields(oneof.members.clone()));
        }
    }

    /// One appearance of a field, which of a list is an item or, packed, some of them.
    fn occurrence(&mut self, field: &'static FieldPlan, value: Wire<'a>, seen: &mut Seen<'a>) {
        match &field.shape {
            Shape::Single => {
                seen.count = 1;
                seen.value = Some(value);
            }
            Shape::List { packed, .. } => match (*packed, value) {
                (Some(wire_type), Wire::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        let Ok(item) = read(wire_type, &mut packed) else {
                            return self.fail(Requirement::Message);
                        };
                        self.item(field, item, seen);
                    }
                }
                (Some(_) | None, _) => self.item(field, value, seen),
            },
            Shape::Map {
                key, key_scalar, ..
            } => {
                seen.count += 1;
                let absent = absent(*key_scalar);
                let key_value = last(value.bytes(), 1).unwrap_or(absent);
                self.within(At::Key(*key_scalar, key_value), |walk| {
                    if let Some(requirement) = value_requirement(key, key_value) {
                        walk.fail(Requirement::Key(Box::new(requirement)));
                    }
                    let scalar = field.check.scalar();
                    walk.check(
                        &field.check,
                        last(value.bytes(), 2).unwrap_or(self::absent(scalar)),
                    );
                });
            }
        }
    }

    fn item(&mut self, field: &'static FieldPlan, item: Wire<'a>, seen: &mut Seen<'a>) {
        let Shape::List { is_unique, .. } = &field.shape else {
            return;
        };
        self.within(At::Index(seen.count), |walk| {
            let identity = || match item {
                Wire::Bytes(bytes) => bytes.to_vec(),
                Wire::Fixed32(_) | Wire::Fixed64(_) | Wire::Varint(_) => {
                    item.bits().to_le_bytes().to_vec()
                }
            };
            if *is_unique && !seen.distinct.insert(identity()) {
                walk.fail(Requirement::Unique);
            }
            walk.check(&field.check, item);
        });
        seen.count += 1;
    }

    /// What all appearances of a field together have to satisfy, or that there is none.
    fn whole(&mut self, field: &'static FieldPlan, seen: &Seen<'a>) {
        let requirement = match &field.shape {
            Shape::Single => match seen.value {
                Some(value) => return self.check(&field.check, value),
                None if field.is_required => Some(Requirement::Present),
                None if field.is_implicit => {
                    return self.check(&field.check, absent(field.check.scalar()));
                }
                None => None,
            },
            Shape::List {
                ignores_empty: true,
                ..
            }
            | Shape::Map {
                ignores_empty: true,
                ..
            } if seen.count == 0 => None,
            Shape::List { lengths, .. } => lengths.check(seen.count, Counted::Items),
            Shape::Map { lengths, .. } => lengths.check(seen.count, Counted::Entries),
        };
        if let Some(requirement) = requirement {
            self.fail(requirement);
        }
    }

    fn check(&mut self, check: &'static Check, value: Wire<'a>) {
        match check {
            Check::Any { .. } | Check::Message(_) if self.depth >= MAX_DEPTH => {
                self.fail(Requirement::NotSoDeep);
            }
            Check::Any { one_of, not_one_of } => {
                self.depth += 1;
                self.any(one_of, not_one_of, value.bytes());
                self.depth -= 1;
            }
            Check::Message(index) => {
                self.depth += 1;
                if let Some(plan) = self.plans.plan(*index) {
                    self.message(plan, value.bytes());
                }
                self.depth -= 1;
            }
            Check::Bool(_)
            | Check::Bytes(_)
            | Check::Duration(_)
            | Check::Enum(_)
            | Check::Nothing
            | Check::Number(..)
            | Check::Text(_)
            | Check::Time(_)
            | Check::Wrapped(_) => {
                if let Some(requirement) = value_requirement(check, value) {
                    self.fail(requirement);
                }
            }
        }
    }

    fn any(&mut self, one_of: &[String], not_one_of: &[String], any: &'a [u8]) {
        let url = last(any, 1).map_or(&[][..], Wire::bytes);
        let Ok(url) = str::from_utf8(url) else {
            return self.fail(Requirement::Message);
        };
        if !one_of.is_empty() && !one_of.iter().any(|other| other == url) {
            self.fail(Requirement::OneOf(one_of.to_vec()));
        }
        if not_one_of.iter().any(|other| other == url) {
            self.fail(Requirement::NotOneOf(not_one_of.to_vec()));
        }
        let name = url.strip_prefix(TYPE_URL_PREFIX).unwrap_or(url);
        let payload = last(any, 2).map_or(&[][..], Wire::bytes);
        if name == "google.protobuf.Any" {
            return self.check(&ANY, Wire::Bytes(payload));
        }
        if let Some(plan) = self.plans.of_message(name) {
            self.message(plan, payload);
        }
    }

    fn within(&mut self, at: At<'a>, visit: impl FnOnce(&mut Self)) {
        self.path.push(at);
        visit(self);
        self.path.pop();
    }

    fn fail(&mut self, requirement: Requirement) {
        if self.violations.len() < MAX_VIOLATIONS {
            let path = self.path.iter().map(|at| at.step()).collect();
            self.violations.push(Violation { path, requirement });
        }
    }
}

/// What a value that holds no further messages does not satisfy.
fn value_requirement(check: &Check, value: Wire<'_>) -> Option<Requirement> {
    match check {
        Check::Bool(wanted) => {
            let is_met = (value.bits() != 0) == *wanted;
            (!is_met).then(|| Requirement::Equal(wanted.to_string()))
        }
        Check::Bytes(rules) => rules.check(value.bytes()),
        Check::Duration(range) => range.check(Quantity::Duration(time(value.bytes()))),
        Check::Time(range) => range.check(Quantity::Time(time(value.bytes()))),
        Check::Enum(rules) => rules.check(integer(Scalar::Signed32, value)),
        Check::Number(scalar, range) => range.check(quantity(*scalar, value)),
        Check::Text(rules) => rules.check(value.bytes()),
        Check::Wrapped(check) => {
            let inner = last(value.bytes(), 1);
            value_requirement(check, inner.unwrap_or(absent(check.scalar())))
        }
        Check::Any { .. } | Check::Message(_) | Check::Nothing => None,
    }
}

impl At<'_> {
    fn step(self) -> Step {
        match self {
            Self::Field(field) => Step::Field {
                name: field.name.clone(),
                json_name: field.json_name.clone(),
            },
            Self::Index(index) => Step::Index(index),
            Self::Key(Scalar::LengthDelimited, key) => {
                Step::Key(String::from_utf8_lossy(key.bytes()).into_owned())
            }
            Self::Key(scalar, key) => Step::Key(integer(scalar, key).to_string()),
        }
    }
}

impl Check {
    /// How the value is read.
    fn scalar(&self) -> Scalar {
        match self {
            Self::Number(scalar, _) => *scalar,
            Self::Bool(_) | Self::Enum(_) => Scalar::Unsigned64,
            Self::Any { .. }
            | Self::Bytes(_)
            | Self::Duration(_)
            | Self::Message(_)
            | Self::Nothing
            | Self::Text(_)
            | Self::Time(_)
            | Self::Wrapped(_) => Scalar::LengthDelimited,
        }
    }
}

impl EnumRules {
    fn check(&self, value: i128) -> Option<Requirement> {
        let is = |number: &i32| i128::from(*number) == value;
        let names = |numbers: &[i32]| numbers.iter().map(|number| self.label(*number)).collect();
        if let Some(constant) = self.constant.filter(|constant| !is(constant)) {
            return Some(Requirement::Equal(self.label(constant)));
        }
        if !self.one_of.is_empty() && !self.one_of.iter().any(is) {
            return Some(Requirement::OneOf(names(&self.one_of)));
        }
        if self.not_one_of.iter().any(is) {
            return Some(Requirement::NotOneOf(names(&self.not_one_of)));
        }
        let defined = self.defined.as_ref()?;
        (!defined.iter().any(is)).then(|| Requirement::Defined(self.name.clone()))
    }

    fn label(&self, number: i32) -> String {
        let label = self.labels.iter().find(|(other, _)| *other == number);
        label.map_or_else(|| number.to_string(), |(_, label)| label.clone())
    }
}

fn absent(scalar: Scalar) -> Wire<'static> {
    match scalar {
        Scalar::LengthDelimited => Wire::Bytes(&[]),
        Scalar::Double
        | Scalar::Float
        | Scalar::Signed32
        | Scalar::Signed64
        | Scalar::Unsigned32
        | Scalar::Unsigned64
        | Scalar::ZigZag => Wire::Varint(0),
    }
}

fn quantity(scalar: Scalar, value: Wire<'_>) -> Quantity {
    match scalar {
        Scalar::Double => Quantity::Float(f64::from_bits(value.bits())),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the upper half of 32 bits is empty"
        )]
        Scalar::Float => Quantity::Float(f32::from_bits(value.bits() as u32).into()),
        Scalar::LengthDelimited
        | Scalar::Signed32
        | Scalar::Signed64
        | Scalar::Unsigned32
        | Scalar::Unsigned64
        | Scalar::ZigZag => Quantity::Integer(integer(scalar, value)),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "protobuf cuts numbers to the width of their type"
)]
fn integer(scalar: Scalar, value: Wire<'_>) -> i128 {
    let bits = value.bits();
    match scalar {
        Scalar::Signed32 => i128::from((bits as u32).cast_signed()),
        Scalar::Signed64 => i128::from(bits.cast_signed()),
        Scalar::Unsigned32 => i128::from(bits as u32),
        Scalar::ZigZag => i128::from((bits >> 1).cast_signed() ^ -(bits & 1).cast_signed()),
        Scalar::Double | Scalar::Float | Scalar::LengthDelimited | Scalar::Unsigned64 => {
            i128::from(bits)
        }
    }
}

/// Nanoseconds of an encoded `Duration` or `Timestamp`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "protobuf cuts numbers to the width of their type"
)]
fn time(message: &[u8]) -> i128 {
    let number = |number| last(message, number).map_or(0, Wire::bits).cast_signed();
    nanos_of(number(1), number(2) as i32)
}
