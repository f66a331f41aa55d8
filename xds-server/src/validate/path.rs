//! The way from a resource to one of its fields.

use std::sync::Arc;

/// One step down. Nothing marks where an `Any` begins: JSON has its fields beside `@type`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Into a field, which has two names.
    Field {
        /// As the proto file spells it.
        name: Arc<str>,
        /// In JSON.
        json_name: Arc<str>,
    },
    /// To an item of a list, from 0.
    Index(usize),
    /// To the entry of a map.
    Key(String),
}
