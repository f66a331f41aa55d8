//! What is about interfaces: which of them are left alone, what leaves by which, and whether to steer what
//! arrives at all.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_accel_abi::{CidrKey, InterfaceKey, RuleList};
use isthmus_api::node_config::{IpRange, PortCapture, TrafficPolicy};

use super::{MAX_ROUTES_PER_POD, Refusal, ResolvedPod, cidr};

/// A pod's main routing table: the interfaces by which connections to a range may leave. More than one if the
/// kernel spreads them; none if the range cannot be reached.
pub type Routes = BTreeMap<IpRange, BTreeSet<u32>>;

/// Returns the interfaces of a pod that its policy leaves alone (I1).
///
/// A name that ends in `+` stands for all that begin like it, as in iptables. Interfaces that are not
/// there yet have no number, and no connections either.
pub(super) fn excluded_interfaces(pod: &ResolvedPod) -> BTreeSet<InterfaceKey> {
    named(&pod.policy.exclude_interfaces, pod)
}

/// Returns the interfaces of a pod by which virtual machines send (I2).
pub(super) fn virtual_interfaces(pod: &ResolvedPod) -> BTreeSet<InterfaceKey> {
    named(&pod.policy.virtual_interfaces, pod)
}

fn named(patterns: &BTreeSet<String>, pod: &ResolvedPod) -> BTreeSet<InterfaceKey> {
    let named = |pattern: &String| ifindexes(pattern, &pod.interfaces);
    let found = patterns.iter().flat_map(named);
    found
        .map(|ifindex| InterfaceKey::new(pod.netns_cookie, ifindex))
        .collect()
}

/// Returns the routes of a pod that leaves interfaces alone, by which it is known what leaves by those.
///
/// # Errors
///
/// Refuses the pod if there are too many of them, or if one does not say whether its connections leave by an
/// interface that is left alone.
pub(super) fn routes(
    pod: &ResolvedPod,
    excluded: &BTreeSet<InterfaceKey>,
) -> Result<BTreeMap<CidrKey, u32>, Refusal> {
    if pod.policy.exclude_interfaces.is_empty() {
        return Ok(BTreeMap::new());
    }
    if pod.routes.len() > MAX_ROUTES_PER_POD {
        return Err(Refusal::TooManyRoutes);
    }
    let entry = |(range, interfaces): (&IpRange, &BTreeSet<u32>)| {
        let is_excluded =
            |ifindex: &u32| excluded.contains(&InterfaceKey::new(pod.netns_cookie, *ifindex));
        let first = interfaces.first();
        let is_first_excluded = first.is_some_and(is_excluded);
        if interfaces
            .iter()
            .any(|ifindex| is_excluded(ifindex) != is_first_excluded)
        {
            return Err(Refusal::UnclearRoute { range: *range });
        }
        let key = cidr(pod.netns_cookie, RuleList::ROUTES, *range);
        Ok((key, first.copied().unwrap_or_default()))
    };
    pod.routes.iter().map(entry).collect()
}

/// Tells whether any arriving connection can be captured (I7: a pod may ask for none).
pub(super) fn is_steered(policy: &TrafficPolicy) -> bool {
    match &policy.inbound_ports {
        PortCapture::AllBut(_) => true,
        PortCapture::Only(ports) => !ports.is_empty(),
    }
}

fn ifindexes(pattern: &str, interfaces: &BTreeMap<String, u32>) -> Vec<u32> {
    let is_meant = |name: &String| match pattern.strip_suffix('+') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    let meant = interfaces.iter().filter(|(name, _)| is_meant(name));
    meant.map(|(_, ifindex)| *ifindex).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_named_as_iptables_does() {
        let interfaces: BTreeMap<String, u32> = [("eth0", 2), ("eth1", 3), ("net1", 4)]
            .map(|(name, ifindex)| (name.to_owned(), ifindex))
            .into();
        let cases: [(&str, &[u32]); 5] = [
            ("eth1", &[3]),
            ("eth", &[]),
            ("eth+", &[2, 3]),
            ("+", &[2, 3, 4]),
            ("wlan0", &[]),
        ];
        for (pattern, expected) in cases {
            assert_eq!(ifindexes(pattern, &interfaces), expected, "{pattern}");
        }
    }
}
