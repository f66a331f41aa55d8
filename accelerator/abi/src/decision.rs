//! Where a new IPv4 connection goes: Istio's redirection rules as one pure function.
//!
//! The same code runs in `cgroup/connect4` and in the tests below. The ids (I3, O1 …) are the rows of
//! what `istio-iptables` installs (istio/istio, `tools/istio-iptables/pkg/capture/run.go`).

use crate::{CidrKey, Hop, PodConfig, PodFlags, PortKey, RuleList, is_loopback, v4_mapped};

/// 127.0.0.1: where a pod's proxy listens for outbound connections.
pub const LOOPBACK: [u8; 16] = v4_mapped([127, 0, 0, 1]);

/// Address that Istio's Envoy binds its dials to the application to ("6 is the magical number",
/// istio/istio, `pilot/pkg/networking/core/listener_address.go`).
pub const ENVOY_INBOUND_SOURCE: [u8; 16] = v4_mapped([127, 0, 0, 6]);

/// Inbound ports that are never captured: the proxy's own listeners and the agent's probe and
/// metrics ports.
const RESERVED_INBOUND_PORTS: [u16; 6] = [15_001, 15_006, 15_008, 15_020, 15_021, 15_090];

/// A connection attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dial {
    /// Namespace of the caller.
    pub netns_cookie: u64,
    /// User of the caller.
    pub uid: u32,
    /// Group of the caller.
    pub gid: u32,
    /// Address that the socket is bound to; v4-mapped 0.0.0.0 if to none.
    pub source: [u8; 16],
    /// Address asked for, v4-mapped.
    pub destination: [u8; 16],
    /// Port asked for, network order.
    pub port: [u8; 2],
}

/// The loaded rules: maps in the kernel, a `State` in user space.
pub trait Rules {
    /// Returns how the pod behind a namespace is governed, or `None` if it is no pod of ours.
    fn pod(&self, netns_cookie: u64) -> Option<PodConfig>;
    /// Returns the namespace of the pod that owns an address, or `None` if it is no pod of ours.
    fn owner(&self, addr: &[u8; 16]) -> Option<u64>;
    /// Tells whether a port rule exists.
    fn has_port(&self, key: &PortKey) -> bool;
    /// Tells whether any range of the list contains the address of a [`CidrKey::lookup`] key.
    fn has_addr(&self, key: &CidrKey) -> bool;
}

/// Where to send the connection instead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Redirect {
    /// New destination address, v4-mapped.
    pub addr: [u8; 16],
    /// New destination port, network order.
    pub port: [u8; 2],
    /// Namespace that will accept the connection.
    pub peer_netns: u64,
    /// Hop of what the caller sends.
    pub hop: Hop,
}

/// What to do with a connection attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Leave it alone; iptables underneath, if any, still acts.
    Pass(PassCause),
    /// Rewrite the destination.
    Redirect(Redirect),
    /// Leave the destination alone, but follow the connection: it is the proxy's dial to its own
    /// application.
    Follow,
}

/// Why a connection was left alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PassCause {
    /// The caller is in no pod of ours.
    NotInPod,
    /// O1.
    PortExcluded,
    /// O2, O4: the pod's own address, or loopback.
    OwnAddress,
    /// O5, O8, or a dial of the proxy to something that is not a local pod.
    CallerIsProxy,
    /// O10.
    Loopback,
    /// O11.
    AddressExcluded,
    /// O13: includes are listed and this address is in none.
    NotIncluded,
    /// I3, I4, I6, I7: the other pod does not capture this port.
    NotCapturedInbound,
}

