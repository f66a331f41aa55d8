//! Istio's `ProxyConfig` of one pod, as far as it changes what is captured.
//!
//! `proxyMetadata` is the environment of `istio-iptables`; names, defaults and checks are those of
//! `istio/istio: tools/istio-iptables/pkg/{constants,config}`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{
    annotations::{AnnotationError, Annotations, PROXY_CONFIG, items},
    dns::DnsMetadata,
    traffic::{GroupCapture, Ipv6Capture, LoopbackRange},
};

const DNS_CAPTURE: &str = "ISTIO_META_DNS_CAPTURE";
const DNS_CAPTURE_ALL: &str = "CAPTURE_ALL_DNS";
const DUAL_STACK: &str = "ISTIO_DUAL_STACK";
const LOOPBACK_RANGE: &str = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";
const OWNER_GROUPS: &str = "ISTIO_OUTBOUND_OWNER_GROUPS";
const OWNER_GROUPS_EXCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE";

/// The annotation `proxy.istio.io/config`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProxyConfig {
    pub(super) interception_mode: Option<String>,
    #[serde(default)]
    proxy_metadata: BTreeMap<String, String>,
}

impl ProxyConfig {
    pub(super) fn parse(annotations: &Annotations) -> Result<Self, AnnotationError> {
        let Some(text) = annotations
            .get(PROXY_CONFIG)
            .filter(|text| !text.trim().is_empty())
        else {
            return Ok(Self::default());
        };
        let options = serde_saphyr::options! { with_snippet: false };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            AnnotationError::BadProxyConfig {
                annotation: PROXY_CONFIG,
                reason: error.to_string(),
            }
        })
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.proxy_metadata.get(name).map(|value| value.trim())
    }

    fn boolean(&self, name: &'static str) -> Result<Option<bool>, AnnotationError> {
        // Nothing at all is no mistake to Istio either.
        let Some(value) = self.variable(name).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let bad = || AnnotationError::BadBool {
            annotation: PROXY_CONFIG,
            name,
            value: value.to_owned(),
        };
        parse_bool(value).map(Some).ok_or_else(bad)
    }

    // Whether the mesh is dual-stack is a setting of the mesh, which a pod may repeat. Where it says
    // nothing, an IPv6 address is taken for a yes.
    pub(super) fn ipv6(&self) -> Result<Ipv6Capture, AnnotationError> {
        Ok(match self.boolean(DUAL_STACK)? {
            None => Ipv6Capture::default(),
            Some(true) => Ipv6Capture::WithAddress,
            Some(false) => Ipv6Capture::WithoutIpv4,
        })
    }

    pub(super) fn dns(&self) -> Result<DnsMetadata, AnnotationError> {
        let (capture, all) = (self.boolean(DNS_CAPTURE)?, self.boolean(DNS_CAPTURE_ALL)?);
        Ok(match (capture, all) {
            (None, _) => DnsMetadata::Unspecified,
            (Some(false), _) => DnsMetadata::Off,
            (Some(true), None) => DnsMetadata::On,
            (Some(true), Some(false)) => DnsMetadata::Resolvers,
            (Some(true), Some(true)) => DnsMetadata::All,
        })
    }

    pub(super) fn direct_loopback(&self) -> Result<LoopbackRange, AnnotationError> {
        let Some(value) = self.variable(LOOPBACK_RANGE) else {
            return Ok(LoopbackRange::default());
        };
        LoopbackRange::parse(value).map_err(|error| AnnotationError::BadLoopbackRange {
            annotation: PROXY_CONFIG,
            name: LOOPBACK_RANGE,
            value: value.to_owned(),
            error,
        })
    }

    /// Returns `None` if a group is given by a name, which only the pod's own `/etc/group` resolves.
    pub(super) fn owner_groups(&self) -> Option<GroupCapture> {
        match self.variable(OWNER_GROUPS) {
            None | Some("*") => {
                let excluded = self.variable(OWNER_GROUPS_EXCLUDE).unwrap_or_default();
                parse_groups(excluded).map(GroupCapture::AllBut)
            }
            Some(list) => parse_groups(list).map(GroupCapture::Only),
        }
    }
}

// A zero in front means octal to iptables.
fn parse_groups(list: &str) -> Option<BTreeSet<u32>> {
    let parse = |item: &str| {
        let is_decimal = item.bytes().all(|byte| byte.is_ascii_digit())
            && (item.len() == 1 || !item.starts_with('0'));
        is_decimal.then(|| item.parse().ok()).flatten()
    };
    items(list).map(parse).collect()
}

// As Go's `strconv.ParseBool`, with which Istio reads it.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
