//! What the protocol says about each resource type: a table, so that a type by any other URL
//! works with no code.

/// CDS.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// EDS.
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// LEDS (incremental only).
pub const LOCALITY_ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint";
/// LDS.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// RDS.
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// SRDS.
pub const SCOPED_ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
/// VHDS (incremental only).
pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
/// SDS.
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// RTDS.
pub const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
/// ECDS.
pub const EXTENSION_CONFIG: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";

/// How a type behaves on a stream.
#[derive(Clone, Copy, Debug)]
pub struct TypeRules {
    /// The type URL.
    pub type_url: &'static str,
    /// In state-of-the-world responses what is missing is deleted (R26, R26a).
    pub is_full_state: bool,
    /// A client that never named a resource means all of them (R16).
    pub has_legacy_wildcard: bool,
    /// Place in the make order: a type is sent before those of higher rank (R43).
    pub rank: u8,
    /// New content waits for the answers of these types: what it refers to must exist (R46).
    pub makes_after: &'static [&'static str],
    /// Removals wait for the answers of these types: they may still refer to it (R44, R32).
    pub breaks_after: &'static [&'static str],
}

const KNOWN: [TypeRules; 10] = [
    TypeRules {
        type_url: CLUSTER,
        is_full_state: true,
        has_legacy_wildcard: true,
        rank: 0,
        makes_after: &[],
        breaks_after: &[
            LISTENER,
            ROUTE,
            SCOPED_ROUTE,
            VIRTUAL_HOST,
            EXTENSION_CONFIG,
        ],
    },
    // Endpoints and secrets never wait for a cluster's answer: Envoy withholds it until they
    // have come (R46).
    TypeRules {
        type_url: ENDPOINT,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 1,
        makes_after: &[],
        breaks_after: &[CLUSTER],
    },
    TypeRules {
        type_url: LOCALITY_ENDPOINT,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 2,
        makes_after: &[],
        breaks_after: &[ENDPOINT],
    },
    TypeRules {
        type_url: SECRET,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 2,
        makes_after: &[],
        breaks_after: &[CLUSTER, LISTENER],
    },
    TypeRules {
        type_url: EXTENSION_CONFIG,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 3,
        makes_after: &[CLUSTER],
        breaks_after: &[LISTENER],
    },
    TypeRules {
        type_url: LISTENER,
        is_full_state: true,
        has_legacy_wildcard: true,
        rank: 4,
        makes_after: &[CLUSTER],
        breaks_after: &[],
    },
    TypeRules {
        type_url: SCOPED_ROUTE,
        is_full_state: true,
        has_legacy_wildcard: true,
        rank: 5,
        makes_after: &[CLUSTER],
        breaks_after: &[LISTENER],
    },
    TypeRules {
        type_url: ROUTE,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 6,
        makes_after: &[CLUSTER],
        breaks_after: &[LISTENER, SCOPED_ROUTE],
    },
    TypeRules {
        type_url: VIRTUAL_HOST,
        is_full_state: false,
        // Envoy names no host until a request needs one, and starts once it has any.
        has_legacy_wildcard: true,
        rank: 7,
        makes_after: &[CLUSTER],
        breaks_after: &[ROUTE],
    },
    TypeRules {
        type_url: RUNTIME,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 8,
        makes_after: &[],
        breaks_after: &[],
    },
];

// A type that we do not know refers to nothing and is referred to by nothing.
const UNKNOWN: TypeRules = TypeRules {
    type_url: "",
    is_full_state: false,
    has_legacy_wildcard: true,
    rank: 9,
    makes_after: &[],
    breaks_after: &[],
};

/// Returns the rules for a type; the generic ones if the URL is not Envoy's.
pub fn rules_of(type_url: &str) -> &'static TypeRules {
    KNOWN
        .iter()
        .find(|rules| rules.type_url == type_url)
        .unwrap_or(&UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r43_what_is_referred_to_is_made_first() {
        for rules in &KNOWN {
            for before in rules.makes_after {
                assert!(rules_of(before).rank < rules.rank, "{}", rules.type_url);
            }
        }
    }

    #[test]
    fn r44_no_type_waits_for_itself_to_break() {
        fn reach<'a>(from: &'a str, seen: &mut Vec<&'a str>) {
            for after in rules_of(from).breaks_after {
                if !seen.contains(after) {
                    seen.push(after);
                    reach(after, seen);
                }
            }
        }
        for rules in &KNOWN {
            let mut seen = Vec::new();
            reach(rules.type_url, &mut seen);
            assert!(!seen.contains(&rules.type_url), "{}", rules.type_url);
        }
    }
}
