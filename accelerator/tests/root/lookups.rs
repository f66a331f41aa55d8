//! Looks behind real network namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
};

use isthmus_accelerator::resolve::{LookupError, Namespace, Wish, look_up};
use isthmus_api::node_config::IpRange;

use crate::netns::{Netns, require_root};

#[test]
fn finds_the_cookie_and_the_addresses() {
    let pod = Netns::add("found");
    assert!(
        matches!(look_up_pod(&pod), Err(LookupError::NoAddress { .. })),
        "loopback does not count"
    );

    pod.give_addr("198.18.77.1/24");
    let first = look_up_pod(&pod).expect("it has an address");
    assert_eq!(first.addrs, [IpAddr::from([198, 18, 77, 1])].into());
    pod.give_addr("198.18.78.1/24");
    let second = look_up_pod(&pod).expect("it has addresses");
    assert_eq!(second.cookie, first.cookie);
    assert_eq!(second.addrs.len(), 2);

    pod.give_addr("2001:db8::1/64");
    // What Istio adds to every pod, and what every interface has, say of no pod who it is.
    pod.give_addr("::6/128");
    pod.give_addr("fe80::77/64");
    let third = look_up_pod(&pod).expect("it has addresses");
    let added: Vec<_> = third.addrs.difference(&second.addrs).collect();
    assert_eq!(
        added,
        [&"2001:db8::1".parse::<IpAddr>().expect("an address")]
    );
}

#[test]
fn finds_what_leaves_by_which_interface() {
    let pod = Netns::add("routes");
    pod.give_addr("198.18.77.1/24");
    pod.give_addr("2001:db8::1/64");
    pod.ip(&["link", "set", "eth1", "up"]);
    pod.ip(&["route", "add", "default", "via", "198.18.77.9"]);
    pod.ip(&[
        "route",
        "add",
        "198.19.1.0/24",
        "dev",
        "eth1",
        "metric",
        "7",
    ]);
    pod.ip(&[
        "route",
        "add",
        "198.19.1.0/24",
        "dev",
        "eth0",
        "metric",
        "8",
    ]);
    pod.ip(&["route", "add", "unreachable", "198.19.2.0/24"]);
    pod.ip(&[
        "route",
        "add",
        "198.19.3.0/24",
        "nexthop",
        "dev",
        "eth0",
        "nexthop",
        "dev",
        "eth1",
    ]);
    pod.ip(&[
        "route",
        "add",
        "198.19.4.0/24",
        "dev",
        "eth1",
        "table",
        "77",
    ]);
    pod.ip(&["-6", "route", "add", "2001:db8:1::/48", "dev", "eth1"]);

    let found = look_up_pod(&pod).expect("it has an address");
    let named = |(range, interfaces): (&IpRange, &BTreeSet<u32>)| {
        let name_of = |ifindex: &u32| {
            let mut known = found.interfaces.iter();
            let (name, _) = known
                .find(|(_, known)| *known == ifindex)
                .expect("it is there");
            name.clone()
        };
        let names: Vec<String> = interfaces.iter().map(name_of).collect();
        format!("{range} {}", names.join("+"))
    };
    let mut routes: Vec<String> = found.routes.iter().map(named).collect();
    // Both ends were made at once.
    for route in &mut routes {
        *route = route.replace("eth1+eth0", "eth0+eth1");
    }
    let expected = [
        "0.0.0.0/0 eth0",
        "198.18.77.0/24 eth0",
        "198.19.1.0/24 eth1",
        "198.19.2.0/24 ",
        "198.19.3.0/24 eth0+eth1",
        "2001:db8::/64 eth0",
        "2001:db8:1::/48 eth1",
    ];
    assert_eq!(routes, expected);
    let path = Netns::path_of(&pod.name);
    let wanted = [(path.clone(), Wish::Addresses)].into();
    let found = look_up(wanted).expect("a thread can be made");
    let found = found[&path].as_ref().expect("it has an address");
    assert!(found.routes.is_empty(), "nobody asked for them");
}

#[test]
fn every_namespace_has_its_own_cookie_even_under_one_name() {
    let first = Netns::add("anew");
    first.give_addr("198.18.77.1/24");
    let old = look_up_pod(&first).expect("it has an address");
    let name = first.name.clone();
    drop(first);
    assert!(matches!(
        look_at(&Netns::path_of(&name)),
        Err(LookupError::Absent { .. })
    ));

    let second = Netns::add("anew");
    assert_eq!(second.name, name);
    second.give_addr("198.18.77.1/24");
    assert_ne!(
        look_up_pod(&second).expect("it has an address").cookie,
        old.cookie
    );
}

#[test]
fn says_what_is_behind_other_files() {
    require_root();
    let dir = tempfile::tempdir().expect("a directory");
    let empty = dir.path().join("empty");
    File::create(&empty).expect("a file");
    assert!(matches!(
        look_at(&empty),
        Err(LookupError::NotNamespace { .. })
    ));
    assert!(matches!(
        look_at(dir.path()),
        Err(LookupError::NotNamespace { .. })
    ));
    assert!(matches!(
        look_at(Path::new("/proc/self/ns/uts")),
        Err(LookupError::NotNamespace { .. })
    ));
    assert!(matches!(
        look_at(Path::new("/proc/self/ns/net")),
        Err(LookupError::HostNamespace { .. })
    ));
    assert!(matches!(
        look_at(&dir.path().join("absent")),
        Err(LookupError::Absent { .. })
    ));
    assert!(matches!(
        look_at(&empty.join("below")),
        Err(LookupError::Kernel { .. })
    ));
}

#[test]
fn the_caller_stays_where_it_is() {
    let pod = Netns::add("stay");
    pod.give_addr("198.18.77.1/24");
    let own = || fs::read_link("/proc/thread-self/ns/net").expect("procfs");
    let before = own();
    look_up_pod(&pod).expect("it has an address");
    assert_eq!(own(), before);
}

#[test]
fn one_look_serves_many() {
    let pods: Vec<Netns> = ["many-a", "many-b", "many-c"].map(Netns::add).into();
    for (pod, host) in pods.iter().zip(1_u8..) {
        pod.give_addr(&format!("198.18.77.{host}/24"));
    }
    let path = |pod: &Netns| (Netns::path_of(&pod.name), Wish::Addresses);
    let paths: BTreeMap<PathBuf, Wish> = pods.iter().map(path).collect();
    let found = look_up(paths).expect("a thread can be made");
    let cookies: BTreeSet<u64> = found
        .values()
        .map(|lookup| lookup.as_ref().expect("it has an address").cookie)
        .collect();
    assert_eq!(cookies.len(), 3);
}

fn look_up_pod(pod: &Netns) -> Result<Namespace, LookupError> {
    look_at(&Netns::path_of(&pod.name))
}

fn look_at(path: &Path) -> Result<Namespace, LookupError> {
    let wanted = [(path.to_owned(), Wish::AddressesAndRoutes)].into();
    let mut found = look_up(wanted).expect("a thread can be made");
    found.remove(path).expect("every path gets an answer")
}
