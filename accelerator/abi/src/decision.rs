//! Where a new TCP connection goes: Istio's redirection rules as one pure function.
//!
//! The same code runs in `cgroup/connect4`, in `cgroup/connect6` and in the tests below. The ids (I3, O1 …)
//! are the rows of what `istio-iptables` installs (istio/istio,
//! `tools/istio-iptables/pkg/capture/run.go`).
#![allow(
    clippy::inline_always,
    reason = "in the kernel a function returns a number, and a verdict is more than that"
)]

use crate::{
    CidrKey, DNS_AGENT_PORT, DNS_PORT, ENVOY_INBOUND_SOURCE, ENVOY_INBOUND_SOURCE_V6, GroupKey,
    Hop, InterfaceKey, LOOPBACK, LOOPBACK_IFINDEX, LOOPBACK_V6, PodConfig, PodFlags, PortKey,
    RuleList, dns::takes_dns, is_loopback, is_unspecified, is_v4, is_v6_link_local,
    listener::captures_inbound,
};

/// The cookie of no namespace: the kernel counts from 1.
pub(crate) const NOBODY: u64 = 0;

/// The number of no interface: the kernel counts from 1.
const NO_INTERFACE: u32 = 0;

/// Port of the mesh's tunnel (HBONE), which is never captured (I3, O3).
pub(crate) const TUNNEL_PORT: [u8; 2] = 15_008_u16.to_be_bytes();

/// A connection attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dial {
    /// Namespace of the caller.
    pub netns_cookie: u64,
    /// User of the caller.
    pub uid: u32,
    /// Group of the caller.
    pub gid: u32,
    /// Address that the socket is bound to; unspecified if to none.
    pub source: [u8; 16],
    /// Address asked for, IPv4 v4-mapped whatever the socket's family.
    pub destination: [u8; 16],
    /// Port asked for, network order.
    pub port: [u8; 2],
    /// Interface that the socket is bound to (`SO_BINDTODEVICE`); 0 if to none.
    pub bound_ifindex: u32,
}

impl Dial {
    /// Returns the attempt as the kernel will make it: to ask for no address is to ask for the one that
    /// the socket is bound to, or for loopback (Linux, `ip_route_output_key_hash_rcu` and
    /// `tcp_v6_connect`).
    #[must_use]
    #[inline]
    pub fn routed(self) -> Self {
        // IPv6 prefers the destination itself as the source (RFC 6724, section 5, rule 1), which for this
        // one is a source that rules ask for.
        if self.destination == ENVOY_INBOUND_SOURCE_V6 && is_unspecified(&self.source) {
            return Self {
                source: ENVOY_INBOUND_SOURCE_V6,
                ..self
            };
        }
        if !is_unspecified(&self.destination) {
            return self;
        }
        let has_v4_source = is_v4(&self.source);
        let destination = if is_v4(&self.destination) {
            if is_unspecified(&self.source) {
                LOOPBACK
            } else {
                self.source
            }
        } else if has_v4_source && !is_unspecified(&self.source) {
            LOOPBACK
        } else {
            LOOPBACK_V6
        };
        Self {
            destination,
            ..self
        }
    }
}

/// The loaded rules: maps in the kernel, a `State` in user space.
pub trait Rules {
    /// Returns how the pod behind a namespace is governed, or `None` if it is no pod of ours.
    fn pod(&self, netns_cookie: u64) -> Option<PodConfig>;
    /// Returns the namespace of the pod that owns an address, or `None` if it is no pod of ours.
    fn owner(&self, addr: &[u8; 16]) -> Option<u64>;
    /// Tells whether a port rule exists.
    fn has_port(&self, key: &PortKey) -> bool;
    /// Tells whether a rule on a group exists.
    fn has_group(&self, key: &GroupKey) -> bool;
    /// Tells whether any range of the list contains the address of a [`CidrKey::lookup`] key.
    fn has_addr(&self, key: &CidrKey) -> bool;
    /// Tells whether an interface is left alone.
    fn has_interface(&self, key: &InterfaceKey) -> bool;
    /// Tells whether virtual machines send by an interface.
    fn is_virtual(&self, key: &InterfaceKey) -> bool;
    /// Returns the interface by which the smallest range of [`RuleList::ROUTES`] around the address of a
    /// [`CidrKey::lookup`] key is left for, or `None` if there is no such range.
    fn exit(&self, key: &CidrKey) -> Option<u32>;
}

/// Where to send the connection instead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Redirect {
    /// New destination address, of the family of the one asked for.
    pub addr: [u8; 16],
    /// New destination port, network order.
    pub port: [u8; 2],
    /// Where the connection shall come from.
    pub source: Source,
    /// Namespace that will accept the connection.
    pub peer_netns: u64,
    /// Hop of what the caller sends.
    pub hop: Hop,
}

