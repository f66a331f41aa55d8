//! Where in the text a field of an encoded resource was written, and as what.
//!
//! The bytes of a resource have lost lines and spelling; the tree that they came from has both. Only what is
//! to be reported is looked for.

use crate::validate::path::Step;

use super::path::{push_index, push_key};
use super::yaml::{Content, Entry, Node};

/// Follows `steps` into the resource `root`, which stands at `path` in its document: the line of what is there
/// and the path as the text spells it. Of what is not there, the line of the deepest mapping on the way.
pub(super) fn locate(root: &Node, path: &str, steps: &[Step]) -> (usize, String) {
    let (mut line, mut path) = (root.line, path.to_owned());
    let mut node = Some(root);
    for step in steps {
        // JSON has what an Any holds beside its `@type`, but an Any in an Any under `value`.
        while let Some(inner) = node.and_then(boxed_any) {
            push_key(&mut path, "value");
            node = Some(inner);
        }
        let next = node.and_then(|node| enter(node, step));
        match (&next, step) {
            (Some(Found { key: Some(key), .. }), _) => push_key(&mut path, key),
            (_, Step::Index(index)) => push_index(&mut path, *index),
            (_, Step::Key(key)) => push_key(&mut path, key),
            (_, Step::Field { name, json_name }) => {
                let is_json = node.is_some_and(speaks_json);
                push_key(&mut path, if is_json { json_name } else { name });
            }
        }
        if let Some(found) = &next {
            line = found.line;
        }
        node = next.map(|found| found.value);
    }
    (line, path)
}

struct Found<'a> {
    /// As it is written; `None` for an item of a list.
    key: Option<&'a str>,
    line: usize,
    value: &'a Node,
}

fn enter<'a>(node: &'a Node, step: &Step) -> Option<Found<'a>> {
    match (&node.content, step) {
        (Content::Sequence(items), Step::Index(index)) => {
            let value = items.get(*index)?;
            Some(Found {
                key: None,
                line: value.line,
                value,
            })
        }
        (Content::Mapping(entries), Step::Key(key)) => entries
            .iter()
            .find(|entry| *entry.key == **key)
            .map(of_entry),
        (Content::Mapping(entries), Step::Field { name, json_name }) => {
            let is_field = |entry: &&Entry| *entry.key == **name || *entry.key == **json_name;
            entries.iter().find(is_field).map(of_entry)
        }
        _ => None,
    }
}

fn boxed_any(node: &Node) -> Option<&Node> {
    const ANY: &str = "type.googleapis.com/google.protobuf.Any";
    let is_any = node.lookup("@type")?.text() == Some(ANY);
    is_any.then(|| node.lookup("value")).flatten()
}

fn of_entry(entry: &Entry) -> Found<'_> {
    Found {
        key: Some(&entry.key),
        line: entry.line,
        value: &entry.value,
    }
}

/// Whether a mapping's keys are the names of JSON rather than those of the proto file.
fn speaks_json(node: &Node) -> bool {
    let has = |test: fn(char) -> bool| {
        let entries = node.entries().unwrap_or_default();
        let keys = entries.iter().map(|entry| &entry.key);
        keys.filter(|key| !key.starts_with('@'))
            .any(|key| key.contains(test))
    };
    has(|char| char.is_ascii_uppercase()) && !has(|char| char == '_')
}
