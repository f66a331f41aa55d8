//! Paths to a field as errors show them: `spec.resources[2].filterMetadata["a.b"]`.

use std::fmt::Write;

use super::error::Quoted;
use super::limits::MAX_QUOTED_BYTES;

/// Appends a key: `.key`, or `["key"]` if it is not a plain word.
pub(crate) fn push_key(path: &mut String, key: &str) {
    let is_word = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '@' | '-');
    if key.is_empty() || key.len() > MAX_QUOTED_BYTES || !key.chars().all(is_word) {
        write!(path, "[{}]", Quoted(key)).expect("writing to a string cannot fail");
        return;
    }
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// Appends the position of a list's item.
pub(crate) fn push_index(path: &mut String, index: usize) {
    write!(path, "[{index}]").expect("writing to a string cannot fail");
}
