//! Who a client is proven to be, and the identities that a selector admits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest SPIFFE ID in bytes, longest trust domain in it (SPIFFE-ID, sections 2.1 and 2.3).
const MAX_SPIFFE_ID_BYTES: usize = 2048;
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// What users of other user namespaces all look like (`/proc/sys/kernel/overflowuid`).
const OVERFLOW_UID: u32 = 65534;

/// An identity that the transport proved: never what a client says of itself.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Identity {
    /// The SPIFFE ID of a verified client certificate.
    Spiffe(SpiffeId),
    /// The user of the process at the other end of a Unix socket, as the kernel says.
    Uid(u32),
}

/// A well-formed SPIFFE ID, `spiffe://TRUST-DOMAIN/PATH`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId(String);

/// The identities that a selector admits: one, or all SPIFFE IDs below a path.
///
/// As text: an [`Identity`] (`spiffe://example.org/ns/shop/sa/cart`, `uid:1337`), or a SPIFFE ID whose last
/// segment is `*`, which stands for one segment or more.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(into = "String", try_from = "String")]
pub enum IdentityPattern {
    /// This one.
    Exact(Identity),
    /// Every SPIFFE ID that continues this one by a `/` and at least one segment.
    Below(SpiffeId),
}

/// Why a text is no identity.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadIdentity {
    /// It has neither form.
    #[error(
        "{found:?} is no identity: give spiffe://TRUST-DOMAIN/PATH, or uid:NUMBER for a user of this machine"
    )]
    Form {
        /// The text.
        found: String,
    },
    /// A SPIFFE ID that breaks a rule of the specification.
    #[error("{found:?} is no SPIFFE ID: {rule}")]
    Spiffe {
        /// The text.
        found: String,
        /// The rule.
        rule: &'static str,
    },
    /// The user that stands for any user of another namespace.
    #[error(
        "uid:{OVERFLOW_UID} proves nothing: every user of another user namespace looks like it; run the client as another user"
    )]
    Overflow,
}

