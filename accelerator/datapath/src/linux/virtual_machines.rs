//! What virtual machines of a pod send (row I2): the packets for the proxy are delivered in the pod.
//!
//! ```text
//!  <pin dir>/programs/isthmus_virtual              what every instance should be
//!  <pin dir>/links/isthmus_virtual-COOKIE-IFINDEX  the instance of one interface, while it is there
//! ```
//!
//! The program marks them; a rule for that mark on that interface leads to a table in which every address is
//! the pod's own. The link comes last and goes first: without it nothing is marked, and without a mark the
//! rule leads nowhere.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::Path,
};

use isthmus_accel_abi::{InterfaceKey, PodConfig, VIRTUAL_MARK, program};
use nix::net::if_::if_indextoname;

use super::{
    kernel_version::KernelVersion,
    netns::{self, Presence},
    pins::{Pins, failed},
    sys,
    transparency::Transparency,
    version::Version,
};
use crate::{
    DatapathError,
    policy_routing::{self, Family, LocalRoute, Owner, Policy, Rule},
};

/// The table in which every address is the pod's own, by the port of the outbound listener.
const TABLE: u32 = 15_001;
/// Behind the table of local addresses, before any that others are likely to add.
const PRIORITY: u32 = 15_001;
/// The kernels that have links to interfaces (`BPF_LINK_TYPE_TCX`).
const FIRST_KERNEL: KernelVersion = KernelVersion::new(6, 6, 0);

/// Tells whether the running kernel can do it.
pub(crate) fn is_supported() -> bool {
    KernelVersion::running().is_some_and(|version| version >= FIRST_KERNEL)
}

/// Delivers what arrives by the interface, if it is for the proxy, in the namespace behind `path`.
pub(crate) fn attach(
    pins: &Pins,
    key: InterfaceKey,
    (path, pod): (&Path, &PodConfig),
    transparency: &mut Transparency,
) -> Result<Presence, DatapathError> {
    let cookie = key.netns_cookie();
    let program = netns::instance(pins, cookie, program::VIRTUAL, &Version::built_in())?;
    let interfaces: BTreeSet<u32> = linked_in(pins, cookie)?.chain([key.ifindex()]).collect();
    netns::in_namespace(cookie, path, |_| {
        transparency.grant_here(cookie, pod)?;
        route_here(&interfaces, path)?;
        let pin = pins.interface_link(key);
        Pins::unpin(&pin)?;
        let link = sys::link_to_interface(program.as_fd(), key.ifindex());
        let link = match link {
            // The interface is gone: whoever looks the next time will see.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            link => link.map_err(failed("attaching to an interface of", path))?,
        };
        sys::pin(link.as_fd(), &pin).map_err(failed("pinning", &pin))
    })
}

/// Ends that. Call it before the link of the namespace goes, by which that is found.
pub(crate) fn detach(
    pins: &Pins,
    key: InterfaceKey,
    path: Option<&Path>,
) -> Result<(), DatapathError> {
    let pin = pins.interface_link(key);
    if let Ok(link) = sys::open_pinned(&pin) {
        sys::detach_link(link.as_fd()).map_err(failed("detaching", &pin))?;
    }
    // The pin last, so that what fails is tried again.
    let cookie = key.netns_cookie();
    let mut interfaces: BTreeSet<u32> = linked_in(pins, cookie)?.collect();
    interfaces.remove(&key.ifindex());
    route(pins, cookie, path, &interfaces)?;
    Pins::unpin(&pin)
}

/// Removes what leads packets in every namespace that has a link; returns the first failure behind all of
/// them.
pub(crate) fn withdraw(pins: &Pins) -> Result<(), DatapathError> {
    let mut outcome = Ok(());
    for cookie in netns::attached(pins)? {
        outcome = outcome.and(route(pins, cookie, None, &BTreeSet::new()));
    }
    outcome
}

/// Gives listeners that came since the interfaces of their pod were linked what they need.
pub(crate) fn keep_up(
    cookie: u64,
    (path, pod): (&Path, &PodConfig),
    transparency: &mut Transparency,
) -> Result<(), DatapathError> {
    netns::in_namespace(cookie, path, |_| transparency.grant_here(cookie, pod)).map(drop)
}

/// Returns the interfaces that have a link.
pub(crate) fn attached(pins: &Pins) -> Result<BTreeSet<InterfaceKey>, DatapathError> {
    pins.linked(Pins::key_of_interface_link)
}

/// Gives every interface that has a link an instance of the program as it is in this object.
pub(crate) fn replace_instances(pins: &Pins, version: &Version) -> Result<(), DatapathError> {
    for key in attached(pins)? {
        let program = netns::instance(pins, key.netns_cookie(), program::VIRTUAL, version)?;
        netns::replace(&pins.interface_link(key), &program)?;
    }
    Ok(())
}

fn linked_in(pins: &Pins, cookie: u64) -> Result<impl Iterator<Item = u32>, DatapathError> {
    let of_namespace = move |key: InterfaceKey| {
        let is_there = key.netns_cookie() == cookie;
        is_there.then_some(key.ifindex())
    };
    Ok(attached(pins)?.into_iter().filter_map(of_namespace))
}

// A namespace without a file keeps them until it goes; without marks they lead nothing anywhere.
fn route(
    pins: &Pins,
    cookie: u64,
    known: Option<&Path>,
    interfaces: &BTreeSet<u32>,
) -> Result<(), DatapathError> {
    let Some(path) = netns::file_of(pins, cookie, known)? else {
        return Ok(());
    };
    netns::in_namespace(cookie, &path, |_| route_here(interfaces, &path)).map(drop)
}

/// Makes the calling thread's namespace have the rules of these interfaces, and no other of this kind.
fn route_here(interfaces: &BTreeSet<u32>, path: &Path) -> Result<(), DatapathError> {
    let names = interfaces.iter().filter_map(|ifindex| name_here(*ifindex));
    let policy = policy(names);
    policy_routing::converge_here(Owner::VIRTUAL_MACHINES, &policy)
        .map(drop)
        .map_err(failed("changing the rules and routes of", path))
}

fn policy(interfaces: impl Iterator<Item = String>) -> Policy {
    let families = [
        (Family::V4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        (Family::V6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    ];
    let mut policy = Policy::default();
    for name in interfaces {
        for (family, addr) in families {
            policy.rules.insert(Rule {
                family,
                priority: PRIORITY,
                fwmark: Some(VIRTUAL_MARK),
                incoming: Some(name.clone()),
                ip_proto: None,
                table: TABLE,
            });
            policy.routes.insert(LocalRoute {
                addr,
                prefix_len: 0,
                table: TABLE,
            });
        }
    }
    policy
}

// `None` for one that is gone.
fn name_here(ifindex: u32) -> Option<String> {
    let name = if_indextoname(ifindex).ok()?;
    Some(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_interface_has_a_rule_for_each_family_and_all_share_the_routes() {
        let of = |names: &[&str]| policy(names.iter().map(|name| (*name).to_owned()));
        assert_eq!(of(&[]), Policy::default(), "nothing is left");
        let two = of(&["k6t0", "k6t1"]);
        assert_eq!((two.rules.len(), two.routes.len()), (4, 2));
        let is_bounded = |rule: &Rule| rule.fwmark.is_some() && rule.incoming.is_some();
        assert!(two.rules.iter().all(is_bounded), "{two:?}");
    }
}
