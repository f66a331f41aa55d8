//! The namespaces of one table: two pods and the world around them.
//!
//! ```text
//!   vm ──k6t0── pod ──eth0── world ──── peer (a pod too)
//!   .4.2    .4.1  │.1.2   .1.1    .2.1   .2.2          of 198.18.0.0/16 and fd18::/16
//!                 └──eth1──┘
//!                .3.2   .3.1
//! ```
//!
//! The world answers at every address of 198.19.0.0/16 and `fd19::/16`, which nobody else has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::fixture::Pod;

/// Which addresses a dial uses.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Family {
    V4,
    V6,
    /// An IPv4 address dialled by an IPv6 socket.
    Mapped,
}

pub(crate) const ALL: &[Family] = &[Family::V4, Family::V6, Family::Mapped];
pub(crate) const V4_ONLY: &[Family] = &[Family::V4, Family::Mapped];
pub(crate) const NO_MAPPED: &[Family] = &[Family::V4, Family::V6];

/// A namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    Pod,
    Peer,
    World,
    Vm,
}

/// An address by what it is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Addr {
    /// A service that the world answers for.
    Vip,
    /// In the range that tests exclude, or do not include.
    OtherRange,
    /// A name server of the pod's `/etc/resolv.conf`.
    NameServer,
    /// A name server that the pod was not told of.
    OtherNameServer,
    /// The pod itself.
    Pod,
    /// The pod, by its second interface.
    PodByEth1,
    /// What is behind the second interface.
    BehindEth1,
    /// The world, on the pod's network: the source of what arrives.
    World,
    /// The other pod.
    Peer,
    /// The virtual machine behind the pod.
    Vm,
    /// 127.0.0.1 and `::1`.
    Loopback,
    /// 127.0.0.2; IPv6 has one loopback address only.
    OtherLoopback,
    /// Envoy's source for its dials to the application.
    EnvoySource,
}

impl Addr {
    pub(crate) fn of(self, family: Family) -> IpAddr {
        let v4 = |third, last| Ipv4Addr::new(198, 18, third, last);
        let v6 = |third, last| Ipv6Addr::new(0xfd18, third, 0, 0, 0, 0, 0, last);
        let (for_v4, for_v6) = match self {
            Self::Vip => (Ipv4Addr::new(198, 19, 7, 9), world_v6(7, 9)),
            Self::OtherRange => (Ipv4Addr::new(198, 19, 9, 9), world_v6(9, 9)),
            Self::NameServer => (Ipv4Addr::new(198, 19, 0, 53), world_v6(0, 0x53)),
            Self::OtherNameServer => (Ipv4Addr::new(198, 19, 8, 8), world_v6(8, 8)),
            Self::Pod => (v4(1, 2), v6(1, 2)),
            Self::PodByEth1 => (v4(3, 2), v6(3, 2)),
            Self::BehindEth1 => (v4(3, 1), v6(3, 1)),
            Self::World => (v4(1, 1), v6(1, 1)),
            Self::Peer => (v4(2, 2), v6(2, 2)),
            Self::Vm => (v4(4, 2), v6(4, 2)),
            Self::Loopback => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
            Self::OtherLoopback => (Ipv4Addr::new(127, 0, 0, 2), Ipv6Addr::LOCALHOST),
            Self::EnvoySource => (
                Ipv4Addr::new(127, 0, 0, 6),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6),
            ),
        };
        match family {
            Family::V4 | Family::Mapped => for_v4.into(),
            Family::V6 => for_v6.into(),
        }
    }
}

const fn world_v6(third: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd19, third, 0, 0, 0, 0, 0, last)
}

/// All of them, gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) pod: Pod,
    pub(crate) peer: Pod,
    pub(crate) world: Pod,
    pub(crate) vm: Pod,
}

impl Net {
    pub(crate) fn new() -> Self {
        let net = Self {
            pod: Pod::new([198, 18, 1, 2]),
            peer: Pod::new([198, 18, 2, 2]),
            world: Pod::new([198, 18, 1, 1]),
            vm: Pod::new([198, 18, 4, 2]),
        };
        cable(1, (&net.pod, "eth0"), (&net.world, "pod"));
        cable(3, (&net.pod, "eth1"), (&net.world, "eth1"));
        cable(2, (&net.peer, "eth0"), (&net.world, "peer"));
        cable(4, (&net.vm, "eth0"), (&net.pod, "k6t0"));
        for (pod, third, last) in [(&net.pod, 1, 1), (&net.peer, 2, 1), (&net.vm, 4, 1)] {
            pod.ip(&[
                "route",
                "add",
                "default",
                "via",
                &format!("198.18.{third}.{last}"),
            ]);
            let v6 = format!("fd18:{third}::{last}");
            pod.ip(&["-6", "route", "add", "default", "via", &v6]);
        }
        for (family, range) in [("-4", "198.19.0.0/16"), ("-6", "fd19::/16")] {
            net.world
                .ip(&[family, "route", "add", "local", range, "dev", "lo"]);
        }
        for (family, range, via) in [
            ("-4", "198.18.4.0/24", "198.18.1.2"),
            ("-6", "fd18:4::/64", "fd18:1::2"),
        ] {
            net.world.ip(&[family, "route", "add", range, "via", via]);
        }
        // Istio adds it beside its rules (tools/common/tproxy): IPv6 has no 127.0.0.0/8.
        for pod in [&net.pod, &net.peer] {
            pod.ip(&["-6", "address", "add", "::6/128", "dev", "lo", "nodad"]);
        }
        for router in [&net.world, &net.pod] {
            for family in ["ipv4", "ipv6"] {
                let file = format!("/proc/sys/net/{family}/conf/all/forwarding");
                let set = router.run_as(0, || std::fs::write(file, "1"));
                set.expect("a namespace of ours forwards if told so");
            }
        }
        net
    }

    pub(crate) fn at(&self, place: Place) -> &Pod {
        match place {
            Place::Pod => &self.pod,
            Place::Peer => &self.peer,
            Place::World => &self.world,
            Place::Vm => &self.vm,
        }
    }
}

// The far end has the first address of the network, the near end the second.
fn cable(network: u8, near: (&Pod, &str), far: (&Pod, &str)) {
    let peer = far.0.path();
    let peer = peer.to_str().expect("a path in /proc is ASCII");
    let args = [
        "link", "add", near.1, "type", "veth", "peer", "name", far.1, "netns", peer,
    ];
    near.0.ip(&args);
    for ((pod, device), last) in [(near, 2), (far, 1)] {
        for addr in [
            format!("198.18.{network}.{last}/24"),
            format!("fd18:{network}::{last}/64"),
        ] {
            let nodad: &[&str] = if addr.contains(':') { &["nodad"] } else { &[] };
            pod.ip(&[&["address", "add", &addr, "dev", device], nodad].concat());
        }
        pod.ip(&["link", "set", device, "up"]);
    }
}
