//! Whose DNS queries a pod's agent answers: the document's fields and Istio's metadata, read together.
//!
//! Istio takes them from `proxyMetadata` (`ISTIO_META_DNS_CAPTURE`, `CAPTURE_ALL_DNS`) and from the
//! `resolv.conf` of the container that installs the rules (`istio/istio:
//! tools/istio-iptables/pkg/config/config.go`); with istio-cni, capture means every server
//! (`cni/pkg/plugin/iptables_linux.go`). Only some of that is in a pod's annotations, hence the fields.

use std::{collections::BTreeSet, net::IpAddr};

use serde::Deserialize;

/// Which DNS queries (port 53, UDP and TCP) the pod's agent answers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum DnsCapture {
    /// Nothing says, so that port 53 is left to the rules underneath.
    #[default]
    Unspecified,
    /// None: TCP to port 53 is a connection like any other.
    Off,
    /// Those to these servers.
    Resolvers(BTreeSet<IpAddr>),
    /// All.
    All,
}

/// Value of `dnsCapture`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(super) enum DnsMode {
    /// No query.
    None,
    /// Queries to `dnsServers`.
    Resolvers,
    /// Every query.
    All,
}

/// What Istio's metadata of a pod says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum DnsMetadata {
    /// Nothing, so that the mesh decides.
    Unspecified,
    /// Not captured.
    Off,
    /// Captured; for which servers is said elsewhere.
    On,
    /// Captured, for the servers of `resolv.conf`.
    Resolvers,
    /// Captured, for every server.
    All,
}

/// What the document says of one pod: `dnsCapture` and `dnsServers`, its own and those for all pods.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct DnsSettings {
    /// The pod's own `dnsCapture`.
    pub(super) own: Option<DnsMode>,
    /// The `dnsCapture` for all pods.
    pub(super) of_all: Option<DnsMode>,
    /// The pod's own `dnsServers` if it has any, else those for all pods.
    pub(super) servers: BTreeSet<IpAddr>,
}

impl DnsSettings {
    /// Tells whether a field asks for the servers of a list that is not there.
    pub(super) fn lacks_servers(&self) -> bool {
        self.own.or(self.of_all) == Some(DnsMode::Resolvers) && self.servers.is_empty()
    }

    /// Decides. The pod's field wins over its metadata, which wins over the field for all pods. Where the
    /// servers are asked for and not known, the answer is [`DnsCapture::Unspecified`].
    pub(super) fn capture(&self, metadata: DnsMetadata) -> DnsCapture {
        let of_metadata = match metadata {
            DnsMetadata::Unspecified => None,
            DnsMetadata::Off => Some(DnsMode::None),
            DnsMetadata::On if self.of_all == Some(DnsMode::All) => Some(DnsMode::All),
            DnsMetadata::On | DnsMetadata::Resolvers => Some(DnsMode::Resolvers),
            DnsMetadata::All => Some(DnsMode::All),
        };
        match self.own.or(of_metadata).or(self.of_all) {
            None => DnsCapture::Unspecified,
            Some(DnsMode::None) => DnsCapture::Off,
            Some(DnsMode::Resolvers) if self.servers.is_empty() => DnsCapture::Unspecified,
            Some(DnsMode::Resolvers) => DnsCapture::Resolvers(self.servers.clone()),
            Some(DnsMode::All) => DnsCapture::All,
        }
    }
}

/// Reads one item of `dnsServers`: an address of one host, without a port or an interface.
pub(super) fn parse_server(item: &str) -> Option<IpAddr> {
    let addr: IpAddr = item.parse().ok()?;
    let addr = addr.to_canonical();
    (!addr.is_unspecified() && !addr.is_multicast()).then_some(addr)
}

#[cfg(test)]
mod tests;
