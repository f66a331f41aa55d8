//! Who may change what is in force by way of the admin endpoint.
//!
//! The endpoint is plaintext and asks nobody who they are. So it changes things only for whoever
//! runs programs on this machine, and not for web pages that a browser there happens to show: a page
//! can make the browser post, but not without `Origin`, and not with a header of its own.

use axum::http::{HeaderMap, Method, header};

/// Header that a request must have to change something; its value says nothing.
pub const CHANGE_HEADER: &str = "x-isthmus-change";

/// Whether the endpoint changes things at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Changes {
    /// It is on loopback, or the operator wants it to.
    Allowed,
    /// Other machines reach it.
    Refused,
}

/// Why a request may not change anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Denied {
    #[error(
        "the admin endpoint can be reached from other machines, and then changes nothing: bind it \
         to loopback, or start the server with --admin-changes"
    )]
    NotLoopback,
    #[error("a request to change something must have the header {CHANGE_HEADER}")]
    NoHeader,
    #[error("a request of a web page changes nothing")]
    WebPage,
}

impl Changes {
    /// Whether a request may change something.
    pub(super) fn check(self, method: &Method, headers: &HeaderMap) -> Result<(), Denied> {
        let site = headers.get("sec-fetch-site");
        let is_of_page = headers.contains_key(header::ORIGIN)
            || headers.contains_key(header::REFERER)
            || site.is_some_and(|site| site != "none");
        match self {
            Self::Refused => Err(Denied::NotLoopback),
            Self::Allowed if is_of_page => Err(Denied::WebPage),
            Self::Allowed if method != Method::POST || !headers.contains_key(CHANGE_HEADER) => {
                Err(Denied::NoHeader)
            }
            Self::Allowed => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    type Headers = &'static [(&'static str, &'static str)];

    #[test]
    fn only_a_program_on_this_machine_changes_something() {
        const OURS: (&str, &str) = (CHANGE_HEADER, "1");
        let cases: [(&str, Changes, Headers, Result<(), Denied>); 7] = [
            ("the command", Changes::Allowed, &[OURS], Ok(())),
            ("no header", Changes::Allowed, &[], Err(Denied::NoHeader)),
            (
                "a page",
                Changes::Allowed,
                &[OURS, ("origin", "http://evil")],
                Err(Denied::WebPage),
            ),
            (
                "a sandboxed page",
                Changes::Allowed,
                &[OURS, ("origin", "null")],
                Err(Denied::WebPage),
            ),
            (
                "a link",
                Changes::Allowed,
                &[OURS, ("sec-fetch-site", "cross-site")],
                Err(Denied::WebPage),
            ),
            (
                "a page of a name that was bound to loopback",
                Changes::Allowed,
                &[OURS, ("sec-fetch-site", "same-origin")],
                Err(Denied::WebPage),
            ),
            (
                "another machine",
                Changes::Refused,
                &[OURS],
                Err(Denied::NotLoopback),
            ),
        ];
        for (name, changes, headers, expected) in cases {
            let headers = headers.iter().map(|(name, value)| {
                let name = HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            });
            let headers: HeaderMap = headers.collect();
            assert_eq!(changes.check(&Method::POST, &headers), expected, "{name}");
        }
    }
}
