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
    /// The type by number; of a type that is not in the table, none.
    pub id: Types,
    /// New content waits for the answers of these types: what it refers to must exist (R46).
    pub makes_after: Types,
    /// Removals wait for the answers of these types: they may still refer to it (R44, R32).
    pub breaks_after: Types,
}

/// Some of the types that the table knows: comparing them costs no text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Types(u16);

impl Types {
    /// None of them.
    pub const NONE: Self = Self(0);

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among these; never of a type that the table does not know.
    pub const fn has(self, other: Self) -> bool {
        other.0 != 0 && self.0 & other.0 == other.0
    }

    /// Whether these are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Place of a single type among all that the table knows.
    pub(crate) const fn index(self) -> Option<usize> {
        if self.0 == 0 {
            None
        } else {
            Some(self.0.trailing_zeros() as usize)
        }
    }
}

/// How many types the table knows.
pub(crate) const KNOWN_TYPES: usize = KNOWN.len();

pub(crate) const CDS: Types = Types(1);
pub(crate) const EDS: Types = Types(1 << 1);
pub(crate) const LEDS: Types = Types(1 << 2);
pub(crate) const SDS: Types = Types(1 << 3);
pub(crate) const ECDS: Types = Types(1 << 4);
pub(crate) const LDS: Types = Types(1 << 5);
pub(crate) const SRDS: Types = Types(1 << 6);
pub(crate) const RDS: Types = Types(1 << 7);
pub(crate) const VHDS: Types = Types(1 << 8);
pub(crate) const RTDS: Types = Types(1 << 9);

const KNOWN: [TypeRules; 10] = [
    TypeRules {
        type_url: CLUSTER,
        id: CDS,
        is_full_state: true,
        has_legacy_wildcard: true,
        rank: 0,
        makes_after: Types::NONE,
        breaks_after: LDS.and(RDS).and(SRDS).and(VHDS).and(ECDS),
    },
    // Endpoints and secrets never wait for a cluster's answer: Envoy withholds it until they
    // have come (R46).
    TypeRules {
        type_url: ENDPOINT,
        id: EDS,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 1,
        makes_after: Types::NONE,
        breaks_after: CDS,
    },
    TypeRules {
        type_url: LOCALITY_ENDPOINT,
        id: LEDS,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 2,
        makes_after: Types::NONE,
        breaks_after: EDS,
    },
    TypeRules {
        type_url: SECRET,
        id: SDS,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 2,
        makes_after: Types::NONE,
        breaks_after: CDS.and(LDS),
    },
    TypeRules {
        type_url: EXTENSION_CONFIG,
        id: ECDS,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 3,
        makes_after: CDS,
        breaks_after: LDS,
    },
    TypeRules {
        type_url: LISTENER,
        id: LDS,
        is_full_state: true,
        has_legacy_wildcard: true,
        rank: 4,
        makes_after: CDS,
        breaks_after: Types::NONE,
    },
    TypeRules {
        type_url: SCOPED_ROUTE,
        id: SRDS,
        is_full_state: true,
        has_legacy_wildcard: true,
        rank: 5,
        makes_after: CDS,
        breaks_after: LDS,
    },
    TypeRules {
        type_url: ROUTE,
        id: RDS,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 6,
        makes_after: CDS,
        breaks_after: LDS.and(SRDS),
    },
    TypeRules {
        type_url: VIRTUAL_HOST,
        id: VHDS,
        is_full_state: false,
        // Envoy names no host until a request needs one, and starts once it has any.
        has_legacy_wildcard: true,
        rank: 7,
        makes_after: CDS,
        breaks_after: RDS,
    },
    TypeRules {
        type_url: RUNTIME,
        id: RTDS,
        is_full_state: false,
        has_legacy_wildcard: false,
        rank: 8,
        makes_after: Types::NONE,
        breaks_after: Types::NONE,
    },
];

// A type that we do not know refers to nothing and is referred to by nothing.
const UNKNOWN: TypeRules = TypeRules {
    type_url: "",
    id: Types::NONE,
    is_full_state: false,
    has_legacy_wildcard: true,
    rank: 9,
    makes_after: Types::NONE,
    breaks_after: Types::NONE,
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
            for before in KNOWN.iter().filter(|it| rules.makes_after.has(it.id)) {
                assert!(before.rank < rules.rank, "{}", rules.type_url);
            }
        }
    }

    #[test]
    fn r44_no_type_waits_for_itself_to_break() {
        fn reach(from: &TypeRules, seen: &mut Types) {
            for after in KNOWN.iter().filter(|it| from.breaks_after.has(it.id)) {
                if !seen.has(after.id) {
                    *seen = seen.and(after.id);
                    reach(after, seen);
                }
            }
        }
        for rules in &KNOWN {
            let mut seen = Types::NONE;
            reach(rules, &mut seen);
            assert!(!seen.has(rules.id), "{}", rules.type_url);
        }
    }

    #[test]
    fn types_are_numbered_without_gap() {
        let mut places: Vec<_> = KNOWN.iter().map(|rules| rules.id.index()).collect();
        places.sort_unstable();
        assert_eq!(places, (0..KNOWN_TYPES).map(Some).collect::<Vec<_>>());
        assert_eq!(rules_of("other").id.index(), None);
    }
}
