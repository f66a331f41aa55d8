//! Istio's annotations, read as Istio's injector and `istio-iptables` read them.
//!
//! Sources: `istio/istio` `pkg/kube/inject/validate.go`, `manifests/charts/istio-control/istio-discovery/
//! files/injection-template.yaml`, `cni/pkg/plugin/sidecar_redirect.go` and
//! `tools/istio-iptables/pkg/capture/run.go`; names from `istio/api: annotation/annotations.yaml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Capture,
    dns::{DnsCapture, DnsMetadata, DnsSettings},
    proxy_config::ProxyConfig,
    traffic::{
        AppAcceleration, BadRange, Interception, IpRange, PortCapture, RangeCapture, TrafficPolicy,
    },
};

const ACCELERATE_APPLICATION: &str = "isthmus.io/accelerate-application";
const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
pub(super) const PROXY_CONFIG: &str = "proxy.istio.io/config";
const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
const STATUS_PORT: &str = "status.sidecar.istio.io/port";
const AMBIENT_REDIRECTION: &str = "ambient.istio.io/redirection";

/// Port of the sidecar agent's own health endpoint unless the status port says otherwise.
const DEFAULT_STATUS_PORT: u16 = 15020;
/// Ports of the sidecar that are never captured on the way in: merged metrics, Envoy's readiness, its metrics.
const SIDECAR_PORTS: [u16; 3] = [15020, 15021, 15090];

/// An annotation that the accelerator knows but leaves to iptables.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notice {
    /// Its name.
    pub annotation: &'static str,
    /// What it means for the pod, as half a sentence.
    pub effect: &'static str,
}

/// An annotation that cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AnnotationError {
    /// Not a boolean.
    #[error("annotation {annotation}: {name} is {value:?}: expected \"true\" or \"false\"")]
    BadBool {
        /// Which annotation.
        annotation: &'static str,
        /// Key of the proxy's metadata.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// Not a way to accelerate an application.
    #[error(
        "annotation {annotation}: {value:?} is unknown: expected off, writes or reads-and-writes"
    )]
    BadAcceleration {
        /// Which annotation.
        annotation: &'static str,
        /// Its value.
        value: String,
    },
    /// Not a mode.
    #[error(
        "annotation {annotation}: {value:?} is no interception mode: expected REDIRECT, TPROXY or NONE"
    )]
    BadMode {
        /// Which annotation.
        annotation: &'static str,
        /// Its value.
        value: String,
    },
    /// Not a port.
    #[error("annotation {annotation}: {item:?} is no port: expected a number from 0 to 65535")]
    BadPort {
        /// Which annotation.
        annotation: &'static str,
        /// The item of its list.
        item: String,
    },
    /// Not YAML of a proxy configuration.
    #[error("annotation {annotation}: the value is no YAML of Istio's ProxyConfig: {reason}")]
    BadProxyConfig {
        /// Which annotation.
        annotation: &'static str,
        /// What the YAML reader says.
        reason: String,
    },
    /// Not a range on loopback.
    #[error("annotation {annotation}: {name} is {value:?}: {error}")]
    BadLoopbackRange {
        /// Which annotation.
        annotation: &'static str,
        /// Key of the proxy's metadata.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        error: BadRange,
    },
    /// Not a range.
    #[error("annotation {annotation}: {item:?} is no IP range: {error}")]
    BadRange {
        /// Which annotation.
        annotation: &'static str,
        /// The item of its list.
        item: String,
        /// What is wrong with it.
        error: BadRange,
    },
}

impl AnnotationError {
    /// Returns the name of the annotation.
    #[must_use]
    pub fn annotation(&self) -> &'static str {
        match self {
            Self::BadAcceleration { annotation, .. }
            | Self::BadBool { annotation, .. }
            | Self::BadLoopbackRange { annotation, .. }
            | Self::BadMode { annotation, .. }
            | Self::BadPort { annotation, .. }
            | Self::BadProxyConfig { annotation, .. }
            | Self::BadRange { annotation, .. } => annotation,
        }
    }
}

pub(super) type Annotations = BTreeMap<String, String>;

