//! IPv4, IPv6, IPv4 by an IPv6 socket: where connections land, and what their sockets say.

use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream,
};

use isthmus_accel_abi::{PodConfig, PodFlags};
use isthmus_accel_core::MapOp;

use crate::fixture::{
    APP, Fixture, PROXY, Pod, SO_ORIGINAL_DST, VIP, connect_from, original_dst, original_dst_v6,
    sockopt,
};

const OWN: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const VIP_V6: SocketAddrV6 =
    SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9), 80, 0, 0);
const ENVOY_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const ENVOY_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// The proxy's listeners, both families each.
struct Proxy {
    outbound: [TcpListener; 2],
    inbound: [TcpListener; 2],
}

impl Proxy {
    fn listen(pod: &Pod) -> Self {
        let both = |port| {
            [
                pod.listen(PROXY, (Ipv4Addr::LOCALHOST, port)),
                pod.listen(PROXY, (Ipv6Addr::LOCALHOST, port)),
            ]
        };
        Self {
            outbound: both(15_001),
            inbound: both(15_006),
        }
    }
}

/// What the accepted socket answers, at the one level of its family. The other level must say what it
/// says on any other socket.
fn original(accepted: &TcpStream, other: &TcpStream) -> SocketAddr {
    let is_v4 = accepted.local_addr().expect("it is bound").is_ipv4();
    let wrong_level = if is_v4 {
        libc::IPPROTO_IPV6
    } else {
        libc::SOL_IP
    };
    let ask = |socket| {
        sockopt(socket, wrong_level, SO_ORIGINAL_DST, 28).map_err(|error| error.raw_os_error())
    };
    assert_eq!(ask(accepted), ask(other), "the other family's level");
    if is_v4 {
        original_dst(accepted).expect("it was redirected").into()
    } else {
        original_dst_v6(accepted).expect("it was redirected").into()
    }
}

fn mapped(addr: SocketAddrV4) -> SocketAddr {
    (addr.ip().to_ipv6_mapped(), addr.port()).into()
}

// Name, user, destination, the listener that gets it, and the original destination that it is told.
type Row<'a> = (&'a str, u32, SocketAddr, &'a TcpListener, SocketAddr);

#[test]
fn connections_land_at_the_listener_of_their_destinations_family() {
    let pod = Pod::alone([198, 18, 0, 1]);
    pod.add_ipv6(OWN);
    let mut fixture = Fixture::load();
    fixture.add_dual_stack_pod(&pod, OWN);
    let Proxy { outbound, inbound } = Proxy::listen(&pod);
    let [other_v4, other_v6] = [
        SocketAddr::from((ENVOY_SOURCE, 7777)),
        SocketAddr::from((ENVOY_SOURCE_V6, 7777)),
    ]
    .map(|addr| {
        let listener = pod.listen(APP, addr);
        let client = pod.connect(APP, addr).expect("it listens");
        (client, listener.accept().expect("a connection").0)
    });

    let own_service = SocketAddrV4::new(pod.addr, 8080);
    let validator = SocketAddrV4::new(ENVOY_SOURCE, 15_002);
    let rows: [Row<'_>; 7] = [
        ("IPv6", APP, VIP_V6.into(), &outbound[1], VIP_V6.into()),
        ("IPv4", APP, VIP.into(), &outbound[0], VIP.into()),
        ("v4-mapped", APP, mapped(VIP), &outbound[0], VIP.into()),
        (
            "O3, IPv4",
            PROXY,
            own_service.into(),
            &inbound[0],
            own_service.into(),
        ),
        (
            "O3, v4-mapped",
            PROXY,
            mapped(own_service),
            &inbound[0],
            own_service.into(),
        ),
        (
            "O3, IPv6",
            PROXY,
            (OWN, 8080).into(),
            &inbound[1],
            (OWN, 8080).into(),
        ),
        (
            "X6, IPv4",
            PROXY,
            validator.into(),
            &inbound[0],
            validator.into(),
        ),
    ];
    for (name, id, to, listener, expected) in rows {
        let client = pod.connect(id, to).expect(name);
        let (accepted, from) = listener.accept().expect(name);
        assert_eq!(
            client.peer_addr().expect(name),
            to,
            "{name}: X3, what was dialled"
        );
        assert_eq!(
            from.port(),
            client.local_addr().expect(name).port(),
            "{name}"
        );
        let other = if expected.is_ipv4() {
            &other_v4.1
        } else {
            &other_v6.1
        };
        assert_eq!(original(&accepted, other), expected, "{name}");
    }
}

#[test]
fn redirected_connections_come_from_where_they_would() {
    let pod = Pod::alone([198, 18, 0, 1]);
    pod.add_ipv6(OWN);
    let mut fixture = Fixture::load();
    let other = Ipv4Addr::new(198, 18, 0, 9);
    pod.ip(&["addr", "add", "198.18.0.9/32", "dev", "lo"]);
    fixture.apply(MapOp::PutAddr {
        addr: OWN.octets(),
        netns_cookie: pod.cookie,
    });
    let config = PodConfig::istio_default();
    fixture.add_pod_as(
        &pod,
        PodConfig {
            flags: config.flags.with(PodFlags::IPV6),
            source_v4: pod.addr.octets(),
            source_v6: OWN.octets(),
            ..config
        },
    );
    let Proxy { outbound, inbound } = Proxy::listen(&pod);
    let own_service = SocketAddr::from((pod.addr, 8080));

    let rows: [(&str, u32, SocketAddr, &TcpListener, IpAddr); 5] = [
        ("IPv4", APP, VIP.into(), &outbound[0], pod.addr.into()),
        ("v4-mapped", APP, mapped(VIP), &outbound[0], pod.addr.into()),
        ("IPv6", APP, VIP_V6.into(), &outbound[1], OWN.into()),
        ("O3, IPv4", PROXY, own_service, &inbound[0], pod.addr.into()),
        (
            "O3, IPv6",
            PROXY,
            (OWN, 8080).into(),
            &inbound[1],
            OWN.into(),
        ),
    ];
    for (name, id, to, listener, source) in rows {
        let client = pod.connect(id, to).expect(name);
        let (_, from) = listener.accept().expect(name);
        assert_eq!(from.ip(), source, "{name}");
        let own = client.local_addr().expect(name);
        assert_eq!(own.ip().to_canonical(), source, "{name}");
        assert_eq!(own.port(), from.port(), "{name}");
    }
    let bound = SocketAddrV4::new(other, 0);
    let _client = pod.run_as(APP, move || connect_from(bound, VIP));
    let (_, from) = outbound[0].accept().expect("a connection");
    assert_eq!(from.ip(), other, "a socket that is bound stays where it is");
}
