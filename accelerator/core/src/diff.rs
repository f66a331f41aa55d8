//! The order of operations that never shows the kernel a half-configured pod.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_accel_abi::{CidrKey, GroupKey, InterfaceKey, PodConfig, PodFlags, PortKey, RuleList};

use crate::{MapOp, State};

/// Returns what turns `loaded` into `desired`, in an order that is safe to stop at any point:
///
/// * a pod appears after its rules and addresses, and goes before them. (An address keeps what a pod
///   dials of its own out of the capture, like a rule, and the programs pass an address without pod.)
/// * a pod whose policy changes is, in between, never captured more than by its old or by its new
///   policy, and never less than by both: exclusions come first and go last, inclusions come before
///   the old ones go. Name servers come behind excluded ports, which count for them, and before excluded
///   ranges, which do not, and go the other way round. (A list of the only groups that are captured is an
///   exclusion of all others: groups leave it first and enter it last.)
/// * each address of a pod whose routes change leaves by its old or by its new interface: the smallest
///   ranges come first and go last;
/// * a pod for which there is no such in-between (another owner of the sidecar; addresses and rules
///   that change together; routes that change together with rules, or while an address goes to another
///   pod) is taken out and put back;
/// * what arrives at a pod that appears is captured from the same operation on as what leaves it: its
///   namespace is linked, and its proxy's listeners are found, while the pod is [preparing](PodConfig::preparing).
///   Both end together too. So it is with what virtual machines send.
///
/// * a namespace is linked anew where what is made in it with the link changes (TPROXY), or may be half-made.
///
/// A connection that finds its pod missing is left to iptables. Costs `O((n + m) log n)`; returns
/// nothing if both are equal.
#[must_use]
pub fn diff(desired: &State, loaded: &State) -> Vec<MapOp> {
    let staying = staying_pods(desired, loaded);
    let stays = |netns_cookie: u64| staying.contains(&netns_cookie);
    let mut ops = Vec::new();

    let leaving = loaded.pods.keys().filter(|cookie| !stays(**cookie));
    ops.extend(leaving.map(|cookie| MapOp::RemovePod {
        netns_cookie: *cookie,
    }));
    let relinked = relinked_namespaces(desired, loaded);
    let unlinked = loaded.virtual_links.difference(&desired.virtual_links);
    ops.extend(unlinked.map(|key| MapOp::DetachVirtual(*key)));
    let unsteered = loaded.steered.difference(&desired.steered);
    ops.extend(unsteered.chain(&relinked).map(|cookie| MapOp::DetachNetns {
        netns_cookie: *cookie,
    }));
    // What belongs to pods that the kernel does not see at this point: the order does not matter.
    remove_addrs(&mut ops, desired, loaded, |cookie| !stays(cookie));
    remove_cidrs(&mut ops, desired, loaded, |cookie, _| !stays(cookie));
    remove_ports(&mut ops, desired, loaded, |cookie, _| !stays(cookie));
    remove_interfaces(&mut ops, desired, loaded, |cookie| !stays(cookie));
    remove_virtual_interfaces(&mut ops, desired, loaded, |cookie| !stays(cookie));
    remove_routes(&mut ops, desired, loaded, |cookie| !stays(cookie));

    // Before the routes: to an address of the pod itself none leads.
    put_addrs(&mut ops, desired, loaded);
    let groups = Groups::between(desired, loaded);
    ops.extend(groups.narrow(stays));
    put_ports(&mut ops, desired, loaded, is_exclusion);
    let interfaces = desired.interfaces.difference(&loaded.interfaces);
    ops.extend(interfaces.map(|key| MapOp::PutInterface(*key)));
    let virtuals = desired
        .virtual_interfaces
        .difference(&loaded.virtual_interfaces);
    ops.extend(virtuals.map(|key| MapOp::PutVirtualInterface(*key)));
    put_routes(&mut ops, desired, loaded);
    // Between the two kinds of exclusions, as in the chain.
    put_cidrs(&mut ops, desired, loaded, is_dns);
    put_cidrs(&mut ops, desired, loaded, is_exclusion);
    put_ports(&mut ops, desired, loaded, |list| !is_exclusion(list));
    put_cidrs(&mut ops, desired, loaded, is_inclusion);
    let links = Links::between(desired, loaded, &relinked);
    let newly_linked = links.namespaces();
    let is_prepared = |cookie: &&u64| !stays(**cookie);
    let prepared: BTreeSet<u64> = newly_linked.iter().filter(is_prepared).copied().collect();
    for (cookie, config) in &desired.pods {
        if !stays(*cookie) || loaded.pods.get(cookie) != Some(config) {
            let config = if prepared.contains(cookie) {
                config.preparing()
            } else {
                *config
            };
            ops.push(MapOp::PutPod {
                netns_cookie: *cookie,
                config,
            });
        }
    }

    remove_cidrs(&mut ops, desired, loaded, |cookie, list| {
        stays(cookie) && is_inclusion(list)
    });
    remove_ports(&mut ops, desired, loaded, |cookie, list| {
        stays(cookie) && !is_exclusion(list)
    });
    remove_cidrs(&mut ops, desired, loaded, |cookie, list| {
        stays(cookie) && is_exclusion(list)
    });
    remove_cidrs(&mut ops, desired, loaded, |cookie, list| {
        stays(cookie) && is_dns(list)
    });
    remove_ports(&mut ops, desired, loaded, |cookie, list| {
        stays(cookie) && is_exclusion(list)
    });
    ops.extend(groups.widen(stays));
    remove_interfaces(&mut ops, desired, loaded, stays);
    remove_virtual_interfaces(&mut ops, desired, loaded, stays);
    remove_routes(&mut ops, desired, loaded, stays);
    remove_addrs(&mut ops, desired, loaded, stays);

    // Last: what can fail for one namespace may not keep the others from their rules.
    for netns_cookie in newly_linked {
        ops.extend(links.ops(netns_cookie));
        let config = desired.pods.get(&netns_cookie);
        ops.extend(
            config
                .filter(|_| prepared.contains(&netns_cookie))
                .map(|config| MapOp::PutPod {
                    netns_cookie,
                    config: *config,
                }),
        );
    }
    ops
}

