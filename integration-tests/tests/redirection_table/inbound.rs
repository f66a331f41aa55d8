//! Rows I1 to I6, I8 and T1: what arrives at a pod. I7 is a case of its own.

use crate::dial::Dial;
use crate::fixture::PROXY;
use crate::net::{Addr, NO_MAPPED, Place};
use crate::row::{Row, app, arriving, proxy, row};

/// `INBOUND_TPROXY_MARK`
const TPROXY_MARK: libc::c_int = 1337;

pub(crate) fn rows() -> Vec<Row> {
    [interfaces(), ports()].into_iter().flatten().collect()
}

/// Row T1: for sidecars that take connections for other addresses.
pub(crate) fn tproxy_rows() -> Vec<Row> {
    vec![
        row("T1: the sidecar and the application see the client's own address")
            .annotation("sidecar.istio.io/interceptionMode", "TPROXY")
            .annotation("excludeInboundPorts", "9090")
            .dials([
                arriving(Addr::Pod, 8080).is_inbound(),
                arriving(Addr::Pod, 9090).is_direct(),
                // I3 is a rule of the table that TPROXY comes before.
                arriving(Addr::Pod, 15008).is_inbound(),
                proxy(Addr::Pod, 8080).from(Place::Peer).is_inbound(),
                app(Addr::Vip, 80).is_outbound(),
                app(Addr::Pod, 8080).is_direct(),
                for_client(Addr::World).is_direct(),
                for_client(Addr::Peer).is_direct(),
            ]),
    ]
}

/// What Envoy dials with its `original_src` filter; in this mode it is root.
pub(crate) fn for_client(client: Addr) -> Dial {
    app(Addr::Pod, 8080)
        .by(0, PROXY)
        .bound_to(client)
        .marked(TPROXY_MARK)
}

fn interfaces() -> Vec<Row> {
    vec![
        row("I1: what arrives by an excluded interface is not captured")
            .annotation("excludeInterfaces", "eth1")
            .dials([
                arriving(Addr::PodByEth1, 8080).is_direct(),
                arriving(Addr::Pod, 8080).is_inbound(),
                app(Addr::Vip, 80).is_outbound(),
            ]),
        row("I1: nor does what leaves by it")
            .annotation("excludeInterfaces", "eth1")
            .dials([
                app(Addr::BehindEth1, 80).is_direct(),
                proxy(Addr::BehindEth1, 80).is_direct(),
                app(Addr::Vip, 80).is_outbound(),
                // By `lo`.
                app(Addr::PodByEth1, 8080).is_direct(),
                proxy(Addr::PodByEth1, 8080).is_inbound(),
            ]),
        row("I1: by a name with a plus, and by lo")
            .annotation("excludeInterfaces", "lo,eth1+")
            .dials([
                app(Addr::BehindEth1, 80).is_direct(),
                app(Addr::Vip, 80).is_outbound(),
                proxy(Addr::Pod, 8080).is_direct(),
            ]),
        row("I1: its DNS neither")
            .annotation("excludeInterfaces", "eth1")
            .metadata("CAPTURE_ALL_DNS", "true")
            .dns()
            .dials([
                app(Addr::BehindEth1, 53).is_direct(),
                app(Addr::BehindEth1, 53).udp().is_direct(),
                app(Addr::BehindEth1, 53).udp_unconnected().is_direct(),
                app(Addr::NameServer, 53).is_dns(),
                app(Addr::NameServer, 53).udp().is_dns(),
            ]),
        row("I2: what a virtual machine sends is outbound traffic of its pod")
            .annotation("kubevirtInterfaces", "k6t0")
            .dials([
                app(Addr::Vip, 80)
                    .from(Place::Vm)
                    .only(NO_MAPPED)
                    .is_outbound(),
                app(Addr::Pod, 8080)
                    .from(Place::Vm)
                    .only(NO_MAPPED)
                    .is_outbound(),
                app(Addr::Vip, 80).is_outbound(),
                app(Addr::Vm, 80).bound_to(Addr::Pod).is_outbound(),
                arriving(Addr::Pod, 8080).is_inbound(),
            ]),
        row("I2: no exclusion counts for it")
            .annotation("kubevirtInterfaces", "k6t0")
            .annotation("excludeOutboundPorts", "3306")
            .annotation("excludeOutboundIPRanges", "198.19.9.0/24,fd19:9::/32")
            .annotation("includeInboundPorts", "")
            .dials([
                app(Addr::Vip, 3306)
                    .from(Place::Vm)
                    .only(NO_MAPPED)
                    .is_outbound(),
                app(Addr::OtherRange, 80)
                    .from(Place::Vm)
                    .only(NO_MAPPED)
                    .is_outbound(),
                app(Addr::Vip, 3306).is_direct(),
                app(Addr::OtherRange, 80).is_direct(),
            ]),
        row("I2: by the other annotation, and by range")
            .annotation("istio.io/reroute-virtual-interfaces", "k6t0")
            .annotation("includeOutboundIPRanges", "198.19.7.0/24,fd19:7::/32")
            .dials([
                app(Addr::Vip, 80)
                    .from(Place::Vm)
                    .only(NO_MAPPED)
                    .is_outbound(),
                app(Addr::OtherRange, 80)
                    .from(Place::Vm)
                    .only(NO_MAPPED)
                    .is_direct(),
            ]),
    ]
}

fn ports() -> Vec<Row> {
    vec![
        row("I3: the tunnel is never captured").dials([arriving(Addr::Pod, 15008).is_direct()]),
        row("I3: not even if its port is listed")
            .annotation("includeInboundPorts", "15008,8080")
            .dials([
                arriving(Addr::Pod, 15008).is_direct(),
                arriving(Addr::Pod, 8080).is_inbound(),
            ]),
        row("I4: excluded ports, the sidecar's own among them")
            .annotation("excludeInboundPorts", ", 9090")
            .annotation("status.sidecar.istio.io/port", "15099")
            .dials([
                arriving(Addr::Pod, 9090).is_direct(),
                arriving(Addr::Pod, 15020).is_direct(),
                arriving(Addr::Pod, 15021).is_direct(),
                arriving(Addr::Pod, 15090).is_direct(),
                arriving(Addr::Pod, 15099).is_direct(),
                arriving(Addr::Pod, 8080).is_inbound(),
            ]),
        row("I5: everything else").dials([
            arriving(Addr::Pod, 8080).is_inbound(),
            arriving(Addr::Pod, 443).is_inbound(),
            arriving(Addr::PodByEth1, 8080).is_inbound(),
            proxy(Addr::Peer, 8080).is_inbound_at_peer(),
            app(Addr::Peer, 8080).is_outbound(),
            proxy(Addr::Pod, 8080).from(Place::Peer).is_inbound(),
            app(Addr::Pod, 8080).from(Place::Peer).is_outbound_at_peer(),
        ]),
        row("I6: listed ports only; exclusions do not count")
            .annotation("includeInboundPorts", "8080, 9300")
            .annotation("excludeInboundPorts", "8080")
            .dials([
                arriving(Addr::Pod, 8080).is_inbound(),
                arriving(Addr::Pod, 9300).is_inbound(),
                arriving(Addr::Pod, 9090).is_direct(),
            ]),
        row("I8: datagrams are never captured").dials([
            arriving(Addr::Pod, 8080).udp().is_direct(),
            arriving(Addr::Pod, 8080).udp_unconnected().is_direct(),
        ]),
    ]
}
