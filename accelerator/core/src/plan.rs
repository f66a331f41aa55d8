//! From pods to map entries, within the bounds of the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use isthmus_accel_abi::{
    CidrKey, DNS_PORT, GroupKey, InterfaceKey, MAX_CIDR_RULES, MAX_GROUP_RULES,
    MAX_INTERFACE_RULES, MAX_POD_ADDRS, MAX_PODS, MAX_PORT_RULES, MAX_ROUTES, PodConfig, PodFlags,
    PortKey, RuleList, v4_mapped,
};
use isthmus_api::node_config::{
    AppAcceleration, DnsCapture, GroupCapture, Interception, IpRange, Ipv6Capture, PodName,
    PortCapture, RangeCapture, TrafficPolicy,
};

use crate::State;

mod interfaces;

pub use self::interfaces::Routes;

/// Addresses of one pod. Kubernetes gives two, secondary networks a few more.
pub const MAX_ADDRS_PER_POD: usize = 16;

/// Routes of one pod that leaves interfaces alone. A pod has one for each network and a few more; whoever
/// routes for a backbone has thousands.
pub const MAX_ROUTES_PER_POD: usize = 512;

// Half of the room stays free: old and new rules stand beside each other while a policy changes.
const MAX_PLANNED_PORT_RULES: usize = MAX_PORT_RULES as usize / 2;
const MAX_PLANNED_CIDR_RULES: usize = MAX_CIDR_RULES as usize / 2;
const MAX_PLANNED_GROUP_RULES: usize = MAX_GROUP_RULES as usize / 2;
const MAX_PLANNED_INTERFACES: usize = MAX_INTERFACE_RULES as usize / 2;
const MAX_PLANNED_ROUTES: usize = MAX_ROUTES as usize / 2;

/// A pod whose network namespace has been found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResolvedPod {
    /// Its addresses without loopback and link-local ones.
    pub addrs: BTreeSet<IpAddr>,
    /// Numbers of its interfaces, by name.
    pub interfaces: BTreeMap<String, u32>,
    /// The kernel's cookie of its network namespace: unique until reboot.
    pub netns_cookie: u64,
    /// By which interface what leaves. Asked for only where the policy leaves interfaces alone.
    pub routes: Routes,
    /// Where what leaves it comes from.
    pub sources: Sources,
    /// Which connections are captured.
    pub policy: TrafficPolicy,
    /// Group of the sidecar.
    pub proxy_gid: u32,
    /// User of the sidecar.
    pub proxy_uid: u32,
}

/// The addresses that a pod's kernel chooses for what leaves by the default routes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sources {
    /// `None` if there is no default route.
    pub v4: Option<Ipv4Addr>,
    /// `None` if there is no default route.
    pub v6: Option<Ipv6Addr>,
}

/// What the maps should hold, and which pods found no place in them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// Pods that are left to iptables.
    pub refused: BTreeMap<PodName, Refusal>,
    /// The entries.
    pub state: State,
}

/// Why a pod is left to iptables.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Two pods claim one address, so that an address does not say whose it is.
    #[error("address {addr} belongs to pod {other} too")]
    AddressTaken {
        /// The address.
        addr: IpAddr,
        /// Who has it.
        other: PodName,
    },
    /// Two names for one network namespace.
    #[error("its network namespace is the one of pod {other}")]
    NetnsTaken {
        /// Who has it.
        other: PodName,
    },
    /// No room on this node.
    #[error("the node has no room for it: with its {count} there were {}, and at most {limit} {what} fit", on_node + count)]
    NodeFull {
        /// How many it has.
        count: usize,
        /// The bound.
        limit: usize,
        /// How many the pods before it have.
        on_node: usize,
        /// What there are too many of.
        what: &'static str,
    },
    /// More addresses than one pod may have.
    #[error("it has {count} addresses, over the limit of {MAX_ADDRS_PER_POD} for a pod")]
    TooManyAddresses {
        /// How many it has.
        count: usize,
    },
    /// More routes than one pod may have that leaves interfaces alone.
    #[error(
        "it leaves interfaces alone and has more than {MAX_ROUTES_PER_POD} routes, the limit for such a pod"
    )]
    TooManyRoutes,
    /// The kernel chooses the interface of each connection, and only some are left alone.
    #[error(
        "what it sends to {range} leaves by an excluded interface or by another one, as the kernel chooses"
    )]
    UnclearRoute {
        /// Where to.
        range: IpRange,
    },
}

