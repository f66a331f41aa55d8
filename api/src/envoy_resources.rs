//! `EnvoyResources`: Envoy configuration as Envoy itself spells it, and the clients it is for.

mod identity;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use identity::{BadIdentity, Identity, IdentityPattern, SpiffeId};

/// The `kind` of an [`EnvoyResources`] document.
pub const KIND: &str = "EnvoyResources";

/// Resources that are served as they are written to every client that the selector matches.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EnvoyResources {
    /// Always [`API_VERSION`](crate::API_VERSION).
    pub api_version: String,
    /// Always [`KIND`].
    pub kind: String,
    /// Names the document.
    pub metadata: Metadata,
    /// What is served, and to whom.
    pub spec: EnvoyResourcesSpec,
}

/// Identity of a document.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metadata {
    /// Unique among all documents of a control plane, not empty.
    pub name: String,
}

/// The content of an [`EnvoyResources`] document.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EnvoyResourcesSpec {
    /// The clients that get the resources; every client if left out.
    #[serde(default)]
    pub selector: Selector,
    /// Resources in proto3 JSON, each with its `@type`; camelCase and original field names both work.
    #[serde(default)]
    pub resources: Vec<serde_json::Value>,
}

/// Chooses clients by what they say of themselves in the `node` field of their first request, and by who they are
/// proven to be.
///
/// All that is given must match; nothing given matches every client. Only `identity` keeps a client out that lies.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Selector {
    /// The exact `node.id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The exact `node.cluster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Who the client is, as the transport verified it: by certificate, or by the user behind a Unix socket. Never
    /// compared with the node; without mTLS or a Unix socket it matches nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityPattern>,
    /// Parts of `node.locality`.
    #[serde(default, skip_serializing_if = "LocalitySelector::is_empty")]
    pub locality: LocalitySelector,
    /// Top-level entries of `node.metadata` and the exact string each must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// The part of a [`Selector`] that looks at where a client runs; what is left out matches anything.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LocalitySelector {
    /// The exact `node.locality.region`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The exact `node.locality.zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The exact `node.locality.sub_zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_zone: Option<String>,
}

/// What a client said of itself, as far as a [`Selector`] looks at it, and who it is. Unset parts are empty.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    /// `node.id`.
    pub id: &'a str,
    /// `node.cluster`.
    pub cluster: &'a str,
    /// The identity that the transport verified, if it did.
    pub identity: Option<&'a Identity>,
    /// `node.locality.region`.
    pub region: &'a str,
    /// `node.locality.zone`.
    pub zone: &'a str,
    /// `node.locality.sub_zone`.
    pub sub_zone: &'a str,
    /// Top-level entries of `node.metadata` that are strings.
    pub metadata: &'a BTreeMap<String, String>,
}

impl Selector {
    /// Tells whether everything this selector gives is what the client said.
    #[must_use]
    pub fn matches(&self, node: &NodeView<'_>) -> bool {
        admits(self.id.as_deref(), node.id)
            && admits(self.cluster.as_deref(), node.cluster)
            && self
                .identity
                .as_ref()
                .is_none_or(|wanted| node.identity.is_some_and(|found| wanted.matches(found)))
            && self.locality.matches(node)
            && self
                .metadata
                .iter()
                .all(|(key, value)| node.metadata.get(key) == Some(value))
    }

    /// Tells whether one client can match both selectors: no field is given different values by the two.
    #[must_use]
    pub fn may_overlap(&self, other: &Self) -> bool {
        agree(self.id.as_ref(), other.id.as_ref())
            && agree(self.cluster.as_ref(), other.cluster.as_ref())
            && match (&self.identity, &other.identity) {
                (Some(left), Some(right)) => left.may_overlap(right),
                (None, _) | (_, None) => true,
            }
            && self.locality.may_overlap(&other.locality)
            && self
                .metadata
                .iter()
                .all(|(key, value)| agree(Some(value), other.metadata.get(key)))
    }

    /// Tells whether the selector matches every client.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl LocalitySelector {
    /// Tells whether nothing is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn matches(&self, node: &NodeView<'_>) -> bool {
        admits(self.region.as_deref(), node.region)
            && admits(self.zone.as_deref(), node.zone)
            && admits(self.sub_zone.as_deref(), node.sub_zone)
    }

    fn may_overlap(&self, other: &Self) -> bool {
        agree(self.region.as_ref(), other.region.as_ref())
            && agree(self.zone.as_ref(), other.zone.as_ref())
            && agree(self.sub_zone.as_ref(), other.sub_zone.as_ref())
    }
}

fn admits(wanted: Option<&str>, found: &str) -> bool {
    wanted.is_none_or(|wanted| wanted == found)
}

