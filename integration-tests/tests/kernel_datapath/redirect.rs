//! Where connections land, and what their sockets say.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    thread,
};

use isthmus_accel_abi::{CidrKey, Hop, PortKey, RuleList};
use isthmus_accel_core::MapOp;

use crate::fixture::{
    APP, Fixture, PROXY, Pod, SO_ORIGINAL_DST, VIP, connect_from, original_dst, sockopt,
};

const OUTBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001);

#[test]
fn connections_follow_the_rules_of_their_pod() {
    let pod = Pod::alone([198, 18, 0, 1]);
    for addr in ["198.19.7.9/32", "198.19.8.1/32"] {
        pod.ip(&["addr", "add", addr, "dev", "lo"]);
    }
    let mut fixture = Fixture::load();
    let excluded_port = PortKey::new(
        pod.cookie,
        RuleList::EXCLUDE_OUTBOUND,
        3306_u16.to_be_bytes(),
    );
    fixture.apply(MapOp::PutPort(excluded_port));
    let excluded = CidrKey::v4(pod.cookie, RuleList::EXCLUDE_OUTBOUND, [198, 19, 8, 0], 24);
    fixture.apply(MapOp::PutCidr(excluded));
    fixture.add_pod(&pod);

    let to_other_range = SocketAddrV4::new(Ipv4Addr::new(198, 19, 8, 1), 80);
    let to_other_port = SocketAddrV4::new(*VIP.ip(), 3306);
    let to_self = SocketAddrV4::new(pod.addr, 80);
    let proxy = pod.listen(PROXY, OUTBOUND);
    let direct: Vec<(SocketAddrV4, TcpListener)> = [VIP, to_other_range, to_other_port, to_self]
        .map(|addr| (addr, pod.listen(0, addr)))
        .into();

    let cases = [
        (
            "an application's connection goes to the proxy",
            APP,
            APP,
            VIP,
            true,
        ),
        ("root is an application too", 0, 0, VIP, true),
        ("an excluded port does not", APP, APP, to_other_port, false),
        (
            "an excluded range does not",
            APP,
            APP,
            to_other_range,
            false,
        ),
        ("the pod's own address does not", APP, APP, to_self, false),
        ("the proxy's user is exempt", PROXY, APP, VIP, false),
        ("the proxy's group is exempt", APP, PROXY, VIP, false),
    ];
    for (name, uid, gid, to, is_redirected) in cases {
        let connect = move || TcpStream::connect(to).expect("somebody listens");
        let client = pod.spawn_as(uid, gid, connect).join().expect(name);
        let shown = client.peer_addr().expect(name);
        assert_eq!(shown, to.into(), "{name}: X3, what was dialled");
        if is_redirected {
            let (accepted, _) = proxy.accept().expect(name);
            assert_eq!(original_dst(&accepted).expect(name), to, "{name}");
            assert_eq!(
                original_dst(&client).expect(name),
                to,
                "{name}: the client, as with NAT"
            );
        } else {
            let (_, listener) = direct.iter().find(|(addr, _)| *addr == to).expect(name);
            let (accepted, _) = listener.accept().expect(name);
            assert!(
                sockopt(&accepted, libc::SOL_IP, SO_ORIGINAL_DST, 16).is_err(),
                "{name}"
            );
        }
    }
}

#[test]
fn a_proxy_reaches_the_inbound_listener_of_another_pod() {
    let (client, server) = Pod::pair();
    let mut fixture = Fixture::load();
    fixture.add_pod(&client);
    fixture.add_pod(&server);
    let inbound = server.listen(PROXY, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 15_006));
    let to = SocketAddrV4::new(server.addr, 8080);
    let dialled = client.connect(PROXY, to).expect("15006 listens");
    assert_eq!(dialled.peer_addr().expect("it is connected"), to.into());
    let (accepted, from) = inbound.accept().expect("a connection");
    let seen = accepted.peer_addr().expect("it is connected");
    assert_eq!(
        seen,
        dialled.local_addr().expect("it is bound"),
        "the accepting end sees who it is"
    );
    assert_eq!(original_dst(&accepted).expect("it was redirected"), to);
    assert_eq!(from.ip(), client.addr, "the source stays");
}

/// Both connections are there at once, and what each carries skips TCP.
#[test]
fn case_08_pods_with_the_same_tuple_do_not_meet() {
    let pods = [Pod::alone([198, 18, 0, 1]), Pod::alone([198, 18, 0, 2])];
    let mut fixture = Fixture::load();
    let mut ends = Vec::new();
    for pod in &pods {
        fixture.add_pod(pod);
        let listener = pod.listen(PROXY, OUTBOUND);
        let app = pod.run_as(APP, || {
            connect_from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 40_000), VIP)
        });
        let (proxy, from) = listener.accept().expect("a connection");
        assert_eq!(from.to_string(), "127.0.0.1:40000");
        ends.push((app, proxy));
    }
    let threads = ends
        .into_iter()
        .zip(1_u8..)
        .map(|((mut app, mut proxy), mark)| {
            thread::spawn(move || {
                for _ in 0..1_000 {
                    app.write_all(&[mark; 64]).expect("it is connected");
                    let mut bytes = [0; 64];
                    proxy.read_exact(&mut bytes).expect("it arrives");
                    assert_eq!(bytes, [mark; 64]);
                }
            })
        });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().expect("no byte crosses");
    }
    for pod in &pods {
        assert_eq!(fixture.hop(pod, Hop::APP_TO_PROXY).bytes_redirected, 64_000);
    }
}
