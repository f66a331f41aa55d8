//! Which arriving connections go to a pod's proxy, and how its listening sockets are found.
//!
//! The same code runs in `sk_lookup` and in the tests. The ids (I1 … I8, O4) are the rows of what
//! `istio-iptables` installs (istio/istio, `tools/istio-iptables/pkg/capture/run.go`).

use core::fmt;

use crate::{
    CidrKey, PodConfig, PodFlags, PortKey, RuleList, Rules, decision::TUNNEL_PORT, is_loopback,
    is_v4,
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
    /// I2: give it to the proxy's outbound listener.
    SteerOutbound,
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
    /// I2: a virtual machine sent it, to no range that the pod captures.
    NotIncluded,
}

/// Decides where an arriving TCP connection goes. (UDP is never captured: I8.) Costs at most five
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
    let interface = InterfaceKey::new(arrival.netns_cookie, arrival.ingress_ifindex);
    let is_from_vm = pod.flags.has(PodFlags::VIRTUAL_INTERFACES)
        && rules.is_virtual(&interface)
        && !is_from_pod_itself(arrival, rules);
    if is_from_vm {
        return decide_for_vm(arrival, &pod, rules);
    }
    if arrival.port == pod.inbound_port {
        return InboundVerdict::Pass(InboundPass::AlreadyRedirected);
    }
    if is_from_pod_itself(arrival, rules) {
        return InboundVerdict::Pass(InboundPass::FromPodItself);
    }
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

// The rules for these interfaces come before all others, so that nothing is left out but ranges that are not
// included: no port, and no range that is excluded.
#[inline]
fn decide_for_vm<R: Rules>(arrival: &Arrival, pod: &PodConfig, rules: &R) -> InboundVerdict {
    let included = CidrKey::lookup(
        arrival.netns_cookie,
        RuleList::INCLUDE_OUTBOUND,
        arrival.local,
    );
    if pod.flags.has(PodFlags::OUTBOUND_ALL) || rules.has_addr(&included) {
        InboundVerdict::SteerOutbound
    } else {
        InboundVerdict::Pass(InboundPass::NotIncluded)
    }
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

/// Key of `EXCLUDED_INTERFACES`, by which what arrives and what leaves is left alone (`excludeInterfaces`,
/// I1), and of `VIRTUAL_INTERFACES`, by which virtual machines send (I2): one interface of one pod.
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

    /// Set in the kinds of outbound listeners, which virtual machines are given to.
    const OUTBOUND: u32 = 1 << 8;

    /// Number of kinds.
    pub const COUNT: u32 = 6;

    /// Every kind of inbound listener.
    pub const INBOUND: [Self; 3] = [Self::V4, Self::V6, Self::ANY];

    /// Returns the same kind among the outbound listeners.
    #[must_use]
    #[inline]
    pub const fn outbound(self) -> Self {
        Self(self.0 | Self::OUTBOUND)
    }

    /// Returns the kind of an inbound listener at an address, v4-mapped; `None` for loopback,
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
            Self(kind) if kind & Self::OUTBOUND != 0 => "outbound",
            _ => "unknown",
        })
    }
}

/// Mark of packets that are to be delivered in the pod though they are for somebody else. Counts only with the
/// interface that they came in by; by the port of the proxy's outbound listener, so that it tells what it is
/// for where packets are traced.
pub const VIRTUAL_MARK: u32 = 15_001;

/// Key of `LISTENERS`: one of a pod's sockets that listen on its inbound or outbound port.
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

    /// Returns every key that a pod's inbound listeners can have.
    pub fn inbound_of(netns_cookie: u64) -> impl Iterator<Item = Self> {
        let kinds = ListenerKind::INBOUND.into_iter();
        kinds.flat_map(move |kind| {
            (0..LISTENER_SLOTS).map(move |slot| Self::new(netns_cookie, kind, slot))
        })
    }

    /// Returns every key that its outbound listeners can have.
    pub fn outbound_of(netns_cookie: u64) -> impl Iterator<Item = Self> {
        Self::inbound_of(netns_cookie).map(|key| Self {
            kind: key.kind.outbound(),
            ..key
        })
    }
}

/// Value of `INBOUND_SOCKETS`: the socket is a listener that arriving connections are steered to, or was
/// accepted from it.
pub const INBOUND_SOCKET: u32 = 1;

const _: () = assert!(size_of::<InterfaceKey>() == 16);
const _: () = assert!(size_of::<ListenerKey>() == 16);

#[cfg(test)]
mod tests;
