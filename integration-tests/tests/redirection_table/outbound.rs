//! Rows O1, O3, O4, O6, O7, O9 to O11, O13, X4 and X6: what leaves a pod. O2, O5, O8 and O12 are cases of their own.

use crate::net::{Addr, Family, V4_ONLY};
use crate::row::{Row, app, proxy, row};

const LOOPBACK_CIDR: &str = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";
const GROUPS: &str = "ISTIO_OUTBOUND_OWNER_GROUPS";
/// The pod's own addresses, with loopback.
pub(crate) const OWN_RANGES: &str = "127.0.0.0/8,198.18.1.0/24,::1/128,fd18:1::/64";

pub(crate) fn rows() -> Vec<Row> {
    [exclusions(), sidecars(), own_addresses(), destinations()]
        .into_iter()
        .flatten()
        .collect()
}

fn exclusions() -> Vec<Row> {
    vec![
        row("O1: an excluded port leaves, whoever dials, and before everything else")
            .annotation("excludeOutboundPorts", "3306")
            .annotation("includeOutboundPorts", "3306")
            .dials([
                app(Addr::Vip, 3306).is_direct(),
                proxy(Addr::Vip, 3306).is_direct(),
                proxy(Addr::Pod, 3306).is_direct(),
                app(Addr::Vip, 3306).udp().is_direct(),
                app(Addr::Vip, 80).is_outbound(),
                app(Addr::Vip, 15020).is_outbound(),
            ]),
        row("O1: the status port, where the annotation is left out").dials([
            app(Addr::Vip, 15020).is_direct(),
            app(Addr::Vip, 80).is_outbound(),
        ]),
        row("O9: an excluded group leaves")
            .metadata("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "2000,2001")
            .dials([
                app(Addr::Vip, 80).by(1000, 2000).is_direct(),
                app(Addr::Vip, 80).by(0, 2001).is_direct(),
                app(Addr::Vip, 80).by(2000, 1000).is_outbound(),
            ]),
        row("O9: only listed groups are captured")
            .metadata(GROUPS, "2000,2001")
            .metadata("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "2000")
            .dials([
                app(Addr::Vip, 80).by(1000, 2000).is_outbound(),
                app(Addr::Vip, 80).by(1000, 2001).is_outbound(),
                app(Addr::Vip, 80).is_direct(),
                app(Addr::Pod, 8080).by(1000, 2000).is_direct(),
            ]),
        row("O9: an empty list captures no group")
            .metadata(GROUPS, "")
            .dials([app(Addr::Vip, 80).is_direct()]),
    ]
}

fn sidecars() -> Vec<Row> {
    vec![
        row("O3: a sidecar that dials its own pod comes in again").dials([
            proxy(Addr::Pod, 8080).is_inbound(),
            proxy(Addr::PodByEth1, 443).is_inbound(),
            proxy(Addr::OtherLoopback, 8080).only(V4_ONLY).is_inbound(),
            proxy(Addr::Pod, 15008).is_direct(),
            proxy(Addr::Loopback, 8080).is_direct(),
        ]),
        row("O3: not from the loopback range that is always direct")
            .metadata(LOOPBACK_CIDR, "127.0.0.0/8")
            .dials([
                proxy(Addr::OtherLoopback, 8080).only(V4_ONLY).is_direct(),
                proxy(Addr::Pod, 8080).is_inbound(),
            ]),
        row("O6: by its group only where O4 is absent")
            .annotation("includeOutboundIPRanges", OWN_RANGES)
            .dials([
                proxy(Addr::Pod, 8080).by(0, 1337).is_inbound(),
                proxy(Addr::OtherLoopback, 8080)
                    .by(0, 1337)
                    .only(V4_ONLY)
                    .is_inbound(),
                proxy(Addr::Pod, 15008).by(0, 1337).is_direct(),
            ]),
        row("X6: istio-validation's dial lands on the inbound listener").dials([proxy(
            Addr::EnvoySource,
            15002,
        )
        .bound_to(Addr::Loopback)
        .is_inbound()]),
    ]
}

fn own_addresses() -> Vec<Row> {
    vec![
        row("O4, O7: calls within the pod are direct").dials([
            app(Addr::Pod, 8080).is_direct(),
            app(Addr::PodByEth1, 8080).is_direct(),
            app(Addr::Loopback, 8080).is_direct(),
            app(Addr::OtherLoopback, 8080).is_direct(),
            app(Addr::Pod, 8080).by(0, 1337).is_direct(),
            app(Addr::Pod, 8080).udp().is_direct(),
        ]),
        row("O4: not where loopback is among the included ranges; O10: but 127.0.0.1 and ::1 are")
            .annotation("includeOutboundIPRanges", OWN_RANGES)
            .dials([
                app(Addr::Pod, 8080).is_outbound(),
                app(Addr::OtherLoopback, 8080).only(V4_ONLY).is_outbound(),
                app(Addr::Loopback, 8080).is_direct(),
                app(Addr::Vip, 80).is_direct(),
            ]),
        row("O10: a wider loopback range")
            .annotation("includeOutboundIPRanges", OWN_RANGES)
            .metadata(LOOPBACK_CIDR, "127.0.0.0/8")
            .dials([
                app(Addr::OtherLoopback, 8080).only(V4_ONLY).is_direct(),
                app(Addr::Pod, 8080).is_outbound(),
            ]),
    ]
}

fn destinations() -> Vec<Row> {
    vec![
        row("O11: an excluded range leaves, listed ports included")
            .annotation("excludeOutboundIPRanges", "198.19.9.0/24,fd19:9::/32")
            .annotation("includeOutboundPorts", "9300")
            .dials([
                app(Addr::OtherRange, 80).is_direct(),
                app(Addr::OtherRange, 9300).is_direct(),
                app(Addr::Vip, 80).is_outbound(),
            ]),
        row("O13: an empty list captures nothing")
            .annotation("includeOutboundIPRanges", "")
            .dials([
                app(Addr::Vip, 80).is_direct(),
                app(Addr::OtherRange, 80).is_direct(),
            ]),
        row("O13: everything, but no datagrams").dials([
            app(Addr::Vip, 80).is_outbound(),
            app(Addr::Vip, 80).by(0, 0).is_outbound(),
            app(Addr::OtherRange, 9090).is_outbound(),
            app(Addr::Vip, 8080).udp().is_direct(),
            app(Addr::Vip, 8080).udp_unconnected().is_direct(),
        ]),
        row("O13: ranges of one family say nothing of the other")
            .annotation("includeOutboundIPRanges", "0.0.0.0/0")
            .dials([
                app(Addr::Vip, 80).only(V4_ONLY).is_outbound(),
                app(Addr::Vip, 80).only(&[Family::V6]).is_direct(),
            ]),
        row("X4: a pod with IPv4 first, not dual-stack, has no rules for IPv6")
            .metadata("ISTIO_DUAL_STACK", "false")
            .dials([
                app(Addr::Vip, 80).only(V4_ONLY).is_outbound(),
                app(Addr::Vip, 80).only(&[Family::V6]).is_direct(),
            ]),
    ]
}
