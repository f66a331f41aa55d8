//! What arrives at a pod, with Istio's iptables, with `sk_lookup`, and with both: the same end.

use std::{
    io,
    net::{
        IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream, UdpSocket,
    },
};

use isthmus_accel_abi::InterfaceKey;
use isthmus_accel_core::MapOp;
use isthmus_integration_tests::iptables::Ports;

use crate::{
    cable::{
        APPLICATION, Cable, INBOUND_PORT, Mode, SERVER_V6, SIDECAR, Seen, accept, accept_any,
        connect_by_eth0, ifindex, listen, original_dst, policy,
    },
    fixture::{APP, PATIENCE, PROXY},
};

const V4_ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6_ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

#[test]
fn each_rule_ends_where_istio_ends_it() {
    let listed = |ports: &[u16]| Ports::Listed(ports.to_vec());
    let all = || policy(Ports::All, &[15_021]);
    let cases = [
        ("I3: the tunnel", all(), 15_008, APPLICATION),
        ("I4: excluded", all(), 15_021, APPLICATION),
        ("I5: the rest", all(), 8080, SIDECAR),
        ("I5: nobody listens there", all(), 7070, SIDECAR),
        (
            "I6: listed",
            policy(listed(&[8080]), &[8080]),
            8080,
            SIDECAR,
        ),
        (
            "I6: not listed",
            policy(listed(&[8080]), &[]),
            9090,
            APPLICATION,
        ),
        ("I7: none", policy(listed(&[]), &[]), 8080, APPLICATION),
        ("the inbound port itself", all(), INBOUND_PORT, SIDECAR),
    ];
    for (name, policy, port, by) in cases {
        for mode in Mode::ALL {
            let cable = Cable::new();
            let listeners = cable.listen(&[8080, 9090, 15_008, 15_021]);
            let _fixture = cable.capture(mode, &policy);
            for addr in cable.addrs() {
                let to = SocketAddr::new(addr, port);
                let seen = cable.dial(to, &listeners);
                seen.assert(&format!("{name}, {mode:?}, {to}"), by, to);
            }
        }
    }
}

#[test]
fn what_arrives_by_an_excluded_interface_is_left_alone() {
    const SECOND_CLIENT: &str = "198.18.1.1";
    const SECOND_SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
    for mode in Mode::ALL {
        let cable = Cable::new();
        cable.add_interface("net1", SECOND_CLIENT, &SECOND_SERVER.to_string());
        let listeners = cable.listen(&[8080]);
        let mut fixture = cable.capture(mode, &policy(Ports::All, &[]));
        if mode != Mode::Accelerator {
            cable.run(
                "iptables",
                &["-I", "PREROUTING", "-i", "net1", "-j", "RETURN"],
            );
        }
        if let Some(fixture) = &mut fixture {
            let key = InterfaceKey::new(cable.server.cookie, cable.ifindex("net1"));
            fixture.apply(MapOp::PutInterface(key));
        }
        for (addr, by) in [(SECOND_SERVER, APPLICATION), (cable.server.addr, SIDECAR)] {
            let to = SocketAddr::new(addr.into(), 8080);
            let seen = cable.dial(to, &listeners);
            seen.assert(&format!("I1, {mode:?}, {to}"), by, to);
        }
    }
}

#[test]
fn datagrams_are_never_captured() {
    for mode in Mode::ALL {
        let cable = Cable::new();
        let _listeners = cable.listen(&[8080]);
        let _fixture = cable.capture(mode, &policy(Ports::All, &[]));
        for addr in cable.addrs() {
            let to = SocketAddr::new(addr, 8080);
            let bind = move |addr| UdpSocket::bind(addr).expect("the port is free");
            let server = cable.server.run_as(APP, move || bind(to));
            let any = SocketAddr::new(if addr.is_ipv4() { V4_ANY } else { V6_ANY }, 0);
            let client = cable.client.run_as(APP, move || bind(any));
            client.send_to(b"datagram", to).expect("there is a route");
            server.set_read_timeout(Some(PATIENCE)).expect("it can be");
            let mut bytes = [0; 8];
            let received = server.recv_from(&mut bytes).map(|(length, _)| length);
            assert_eq!(received.expect("I8: it arrives"), 8, "{mode:?}, {to}");
        }
    }
}