/// The source of a redirected connection. NAT rewrites destinations after the source is chosen; what is
/// redirected at connect is routed to loopback, and would begin there.
///
/// A number, since an enum in [`Verdict`] would lend it its unused values: the kernel refuses type information
/// with a discriminant that is not in front.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct Source(u32);

impl Source {
    /// Whatever the kernel chooses, or the socket is bound to.
    pub const KEPT: Self = Self(0);
    /// The destination, which is the pod's own.
    pub const DESTINATION: Self = Self(1);
    /// [`PodConfig::source_v4`] or [`PodConfig::source_v6`], if the pod has one.
    pub const DEFAULT: Self = Self(2);
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

impl Verdict {
    /// Tells whether the connection may not be made without being followed: a dial with a client's address
    /// looks, where it arrives, like the client's own, and would come to the proxy again and again.
    #[must_use]
    #[inline]
    pub fn must_be_followed(&self, dial: &Dial) -> bool {
        matches!(self, Self::Follow) && !is_loopback(&dial.source)
    }
}

/// Why a connection was left alone. The number is stable within a layout version: the kernel counts by it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
#[repr(u32)]
pub enum PassCause {
    /// The caller is in no pod of ours, or in one that is being prepared.
    NotInPod = 0,
    /// X4: an IPv6 destination, and the pod has no rules for IPv6.
    NoIpv6Rules = 1,
    /// An IPv6 link-local destination, of which nothing says whether it is the pod's own.
    LinkLocal = 2,
    /// O1.
    PortExcluded = 3,
    /// O2, O4, O7: the pod's own address, or loopback.
    OwnAddress = 4,
    /// O5, O8: a dial of the proxy to something that is not a local pod.
    CallerIsProxy = 5,
    /// O10.
    Loopback = 6,
    /// O11.
    AddressExcluded = 7,
    /// O13: includes are listed and this address is in none.
    NotIncluded = 8,
    /// I1, I3, I4, I6, I7: the other pod does not capture this port, or not by every interface.
    NotCapturedInbound = 9,
    /// O9.
    GroupExcluded = 10,
    /// I1, for what leaves.
    InterfaceExcluded = 11,
}

impl PassCause {
    /// Number of causes.
    pub const COUNT: usize = 12;

    /// Every cause, by number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::NotInPod,
        Self::NoIpv6Rules,
        Self::LinkLocal,
        Self::PortExcluded,
        Self::OwnAddress,
        Self::CallerIsProxy,
        Self::Loopback,
        Self::AddressExcluded,
        Self::NotIncluded,
        Self::NotCapturedInbound,
        Self::GroupExcluded,
        Self::InterfaceExcluded,
    ];

    /// Returns the name that `flows`, metrics and documents use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotInPod => "not_in_pod",
            Self::NoIpv6Rules => "no_ipv6_rules",
            Self::LinkLocal => "link_local",
            Self::PortExcluded => "port_excluded",
            Self::OwnAddress => "own_address",
            Self::CallerIsProxy => "caller_is_proxy",
            Self::Loopback => "loopback",
            Self::AddressExcluded => "address_excluded",
            Self::NotIncluded => "not_included",
            Self::NotCapturedInbound => "not_captured_inbound",
            Self::GroupExcluded => "group_excluded",
            Self::InterfaceExcluded => "interface_excluded",
        }
    }

    /// Returns the rows of Istio's rules that say so, empty if none does.
    #[must_use]
    pub const fn rows(self) -> &'static str {
        match self {
            Self::NotInPod | Self::LinkLocal => "",
            Self::NoIpv6Rules => "X4",
            Self::PortExcluded => "O1",
            Self::OwnAddress => "O2/O4/O7",
            Self::CallerIsProxy => "O5/O8",
            Self::Loopback => "O10",
            Self::AddressExcluded => "O11",
            Self::NotIncluded => "O12/O13",
            Self::NotCapturedInbound => "I3/I4/I6/I7",
            Self::GroupExcluded => "O9",
            Self::InterfaceExcluded => "I1",
        }
    }
}

