//! Rules of strings and bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use regex::Regex;

use super::requirement::{Counted, Requirement};

/// The rules of one string field.
#[derive(Clone, Debug, Default)]
pub(super) struct TextRules {
    pub(super) constant: Option<String>,
    pub(super) characters: Lengths,
    pub(super) bytes: Lengths,
    pub(super) pattern: Option<Pattern>,
    pub(super) prefix: Option<String>,
    pub(super) suffix: Option<String>,
    pub(super) contains: Option<String>,
    pub(super) not_contains: Option<String>,
    pub(super) one_of: Vec<String>,
    pub(super) not_one_of: Vec<String>,
    pub(super) form: Option<Form>,
    pub(super) ignores_empty: bool,
}

/// The rules of one bytes field.
#[derive(Clone, Debug, Default)]
pub(super) struct BytesRules {
    pub(super) constant: Option<Vec<u8>>,
    pub(super) lengths: Lengths,
    pub(super) one_of: Vec<Vec<u8>>,
    pub(super) not_one_of: Vec<Vec<u8>>,
    pub(super) ignores_empty: bool,
}

/// How long something may be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lengths {
    pub(super) min: Option<u64>,
    pub(super) max: Option<u64>,
}

/// A regular expression that a whole value must match.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    regex: Regex,
    written: String,
}

/// One of the forms that have a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    Address,
    HeaderName,
    HeaderValue,
    Hostname,
    Ip,
    Ipv4,
    Ipv6,
    OneLine,
    Uuid,
}

impl Lengths {
    pub(super) fn check(self, length: usize, counted: Counted) -> Option<Requirement> {
        let length = length as u64;
        let Self { min, max } = self;
        let is_wrong = min.is_some_and(|min| length < min) || max.is_some_and(|max| length > max);
        is_wrong.then_some(Requirement::Length { counted, min, max })
    }

    fn is_given(self) -> bool {
        self.min.is_some() || self.max.is_some()
    }
}

impl Pattern {
    /// `None` if it is no regular expression that this program knows.
    pub(super) fn parse(written: &str) -> Option<Self> {
        // Envoy's generated code asks for a full match, whatever anchors the pattern has.
        let regex = Regex::new(&format!(r"\A(?:{written})\z")).ok()?;
        Some(Self {
            regex,
            written: written.to_owned(),
        })
    }
}

impl TextRules {
    /// What `value` does not satisfy.
    pub(super) fn check(&self, value: &[u8]) -> Option<Requirement> {
        if self.ignores_empty && value.is_empty() {
            return None;
        }
        let Ok(text) = str::from_utf8(value) else {
            return Some(Requirement::Message);
        };
        self.check_content(text)
            .or_else(|| {
                let counts = self.characters.is_given();
                counts
                    .then(|| {
                        self.characters
                            .check(text.chars().count(), Counted::Characters)
                    })
                    .flatten()
            })
            .or_else(|| self.bytes.check(text.len(), Counted::Bytes))
            .or_else(|| self.form.and_then(|form| form.check(text)))
    }

    fn check_content(&self, text: &str) -> Option<Requirement> {
        let quoted = |texts: &[String]| texts.iter().map(|text| format!("{text:?}")).collect();
        if let Some(constant) = self.constant.as_ref().filter(|constant| *constant != text) {
            return Some(Requirement::Equal(format!("{constant:?}")));
        }
        if !self.one_of.is_empty() && !self.one_of.iter().any(|other| other == text) {
            return Some(Requirement::OneOf(quoted(&self.one_of)));
        }
        if self.not_one_of.iter().any(|other| other == text) {
            return Some(Requirement::NotOneOf(quoted(&self.not_one_of)));
        }
        let unmet = |part: &Option<String>, is_met: fn(&str, &str) -> bool| {
            part.clone().filter(|part| !is_met(text, part))
        };
        unmet(&self.prefix, |text, part| text.starts_with(part))
            .map(Requirement::StartsWith)
            .or_else(|| {
                unmet(&self.suffix, |text, part| text.ends_with(part)).map(Requirement::EndsWith)
            })
            .or_else(|| {
                unmet(&self.contains, |text, part| text.contains(part)).map(Requirement::Contains)
            })
            .or_else(|| {
                unmet(&self.not_contains, |text, part| !text.contains(part))
                    .map(Requirement::NotContains)
            })
            .or_else(|| {
                let pattern = self.pattern.as_ref()?;
                let is_match = pattern.regex.is_match(text);
                (!is_match).then(|| Requirement::Pattern(pattern.written.clone()))
            })
    }
}

