//! The entries of the agent's maps and its links as a value, and the steps that change it.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_accel_abi::{CidrKey, GroupKey, InterfaceKey, PodConfig, PortKey, Rules};

/// What is, or should be, in the maps that the agent writes, and linked to namespaces.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct State {
    /// `POD_ADDRS`: v4-mapped address to netns cookie of the pod that owns it.
    pub addrs: BTreeMap<[u8; 16], u64>,
    /// `CIDR_RULES`.
    pub cidrs: BTreeSet<CidrKey>,
    /// `GROUP_RULES`.
    pub groups: BTreeSet<GroupKey>,
    /// `EXCLUDED_INTERFACES`.
    pub interfaces: BTreeSet<InterfaceKey>,
    /// `PODS`, by netns cookie.
    pub pods: BTreeMap<u64, PodConfig>,
    /// `PORT_RULES`.
    pub ports: BTreeSet<PortKey>,
    /// `ROUTES`: range to the number of the interface that connections to it leave by, 0 for none.
    pub routes: BTreeMap<CidrKey, u32>,
    /// Namespaces, by cookie, whose arriving connections are steered.
    pub steered: BTreeSet<u64>,
    /// `VIRTUAL_INTERFACES`.
    pub virtual_interfaces: BTreeSet<InterfaceKey>,
    /// Those of them whose packets to the proxy are delivered in the pod.
    pub virtual_links: BTreeSet<InterfaceKey>,
}

/// One change of one map or link. Each is idempotent, so that a list may be replayed after a failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MapOp {
    /// Adds a port rule.
    PutPort(PortKey),
    /// Adds a rule on a group of users.
    PutGroup(GroupKey),
    /// Adds an address rule.
    PutCidr(CidrKey),
    /// Adds an interface that is left alone.
    PutInterface(InterfaceKey),
    /// Adds an interface by which virtual machines send.
    PutVirtualInterface(InterfaceKey),
    /// Adds or changes a route.
    PutRoute {
        /// The range.
        key: CidrKey,
        /// The interface.
        ifindex: u32,
    },
    /// Adds or replaces a pod: from here on it is captured, unless it is [preparing](PodConfig::preparing).
    PutPod {
        /// Its network namespace.
        netns_cookie: u64,
        /// How it is governed.
        config: PodConfig,
    },
    /// Adds an address, or hands it to another pod.
    PutAddr {
        /// The address, v4-mapped.
        addr: [u8; 16],
        /// Who owns it.
        netns_cookie: u64,
    },
    /// Steers the arriving connections of a pod, and finds the listeners of its proxy. The pod must be
    /// there: its listeners are told from others by its inbound port.
    AttachNetns {
        /// Its network namespace.
        netns_cookie: u64,
    },
    /// Ends that.
    DetachNetns {
        /// Its network namespace.
        netns_cookie: u64,
    },
    /// Delivers in the pod what virtual machines send to the proxy by this interface: the listeners are
    /// found by then.
    AttachVirtual(InterfaceKey),
    /// Ends that.
    DetachVirtual(InterfaceKey),
    /// Removes an address.
    RemoveAddr {
        /// The address, v4-mapped.
        addr: [u8; 16],
    },
    /// Removes a pod: from here on it is left alone.
    RemovePod {
        /// Its network namespace.
        netns_cookie: u64,
    },
    /// Removes an interface.
    RemoveInterface(InterfaceKey),
    /// Removes an interface of virtual machines.
    RemoveVirtualInterface(InterfaceKey),
    /// Removes a route.
    RemoveRoute(CidrKey),
    /// Removes an address rule.
    RemoveCidr(CidrKey),
    /// Removes a rule on a group of users.
    RemoveGroup(GroupKey),
    /// Removes a port rule.
    RemovePort(PortKey),
}

impl State {
    /// Applies one operation, as the kernel's maps would. Removing what is not there is no error.
    pub fn apply(&mut self, op: &MapOp) {
        match *op {
            MapOp::PutPort(key) => {
                self.ports.insert(key);
            }
            MapOp::PutGroup(key) => {
                self.groups.insert(key);
            }
            MapOp::PutCidr(key) => {
                self.cidrs.insert(key);
            }
            MapOp::PutInterface(key) => {
                self.interfaces.insert(key);
            }
            MapOp::PutVirtualInterface(key) => {
                self.virtual_interfaces.insert(key);
            }
            MapOp::PutRoute { key, ifindex } => {
                self.routes.insert(key, ifindex);
            }
            MapOp::AttachNetns { netns_cookie } => {
                self.steered.insert(netns_cookie);
            }
            MapOp::DetachNetns { netns_cookie } => {
                self.steered.remove(&netns_cookie);
            }
            MapOp::AttachVirtual(key) => {
                self.virtual_links.insert(key);
            }
            MapOp::DetachVirtual(key) => {
                self.virtual_links.remove(&key);
            }
            MapOp::PutPod {
                netns_cookie,
                config,
            } => {
                self.pods.insert(netns_cookie, config);
            }
            MapOp::PutAddr { addr, netns_cookie } => {
                self.addrs.insert(addr, netns_cookie);
            }
            MapOp::RemoveAddr { addr } => {
                self.addrs.remove(&addr);
            }
            MapOp::RemovePod { netns_cookie } => {
                self.pods.remove(&netns_cookie);
            }
            MapOp::RemoveInterface(key) => {
                self.interfaces.remove(&key);
            }
            MapOp::RemoveVirtualInterface(key) => {
                self.virtual_interfaces.remove(&key);
            }
            MapOp::RemoveRoute(key) => {
                self.routes.remove(&key);
            }
            MapOp::RemoveCidr(key) => {
                self.cidrs.remove(&key);
            }
            MapOp::RemoveGroup(key) => {
                self.groups.remove(&key);
            }
            MapOp::RemovePort(key) => {
                self.ports.remove(&key);
            }
        }
    }
}

/// The maps as the kernel program sees them. Costs `O(n)` in [`Rules::has_addr`] and [`Rules::exit`], where
/// the kernel's tries take the length of the key: for tests and explanations.
impl Rules for State {
    fn pod(&self, netns_cookie: u64) -> Option<PodConfig> {
        self.pods.get(&netns_cookie).copied()
    }

    fn owner(&self, addr: &[u8; 16]) -> Option<u64> {
        self.addrs.get(addr).copied()
    }

    fn has_port(&self, key: &PortKey) -> bool {
        self.ports.contains(key)
    }

    fn has_group(&self, key: &GroupKey) -> bool {
        self.groups.contains(key)
    }

    fn has_addr(&self, key: &CidrKey) -> bool {
        self.cidrs.iter().any(|range| range.covers(key))
    }

    fn has_interface(&self, key: &InterfaceKey) -> bool {
        self.interfaces.contains(key)
    }

    fn is_virtual(&self, key: &InterfaceKey) -> bool {
        self.virtual_interfaces.contains(key)
    }

    fn exit(&self, key: &CidrKey) -> Option<u32> {
        // Keys are in the order of their lengths.
        let mut routes = self.routes.iter().rev();
        let (_, ifindex) = routes.find(|(range, _)| range.covers(key))?;
        Some(*ifindex)
    }
}