/// Decides where a connection attempt goes, in the order of Istio's chain. Costs at most nine lookups, and two
/// more in a pod that leaves interfaces alone, one more in one whose proxy dials for its clients.
#[must_use]
#[inline(always)]
pub fn decide<R: Rules>(dial: &Dial, rules: &R) -> Verdict {
    let netns = dial.netns_cookie;
    let Some(pod) = rules.pod(netns) else {
        return Verdict::Pass(PassCause::NotInPod);
    };
    if !pod.is_in_force() {
        return Verdict::Pass(PassCause::NotInPod);
    }
    if let Some(cause) = unruled(&pod, &dial.destination) {
        return Verdict::Pass(cause);
    }
    // No `Option` from here on: the compiler may read what is behind a `None`, and the verifier refuses that.
    let owner = rules.owner(&dial.destination).unwrap_or(NOBODY);
    // I1
    if leaves_by_excluded_interface(dial, &pod, owner, rules) {
        return Verdict::Pass(PassCause::InterfaceExcluded);
    }
    // O1
    if rules.has_port(&PortKey::new(netns, RuleList::EXCLUDE_OUTBOUND, dial.port)) {
        return Verdict::Pass(PassCause::PortExcluded);
    }

    let is_user = dial.uid == pod.proxy_uid;
    let is_group = dial.gid == pod.proxy_gid;
    let is_captured_dns = dial.port == DNS_PORT && pod.flags.has(PodFlags::DNS);
    if owner == netns || is_loopback(&dial.destination) {
        let has_envoys_source =
            dial.source == ENVOY_INBOUND_SOURCE || dial.source == ENVOY_INBOUND_SOURCE_V6;
        // O2
        if has_envoys_source {
            return if is_user || is_group {
                Verdict::Follow
            } else {
                Verdict::Pass(PassCause::OwnAddress)
            };
        }
        // O3, which is not for DNS, and O5 for the user, who comes first …
        if is_user && is_captured_dns && !pod.is_direct_loopback(&dial.destination) {
            return Verdict::Pass(PassCause::CallerIsProxy);
        }
        if is_user {
            return proxy_dial_on_lo(dial, &pod, owner);
        }
        // … then O4, which is not for DNS either, for everybody else, the group included …
        if !pod.flags.has(PodFlags::LOOPBACK_IN_RANGES) && !is_captured_dns {
            if is_group && is_for_client(dial, &pod, rules) {
                return Verdict::Follow;
            }
            return Verdict::Pass(PassCause::OwnAddress);
        }
        // … so that O6 and O8 are met where O4 is not.
        if is_group {
            return proxy_dial_on_lo(dial, &pod, owner);
        }
    } else if is_user || is_group {
        return proxy_dial_elsewhere(dial, owner, rules);
    }
    application_dial(dial, &pod, owner, rules)
}

/// T1: tells whether a proxy dials its own application with the address of somebody else.
#[inline]
fn is_for_client<R: Rules>(dial: &Dial, pod: &PodConfig, rules: &R) -> bool {
    pod.flags.has(PodFlags::TPROXY)
        && !is_unspecified(&dial.source)
        && !is_loopback(&dial.source)
        && rules.owner(&dial.source) != Some(dial.netns_cookie)
}

#[inline]
fn unruled(pod: &PodConfig, destination: &[u8; 16]) -> Option<PassCause> {
    if is_v4(destination) {
        return None;
    }
    if !pod.flags.has(PodFlags::IPV6) {
        return Some(PassCause::NoIpv6Rules);
    }
    is_v6_link_local(destination).then_some(PassCause::LinkLocal)
}

/// I1 in OUTPUT, which comes before everything else and is for every protocol and user.
///
/// What the pod sends to itself leaves by `lo`, whatever its routes and the socket's interface say.
#[inline]
pub(crate) fn leaves_by_excluded_interface<R: Rules>(
    dial: &Dial,
    pod: &PodConfig,
    owner: u64,
    rules: &R,
) -> bool {
    if !pod.flags.has(PodFlags::INTERFACES_EXCLUDED) {
        return false;
    }
    let netns = dial.netns_cookie;
    let ifindex = if owner == netns || is_loopback(&dial.destination) {
        LOOPBACK_IFINDEX
    } else if dial.bound_ifindex != NO_INTERFACE {
        dial.bound_ifindex
    } else {
        let route = CidrKey::lookup(netns, RuleList::ROUTES, dial.destination);
        rules.exit(&route).unwrap_or(NO_INTERFACE)
    };
    rules.has_interface(&InterfaceKey::new(netns, ifindex))
}