// Namespaces whose link stays, but not what goes with it.
fn relinked_namespaces(desired: &State, loaded: &State) -> BTreeSet<u64> {
    let is_tproxy = |pod: &PodConfig| pod.flags.has(PodFlags::TPROXY);
    let is_relinked = |cookie: &&u64| {
        let Some(new) = desired.pods.get(*cookie) else {
            return false;
        };
        match loaded.pods.get(*cookie) {
            Some(old) if old.is_in_force() => is_tproxy(old) != is_tproxy(new),
            // An agent was killed while it prepared the pod …
            Some(old) => is_tproxy(old) || is_tproxy(new),
            // … or while it took it away, and nothing says what that was.
            None => true,
        }
    };
    let staying = desired.steered.intersection(&loaded.steered);
    staying.filter(is_relinked).copied().collect()
}

/// Links that are to come.
struct Links {
    steered: BTreeSet<u64>,
    interfaces: BTreeSet<InterfaceKey>,
}

impl Links {
    fn between(desired: &State, loaded: &State, relinked: &BTreeSet<u64>) -> Self {
        let steered = desired.steered.difference(&loaded.steered);
        let interfaces = desired.virtual_links.difference(&loaded.virtual_links);
        Self {
            steered: steered.chain(relinked).copied().collect(),
            interfaces: interfaces.copied().collect(),
        }
    }

    fn namespaces(&self) -> BTreeSet<u64> {
        let of_interfaces = self.interfaces.iter().map(InterfaceKey::netns_cookie);
        self.steered.iter().copied().chain(of_interfaces).collect()
    }

    // The namespace first: with it the listeners are found.
    fn ops(&self, netns_cookie: u64) -> impl Iterator<Item = MapOp> {
        let is_steered = self.steered.contains(&netns_cookie);
        let steered = is_steered.then_some(MapOp::AttachNetns { netns_cookie });
        let interfaces = self.interfaces.iter();
        let interfaces = interfaces.filter(move |key| key.netns_cookie() == netns_cookie);
        steered
            .into_iter()
            .chain(interfaces.map(|key| MapOp::AttachVirtual(*key)))
    }
}