/// Reads what concerns redirection and ignores the rest.
///
/// Everything is read even for a pod that is left alone: its error would otherwise show up on the day
/// the annotation that keeps it out is removed.
pub(super) fn parse_annotations(
    annotations: &Annotations,
    dns: &DnsSettings,
) -> Result<(Capture, Vec<Notice>), AnnotationError> {
    let proxy = ProxyConfig::parse(annotations)?;
    let policy = parse_policy(annotations, &proxy, dns)?;
    let mode = parse_mode(annotations, &proxy)?;
    let Some(interception) = mode else {
        return Ok((Capture::LeftAlone, Vec::new()));
    };

    let mut blocking = blocking_notices(annotations, &proxy);
    if interception == Interception::Tproxy && !policy.virtual_interfaces.is_empty() {
        let effect = "TPROXY comes before the rules for virtual machines and takes what they send as inbound, so \
                      the pod is left to iptables";
        blocking.push(Notice {
            annotation: INTERCEPTION_MODE,
            effect,
        });
    }
    let is_left_alone = !blocking.is_empty();
    let asks_for_dns = !matches!(proxy.dns()?, DnsMetadata::Unspecified | DnsMetadata::Off);
    if asks_for_dns && policy.dns == DnsCapture::Unspecified {
        let effect = "DNS stays with iptables, because no dnsServers are given";
        blocking.push(Notice {
            annotation: PROXY_CONFIG,
            effect,
        });
    }
    let capture = if is_left_alone {
        Capture::LeftAlone
    } else {
        Capture::Accelerated(TrafficPolicy {
            interception,
            ..policy
        })
    };
    Ok((capture, blocking))
}

fn parse_policy(
    annotations: &Annotations,
    proxy: &ProxyConfig,
    dns: &DnsSettings,
) -> Result<TrafficPolicy, AnnotationError> {
    let exclude_outbound_ports = match annotations.get(EXCLUDE_OUTBOUND_PORTS) {
        Some(list) => parse_ports(EXCLUDE_OUTBOUND_PORTS, list)?,
        // Istio's CNI plugin excludes the status port where its init container excludes none. Leaving
        // it to the rules underneath is right for both.
        None => BTreeSet::from([DEFAULT_STATUS_PORT]),
    };
    let include_outbound_ranges = match annotations
        .get(INCLUDE_OUTBOUND_RANGES)
        .map(|list| list.trim())
    {
        None | Some("*") => RangeCapture::All,
        Some(list) => RangeCapture::Only(parse_ranges(INCLUDE_OUTBOUND_RANGES, list)?),
    };

    let has_loopback_range = annotations
        .get(INCLUDE_OUTBOUND_RANGES)
        .is_some_and(|list| items(list).any(starts_in_loopback));

    // Read in any case: a bad list is an error even where it would not count.
    let exclude_inbound_ports = parse_excluded_inbound_ports(annotations)?;
    let inbound_ports = match annotations
        .get(INCLUDE_INBOUND_PORTS)
        .map(|list| list.trim())
    {
        None | Some("*") => PortCapture::AllBut(exclude_inbound_ports),
        Some(list) => PortCapture::Only(parse_ports(INCLUDE_INBOUND_PORTS, list)?),
    };

    let list = |name: &str| annotations.get(name).map_or("", String::as_str);
    // The older name does not count beside the other one.
    let virtual_interfaces = annotations
        .get(REROUTE_INTERFACES)
        .map_or(list(KUBEVIRT_INTERFACES), String::as_str);
    Ok(TrafficPolicy {
        app_acceleration: parse_acceleration(annotations)?,
        exclude_interfaces: items(list(EXCLUDE_INTERFACES)).map(str::to_owned).collect(),
        virtual_interfaces: items(virtual_interfaces).map(str::to_owned).collect(),
        exclude_outbound_ports,
        exclude_outbound_ranges: parse_ranges(
            EXCLUDE_OUTBOUND_RANGES,
            list(EXCLUDE_OUTBOUND_RANGES),
        )?,
        include_outbound_ports: parse_ports(INCLUDE_OUTBOUND_PORTS, list(INCLUDE_OUTBOUND_PORTS))?,
        include_outbound_ranges,
        has_loopback_range,
        inbound_ports,
        interception: Interception::Redirect,
        dns: dns.capture(proxy.dns()?),
        ipv6: proxy.ipv6()?,
        owner_groups: proxy.owner_groups().unwrap_or_default(),
        direct_loopback: proxy.direct_loopback()?,
    })
}