impl BytesRules {
    /// What `value` does not satisfy.
    pub(super) fn check(&self, value: &[u8]) -> Option<Requirement> {
        if self.ignores_empty && value.is_empty() {
            return None;
        }
        let shown = |all: &[Vec<u8>]| {
            all.iter()
                .map(|bytes| bytes.escape_ascii().to_string())
                .collect()
        };
        if let Some(constant) = self.constant.as_ref().filter(|constant| *constant != value) {
            return Some(Requirement::Equal(constant.escape_ascii().to_string()));
        }
        if !self.one_of.is_empty() && !self.one_of.iter().any(|other| other == value) {
            return Some(Requirement::OneOf(shown(&self.one_of)));
        }
        if self.not_one_of.iter().any(|other| other == value) {
            return Some(Requirement::NotOneOf(shown(&self.not_one_of)));
        }
        self.lengths.check(value.len(), Counted::Bytes)
    }
}

impl Form {
    fn check(self, text: &str) -> Option<Requirement> {
        let (is_met, requirement) = match self {
            Self::Address => (
                is_hostname(text) || is::<IpAddr>(text),
                Requirement::Address,
            ),
            Self::HeaderName => (is_header_name(text), Requirement::HeaderName),
            Self::HeaderValue => (is_header_value(text), Requirement::HeaderValue),
            Self::Hostname => (is_hostname(text), Requirement::Hostname),
            Self::Ip => (is::<IpAddr>(text), Requirement::Ip),
            Self::Ipv4 => (is::<Ipv4Addr>(text), Requirement::Ipv4),
            Self::Ipv6 => (is::<Ipv6Addr>(text), Requirement::Ipv6),
            Self::OneLine => (!text.contains(['\0', '\n', '\r']), Requirement::OneLine),
            Self::Uuid => (is_uuid(text), Requirement::Uuid),
        };
        (!is_met).then_some(requirement)
    }
}

fn is<T: FromStr>(text: &str) -> bool {
    text.parse::<T>().is_ok()
}