// Pods that are in the kernel all the time, the others being absent for at least a moment.
fn staying_pods(desired: &State, loaded: &State) -> BTreeSet<u64> {
    let mut governed_anew = BTreeSet::new();
    let ports = desired.ports.symmetric_difference(&loaded.ports);
    governed_anew.extend(ports.map(PortKey::netns_cookie));
    let cidrs = desired.cidrs.symmetric_difference(&loaded.cidrs);
    governed_anew.extend(cidrs.map(CidrKey::netns_cookie));
    let groups = desired.groups.symmetric_difference(&loaded.groups);
    governed_anew.extend(groups.map(|key| key.netns_cookie));
    let interfaces = desired.interfaces.symmetric_difference(&loaded.interfaces);
    governed_anew.extend(interfaces.map(InterfaceKey::netns_cookie));
    let virtuals = desired
        .virtual_interfaces
        .symmetric_difference(&loaded.virtual_interfaces);
    governed_anew.extend(virtuals.map(InterfaceKey::netns_cookie));

    let (mut routed_anew, mut addressed_anew) = (BTreeSet::new(), BTreeSet::new());
    for (ours, theirs) in [(desired, loaded), (loaded, desired)] {
        let routes = differing(&ours.routes, &theirs.routes);
        routed_anew.extend(routes.map(|(key, _)| key.netns_cookie()));
        let addrs = differing(&ours.addrs, &theirs.addrs);
        addressed_anew.extend(addrs.map(|(_, owner)| *owner));
    }
    let losing = loaded.addrs.iter().filter(|(addr, owner)| {
        let heir = desired.addrs.get(*addr);
        heir.is_some_and(|heir| heir != *owner)
    });
    let losing: BTreeSet<u64> = losing.map(|(_, owner)| *owner).collect();

    let stays = |(cookie, config): (&u64, &PodConfig)| {
        // One whose agent was killed while it prepared the pod begins anew.
        let old = loaded.pods.get(cookie).filter(|old| old.is_in_force())?;
        let is_governed_anew = old != config || governed_anew.contains(cookie);
        let is_routed_anew = routed_anew.contains(cookie);
        let is_both = is_governed_anew && (addressed_anew.contains(cookie) || is_routed_anew)
            || is_routed_anew && losing.contains(cookie);
        (is_swappable(old, config) && !is_both).then_some(*cookie)
    };
    desired.pods.iter().filter_map(stays).collect()
}

// Only what is captured wholesale may differ: it takes part in the order of inclusions. Everything
// else decides *whose* connections the rules are for, so that old rules with a new owner would
// capture what neither policy says.
fn is_swappable(old: &PodConfig, new: &PodConfig) -> bool {
    let gates = [
        PodFlags::LOOPBACK_IN_RANGES,
        PodFlags::IPV6,
        PodFlags::DNS,
        PodFlags::EXCLUDES_GROUPS,
        PodFlags::ONLY_GROUPS,
        PodFlags::INTERFACES_EXCLUDED,
        PodFlags::TPROXY,
        PodFlags::VIRTUAL_INTERFACES,
    ];
    let is_same_otherwise = *old
        == PodConfig {
            flags: old.flags,
            ..*new
        };
    is_same_otherwise
        && gates
            .into_iter()
            .all(|gate| old.flags.has(gate) == new.flags.has(gate))
}

/// Rules on groups that come and go.
struct Groups {
    added: Vec<GroupKey>,
    gone: Vec<GroupKey>,
}

impl Groups {
    fn between(desired: &State, loaded: &State) -> Self {
        Self {
            added: desired.groups.difference(&loaded.groups).copied().collect(),
            gone: loaded.groups.difference(&desired.groups).copied().collect(),
        }
    }

    // Before the inclusions change: for pods that stay, whatever captures less; for others, everything.
    fn narrow(&self, stays: impl Fn(u64) -> bool) -> impl Iterator<Item = MapOp> {
        self.ops(move |key, is_narrower| is_narrower || !stays(key.netns_cookie))
    }

    // After they have changed: what captures more, for pods that stay.
    fn widen(&self, stays: impl Fn(u64) -> bool) -> impl Iterator<Item = MapOp> {
        self.ops(move |key, is_narrower| !is_narrower && stays(key.netns_cookie))
    }

    fn ops(&self, is_wanted: impl Fn(&GroupKey, bool) -> bool) -> impl Iterator<Item = MapOp> {
        let gone = self
            .gone
            .iter()
            .map(|key| (key, !is_exclusion(key.list), MapOp::RemoveGroup(*key)));
        let added = self
            .added
            .iter()
            .map(|key| (key, is_exclusion(key.list), MapOp::PutGroup(*key)));
        gone.chain(added)
            .filter(move |(key, is_narrower, _)| is_wanted(key, *is_narrower))
            .map(|(_, _, op)| op)
    }
}

fn is_exclusion(list: RuleList) -> bool {
    matches!(list, RuleList::EXCLUDE_OUTBOUND | RuleList::EXCLUDE_INBOUND)
}

fn is_dns(list: RuleList) -> bool {
    list == RuleList::DNS_SERVERS
}

fn is_inclusion(list: RuleList) -> bool {
    !is_exclusion(list) && !is_dns(list)
}