#[inline(always)]
fn application_dial<R: Rules>(dial: &Dial, pod: &PodConfig, owner: u64, rules: &R) -> Verdict {
    let netns = dial.netns_cookie;
    if !captures_group(dial, pod, rules) {
        return Verdict::Pass(PassCause::GroupExcluded);
    }
    // D1. The agent reads with plain reads, as a proxy does.
    if takes_dns(dial, pod, rules) {
        let source = source_behind_nat(dial, owner);
        return to_own_proxy(dial, source, DNS_AGENT_PORT, Hop::APP_TO_PROXY);
    }
    // O10
    if pod.is_direct_loopback(&dial.destination) {
        return Verdict::Pass(PassCause::Loopback);
    }
    // O11
    let excluded = CidrKey::lookup(netns, RuleList::EXCLUDE_OUTBOUND, dial.destination);
    if rules.has_addr(&excluded) {
        return Verdict::Pass(PassCause::AddressExcluded);
    }
    // O12, O13
    let included_port = PortKey::new(netns, RuleList::INCLUDE_OUTBOUND, dial.port);
    let included_addr = CidrKey::lookup(netns, RuleList::INCLUDE_OUTBOUND, dial.destination);
    let is_captured = pod.flags.has(PodFlags::OUTBOUND_ALL)
        || rules.has_port(&included_port)
        || rules.has_addr(&included_addr);
    if !is_captured {
        return Verdict::Pass(PassCause::NotIncluded);
    }
    let source = source_behind_nat(dial, owner);
    to_own_proxy(dial, source, pod.outbound_port, Hop::APP_TO_PROXY)
}

/// O9, by the one group that counts: netfilter does not look at supplementary ones.
#[inline]
pub(crate) fn captures_group<R: Rules>(dial: &Dial, pod: &PodConfig, rules: &R) -> bool {
    let is_in = |list| {
        rules.has_group(&GroupKey {
            netns_cookie: dial.netns_cookie,
            list,
            gid: dial.gid,
        })
    };
    if pod.flags.has(PodFlags::ONLY_GROUPS) {
        return is_in(RuleList::INCLUDE_OUTBOUND);
    }
    !(pod.flags.has(PodFlags::EXCLUDES_GROUPS) && is_in(RuleList::EXCLUDE_OUTBOUND))
}

/// O3 and O6: a proxy that dials its own pod (an application called its own service) comes in again by
/// the inbound listener. O5 and O8: what is left is its dial to the application on loopback.
#[inline(always)]
fn proxy_dial_on_lo(dial: &Dial, pod: &PodConfig, owner: u64) -> Verdict {
    if pod.is_direct_loopback(&dial.destination) {
        return Verdict::Follow;
    }
    if dial.port == TUNNEL_PORT {
        return Verdict::Pass(PassCause::CallerIsProxy);
    }
    let source = source_behind_nat(dial, owner);
    to_own_proxy(dial, source, pod.inbound_port, Hop::PROXY_TO_PROXY_REQUEST)
}

#[inline(always)]
fn proxy_dial_elsewhere<R: Rules>(dial: &Dial, owner: u64, rules: &R) -> Verdict {
    if owner == NOBODY {
        return Verdict::Pass(PassCause::CallerIsProxy);
    }
    let Some(target) = rules.pod(owner) else {
        return Verdict::Pass(PassCause::CallerIsProxy);
    };
    // Already where it would go: dialled so, or rewritten by another version of the programs that ran before.
    if dial.port == target.inbound_port {
        return Verdict::Pass(PassCause::NotCapturedInbound);
    }
    // I1, I2: which interface it will arrive by is not known here, but where it arrives.
    if !target.is_in_force()
        || target.flags.has(PodFlags::INTERFACES_EXCLUDED)
        || target.flags.has(PodFlags::VIRTUAL_INTERFACES)
        || unruled(&target, &dial.destination).is_some()
        || !captures_inbound(owner, &target, dial.port, rules)
    {
        return Verdict::Pass(PassCause::NotCapturedInbound);
    }
    Verdict::Redirect(Redirect {
        addr: dial.destination,
        port: target.inbound_port,
        source: Source::KEPT,
        peer_netns: owner,
        hop: Hop::PROXY_TO_PROXY_REQUEST,
    })
}

#[inline]
pub(crate) fn source_behind_nat(dial: &Dial, owner: u64) -> Source {
    if !is_unspecified(&dial.source) || is_loopback(&dial.destination) {
        Source::KEPT
    } else if owner == dial.netns_cookie {
        Source::DESTINATION
    } else {
        Source::DEFAULT
    }
}

#[inline(always)]
fn to_own_proxy(dial: &Dial, source: Source, port: [u8; 2], hop: Hop) -> Verdict {
    let addr = if is_v4(&dial.destination) {
        LOOPBACK
    } else {
        LOOPBACK_V6
    };
    Verdict::Redirect(Redirect {
        addr,
        port,
        source,
        peer_netns: dial.netns_cookie,
        hop,
    })
}

#[cfg(test)]
pub(crate) mod tests;