/// RFC 7230's token and a comma, which the rule's own range `+-.` has; HTTP/2's pseudo headers have a colon.
fn is_header_name(text: &str) -> bool {
    let name = text.strip_prefix(':').unwrap_or(text);
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_|~`".contains(&byte);
    !name.is_empty() && name.bytes().all(is_allowed)
}

fn is_header_value(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte == b'\t' || !byte.is_ascii_control())
}

/// RFC 1034; the dot at the end is optional.
fn is_hostname(text: &str) -> bool {
    const MAX_BYTES: usize = 253;
    const MAX_LABEL_BYTES: usize = 63;
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_LABEL_BYTES
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= MAX_BYTES
        && text
            .strip_suffix('.')
            .unwrap_or(text)
            .split('.')
            .all(is_label)
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_takes_what_envoy_takes() {
        let long_label = "a".repeat(64);
        let long_name = format!("{}a", "abcdefg.".repeat(32));
        let cases: [(Form, &[&str], &[&str]); 9] = [
            (
                Form::HeaderName,
                &["x-a", ":path", "A_b", "a,b", "~`|"],
                &["", ":", "::a", "a b", "a:", "a\n", "é", "a/b"],
            ),
            (
                Form::HeaderValue,
                &["", "a b\tc", "é", "%REQ(:path)%"],
                &["a\n", "\0", "\u{7f}", "a\rb", "\u{1}"],
            ),
            (
                Form::OneLine,
                &["", "a b\t", "\u{1}\u{7f}", "a/b"],
                &["a\n", "\r", "\0"],
            ),
            (
                Form::Hostname,
                &["a", "a-b.c1", "a.", "1.2.3.4"],
                &["", ".", "a..b", "-a", "a-", "a_b", &long_label, &long_name],
            ),
            (
                Form::Ip,
                &["198.18.0.1", "::1"],
                &["", "[::1]", "198.18.0", "198.18.0.1:80"],
            ),
            (Form::Ipv4, &["198.18.0.1"], &["::1"]),
            (Form::Ipv6, &["::1"], &["198.18.0.1", "[::1]"]),
            (Form::Address, &["a.b", "::1"], &["a_b", "[::1]", ""]),
            (
                Form::Uuid,
                &["01234567-89ab-cdef-0123-456789ABCDEF"],
                &["", "01234567x89ab-cdef-0123-456789ABCDEF"],
            ),
        ];
        for (form, good, bad) in cases {
            for text in good {
                assert_eq!(form.check(text), None, "{form:?} {text:?}");
            }
            for text in bad {
                assert!(form.check(text).is_some(), "{form:?} {text:?}");
            }
        }
    }

    #[test]
    fn each_rule_of_a_string_is_asked() {
        let text = |text: &str| Some(text.to_owned());
        let rules = TextRules::default;
        let cases = [
            (
                TextRules {
                    constant: text("a"),
                    ..rules()
                },
                "a",
                "b",
                "must be \"a\"",
            ),
            (
                TextRules {
                    one_of: vec!["a".into(), "b".into()],
                    ..rules()
                },
                "b",
                "",
                "must be \"a\" or \"b\"",
            ),
            (
                TextRules {
                    not_one_of: vec!["a".into()],
                    ..rules()
                },
                "",
                "a",
                "must not be \"a\"",
            ),
        ];
        check_all(&cases);
    }

    #[test]
    fn each_rule_of_parts_is_asked() {
        let text = |text: &str| Some(text.to_owned());
        let rules = TextRules::default;
        let cases = [
            (
                TextRules {
                    prefix: text("%"),
                    ..rules()
                },
                "%a",
                "a%",
                "must start with \"%\"",
            ),
            (
                TextRules {
                    suffix: text("%"),
                    ..rules()
                },
                "a%",
                "%a",
                "must end with \"%\"",
            ),
            (
                TextRules {
                    contains: text("é"),
                    ..rules()
                },
                "aéb",
                "ab",
                "must contain \"é\"",
            ),
            (
                TextRules {
                    not_contains: text("é"),
                    ..rules()
                },
                "ab",
                "é",
                "must not contain \"é\"",
            ),
            (
                TextRules {
                    pattern: Pattern::parse("a|ab"),
                    ..rules()
                },
                "ab",
                "abc",
                "must as a whole match the regular expression a|ab",
            ),
        ];
        check_all(&cases);
    }

    #[test]
    fn each_rule_of_lengths_is_asked() {
        let text = |text: &str| Some(text.to_owned());
        let rules = TextRules::default;
        let cases = [
            (
                TextRules {
                    characters: Lengths {
                        min: Some(1),
                        max: None,
                    },
                    ..rules()
                },
                "é",
                "",
                "must not be empty",
            ),
            (
                TextRules {
                    characters: Lengths {
                        min: None,
                        max: Some(1),
                    },
                    ..rules()
                },
                "é",
                "éé",
                "must have at most 1 character",
            ),
            (
                TextRules {
                    characters: Lengths {
                        min: Some(2),
                        max: Some(2),
                    },
                    ..rules()
                },
                "éé",
                "é",
                "must have 2 characters",
            ),
            (
                TextRules {
                    bytes: Lengths {
                        min: Some(2),
                        max: Some(3),
                    },
                    ..rules()
                },
                "é",
                "éé",
                "must have 2 to 3 bytes",
            ),
            (
                TextRules {
                    prefix: text("%"),
                    ignores_empty: true,
                    ..rules()
                },
                "",
                "a",
                "must start with \"%\"",
            ),
        ];
        check_all(&cases);
    }

    fn check_all(cases: &[(TextRules, &str, &str, &str)]) {
        for (rules, good, bad, wanted) in cases {
            assert_eq!(rules.check(good.as_bytes()), None, "{rules:?}");
            let found = rules.check(bad.as_bytes()).map(|it| it.to_string());
            assert_eq!(found.as_deref(), Some(*wanted), "{rules:?}");
        }
    }
}