fn agree(left: Option<&String>, right: Option<&String>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => left == right,
        (None, _) | (_, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_matches_when_all_it_gives_does() {
        let metadata = BTreeMap::from([("role".to_owned(), "gateway".to_owned())]);
        let identity = "spiffe://a/ns/x".parse().expect("an identity");
        let node = NodeView {
            id: "a",
            cluster: "edge",
            identity: Some(&identity),
            region: "r",
            zone: "z",
            sub_zone: "",
            metadata: &metadata,
        };
        let cases = [
            ("everybody", "{}", true),
            ("id", r#"{"id": "a"}"#, true),
            ("another id", r#"{"id": "b"}"#, false),
            ("a prefix of the id is not the id", r#"{"id": ""}"#, false),
            ("id and cluster", r#"{"id": "a", "cluster": "edge"}"#, true),
            (
                "id and another cluster",
                r#"{"id": "a", "cluster": "core"}"#,
                false,
            ),
            (
                "its identity",
                r#"{"id": "a", "identity": "spiffe://a/ns/x"}"#,
                true,
            ),
            (
                "another identity",
                r#"{"id": "a", "identity": "spiffe://a/ns/y"}"#,
                false,
            ),
            (
                "part of the locality",
                r#"{"locality": {"zone": "z"}}"#,
                true,
            ),
            (
                "all of the locality",
                r#"{"locality": {"region": "r", "zone": "z", "subZone": ""}}"#,
                true,
            ),
            (
                "another region",
                r#"{"locality": {"region": "s", "zone": "z"}}"#,
                false,
            ),
            ("metadata", r#"{"metadata": {"role": "gateway"}}"#, true),
            (
                "another value",
                r#"{"metadata": {"role": "sidecar"}}"#,
                false,
            ),
            (
                "a key that is not there",
                r#"{"metadata": {"tier": ""}}"#,
                false,
            ),
        ];
        for (name, selector, wanted) in cases {
            let selector: Selector = serde_json::from_str(selector).expect(name);
            assert_eq!(selector.matches(&node), wanted, "{name}");
            assert_eq!(selector.is_empty(), name == "everybody", "{name}");
        }
        let unproven = NodeView {
            identity: None,
            ..node
        };
        let selector: Selector =
            serde_json::from_str(r#"{"identity": "spiffe://a/*"}"#).expect("a selector");
        assert!(selector.matches(&node) && !selector.matches(&unproven));
    }

    #[test]
    fn selectors_overlap_unless_a_field_differs() {
        let cases = [
            ("everybody and everybody", "{}", "{}", true),
            ("everybody and one", "{}", r#"{"id": "a"}"#, true),
            ("two ids", r#"{"id": "a"}"#, r#"{"id": "b"}"#, false),
            (
                "id and cluster",
                r#"{"id": "a"}"#,
                r#"{"cluster": "b"}"#,
                true,
            ),
            (
                "two identities",
                r#"{"identity": "spiffe://a/x"}"#,
                r#"{"identity": "uid:0"}"#,
                false,
            ),
            (
                "an identity and all below a path",
                r#"{"identity": "spiffe://a/x"}"#,
                r#"{"identity": "spiffe://a/*"}"#,
                true,
            ),
            (
                "two zones",
                r#"{"locality": {"zone": "a", "region": "r"}}"#,
                r#"{"locality": {"zone": "b"}}"#,
                false,
            ),
            (
                "two values",
                r#"{"metadata": {"a": "1", "b": "1"}}"#,
                r#"{"metadata": {"b": "2"}}"#,
                false,
            ),
            (
                "two keys",
                r#"{"metadata": {"a": "1"}}"#,
                r#"{"metadata": {"b": "1"}}"#,
                true,
            ),
        ];
        for (name, left, right, wanted) in cases {
            let left: Selector = serde_json::from_str(left).expect(name);
            let right: Selector = serde_json::from_str(right).expect(name);
            assert_eq!(left.may_overlap(&right), wanted, "{name}");
            assert_eq!(
                right.may_overlap(&left),
                wanted,
                "{name}: the other way round"
            );
        }
    }

    #[test]
    fn what_is_written_is_what_was_read() {
        let text = r#"{"apiVersion":"isthmus.io/v1alpha1","kind":"EnvoyResources","metadata":{"name":"edge"},"spec":{"selector":{"locality":{"subZone":"a"}},"resources":[{"@type":"t","name":"n"}]}}"#;
        let document: EnvoyResources = serde_json::from_str(text).expect("a document");
        assert_eq!(serde_json::to_string(&document).expect("JSON"), text);
    }
}
