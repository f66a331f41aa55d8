//! What is about arriving connections: interfaces that are left alone, and whether to steer at all.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_accel_abi::InterfaceKey;
use isthmus_api::node_config::{PortCapture, TrafficPolicy};

use super::ResolvedPod;

/// Returns the interfaces of a pod whose arriving connections its policy leaves alone (I1).
///
/// A name that ends in `+` stands for all that begin like it, as in iptables. Interfaces that are not
/// there yet have no number, and no connections either.
pub(super) fn excluded_interfaces(pod: &ResolvedPod) -> BTreeSet<InterfaceKey> {
    let named = |pattern: &String| ifindexes(pattern, &pod.interfaces);
    let excluded = pod.policy.exclude_interfaces.iter().flat_map(named);
    excluded
        .map(|ifindex| InterfaceKey::new(pod.netns_cookie, ifindex))
        .collect()
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
