//! Which DNS queries go to the pod's agent (rows D1 and D3), and what the asking socket is shown.
//!
//! Order of Istio's rules (istio/istio, `tools/istio-iptables/pkg/capture/run.go`): what goes by excluded
//! interfaces (I1), excluded ports (O1), Envoy's own source (O2), the proxy (O5, O8) and some groups (O9) leave; then port 53 of the pod's
//! servers is taken, by UDP as by TCP, on `lo` as elsewhere. Of UDP, nothing else is ever taken.

use crate::{
    CidrKey, Dial, ENVOY_INBOUND_SOURCE, ENVOY_INBOUND_SOURCE_V6, LOOPBACK, LOOPBACK_V6, PodConfig,
    PodFlags, PortKey, RuleList, Rules, Source,
    decision::{NOBODY, captures_group, leaves_by_excluded_interface, source_behind_nat},
    is_loopback, is_v4,
};

/// Port of DNS, network order (RFC 1035, section 4.2).
pub const DNS_PORT: [u8; 2] = 53_u16.to_be_bytes();

/// Port on which Istio's agent answers DNS on 127.0.0.1 and `::1`, network order (istio/istio,
/// `tools/istio-iptables/pkg/constants/constants.go`).
pub const DNS_AGENT_PORT: [u8; 2] = 15_053_u16.to_be_bytes();

/// What to do with a datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DnsVerdict {
    /// Leave it alone; iptables underneath, if any, still acts.
    Pass(DnsPass),
    /// Send it to the agent, at [`dns_agent_addr`] and [`DNS_AGENT_PORT`].
    ToAgent,
}

/// Why a datagram was left alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DnsPass {
    /// Not to port 53.
    NotDns,
    /// The sender is in no pod of ours, or its pod's DNS is not captured.
    NotCaptured,
    /// O1.
    PortExcluded,
    /// O2.
    BoundAsEnvoy,
    /// O5, O8, D3.
    SenderIsProxy,
    /// O9.
    GroupExcluded,
    /// D1: none of the pod's servers.
    OtherServer,
    /// I1, for what leaves.
    InterfaceExcluded,
}

/// Decides where a datagram goes, by the address that the kernel will route ([`Dial::routed`]). Costs a
/// comparison for other ports than 53, else at most six lookups, and two more in a pod that leaves
/// interfaces alone.
#[must_use]
#[inline]
pub fn decide_datagram<R: Rules>(query: &Dial, rules: &R) -> DnsVerdict {
    if query.port != DNS_PORT {
        return DnsVerdict::Pass(DnsPass::NotDns);
    }
    let Some(pod) = rules.pod(query.netns_cookie) else {
        return DnsVerdict::Pass(DnsPass::NotCaptured);
    };
    // X4
    let has_rules = is_v4(&query.destination) || pod.flags.has(PodFlags::IPV6);
    if !pod.is_in_force() || !has_rules || !pod.flags.has(PodFlags::DNS) {
        return DnsVerdict::Pass(DnsPass::NotCaptured);
    }

    let excluded = PortKey::new(query.netns_cookie, RuleList::EXCLUDE_OUTBOUND, query.port);
    if rules.has_port(&excluded) {
        return DnsVerdict::Pass(DnsPass::PortExcluded);
    }
    let is_from_envoy =
        query.source == ENVOY_INBOUND_SOURCE || query.source == ENVOY_INBOUND_SOURCE_V6;
    if is_from_envoy && is_on_lo(query, rules) {
        return DnsVerdict::Pass(DnsPass::BoundAsEnvoy);
    }
    if query.uid == pod.proxy_uid || query.gid == pod.proxy_gid {
        return DnsVerdict::Pass(DnsPass::SenderIsProxy);
    }
    if !captures_group(query, &pod, rules) {
        return DnsVerdict::Pass(DnsPass::GroupExcluded);
    }
    if !takes_dns(query, &pod, rules) {
        return DnsVerdict::Pass(DnsPass::OtherServer);
    }
    // In front of all others for Istio; here last, since it costs most and what it says is the same.
    let owner = rules.owner(&query.destination).unwrap_or(NOBODY);
    if leaves_by_excluded_interface(query, &pod, owner, rules) {
        return DnsVerdict::Pass(DnsPass::InterfaceExcluded);
    }
    DnsVerdict::ToAgent
}