/// Computes the map entries for these pods.
///
/// Where two pods are in each other's way, or the room ends, the first in the order of names is
/// served: the outcome depends on nothing but the input. A refused pod costs the others nothing.
#[must_use]
pub fn plan(pods: &BTreeMap<PodName, ResolvedPod>) -> Plan {
    let mut plan = Plan::default();
    let mut names = BTreeMap::new();
    for (name, pod) in pods {
        let entries = Entries::of(pod).and_then(|entries| {
            entries.check(&plan.state, &names)?;
            Ok(entries)
        });
        match entries {
            Ok(entries) => {
                names.insert(pod.netns_cookie, name);
                entries.add_to(&mut plan.state);
            }
            Err(refusal) => {
                plan.refused.insert(name.clone(), refusal);
            }
        }
    }
    plan
}

/// The map entries of one pod.
struct Entries {
    addrs: BTreeSet<IpAddr>,
    cidrs: BTreeSet<CidrKey>,
    config: PodConfig,
    groups: BTreeSet<GroupKey>,
    interfaces: BTreeSet<InterfaceKey>,
    is_steered: bool,
    netns_cookie: u64,
    ports: BTreeSet<PortKey>,
    routes: BTreeMap<CidrKey, u32>,
    virtual_interfaces: BTreeSet<InterfaceKey>,
}

impl Entries {
    fn of(pod: &ResolvedPod) -> Result<Self, Refusal> {
        let interfaces = interfaces::excluded_interfaces(pod);
        let virtual_interfaces = interfaces::virtual_interfaces(pod);
        let mut entries = Self {
            addrs: pod.addrs.clone(),
            cidrs: BTreeSet::new(),
            config: PodConfig {
                proxy_uid: pod.proxy_uid,
                proxy_gid: pod.proxy_gid,
                flags: flags(pod),
                direct_loopback: pod.policy.direct_loopback.base(),
                direct_loopback_mask: pod.policy.direct_loopback.netmask(),
                source_v4: pod.sources.v4.map(|addr| addr.octets()).unwrap_or_default(),
                source_v6: pod.sources.v6.map(|addr| addr.octets()).unwrap_or_default(),
                ..PodConfig::istio_default()
            },
            groups: BTreeSet::new(),
            is_steered: interfaces::is_steered(&pod.policy) || !virtual_interfaces.is_empty(),
            netns_cookie: pod.netns_cookie,
            ports: BTreeSet::new(),
            routes: interfaces::routes(pod, &interfaces)?,
            interfaces,
            virtual_interfaces,
        };
        entries.add_rules(&pod.policy);
        Ok(entries)
    }

    fn add_rules(&mut self, policy: &TrafficPolicy) {
        self.add_ports(RuleList::EXCLUDE_OUTBOUND, &policy.exclude_outbound_ports);
        self.add_ports(RuleList::INCLUDE_OUTBOUND, &policy.include_outbound_ports);
        match &policy.inbound_ports {
            PortCapture::AllBut(ports) => self.add_ports(RuleList::EXCLUDE_INBOUND, ports),
            PortCapture::Only(ports) => self.add_ports(RuleList::INCLUDE_INBOUND, ports),
        }
        self.add_dns(&policy.dns);
        match &policy.owner_groups {
            GroupCapture::AllBut(groups) => self.add_groups(RuleList::EXCLUDE_OUTBOUND, groups),
            GroupCapture::Only(groups) => self.add_groups(RuleList::INCLUDE_OUTBOUND, groups),
        }
        self.add_ranges(RuleList::EXCLUDE_OUTBOUND, &policy.exclude_outbound_ranges);
        match &policy.include_outbound_ranges {
            RangeCapture::All => {}
            RangeCapture::Only(ranges) => self.add_ranges(RuleList::INCLUDE_OUTBOUND, ranges),
        }
    }

