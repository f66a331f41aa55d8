//! The frame of a document, read into the types of `isthmus-api`.
//!
//! A serde deserializer over [`Node`]: the types of `isthmus-api` stay the one definition of what a document
//! may hold, and errors still have a path and a line and never a value.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::error::Problem;
use super::path::{push_index, push_key};
use super::suggest::suggest;
use super::yaml::{Content, Entry, Node};

/// A mistake in the frame of a document.
#[derive(Debug)]
pub(super) struct FrameError {
    /// 1-based; `None` until the error passes a value that knows it.
    line: Option<usize>,
    /// Keys and indexes from the innermost out.
    path: Vec<Step>,
    problem: Problem,
}

#[derive(Debug)]
enum Step {
    Index(usize),
    Key(String),
}

impl FrameError {
    /// The path from the root, the line if known, and what is wrong.
    pub(super) fn into_parts(self) -> (String, Option<usize>, Problem) {
        let mut path = String::new();
        for step in self.path.iter().rev() {
            match step {
                Step::Index(index) => push_index(&mut path, *index),
                Step::Key(key) => push_key(&mut path, key),
            }
        }
        (path, self.line, self.problem)
    }

    fn new(problem: Problem) -> Self {
        Self {
            line: None,
            path: Vec::new(),
            problem,
        }
    }

    fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }

    fn under(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(out)
    }
}

impl std::error::Error for FrameError {}

impl de::Error for FrameError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Problem::Rejected {
            reason: message.to_string(),
        })
    }

    fn duplicate_field(_: &'static str) -> Self {
        // `Entries` finds them first, with the line of the other.
        Self::new(Problem::DuplicateKey {
            line: 0,
            what: "key",
        })
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            de::Unexpected::Bool(_) => "a boolean",
            de::Unexpected::Float(_) | de::Unexpected::Signed(_) | de::Unexpected::Unsigned(_) => {
                "a number"
            }
            de::Unexpected::Map => "a mapping",
            de::Unexpected::Seq => "a list",
            de::Unexpected::Str(_) => "a string",
            de::Unexpected::Unit | de::Unexpected::Option => "null",
            de::Unexpected::Bytes(_)
            | de::Unexpected::Char(_)
            | de::Unexpected::Enum
            | de::Unexpected::NewtypeStruct
            | de::Unexpected::NewtypeVariant
            | de::Unexpected::Other(_)
            | de::Unexpected::StructVariant
            | de::Unexpected::TupleVariant
            | de::Unexpected::UnitVariant => "another type",
        };
        let expected = match expected.to_string() {
            text if text.starts_with("struct") || text == "a map" => "a mapping".to_owned(),
            text if text == "a sequence" => "a list".to_owned(),
            text => text,
        };
        let hint = if expected == "a string" && matches!(found, "a boolean" | "a number" | "null") {
            ": put it in quotes"
        } else {
            ""
        };
        Self::new(Problem::WrongType {
            expected,
            found,
            hint,
        })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Problem::MissingKey { key })
    }

    fn unknown_field(found: &str, expected: &'static [&'static str]) -> Self {
        let suggestion = suggest(found, expected.iter().copied());
        Self::new(Problem::Unknown {
            found: found.to_owned(),
            suggestion,
            of: None,
            what: "key",
        })
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = FrameError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FrameError> {
        let read = match &self.content {
            Content::Bool(value) => visitor.visit_bool(*value),
            Content::Mapping(entries) => visitor.visit_map(Entries { entries, next: 0 }),
            Content::Null => visitor.visit_unit(),
            Content::Number(text) => match (text.parse::<i64>(), text.parse::<f64>()) {
                (Ok(value), _) => visitor.visit_i64(value),
                (Err(_), Ok(value)) => visitor.visit_f64(value),
                (Err(_), Err(_)) => visitor.visit_f64(f64::NAN),
            },
            Content::Sequence(items) => visitor.visit_seq(Items { items, next: 0 }),
            Content::Text(text) => visitor.visit_borrowed_str(text),
        };
        read.map_err(|error: FrameError| error.at(self.line))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FrameError> {
        if matches!(self.content, Content::Null) {
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[derive(Debug)]
struct Entries<'de> {
    entries: &'de [Entry],
    next: usize,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = FrameError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, FrameError> {
        let Some(entry) = self.entries.get(self.next) else {
            return Ok(None);
        };
        let key = || Step::Key(entry.key.to_string());
        let first = self.entries[..self.next]
            .iter()
            .find(|other| other.key == entry.key);
        if let Some(first) = first {
            let problem = Problem::DuplicateKey {
                line: first.line,
                what: "key",
            };
            return Err(FrameError::new(problem).at(entry.line).under(key()));
        }
        let text: &str = &entry.key;
        let read = seed.deserialize(IntoDeserializer::<FrameError>::into_deserializer(text));
        read.map(Some)
            .map_err(|error| error.at(entry.line).under(key()))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<S::Value, FrameError> {
        let entry = &self.entries[self.next];
        self.next += 1;
        seed.deserialize(&entry.value)
            .map_err(|error| error.under(Step::Key(entry.key.to_string())))
    }
}

#[derive(Debug)]
struct Items<'de> {
    items: &'de [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = FrameError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, FrameError> {
        let Some(item) = self.items.get(self.next) else {
            return Ok(None);
        };
        let index = self.next;
        self.next += 1;
        seed.deserialize(item)
            .map(Some)
            .map_err(|error| error.under(Step::Index(index)))
    }
}