/// Decides where a connection attempt goes. Costs at most six lookups.
#[must_use]
#[inline]
pub fn decide<R: Rules>(dial: &Dial, rules: &R) -> Verdict {
    let Some(pod) = rules.pod(dial.netns_cookie) else {
        return Verdict::Pass(PassCause::NotInPod);
    };

    let excluded = PortKey::new(dial.netns_cookie, RuleList::EXCLUDE_OUTBOUND, dial.port);
    if rules.has_port(&excluded) {
        return Verdict::Pass(PassCause::PortExcluded);
    }

    let owner = rules.owner(&dial.destination);
    if dial.uid == pod.proxy_uid || dial.gid == pod.proxy_gid {
        proxy_dial(dial, owner, rules)
    } else {
        application_dial(dial, &pod, owner, rules)
    }
}

#[inline]
fn application_dial<R: Rules>(
    dial: &Dial,
    pod: &PodConfig,
    owner: Option<u64>,
    rules: &R,
) -> Verdict {
    let netns = dial.netns_cookie;
    let is_own = owner == Some(netns) || is_loopback(&dial.destination);
    // O2 asks for the source alone: it stands where O4 is left out.
    let is_bound_as_envoy = dial.source == ENVOY_INBOUND_SOURCE;
    if is_own && (is_bound_as_envoy || !pod.flags.has(PodFlags::LOOPBACK_IN_RANGES)) {
        return Verdict::Pass(PassCause::OwnAddress);
    }
    if dial.destination == LOOPBACK {
        return Verdict::Pass(PassCause::Loopback);
    }

    let excluded = CidrKey::lookup(netns, RuleList::EXCLUDE_OUTBOUND, dial.destination);
    if rules.has_addr(&excluded) {
        return Verdict::Pass(PassCause::AddressExcluded);
    }

    let included_port = PortKey::new(netns, RuleList::INCLUDE_OUTBOUND, dial.port);
    let included_addr = CidrKey::lookup(netns, RuleList::INCLUDE_OUTBOUND, dial.destination);
    let is_captured = pod.flags.has(PodFlags::OUTBOUND_ALL)
        || rules.has_port(&included_port)
        || rules.has_addr(&included_addr);
    if !is_captured {
        return Verdict::Pass(PassCause::NotIncluded);
    }
    Verdict::Redirect(Redirect {
        addr: LOOPBACK,
        port: pod.outbound_port,
        peer_netns: netns,
        hop: Hop::APP_TO_PROXY,
    })
}

#[inline]
fn proxy_dial<R: Rules>(dial: &Dial, owner: Option<u64>, rules: &R) -> Verdict {
    // iptables sends a proxy's other dials on `lo` back to the inbound listener (O3), which changes
    // the tuple: only the two that it leaves alone can be followed.
    if dial.destination == LOOPBACK {
        return Verdict::Follow;
    }
    let Some(owner) = owner else {
        return Verdict::Pass(PassCause::CallerIsProxy);
    };
    if owner == dial.netns_cookie {
        return if dial.source == ENVOY_INBOUND_SOURCE {
            Verdict::Follow
        } else {
            Verdict::Pass(PassCause::CallerIsProxy)
        };
    }

    let Some(target) = rules.pod(owner) else {
        return Verdict::Pass(PassCause::CallerIsProxy);
    };
    if !captures_inbound(owner, &target, dial.port, rules) {
        return Verdict::Pass(PassCause::NotCapturedInbound);
    }
    Verdict::Redirect(Redirect {
        addr: dial.destination,
        port: target.inbound_port,
        peer_netns: owner,
        hop: Hop::PROXY_TO_PROXY_REQUEST,
    })
}

#[inline]
fn captures_inbound<R: Rules>(netns: u64, pod: &PodConfig, port: [u8; 2], rules: &R) -> bool {
    if RESERVED_INBOUND_PORTS.contains(&u16::from_be_bytes(port)) {
        return false;
    }
    if pod.flags.has(PodFlags::INBOUND_ALL) {
        !rules.has_port(&PortKey::new(netns, RuleList::EXCLUDE_INBOUND, port))
    } else {
        rules.has_port(&PortKey::new(netns, RuleList::INCLUDE_INBOUND, port))
    }
}

#[cfg(test)]
mod tests;