/// D1: tells whether the pod's agent answers for this server, whatever the protocol.
#[inline]
pub(crate) fn takes_dns<R: Rules>(query: &Dial, pod: &PodConfig, rules: &R) -> bool {
    if query.port != DNS_PORT || !pod.flags.has(PodFlags::DNS) {
        return false;
    }
    let listed = CidrKey::lookup(query.netns_cookie, RuleList::DNS_SERVERS, query.destination);
    pod.flags.has(PodFlags::DNS_ALL) || rules.has_addr(&listed)
}

#[inline]
fn is_on_lo<R: Rules>(query: &Dial, rules: &R) -> bool {
    is_loopback(&query.destination) || rules.owner(&query.destination) == Some(query.netns_cookie)
}

/// Returns where the agent answers queries to `server`: loopback of the same family, as iptables'
/// `REDIRECT` has it.
#[must_use]
#[inline]
pub fn dns_agent_addr(server: [u8; 16]) -> [u8; 16] {
    if is_v4(&server) {
        LOOPBACK
    } else {
        LOOPBACK_V6
    }
}

/// Returns where a query that goes to the agent shall come from: as behind NAT, where the kernel would
/// have sent the query from.
#[must_use]
#[inline]
pub fn query_source<R: Rules>(query: &Dial, rules: &R) -> Source {
    let owner = rules.owner(&query.destination).unwrap_or(NOBODY);
    source_behind_nat(query, owner)
}

/// No server.
const NONE: [u8; 16] = [0; 16];

/// Value of `DNS_SOCKETS`: the servers that a UDP socket asked last, while the agent answered for them.
///
/// The agent's answers all come from one address for each family, so that one server for each is all
/// that a socket can be told: exact for connected sockets and for those that ask one server at a time.
/// A socket that asks several of one family at once sees each answer come from the last one asked,
/// which resolvers accept, as they ask for *any* of their servers. (Cilium's socket load balancer keys by
/// socket and backend address too: cilium/cilium, `bpf/bpf_sock.c`.)
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct DnsSocket {
    /// IPv4 server, v4-mapped; zero for none.
    asked_v4: [u8; 16],
    /// IPv6 server; zero for none.
    asked_v6: [u8; 16],
}

impl DnsSocket {
    /// Remembers a server whose query went to the agent.
    #[inline]
    pub fn ask(&mut self, server: [u8; 16]) {
        *self.slot(&server) = server;
    }

    /// Returns the server to show in place of an address that a socket is about to be shown, `None` to
    /// leave it: it is not the agent's, or the socket asked no server of that family. The port to show
    /// is [`DNS_PORT`].
    #[must_use]
    #[inline]
    pub fn shown(&self, addr: [u8; 16], port: [u8; 2]) -> Option<[u8; 16]> {
        if port != DNS_AGENT_PORT || addr != dns_agent_addr(addr) {
            return None;
        }
        let asked = if is_v4(&addr) {
            self.asked_v4
        } else {
            self.asked_v6
        };
        (asked != NONE).then_some(asked)
    }

    /// Forgets the server behind an address that the socket sends to itself, without the agent being
    /// put in: what comes from there from now on *is* the agent.
    #[inline]
    pub fn forget(&mut self, addr: [u8; 16], port: [u8; 2]) {
        if self.shown(addr, port).is_some() {
            *self.slot(&addr) = NONE;
        }
    }

    #[inline]
    fn slot(&mut self, addr: &[u8; 16]) -> &mut [u8; 16] {
        if is_v4(addr) {
            &mut self.asked_v4
        } else {
            &mut self.asked_v6
        }
    }
}

const _: () = assert!(size_of::<DnsSocket>() == 32);

#[cfg(test)]
mod tests;
