//! The `NodeConfig` document: which pods of a node are accelerated, and how.
//!
//! [`NodeConfig::parse`] is the only way in. What it returns cannot hold an illegal state: names are
//! well formed and unique, network namespaces are absolute paths and unique, and annotations are
//! already a [`TrafficPolicy`]. The document as users write it:
//!
//! ```yaml
//! apiVersion: isthmus.io/v1alpha1
//! kind: NodeConfig
//! pods:
//!   - name: default/client
//!     netns: /run/netns/client
//!     proxyUID: 1337
//!     proxyGID: 1337
//!     annotations:
//!       traffic.sidecar.istio.io/excludeOutboundPorts: "3306"
//!     dnsCapture: resolvers          # none, or all; without, the mesh-wide value, or left to iptables
//!     dnsServers: [10.96.0.10]       # those of the pod's /etc/resolv.conf
//! ```

mod annotations;
mod dns;
mod error;
mod proxy_config;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use self::{
    annotations::parse_annotations,
    dns::{DnsMode, DnsSettings, parse_server},
};
pub use self::{
    annotations::{AnnotationError, Notice},
    dns::DnsCapture,
    error::{FieldError, NodeConfigError},
    traffic::{
        AppAcceleration, BadRange, GroupCapture, Interception, IpRange, Ipv6Capture, LoopbackRange,
        PortCapture, RangeCapture, TrafficPolicy,
    },
};
use crate::API_VERSION;

/// The `kind` this module reads.
pub const KIND: &str = "NodeConfig";
/// Owner of the sidecar's process when a pod does not say: what Istio's images run as.
pub const DEFAULT_PROXY_ID: u32 = 1337;
/// Largest document that is read. A pod with fifty rules takes about 1 KiB, and a node runs a few
/// hundred pods, so anything near this is not a `NodeConfig`.
pub const MAX_DOCUMENT_BYTES: usize = 4 << 20;

/// `(uid_t) -1` and `(gid_t) -1` mean "leave as it is" to the kernel and own no process.
const NO_ID: u32 = u32::MAX;

/// The pods of a node that the accelerator knows about, by name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeConfig {
    /// The pods, sorted by name.
    pub pods: BTreeMap<PodName, Pod>,
}

/// One pod: a network namespace with an application and its sidecar in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pod {
    /// File of the network namespace, an absolute path; it need not exist yet.
    pub netns: PathBuf,
    /// User that the sidecar runs as; what it sends is never captured.
    pub proxy_uid: u32,
    /// Group that the sidecar runs as; what it sends is never captured.
    pub proxy_gid: u32,
    /// Whether, and which of, the pod's traffic is taken.
    pub capture: Capture,
    /// Annotations that are known but that the accelerator leaves to iptables.
    pub notices: Vec<Notice>,
}

/// Who redirects a pod's traffic into its sidecar.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each pod, and most pods are accelerated"
)]
pub enum Capture {
    /// The accelerator, by this policy.
    Accelerated(TrafficPolicy),
    /// Whatever did so before: the pod asks for something that the accelerator does not do, and a
    /// half-captured pod is worse than a slow one. [`Pod::notices`] says what it was, unless the pod
    /// asks not to be captured at all.
    LeftAlone,
}

/// `namespace/name` of a pod, each part as Kubernetes allows it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PodName(String);

impl PodName {
    /// Returns the name as `namespace/name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses `namespace/name`.
    ///
    /// # Errors
    ///
    /// Returns [`FieldError::BadPodName`] unless the namespace is a DNS label (RFC 1123) of up to 63
    /// characters and the name a DNS subdomain of up to 253.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let is_good = text.split_once('/').is_some_and(|(namespace, name)| {
            is_dns_label(namespace) && name.len() <= 253 && name.split('.').all(is_dns_label)
        });
        if !is_good {
            return Err(FieldError::BadPodName {
                name: text.to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

fn is_dns_label(text: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(is_word)
        && bytes.last().is_some_and(is_word)
        && bytes.iter().all(|byte| is_word(byte) || *byte == b'-')
}

impl NodeConfig {
    /// Parses one YAML document.
    ///
    /// Costs one pass over the text. Unknown fields are refused, unknown annotations are not: pods
    /// carry many that are none of the accelerator's business.
    ///
    /// # Errors
    ///
    /// Returns the first [`NodeConfigError`] in the order of the document.
    pub fn parse(bytes: &[u8]) -> Result<Self, NodeConfigError> {
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(NodeConfigError::TooLarge {
                size_bytes: bytes.len(),
            });
        }
        let text = std::str::from_utf8(bytes).map_err(|error| NodeConfigError::NotUtf8 {
            offset_bytes: error.valid_up_to(),
        })?;
        let has_content = |line: &str| !line.is_empty() && !line.starts_with('#') && line != "---";
        if !text.lines().map(str::trim).any(has_content) {
            return Err(NodeConfigError::Empty);
        }
        read_yaml(text)?.check()
    }
}

fn read_yaml(text: &str) -> Result<RawNodeConfig, NodeConfigError> {
    let options = serde_saphyr::options! {
        // An annotation is a string: `8080` without quotes is refused here as Kubernetes refuses it.
        no_schema: true,
        with_snippet: false,
    };
    let mut path = String::new();
    let document = serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
        serde_path_to_error::deserialize(yaml).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    });
    document.map_err(|error| shape_error(&error, &path))
}

