//! One resource, encoded once, in both of the shapes in which it goes over the wire.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::features::Features;
use crate::stream::Variant;
use crate::wire;

/// The name of a resource, shared by everybody who mentions it.
pub type Name = Arc<str>;

/// A type URL such as `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
pub type TypeUrl = Arc<str>;

/// Version of a resource or of a set of them: a hash of content, so equal content has equal
/// versions on every replica and after every restart (R39).
///
/// On the wire it is 16 lower-case hexadecimal digits.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Version(u64);

impl Version {
    /// Hashes what a client is told of one resource.
    pub fn of_resource(type_url: &str, name: &str, value: &[u8], extras: &Extras) -> Self {
        let mut hash = Xxh3::new();
        let mut add = |part: &[u8]| {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(type_url.as_bytes());
        add(name.as_bytes());
        add(value);
        for alias in &extras.aliases {
            add(alias.as_bytes());
        }
        // R54: a resource that loses its time to live is another, or nobody would hear of it.
        if let Some(ttl) = extras.ttl {
            add(&ttl.as_nanos().to_le_bytes());
        }
        Self(hash.digest())
    }

    /// The version of a set that has nothing.
    pub const OF_NOTHING: Self = Self(0);

    /// Hashes a set of resources, in any order.
    pub fn of_set<'a>(resources: impl Iterator<Item = &'a Arc<Resource>>) -> Self {
        resources.fold(Self::OF_NOTHING, |set, resource| set.with(resource.version))
    }

    /// The version of a set after a resource of this version came into it: a sum, so that a
    /// change costs what changed and not the set. A resource's version covers its type and name.
    #[must_use]
    pub fn with(self, resource: Self) -> Self {
        Self(self.0.wrapping_add(resource.0))
    }

    /// The version of a set after a resource of this version left it.
    #[must_use]
    pub fn without(self, resource: Self) -> Self {
        Self(self.0.wrapping_sub(resource.0))
    }

    /// Reads what [`fmt::Display`] writes; `None` for anything else, which then equals no version.
    pub fn parse(text: &str) -> Option<Self> {
        let is_ours = text.len() == 16
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_ours
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
            .map(Self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A resource of one version. Immutable, shared by every view and stream that has it.
#[derive(Debug)]
pub struct Resource {
    name: Name,
    version: Version,
    extras: Extras,
    // `resources` entry of a DiscoveryResponse, tag and length included.
    sotw: Bytes,
    // `resources` entry of a DeltaDiscoveryResponse, tag and length included.
    delta: Bytes,
    // Both once more for a resource that has a time to live, for clients that can read it (R54).
    with_ttl: Option<Box<WithTtl>>,
    value_range: std::ops::Range<usize>,
}

#[derive(Debug)]
struct WithTtl {
    sotw: Bytes,
    delta: Bytes,
}

/// What a resource may have beside its name and message.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Extras {
    /// For a cluster with EDS, the name of its `ClusterLoadAssignment`: it is sent again after the
    /// cluster is, since a warming cluster waits for it (R48).
    pub endpoints: Option<Name>,
    /// Other names under which it may be asked for; incremental only (R57).
    pub aliases: Vec<Name>,
    /// How long a client may go on using it unheard of. It hears of it twice in that time (R54).
    pub ttl: Option<Duration>,
}

/// Equal content, by its hash.
impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.extras == other.extras
    }
}

impl Eq for Resource {}

impl Resource {
    /// Encodes a resource for the wire. `value` is the serialized message, without the `Any`.
    pub fn new(type_url: &str, name: Name, value: &[u8], extras: Extras) -> Self {
        let version = Version::of_resource(type_url, &name, value, &extras);
        let sotw = wire::encode_sotw_entry(type_url, value);
        let value_range = sotw.len() - value.len()..sotw.len();
        let encode =
            |extras: &Extras| wire::encode_delta_entry(type_url, &name, version, value, extras);
        let mortal = extras.ttl.map(|_| {
            Box::new(WithTtl {
                sotw: wire::encode_wrapped_entry(type_url, &name, version, value, &extras),
                delta: encode(&extras),
            })
        });
        let delta = encode(&Extras {
            ttl: None,
            ..extras.clone()
        });
        Self {
            name,
            version,
            extras,
            sotw,
            delta,
            with_ttl: mortal,
            value_range,
        }
    }

    /// The name under which clients subscribe to it.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The hash of its content.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What it has beside its name and message.
    pub fn extras(&self) -> &Extras {
        &self.extras
    }

    /// For a cluster with EDS, the name of its `ClusterLoadAssignment`.
    pub fn endpoints(&self) -> Option<&Name> {
        self.extras.endpoints.as_ref()
    }

    /// Other names under which it may be asked for.
    pub fn aliases(&self) -> &[Name] {
        &self.extras.aliases
    }

    /// All names under which it may be asked for, the one under which clients get it first.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        std::iter::once(&self.name).chain(self.aliases())
    }

    /// How long a client may go on using it unheard of.
    pub fn ttl(&self) -> Option<Duration> {
        self.extras.ttl
    }

    /// The serialized message, without the `Any` around it.
    pub fn value(&self) -> Bytes {
        self.sotw.slice(self.value_range.clone())
    }

    /// Its `resources` entry in a response to a client that can read so much.
    pub(crate) fn entry(&self, variant: Variant, features: Features) -> &Bytes {
        let with_ttl = self.with_ttl.as_deref().filter(|_| features.reads_ttl);
        match (variant, with_ttl) {
            (Variant::Sotw, Some(mortal)) if features.reads_wrapped => &mortal.sotw,
            (Variant::Sotw, _) => &self.sotw,
            (Variant::Delta, Some(mortal)) => &mortal.delta,
            (Variant::Delta, None) => &self.delta,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r39_version_depends_on_content_alone_and_survives_the_wire() {
        let first = Version::of_resource("t", "n", b"value", &Extras::default());
        assert_eq!(
            first,
            Version::of_resource("t", "n", b"value", &Extras::default())
        );
        assert_ne!(
            first,
            Version::of_resource("t", "nv", b"alue", &Extras::default())
        );
        assert_ne!(
            first,
            Version::of_resource("t2", "n", b"value", &Extras::default())
        );
        assert_eq!(Version::parse(&first.to_string()), Some(first));
        // A literal: another replica, another build or a restart must agree.
        assert_eq!(first.to_string(), "18b53b12b245f781");
    }

    #[test]
    fn foreign_versions_do_not_parse() {
        for text in [
            "",
            "1",
            "00000000000000000",
            "000000000000000G",
            "00000000000000AB",
            "+000000000000000",
        ] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn value_is_the_message_without_its_envelope() {
        let resource = Resource::new("t", Name::from("n"), b"value", Extras::default());
        assert_eq!(&resource.value()[..], b"value");
    }
}
