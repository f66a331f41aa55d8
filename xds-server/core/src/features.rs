//! What a client can read, as far as responses depend on it (R54, R56).
//!
//! Two more features are known and change nothing (R60): `envoy.lb.does_not_support_overprovisioning`
//! and `envoy.config.require-any-fields-contain-struct` ask for other *content*. The content is
//! the operator's: it is never rewritten for a client, so that its version is the same for all.

use crate::stream::Peer;

// The protocol's text and the list of features do not agree on the spelling of these.
const TTL: &str = "config.supports-resource-ttl";
const WRAPPED: [&str; 2] = [
    "config.resource-in-sotw",
    "config.supports-resource-in-sotw",
];
const PREFIXES: [&str; 2] = ["xds.", "envoy."];

/// For clients other than gRPC's that read `resource_errors` too: no feature of the protocol says so.
pub const READS_ERRORS: &str = "isthmus.resource-errors";

/// What one client can read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Features {
    /// A resource may have a time to live (R54).
    pub reads_ttl: bool,
    /// A state-of-the-world response may have `Resource`s around its resources: the only place
    /// that a time to live has there (R54).
    pub reads_wrapped: bool,
    /// What was asked for and does not exist may be told in `resource_errors` (R56).
    pub reads_errors: bool,
}

impl Features {
    /// Reads `node.client_features`. gRPC's clients use `resource_errors` whenever they are there
    /// (gRFC A88), those that do not know the field skip it, and none has a feature for it.
    pub fn parse<'a>(peer: Peer, client_features: impl IntoIterator<Item = &'a str>) -> Self {
        let mut features = Self {
            reads_errors: peer == Peer::Grpc,
            ..Self::default()
        };
        for feature in client_features {
            features.reads_errors |= feature == READS_ERRORS;
            let suffix = PREFIXES.iter().find_map(|it| feature.strip_prefix(it));
            if let Some(suffix) = suffix {
                features.reads_ttl |= suffix == TTL;
                features.reads_wrapped |= WRAPPED.contains(&suffix);
            }
        }
        features
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r54_features_are_known_by_either_spelling() {
        struct Case {
            features: &'static [&'static str],
            reads_ttl: bool,
            reads_wrapped: bool,
        }
        let case = |features, reads_ttl, reads_wrapped| Case {
            features,
            reads_ttl,
            reads_wrapped,
        };
        let cases = [
            case(&[], false, false),
            case(&["xds.config.supports-resource-ttl"], true, false),
            case(&["envoy.config.supports-resource-ttl"], true, false),
            case(&["xds.config.resource-in-sotw"], false, true),
            case(&["envoy.config.resource-in-sotw"], false, true),
            case(&["xds.config.supports-resource-in-sotw"], false, true),
            case(
                &["config.resource-in-sotw", "xds.config.other"],
                false,
                false,
            ),
        ];
        for case in cases {
            let parsed = Features::parse(Peer::Envoy, case.features.iter().copied());
            let expected = Features {
                reads_ttl: case.reads_ttl,
                reads_wrapped: case.reads_wrapped,
                reads_errors: false,
            };
            assert_eq!(parsed, expected, "{:?}", case.features);
        }
    }

    #[test]
    fn r56_who_reads_errors_is_a_grpc_client_or_says_so() {
        let parse = |peer, features: &[&str]| Features::parse(peer, features.iter().copied());
        assert!(parse(Peer::Grpc, &[]).reads_errors);
        assert!(parse(Peer::Envoy, &[READS_ERRORS]).reads_errors);
        assert!(!parse(Peer::Envoy, &["xds.config.resource-in-sotw"]).reads_errors);
    }
}