    fn add_dns(&mut self, dns: &DnsCapture) {
        match dns {
            // What is not captured is decided by the rules underneath, whatever they say.
            DnsCapture::Unspecified => {
                let port = u16::from_be_bytes(DNS_PORT);
                self.add_ports(RuleList::EXCLUDE_OUTBOUND, &[port].into());
            }
            DnsCapture::Off | DnsCapture::All => {}
            DnsCapture::Resolvers(servers) => {
                let list = RuleList::DNS_SERVERS;
                let key = |server| CidrKey::lookup(self.netns_cookie, list, as_bytes(server));
                self.cidrs.extend(servers.iter().map(key));
            }
        }
    }

    fn add_ports(&mut self, list: RuleList, ports: &BTreeSet<u16>) {
        let key = |port: &u16| PortKey::new(self.netns_cookie, list, port.to_be_bytes());
        self.ports.extend(ports.iter().map(key));
    }

    fn add_groups(&mut self, list: RuleList, groups: &BTreeSet<u32>) {
        let key = |gid: &u32| GroupKey {
            netns_cookie: self.netns_cookie,
            list,
            gid: *gid,
        };
        self.groups.extend(groups.iter().map(key));
    }

    fn add_ranges(&mut self, list: RuleList, ranges: &BTreeSet<IpRange>) {
        let key = |range: &IpRange| cidr(self.netns_cookie, list, *range);
        self.cidrs.extend(ranges.iter().map(key));
    }

    fn check(&self, taken: &State, names: &BTreeMap<u64, &PodName>) -> Result<(), Refusal> {
        let name = |cookie: &u64| {
            PodName::clone(
                names
                    .get(cookie)
                    .expect("what is in the state was put there by name"),
            )
        };
        if taken.pods.contains_key(&self.netns_cookie) {
            return Err(Refusal::NetnsTaken {
                other: name(&self.netns_cookie),
            });
        }
        for addr in &self.addrs {
            if let Some(owner) = taken.addrs.get(&as_bytes(addr)) {
                return Err(Refusal::AddressTaken {
                    addr: *addr,
                    other: name(owner),
                });
            }
        }

        let addrs = self.addrs.len();
        if addrs > MAX_ADDRS_PER_POD {
            return Err(Refusal::TooManyAddresses { count: addrs });
        }
        let rooms = [
            (taken.pods.len(), 1, MAX_PODS as usize, "pods"),
            (
                taken.addrs.len(),
                addrs,
                MAX_POD_ADDRS as usize,
                "addresses",
            ),
            (
                taken.ports.len(),
                self.ports.len(),
                MAX_PLANNED_PORT_RULES,
                "ports in lists",
            ),
            (
                taken.cidrs.len(),
                self.cidrs.len(),
                MAX_PLANNED_CIDR_RULES,
                "ranges in lists",
            ),
            (
                taken.groups.len(),
                self.groups.len(),
                MAX_PLANNED_GROUP_RULES,
                "owner groups in lists",
            ),
            (
                taken.interfaces.len(),
                self.interfaces.len(),
                MAX_PLANNED_INTERFACES,
                "interfaces in lists",
            ),
            (
                taken.virtual_interfaces.len(),
                self.virtual_interfaces.len(),
                MAX_PLANNED_INTERFACES,
                "interfaces of virtual machines in lists",
            ),
            (
                taken.routes.len(),
                self.routes.len(),
                MAX_PLANNED_ROUTES,
                "routes of pods that leave interfaces alone",
            ),
        ];
        for (on_node, count, limit, what) in rooms {
            if on_node + count > limit {
                return Err(Refusal::NodeFull {
                    count,
                    limit,
                    on_node,
                    what,
                });
            }
        }
        Ok(())
    }