fn parse_acceleration(annotations: &Annotations) -> Result<AppAcceleration, AnnotationError> {
    let value = annotations.get(ACCELERATE_APPLICATION);
    match value.map(|value| value.trim()) {
        None | Some("off") => Ok(AppAcceleration::Off),
        Some("writes") => Ok(AppAcceleration::Writes),
        Some("reads-and-writes") => Ok(AppAcceleration::ReadsAndWrites),
        Some(value) => Err(AnnotationError::BadAcceleration {
            annotation: ACCELERATE_APPLICATION,
            value: value.to_owned(),
        }),
    }
}

fn parse_excluded_inbound_ports(
    annotations: &Annotations,
) -> Result<BTreeSet<u16>, AnnotationError> {
    let mut ports = match annotations.get(EXCLUDE_INBOUND_PORTS) {
        Some(list) => parse_ports(EXCLUDE_INBOUND_PORTS, list)?,
        None => BTreeSet::new(),
    };
    ports.extend(SIDECAR_PORTS);
    if let Some(text) = annotations.get(STATUS_PORT) {
        // 0 turns the status port off.
        ports.extend(Some(parse_port(STATUS_PORT, text.trim())?).filter(|port| *port != 0));
    }
    Ok(ports)
}

// `None` for a pod that asks not to be captured.
fn parse_mode(
    annotations: &Annotations,
    proxy: &ProxyConfig,
) -> Result<Option<Interception>, AnnotationError> {
    let (annotation, value) = match (annotations.get(INTERCEPTION_MODE), &proxy.interception_mode) {
        (Some(value), _) => (INTERCEPTION_MODE, value),
        (None, Some(value)) => (PROXY_CONFIG, value),
        (None, None) => return Ok(Some(Interception::Redirect)),
    };
    match value.as_str() {
        "NONE" => Ok(None),
        "REDIRECT" => Ok(Some(Interception::Redirect)),
        "TPROXY" => Ok(Some(Interception::Tproxy)),
        _ => Err(AnnotationError::BadMode {
            annotation,
            value: value.clone(),
        }),
    }
}

// Things that take traffic out of the capture, or into another one, in ways the programs do not know.
fn blocking_notices(annotations: &Annotations, proxy: &ProxyConfig) -> Vec<Notice> {
    let mut notices = Vec::new();
    if annotations
        .get(AMBIENT_REDIRECTION)
        .is_some_and(|value| value == "enabled")
    {
        let effect = "the pod has no sidecar of its own, so it is left to ztunnel";
        notices.push(Notice {
            annotation: AMBIENT_REDIRECTION,
            effect,
        });
    }
    if proxy.owner_groups().is_none() {
        let effect =
            "owner groups by name are known in the pod only, so the pod is left to iptables";
        notices.push(Notice {
            annotation: PROXY_CONFIG,
            effect,
        });
    }
    notices
}

// Istio drops the rule that leaves loopback traffic alone as soon as one range *starts* in loopback,
// bits behind the prefix included.
fn starts_in_loopback(item: &str) -> bool {
    let addr = item.split_once('/').map_or(item, |(addr, _)| addr);
    addr.parse::<IpAddr>().is_ok_and(|addr| addr.is_loopback())
}

fn parse_ports(annotation: &'static str, list: &str) -> Result<BTreeSet<u16>, AnnotationError> {
    items(list)
        .map(|item| parse_port(annotation, item))
        .collect()
}

// Digits only: `+80` is a number to Rust and not to Go.
fn parse_port(annotation: &'static str, item: &str) -> Result<u16, AnnotationError> {
    let digits = Some(item).filter(|item| item.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| AnnotationError::BadPort {
            annotation,
            item: item.to_owned(),
        })
}

fn parse_ranges(
    annotation: &'static str,
    list: &str,
) -> Result<BTreeSet<IpRange>, AnnotationError> {
    let parse = |item| {
        IpRange::parse(item).map_err(|error| {
            let item = str::to_owned(item);
            AnnotationError::BadRange {
                annotation,
                item,
                error,
            }
        })
    };
    items(list).map(parse).collect()
}

// As Istio's `config.Split`: trimmed, and nothing between two commas is nothing.
pub(super) fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}