#[test]
fn a_pod_that_dials_itself_is_not_captured() {
    for mode in Mode::ALL {
        let cable = Cable::new();
        let listeners = cable.listen(&[8080]);
        let mut fixture = cable.capture(mode, &policy(Ports::All, &[]));
        if let Some(fixture) = &mut fixture {
            fixture.apply(MapOp::PutAddr {
                addr: SERVER_V6.octets(),
                netns_cookie: cable.server.cookie,
            });
        }
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for addr in cable.addrs().into_iter().chain(loopback) {
            let to = SocketAddr::new(addr, 8080);
            let client = cable.server.connect(APP, to);
            let client = client.unwrap_or_else(|error| panic!("{mode:?}, {to}: {error}"));
            let source = client.local_addr().expect("it is connected");
            let (by, _accepted) = accept(source, &listeners);
            assert_eq!(by, APPLICATION, "O4, {mode:?}, {to}");
        }
        // Such a packet takes `lo` too, but is shown with the device that was named.
        let to = SocketAddrV4::new(cable.server.addr, 8080);
        let client = cable.server.run_as(APP, move || connect_by_eth0(to));
        let source = client.local_addr().expect("it is connected");
        let (by, _accepted) = accept(source, &listeners);
        assert_eq!(by, APPLICATION, "O4, {mode:?}, {to} by eth0");
    }
}

#[test]
fn a_link_local_address_is_no_way_around_the_proxy() {
    for mode in Mode::ALL {
        let cable = Cable::new();
        let listeners = cable.listen(&[8080]);
        let _fixture = cable.capture(mode, &policy(Ports::All, &[]));
        let addr = cable.server_link_local();
        let scope = cable.client.run_as(0, || ifindex("eth0"));
        let to = SocketAddr::V6(SocketAddrV6::new(addr, 8080, 0, scope));
        let client = cable
            .client
            .run_as(APP, move || TcpStream::connect_timeout(&to, PATIENCE));
        let client = client.expect("the proxy listens");
        let (by, accepted) = accept_any(&listeners);
        assert_eq!(by, SIDECAR, "{mode:?}");
        assert_eq!(
            original_dst(&accepted).map(|addr| addr.ip()),
            Some(addr.into()),
            "{mode:?}"
        );
        drop(client);
    }
}

#[test]
fn without_a_listener_a_connection_is_refused_until_there_is_one() {
    for mode in Mode::ALL {
        let cable = Cable::new();
        let application = ("application", listen(&cable.server, APP, 8080));
        let _fixture = cable.capture(mode, &policy(Ports::All, &[]));
        for addr in cable.addrs() {
            let to = SocketAddr::new(addr, 8080);
            let seen = cable.dial(to, std::slice::from_ref(&application));
            assert_eq!(
                seen,
                Seen::Failed(io::ErrorKind::ConnectionRefused),
                "{mode:?}, {to}: never plaintext past the proxy"
            );
        }
        let sidecar = (SIDECAR, listen(&cable.server, PROXY, INBOUND_PORT));
        let listeners = [application, sidecar];
        for addr in cable.addrs() {
            let to = SocketAddr::new(addr, 8080);
            let seen = cable.dial(to, &listeners);
            seen.assert(&format!("{mode:?}, {to}"), SIDECAR, to);
        }
    }
}

#[test]
fn whichever_goes_the_other_is_enough() {
    for leaves in [Mode::Iptables, Mode::Accelerator] {
        let cable = Cable::new();
        let listeners = cable.listen(&[8080]);
        let mut fixture = cable.capture(Mode::Both, &policy(Ports::All, &[]));
        if leaves == Mode::Iptables {
            cable.remove_iptables();
        } else {
            fixture = None;
        }
        for addr in cable.addrs() {
            let to = SocketAddr::new(addr, 8080);
            let seen = cable.dial(to, &listeners);
            seen.assert(&format!("without {leaves:?}, {to}"), SIDECAR, to);
        }
        drop(fixture);
    }
}