    fn add_to(self, state: &mut State) {
        let owner = self.netns_cookie;
        let addrs = self.addrs.iter();
        state
            .addrs
            .extend(addrs.map(|addr| (as_bytes(addr), owner)));
        state.cidrs.extend(self.cidrs);
        state.groups.extend(self.groups);
        state.interfaces.extend(self.interfaces);
        state
            .virtual_interfaces
            .extend(self.virtual_interfaces.iter().copied());
        state.virtual_links.extend(self.virtual_interfaces);
        state.steered.extend(self.is_steered.then_some(owner));
        state.pods.insert(owner, self.config);
        state.ports.extend(self.ports);
        state.routes.extend(self.routes);
    }
}

fn cidr(owner: u64, list: RuleList, range: IpRange) -> CidrKey {
    match range.addr() {
        IpAddr::V4(addr) => CidrKey::v4(owner, list, addr.octets(), range.prefix_len()),
        IpAddr::V6(addr) => CidrKey::v6(owner, list, addr.octets(), range.prefix_len()),
    }
}

fn as_bytes(addr: &IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => v4_mapped(addr.octets()),
        IpAddr::V6(addr) => addr.octets(),
    }
}

fn flags(pod: &ResolvedPod) -> PodFlags {
    let policy = &pod.policy;
    let mut flags = PodFlags::NONE;
    if policy.include_outbound_ranges == RangeCapture::All {
        flags = flags.with(PodFlags::OUTBOUND_ALL);
    }
    if matches!(policy.inbound_ports, PortCapture::AllBut(_)) {
        flags = flags.with(PodFlags::INBOUND_ALL);
    }
    match &policy.owner_groups {
        GroupCapture::AllBut(groups) if groups.is_empty() => {}
        GroupCapture::AllBut(_) => flags = flags.with(PodFlags::EXCLUDES_GROUPS),
        GroupCapture::Only(_) => flags = flags.with(PodFlags::ONLY_GROUPS),
    }
    match &policy.dns {
        DnsCapture::Unspecified | DnsCapture::Off => {}
        DnsCapture::Resolvers(_) => flags = flags.with(PodFlags::DNS),
        DnsCapture::All => flags = flags.with(PodFlags::DNS).with(PodFlags::DNS_ALL),
    }
    if policy.has_loopback_range {
        flags = flags.with(PodFlags::LOOPBACK_IN_RANGES);
    }
    if policy.interception == Interception::Tproxy {
        flags = flags.with(PodFlags::TPROXY);
    }
    let (has_v4, has_v6) = (
        pod.addrs.iter().any(IpAddr::is_ipv4),
        pod.addrs.iter().any(IpAddr::is_ipv6),
    );
    if !policy.exclude_interfaces.is_empty() {
        flags = flags.with(PodFlags::INTERFACES_EXCLUDED);
    }
    if !policy.virtual_interfaces.is_empty() {
        flags = flags.with(PodFlags::VIRTUAL_INTERFACES);
    }
    let has_ipv6_rules = match policy.ipv6 {
        Ipv6Capture::WithAddress => has_v6,
        Ipv6Capture::WithoutIpv4 => has_v6 && !has_v4,
    };
    if has_ipv6_rules {
        flags = flags.with(PodFlags::IPV6);
    }
    let acceleration = match policy.app_acceleration {
        AppAcceleration::Off => PodFlags::NONE,
        AppAcceleration::Writes => PodFlags::APP_WRITES,
        AppAcceleration::ReadsAndWrites => PodFlags::APP_WRITES.with(PodFlags::APP_READS),
    };
    flags = flags.with(acceleration);
    flags
}

#[cfg(test)]
mod tests;
