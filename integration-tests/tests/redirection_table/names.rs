//! Rows D1 to D3: DNS.

use crate::net::{Addr, V4_ONLY};
use crate::row::{Row, app, proxy, row};

pub(crate) fn rows() -> Vec<Row> {
    vec![
        row("D1: the pod's own name servers, by UDP and by TCP")
            .dns()
            .dials([
                app(Addr::NameServer, 53).udp().is_dns(),
                app(Addr::NameServer, 53).udp_unconnected().is_dns(),
                app(Addr::NameServer, 53).is_dns(),
                app(Addr::OtherNameServer, 53).udp().is_direct(),
                app(Addr::OtherNameServer, 53).udp_unconnected().is_direct(),
                app(Addr::OtherNameServer, 53).is_outbound(),
                app(Addr::NameServer, 80).is_outbound(),
                app(Addr::NameServer, 8080).udp().is_direct(),
            ]),
        row("D1: every server, if all DNS is captured")
            .dns()
            .metadata("CAPTURE_ALL_DNS", "true")
            .dials([
                app(Addr::OtherNameServer, 53).udp().is_dns(),
                app(Addr::OtherNameServer, 53).udp_unconnected().is_dns(),
                app(Addr::OtherNameServer, 53).is_dns(),
                app(Addr::Loopback, 53).udp().is_dns(),
                app(Addr::Loopback, 53).is_dns(),
                app(Addr::Pod, 53).udp_unconnected().is_dns(),
            ]),
        row("D1: not an excluded port")
            .dns()
            .annotation("excludeOutboundPorts", "53")
            .dials([
                app(Addr::NameServer, 53).udp().is_direct(),
                app(Addr::NameServer, 53).udp_unconnected().is_direct(),
                app(Addr::NameServer, 53).is_direct(),
            ]),
        row("D1: not an excluded group")
            .dns()
            .metadata("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "2000")
            .dials([
                app(Addr::NameServer, 53).by(1000, 2000).udp().is_direct(),
                app(Addr::NameServer, 53).by(1000, 2000).is_direct(),
                app(Addr::NameServer, 53).udp().is_dns(),
            ]),
        row("D1: before the ranges")
            .dns()
            .annotation("excludeOutboundIPRanges", "198.19.0.0/16,fd19::/16")
            .dials([
                app(Addr::NameServer, 53).udp().is_dns(),
                app(Addr::NameServer, 53).is_dns(),
            ]),
        row("D1: DNS is left alone where it is not captured").dials([
            app(Addr::NameServer, 53).udp().is_direct(),
            app(Addr::NameServer, 53).udp_unconnected().is_direct(),
            app(Addr::NameServer, 53).is_outbound(),
        ]),
        row("D2: application and sidecar by one source port")
            .dns()
            .dials([
                // With an address too: a socket with a port alone would have a peer on loopback from loopback.
                app(Addr::NameServer, 53)
                    .bound_to(Addr::Pod)
                    .source_port(30_053)
                    .udp()
                    .is_dns(),
                proxy(Addr::NameServer, 53)
                    .source_port(30_053)
                    .udp()
                    .is_direct(),
                app(Addr::NameServer, 53)
                    .source_port(30_053)
                    .udp_unconnected()
                    .is_dns(),
            ]),
        row("D3: the sidecar's own questions leave").dns().dials([
            proxy(Addr::NameServer, 53).udp().is_direct(),
            proxy(Addr::NameServer, 53).udp_unconnected().is_direct(),
            proxy(Addr::NameServer, 53).is_direct(),
            proxy(Addr::NameServer, 53).by(0, 1337).udp().is_direct(),
            proxy(Addr::NameServer, 53).by(0, 1337).is_direct(),
            proxy(Addr::Pod, 53).only(V4_ONLY).is_direct(),
        ]),
    ]
}
