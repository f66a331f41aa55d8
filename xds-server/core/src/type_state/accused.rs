//! Whom a client blames in the text of a refusal.

use std::collections::BTreeSet;

// envoy/source/common/upstream/cds_api_impl.cc and .../listener_manager/lds_api.cc: after one of
// these come pairs `name: reason`, separated by `, ` for clusters and by a newline for listeners.
const ENVOY_SAYS: [&str; 2] = [
    "Error adding/updating cluster(s) ",
    "Error adding/updating listener(s) ",
];

// Places in a text at which a name is looked for, and ends of it at each: a text of many commas
// and colons must not cost its square.
const PLACES: usize = 256;
const ENDS: usize = 16;

/// Whom a text blames, of those that can be blamed.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Accused<'a> {
    /// In so many words.
    Named(BTreeSet<&'a str>),
    /// Their names are in it; what it says of them is not known.
    Mentioned(BTreeSet<&'a str>),
    /// Nobody's name is in it.
    Nobody,
}

/// Looks for the names for which `is_suspect`, exactly, delimited, longest first.
pub(super) fn find(message: &str, is_suspect: impl Fn(&str) -> bool) -> Accused<'_> {
    let named: BTreeSet<&str> = ENVOY_SAYS
        .iter()
        .filter_map(|words| message.split_once(words))
        .flat_map(|(_, list)| named_in(list, &is_suspect))
        .collect();
    if !named.is_empty() {
        return Accused::Named(named);
    }
    let is_between = |char: char| char.is_whitespace() || "'\"`()[]{}<>,;".contains(char);
    let words = message.split(is_between).filter(|word| !word.is_empty());
    let bare = |word| str::trim_end_matches(word, ['.', ':', '!', '?']);
    let mentioned: BTreeSet<&str> = words
        .flat_map(|word| [word, bare(word)])
        .filter(|word| is_suspect(word))
        .collect();
    if mentioned.is_empty() {
        Accused::Nobody
    } else {
        Accused::Mentioned(mentioned)
    }
}

fn named_in<'a>(list: &'a str, is_suspect: &impl Fn(&str) -> bool) -> Vec<&'a str> {
    let commas = list.match_indices(", ").map(|(at, _)| at + 2);
    let lines = list.match_indices('\n').map(|(at, _)| at + 1);
    let places = std::iter::once(0).chain(commas).chain(lines);
    let name_at = |place: usize| {
        let rest = &list[place..];
        let ends = rest.match_indices(": ").map(|(end, _)| &rest[..end]);
        ends.take(ENDS).filter(|name| is_suspect(name)).last()
    };
    places.take(PLACES).filter_map(name_at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accused_are_found_by_exact_name() {
        struct Case {
            message: &'static str,
            expected: Accused<'static>,
        }
        let named = |names: &[&'static str]| Accused::Named(names.iter().copied().collect());
        let mentioned =
            |names: &[&'static str]| Accused::Mentioned(names.iter().copied().collect());
        let cases = [
            Case {
                message: "Error adding/updating cluster(s) foo: bad, foo-bar: worse",
                expected: named(&["foo", "foo-bar"]),
            },
            Case {
                message: "Error adding/updating listener(s) 0.0.0.0_82: duplicate\nl: bad\n",
                expected: named(&["0.0.0.0_82", "l"]),
            },
            Case {
                message: "Error adding/updating cluster(s) a: b: wrong is a",
                expected: named(&["a: b"]),
            },
            Case {
                message: "Error adding/updating cluster(s) foo-baz: wants 'foo'",
                expected: mentioned(&["foo"]),
            },
            Case {
                message: "no route (outbound|80||x.y) in foo-bar.",
                expected: mentioned(&["foo-bar", "outbound|80||x.y"]),
            },
            Case {
                message: "food, foot and xfoo",
                expected: Accused::Nobody,
            },
            Case {
                message: "",
                expected: Accused::Nobody,
            },
        ];
        let sent = [
            "a",
            "a: b",
            "foo",
            "foo-bar",
            "0.0.0.0_82",
            "l",
            "outbound|80||x.y",
        ];
        for case in cases {
            let found = find(case.message, |name| sent.contains(&name));
            assert_eq!(found, case.expected, "{}", case.message);
        }
    }
}