fn shape_error(error: &serde_saphyr::Error, path: &str) -> NodeConfigError {
    let location = error.location();
    NodeConfigError::Shape {
        line: location.map_or(0, |location| location.line()),
        column: location.map_or(0, |location| location.column()),
        path: path.trim_end_matches('?').trim_end_matches('.').to_owned(),
        reason: plain_reason(&error.to_string()),
    }
}

// The YAML reader speaks to programmers: it names its own functions and Rust's types.
fn plain_reason(reason: &str) -> String {
    let reason = reason
        .rsplit_once(" at line ")
        .map_or(reason, |(reason, _)| reason);
    let plain = match reason {
        "expected mapping start" => "expected fields (`name: value`)",
        "expected sequence start" => "expected a list; for none write `[]`",
        "invalid u32" => "expected a number from 0 to 4294967295",
        _ if reason.starts_with("multiple YAML documents") => {
            "a second document begins here: the accelerator reads one NodeConfig"
        }
        _ => reason
            .split_once(", set DuplicateKeyPolicy")
            .map_or(reason, |(plain, _)| plain),
    };
    plain.to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawNodeConfig {
    api_version: String,
    kind: String,
    pods: Vec<RawPod>,
    dns_capture: Option<DnsMode>,
    #[serde(default)]
    dns_servers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawPod {
    name: String,
    netns: String,
    #[serde(default = "default_proxy_id", rename = "proxyUID")]
    proxy_uid: u32,
    #[serde(default = "default_proxy_id", rename = "proxyGID")]
    proxy_gid: u32,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    dns_capture: Option<DnsMode>,
    #[serde(default)]
    dns_servers: Vec<String>,
}

fn default_proxy_id() -> u32 {
    DEFAULT_PROXY_ID
}

impl RawNodeConfig {
    fn check(self) -> Result<NodeConfig, NodeConfigError> {
        if self.api_version != API_VERSION {
            return Err(field(
                "apiVersion",
                FieldError::WrongApiVersion {
                    found: self.api_version,
                },
            ));
        }
        if self.kind != KIND {
            return Err(field("kind", FieldError::WrongKind { found: self.kind }));
        }

        let servers_of_all = check_servers("dnsServers", &self.dns_servers)?;
        let mut pods = BTreeMap::new();
        let mut index_by_name = BTreeMap::new();
        let mut name_by_netns = BTreeMap::new();
        for (index, raw) in self.pods.into_iter().enumerate() {
            let at = |name: &str| format!("pods[{index}].{name}");
            let name = PodName::parse(&raw.name).map_err(|error| field(at("name"), error))?;
            if let Some(first) = index_by_name.insert(name.clone(), index) {
                return Err(field(at("name"), FieldError::DuplicateName { first, name }));
            }
            let netns =
                check_netns(&name, &raw.netns).map_err(|error| field(at("netns"), error))?;
            if let Some(other) = name_by_netns.insert(netns.clone(), name.clone()) {
                let error = FieldError::DuplicateNetns {
                    netns: raw.netns,
                    other,
                    pod: name,
                };
                return Err(field(at("netns"), error));
            }
            for (key, id) in [("proxyUID", raw.proxy_uid), ("proxyGID", raw.proxy_gid)] {
                // Root is what applications run as by default, so that nothing would be captured.
                if id == 0 || id == NO_ID {
                    return Err(field(at(key), FieldError::BadProxyId { id, pod: name }));
                }
            }
            let own_servers = check_servers(&at("dnsServers"), &raw.dns_servers)?;
            let dns = DnsSettings {
                own: raw.dns_capture,
                of_all: self.dns_capture,
                servers: if own_servers.is_empty() {
                    servers_of_all.clone()
                } else {
                    own_servers
                },
            };
            if dns.lacks_servers() {
                return Err(field(
                    at("dnsServers"),
                    FieldError::NoDnsServers { pod: name },
                ));
            }
            let (capture, notices) =
                parse_annotations(&raw.annotations, &dns).map_err(|error| {
                    let path = format!("pods[{index}].annotations[{:?}]", error.annotation());
                    field(
                        path,
                        FieldError::Annotation {
                            error,
                            pod: name.clone(),
                        },
                    )
                })?;
            pods.insert(
                name,
                Pod {
                    netns,
                    proxy_uid: raw.proxy_uid,
                    proxy_gid: raw.proxy_gid,
                    capture,
                    notices,
                },
            );
        }
        Ok(NodeConfig { pods })
    }
}

fn field(path: impl Into<String>, error: FieldError) -> NodeConfigError {
    NodeConfigError::Field {
        path: path.into(),
        error,
    }
}

fn check_servers(path: &str, items: &[String]) -> Result<BTreeSet<IpAddr>, NodeConfigError> {
    let check = |(index, item): (usize, &String)| {
        parse_server(item).ok_or_else(|| {
            let item = item.clone();
            field(
                format!("{path}[{index}]"),
                FieldError::BadDnsServer { item },
            )
        })
    };
    items.iter().enumerate().map(check).collect()
}

// Compares by components, so that `/run//netns/a` is `/run/netns/a`. Symbolic links are not followed:
// the resolver finds those by the cookie of the namespace.
fn check_netns(pod: &PodName, text: &str) -> Result<PathBuf, FieldError> {
    if text.is_empty() {
        return Err(FieldError::EmptyNetns { pod: pod.clone() });
    }
    let path = Path::new(text);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(FieldError::RelativeNetns {
            netns: text.to_owned(),
            pod: pod.clone(),
        });
    }
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests;
