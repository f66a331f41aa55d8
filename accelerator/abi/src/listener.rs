//! Which arriving connections go to a pod's proxy, and how its listening sockets are found.
//!
//! The same code runs in `sk_lookup` and in the tests. The ids (I1 … I8, O4) are the rows of what
//! `istio-iptables` installs (istio/istio, `tools/istio-iptables/pkg/capture/run.go`).

use core::fmt;

use crate::{
    PodConfig, PodFlags, PortKey, RuleList, Rules, decision::TUNNEL_PORT, is_loopback, is_v4,
};

/// The loopback device is the first of every network namespace (Linux, `LOOPBACK_IFINDEX`).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Listening sockets of each kind that `LISTENERS` remembers of one pod.
///
/// One is enough: the kernel chooses among all sockets of its `SO_REUSEPORT` group. The others stand
/// in when that one is closed and an older or younger one goes on.
pub const LISTENER_SLOTS: u32 = 4;

/// A connection that arrives in a pod's network namespace and belongs to no socket yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Arrival {
    /// Namespace that it arrived in.
    pub netns_cookie: u64,
    /// Address that it is for, v4-mapped.
    pub local: [u8; 16],
    /// Port that it is for, network order.
    pub port: [u8; 2],
    /// Address that it comes from, v4-mapped.
    pub remote: [u8; 16],
    /// Interface that it came in by. For what comes from the pod itself, the one that has the address.
    pub ingress_ifindex: u32,
}

/// What to do with an arriving connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InboundVerdict {
    /// Leave it to whoever listens on its port.
    Pass(InboundPass),
    /// Give it to the proxy's inbound listener.
    Steer,
    /// The same, unless the proxy itself has dialled it with a client's address (T1): nothing else tells the
    /// two apart.
    SteerUnlessDialledHere,
}

/// Why an arriving connection was left alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InboundPass {
    /// The namespace is no pod of ours, or one that is being prepared.
    NotInPod,
    /// X4: it is IPv6, and the pod has no rules for IPv6.
    NoIpv6Rules,
    /// It is for the inbound listener: rewritten by `connect4`, by iptables, or meant so.
    AlreadyRedirected,
    /// O4: it comes from the pod itself. What it should have been was decided when it was dialled.
    FromPodItself,
    /// I1.
    InterfaceExcluded,
    /// I3, I4, I6, I7.
    PortNotCaptured,
}

/// Decides where an arriving TCP connection goes. (UDP is never captured: I8.) Costs at most four
/// lookups.
#[must_use]
#[inline]
pub fn decide_inbound<R: Rules>(arrival: &Arrival, rules: &R) -> InboundVerdict {
    let Some(pod) = rules.pod(arrival.netns_cookie) else {
        return InboundVerdict::Pass(InboundPass::NotInPod);
    };
    if !pod.is_in_force() {
        return InboundVerdict::Pass(InboundPass::NotInPod);
    }
    if !is_v4(&arrival.local) && !pod.flags.has(PodFlags::IPV6) {
        return InboundVerdict::Pass(InboundPass::NoIpv6Rules);
    }
    if arrival.port == pod.inbound_port {
        return InboundVerdict::Pass(InboundPass::AlreadyRedirected);
    }
    if is_from_pod_itself(arrival, rules) {
        return InboundVerdict::Pass(InboundPass::FromPodItself);
    }
    let interface = InterfaceKey::new(arrival.netns_cookie, arrival.ingress_ifindex);
    if rules.has_interface(&interface) {
        return InboundVerdict::Pass(InboundPass::InterfaceExcluded);
    }
    if !captures_inbound(arrival.netns_cookie, &pod, arrival.port, rules) {
        return InboundVerdict::Pass(InboundPass::PortNotCaptured);
    }
    if pod.flags.has(PodFlags::TPROXY) {
        return InboundVerdict::SteerUnlessDialledHere;
    }
    InboundVerdict::Steer
}

// By addresses too: for IPv6 the kernel names the interface that has the address, not the one that
// the packet took, and for IPv4 the one that the socket was bound to.
#[inline]
fn is_from_pod_itself<R: Rules>(arrival: &Arrival, rules: &R) -> bool {
    arrival.ingress_ifindex == LOOPBACK_IFINDEX
        || arrival.remote == arrival.local
        || is_loopback(&arrival.local)
        || is_loopback(&arrival.remote)
        || rules.owner(&arrival.remote) == Some(arrival.netns_cookie)
}