/// The entries of a map that another lacks, or has with another value.
fn differing<'a, K: Ord, V: PartialEq>(
    ours: &'a BTreeMap<K, V>,
    theirs: &'a BTreeMap<K, V>,
) -> impl DoubleEndedIterator<Item = (&'a K, &'a V)> {
    ours.iter()
        .filter(|(key, value)| theirs.get(*key) != Some(*value))
}

fn put_addrs(ops: &mut Vec<MapOp>, desired: &State, loaded: &State) {
    let changed = differing(&desired.addrs, &loaded.addrs);
    ops.extend(changed.map(|(addr, owner)| MapOp::PutAddr {
        addr: *addr,
        netns_cookie: *owner,
    }));
}

fn remove_addrs(
    ops: &mut Vec<MapOp>,
    desired: &State,
    loaded: &State,
    is_wanted: impl Fn(u64) -> bool,
) {
    for (addr, owner) in &loaded.addrs {
        if !desired.addrs.contains_key(addr) && is_wanted(*owner) {
            ops.push(MapOp::RemoveAddr { addr: *addr });
        }
    }
}

fn put_ports(
    ops: &mut Vec<MapOp>,
    desired: &State,
    loaded: &State,
    is_wanted: impl Fn(RuleList) -> bool,
) {
    let ports = desired.ports.difference(&loaded.ports);
    ops.extend(
        ports
            .filter(|key| is_wanted(key.list()))
            .map(|key| MapOp::PutPort(*key)),
    );
}

fn put_cidrs(
    ops: &mut Vec<MapOp>,
    desired: &State,
    loaded: &State,
    is_wanted: impl Fn(RuleList) -> bool,
) {
    let cidrs = desired.cidrs.difference(&loaded.cidrs);
    ops.extend(
        cidrs
            .filter(|key| is_wanted(key.list()))
            .map(|key| MapOp::PutCidr(*key)),
    );
}

fn remove_cidrs(
    ops: &mut Vec<MapOp>,
    desired: &State,
    loaded: &State,
    is_wanted: impl Fn(u64, RuleList) -> bool,
) {
    let cidrs = loaded.cidrs.difference(&desired.cidrs);
    let cidrs = cidrs.filter(|key| is_wanted(key.netns_cookie(), key.list()));
    ops.extend(cidrs.map(|key| MapOp::RemoveCidr(*key)));
}

fn remove_ports(
    ops: &mut Vec<MapOp>,
    desired: &State,
    loaded: &State,
    is_wanted: impl Fn(u64, RuleList) -> bool,
) {
    let ports = loaded.ports.difference(&desired.ports);
    let ports = ports.filter(|key| is_wanted(key.netns_cookie(), key.list()));
    ops.extend(ports.map(|key| MapOp::RemovePort(*key)));
}

fn remove_interfaces(
    ops: &mut Vec<MapOp>,
    desired: &State,
    loaded: &State,
    is_wanted: impl Fn(u64) -> bool,
) {
    let interfaces = loaded.interfaces.difference(&desired.interfaces);
    let interfaces = interfaces.filter(|key| is_wanted(key.netns_cookie()));
    ops.extend(interfaces.map(|key| MapOp::RemoveInterface(*key)));
}

fn remove_virtual_interfaces(
    ops: &mut Vec<MapOp>,
    desired: &State,
    loaded: &State,
    is_wanted: impl Fn(u64) -> bool,
) {
    let gone = loaded
        .virtual_interfaces
        .difference(&desired.virtual_interfaces);
    let gone = gone.filter(|key| is_wanted(key.netns_cookie()));
    ops.extend(gone.map(|key| MapOp::RemoveVirtualInterface(*key)));
}

// The longest prefixes first: an address goes over to its new route at once.
fn put_routes(ops: &mut Vec<MapOp>, desired: &State, loaded: &State) {
    let changed = differing(&desired.routes, &loaded.routes).rev();
    ops.extend(changed.map(|(key, ifindex)| MapOp::PutRoute {
        key: *key,
        ifindex: *ifindex,
    }));
}

// The longest prefixes last: no address goes by an old route that was not its own.
fn remove_routes(
    ops: &mut Vec<MapOp>,
    desired: &State,
    loaded: &State,
    is_wanted: impl Fn(u64) -> bool,
) {
    let gone = loaded
        .routes
        .keys()
        .filter(|key| !desired.routes.contains_key(*key) && is_wanted(key.netns_cookie()));
    ops.extend(gone.map(|key| MapOp::RemoveRoute(*key)));
}

#[cfg(test)]
mod tests;