impl FromStr for SpiffeId {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let bad = |rule| BadIdentity::Spiffe {
            // Bounded: the text may come from a certificate.
            found: text.chars().take(MAX_TRUST_DOMAIN_BYTES).collect(),
            rule,
        };
        if text.len() > MAX_SPIFFE_ID_BYTES {
            return Err(bad("it is longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME);
        let rest = rest.ok_or_else(|| bad("it must start with spiffe://"))?;
        let mut segments = rest.split('/');
        let domain = segments.next().unwrap_or_default();
        let is_plain = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
        if domain.is_empty() || domain.len() > MAX_TRUST_DOMAIN_BYTES {
            return Err(bad("the trust domain must have 1 to 255 bytes"));
        }
        if !domain
            .bytes()
            .all(|byte| is_plain(byte) || byte.is_ascii_lowercase())
        {
            return Err(bad(
                "the trust domain may only hold a-z, 0-9, dots, dashes and underscores",
            ));
        }
        for segment in segments {
            if matches!(segment, "" | "." | "..") {
                return Err(bad("a segment of the path is empty, `.` or `..`"));
            }
            if !segment
                .bytes()
                .all(|byte| is_plain(byte) || byte.is_ascii_alphabetic())
            {
                return Err(bad(
                    "the path may only hold letters, digits, dots, dashes and underscores",
                ));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for Identity {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        if text.starts_with(SCHEME) {
            return text.parse().map(Self::Spiffe);
        }
        let digits = text
            .strip_prefix("uid:")
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        match digits.and_then(|digits| digits.parse().ok()) {
            Some(OVERFLOW_UID) => Err(BadIdentity::Overflow),
            Some(uid) => Ok(Self::Uid(uid)),
            None => Err(BadIdentity::Form {
                found: text.to_owned(),
            }),
        }
    }
}

impl FromStr for IdentityPattern {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        match text.strip_suffix("/*") {
            Some(above) => above.parse().map(Self::Below),
            None => text.parse().map(Self::Exact),
        }
    }
}

impl TryFrom<String> for IdentityPattern {
    type Error = BadIdentity;

    fn try_from(text: String) -> Result<Self, BadIdentity> {
        text.parse()
    }
}

impl From<IdentityPattern> for String {
    fn from(pattern: IdentityPattern) -> Self {
        pattern.to_string()
    }
}

impl Identity {
    /// The identity of a process that runs as `uid`; none for the user that stands for any user of another
    /// user namespace.
    #[must_use]
    pub fn of_uid(uid: u32) -> Option<Self> {
        (uid != OVERFLOW_UID).then_some(Self::Uid(uid))
    }
}

impl SpiffeId {
    fn is_below(&self, above: &Self) -> bool {
        self.0
            .strip_prefix(&above.0)
            .is_some_and(|rest| rest.starts_with('/'))
    }
}

impl IdentityPattern {
    /// Tells whether a proven identity is one of these.
    #[must_use]
    pub fn matches(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (Self::Exact(wanted), found) => wanted == found,
            (Self::Below(above), Identity::Spiffe(found)) => found.is_below(above),
            (Self::Below(_), Identity::Uid(_)) => false,
        }
    }

    /// Tells whether one identity can be among both.
    #[must_use]
    pub fn may_overlap(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(identity), pattern) | (pattern, Self::Exact(identity)) => {
                pattern.matches(identity)
            }
            (Self::Below(left), Self::Below(right)) => {
                left == right || left.is_below(right) || right.is_below(left)
            }
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(id) => id.fmt(out),
            Self::Uid(uid) => write!(out, "uid:{uid}"),
        }
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(identity) => identity.fmt(out),
            Self::Below(above) => write!(out, "{above}/*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_well_formed_or_refused_by_rule() {
        let cases = [
            ("spiffe://example.org/ns/shop/sa/cart", ""),
            ("spiffe://example.org", ""),
            ("uid:1337", ""),
            ("uid:0", ""),
            ("uid:+1", "is no identity"),
            ("uid:4294967296", "is no identity"),
            ("uid:65534", "proves nothing"),
            ("cart", "is no identity"),
            ("", "is no identity"),
            ("spiffe:///ns/shop", "trust domain must have"),
            ("spiffe://Example.org/a", "trust domain may only"),
            ("spiffe://user@example.org/a", "trust domain may only"),
            ("spiffe://example.org:8443/a", "trust domain may only"),
            ("spiffe://example.org/", "is empty"),
            ("spiffe://example.org/a//b", "is empty"),
            ("spiffe://example.org/a/../b", "`..`"),
            ("spiffe://example.org/a%2fb", "path may only"),
            ("spiffe://example.org/*", "path may only"),
            ("spiffe://example.org/a?b", "path may only"),
        ];
        for (text, refusal) in cases {
            match text.parse::<Identity>() {
                Ok(identity) => {
                    assert_eq!(refusal, "", "{text}");
                    assert_eq!(identity.to_string(), text);
                }
                Err(error) => {
                    assert!(!refusal.is_empty(), "{text}: {error}");
                    assert!(error.to_string().contains(refusal), "{text}: {error}");
                }
            }
        }
        let long = format!("spiffe://example.org/{}", "a".repeat(MAX_SPIFFE_ID_BYTES));
        assert!(long.parse::<SpiffeId>().is_err());
        assert_eq!(Identity::of_uid(OVERFLOW_UID), None);
    }

    #[test]
    fn a_pattern_admits_one_identity_or_all_below_a_path() {
        let cases = [
            ("spiffe://a/ns/x", "spiffe://a/ns/x", true),
            ("spiffe://a/ns/x", "spiffe://a/ns/xy", false),
            ("spiffe://a/ns/*", "spiffe://a/ns/x", true),
            ("spiffe://a/ns/*", "spiffe://a/ns/x/sa/y", true),
            ("spiffe://a/ns/*", "spiffe://a/ns", false),
            ("spiffe://a/ns/*", "spiffe://a/nsx/y", false),
            ("spiffe://a/*", "spiffe://a.b/ns", false),
            ("spiffe://a/*", "uid:0", false),
            ("uid:0", "uid:0", true),
            ("uid:0", "uid:1", false),
        ];
        for (pattern, identity, wanted) in cases {
            let pattern: IdentityPattern = pattern.parse().expect(pattern);
            let found: Identity = identity.parse().expect(identity);
            assert_eq!(pattern.matches(&found), wanted, "{pattern} and {identity}");
        }
        for wrong in [
            "*",
            "spiffe://*",
            "spiffe://a/n*",
            "spiffe://a/*/x",
            "uid:*",
            "uid:/*",
        ] {
            assert!(wrong.parse::<IdentityPattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn patterns_overlap_when_one_identity_fits_both() {
        let cases = [
            ("spiffe://a/x", "spiffe://a/x", true),
            ("spiffe://a/x", "spiffe://a/y", false),
            ("spiffe://a/*", "spiffe://a/x/y", true),
            ("spiffe://a/x/*", "spiffe://a/*", true),
            ("spiffe://a/x/*", "spiffe://a/x/*", true),
            ("spiffe://a/x/*", "spiffe://a/y/*", false),
            ("spiffe://a/*", "uid:0", false),
        ];
        for (left, right, wanted) in cases {
            let (one, two): (IdentityPattern, IdentityPattern) =
                (left.parse().expect(left), right.parse().expect(right));
            assert_eq!(one.may_overlap(&two), wanted, "{left} and {right}");
            assert_eq!(two.may_overlap(&one), wanted, "{right} and {left}");
        }
    }
}