/// I3, I4, I6, I7: tells whether a pod captures connections to a port. I3 is a rule of a table that
/// TPROXY comes before.
#[inline]
pub(crate) fn captures_inbound<R: Rules>(
    netns: u64,
    pod: &PodConfig,
    port: [u8; 2],
    rules: &R,
) -> bool {
    if port == TUNNEL_PORT && !pod.flags.has(PodFlags::TPROXY) {
        return false;
    }
    if pod.flags.has(PodFlags::INBOUND_ALL) {
        !rules.has_port(&PortKey::new(netns, RuleList::EXCLUDE_INBOUND, port))
    } else {
        rules.has_port(&PortKey::new(netns, RuleList::INCLUDE_INBOUND, port))
    }
}

/// Key of `EXCLUDED_INTERFACES`: one interface of one pod, by which what arrives and what leaves is left
/// alone (`excludeInterfaces`, I1).
#[derive(
    Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(C)]
pub struct InterfaceKey {
    netns_cookie: u64,
    ifindex: u32,
    // Spelled out: the verifier rejects keys built from uninitialised bytes.
    _reserved: u32,
}

impl InterfaceKey {
    /// Returns the key of the interface `ifindex` of the pod behind `netns_cookie`.
    #[must_use]
    #[inline]
    pub const fn new(netns_cookie: u64, ifindex: u32) -> Self {
        Self {
            netns_cookie,
            ifindex,
            _reserved: 0,
        }
    }

    /// Returns the netns cookie of the pod.
    pub const fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    /// Returns the number of the interface in its namespace.
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

/// Which packets a listening socket can take.
#[derive(Clone, Copy, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct ListenerKind(u32);

impl ListenerKind {
    /// IPv4.
    pub const V4: Self = Self(4);
    /// IPv6: bound to one address.
    pub const V6: Self = Self(6);
    /// Bound to `::`: IPv6, and IPv4 unless the socket is `IPV6_V6ONLY`, which the kernel minds.
    pub const ANY: Self = Self(46);

    /// Number of kinds.
    pub const COUNT: u32 = 3;

    /// Every kind.
    pub const ALL: [Self; Self::COUNT as usize] = [Self::V4, Self::V6, Self::ANY];

    /// Returns the kind of a socket that listens at an address, v4-mapped; `None` for loopback,
    /// where nothing arrives from outside.
    #[must_use]
    #[inline]
    pub fn of(addr: &[u8; 16]) -> Option<Self> {
        if is_loopback(addr) {
            return None;
        }
        Some(if is_v4(addr) {
            Self::V4
        } else if *addr == [0; 16] {
            Self::ANY
        } else {
            Self::V6
        })
    }
}

impl fmt::Debug for ListenerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::ANY => "any",
            _ => "unknown",
        })
    }
}

/// Key of `LISTENERS`: one of a pod's sockets that listen on its inbound port.
#[derive(
    Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(C)]
pub struct ListenerKey {
    netns_cookie: u64,
    kind: ListenerKind,
    slot: u32,
}

impl ListenerKey {
    /// Returns the key of a slot; only `slot % LISTENER_SLOTS` counts.
    #[must_use]
    #[inline]
    pub const fn new(netns_cookie: u64, kind: ListenerKind, slot: u32) -> Self {
        Self {
            netns_cookie,
            kind,
            slot: slot % LISTENER_SLOTS,
        }
    }

    /// Returns the key of a socket by its cookie: the same whoever asks, so that finding a socket
    /// twice changes nothing.
    #[must_use]
    #[inline]
    pub const fn of_socket(netns_cookie: u64, kind: ListenerKind, socket_cookie: u64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "any bits of a cookie will do"
        )]
        Self::new(netns_cookie, kind, socket_cookie as u32)
    }

    /// Returns every key that a pod can have.
    pub fn all_of(netns_cookie: u64) -> impl Iterator<Item = Self> {
        ListenerKind::ALL.into_iter().flat_map(move |kind| {
            (0..LISTENER_SLOTS).map(move |slot| Self::new(netns_cookie, kind, slot))
        })
    }
}

/// Value of `INBOUND_SOCKETS`: the socket is a proxy's inbound listener, or was accepted from it.
pub const INBOUND_SOCKET: u32 = 1;

const _: () = assert!(size_of::<InterfaceKey>() == 16);
const _: () = assert!(size_of::<ListenerKey>() == 16);

#[cfg(test)]
mod tests;
