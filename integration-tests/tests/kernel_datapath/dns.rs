//! DNS of a pod whose agent answers it: rows D1 to D3 under Istio's rules alone, the accelerator alone, and
//! both; and what Istio's rules have no say in.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
};

use isthmus_accel_abi::{Counter, PodFlags, PortKey, RuleList};
use isthmus_accel_core::MapOp;

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect_unspec, socket_with,
    sockopt::set_socket_reuseaddr,
};

use crate::{
    dns_lab::{AGENT, Capture, Lab, Mode, OTHERS, SERVERS, UPSTREAM, dns, ip},
    fixture::{APP, PATIENCE, PROXY},
    nameserver::{id_of, identity_of, question, read_tcp, write_tcp},
};

/// Who answered, and as whom the answer came.
type Answer = (IpAddr, SocketAddr);

/// A socket that can send to `server`.
fn udp_socket(server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).expect("a port is free");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    socket
}

fn ask_unconnected(server: SocketAddr) -> Answer {
    let socket = udp_socket(server);
    exchange(&socket, || socket.send_to(&question(7), server))
}

fn ask_connected(server: SocketAddr) -> Answer {
    let socket = udp_socket(server);
    socket.connect(server).expect("a peer can be set");
    assert_eq!(socket.peer_addr().expect("it has a peer"), server, "X3");
    exchange(&socket, || socket.send(&question(7)))
}

/// Names the peer a second time, as some resolvers do.
fn ask_connected_by_name(server: SocketAddr) -> Answer {
    let socket = udp_socket(server);
    socket.connect(server).expect("a peer can be set");
    exchange(&socket, || socket.send_to(&question(7), server))
}

fn ask_by_tcp(server: SocketAddr) -> Answer {
    let mut stream = TcpStream::connect(server).expect("somebody listens");
    write_tcp(&mut stream, &question(7)).expect("a query can be sent");
    let answer = read_tcp(&mut stream).expect("an answer comes");
    let peer = stream.peer_addr().expect("it has a peer");
    (identity_of(&answer), peer)
}

/// Asks up to three times: datagrams may be lost, to the neighbour's table of a busy machine for one.
fn exchange(socket: &UdpSocket, send: impl Fn() -> io::Result<usize>) -> Answer {
    const ATTEMPTS: u32 = 3;
    let mut buffer = [0; 512];
    socket
        .set_read_timeout(Some(PATIENCE / ATTEMPTS))
        .expect("a timeout can be set");
    for _ in 0..ATTEMPTS {
        send().expect("a query can be sent");
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            return (identity_of(&buffer[..len]), from);
        }
    }
    panic!("no answer within {PATIENCE:?}");
}

fn receive(socket: &UdpSocket) -> Answer {
    let mut buffer = [0; 512];
    let (len, from) = socket.recv_from(&mut buffer).expect("an answer comes");
    assert_eq!(id_of(&buffer[..len]), 7);
    (identity_of(&buffer[..len]), from)
}

/// How an application asks a server.
type Ask = fn(SocketAddr) -> Answer;

const WAYS: [(&str, Ask); 4] = [
    ("unconnected", ask_unconnected),
    ("connected", ask_connected),
    ("connected, and named again", ask_connected_by_name),
    ("TCP", ask_by_tcp),
];

/// `server` as an IPv6 socket names it.
fn mapped(server: SocketAddr) -> SocketAddr {
    match server.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), server.port()),
        IpAddr::V6(_) => server,
    }
}

/// Asks these servers in every way; each answer comes from `identity`, in the name of who was asked.
fn assert_answered_by(
    lab: &Lab,
    ids: (u32, u32),
    servers: &[&str],
    identity: Ipv4Addr,
    name: &str,
) {
    for server in servers {
        let server = dns(server);
        for to in [server, mapped(server)] {
            for (way, ask) in WAYS {
                let (uid, gid) = ids;
                let asked = lab.pod.spawn_as(uid, gid, move || ask(to)).join();
                let answer = asked.unwrap_or_else(|_| panic!("{name}: {to}, {way}: no answer"));
                assert_eq!(answer, (identity.into(), to), "{name}: {to}, {way}");
            }
        }
    }
}

fn rows_hold(mode: Mode) {
    let lab = Lab::new(mode, Capture::Resolvers);
    assert_answered_by(&lab, (APP, APP), &SERVERS, AGENT, "D1, resolv.conf");
    assert_answered_by(&lab, (0, 0), &SERVERS[..1], AGENT, "D1, root");
    assert_answered_by(&lab, (APP, APP), &OTHERS, UPSTREAM, "D1, others");
    assert_answered_by(&lab, (PROXY, APP), &SERVERS[..3], UPSTREAM, "D3, user");
    assert_answered_by(&lab, (APP, PROXY), &SERVERS[..3], UPSTREAM, "D3, group");
    drop(lab);

    let lab = Lab::new(mode, Capture::All);
    assert_answered_by(&lab, (APP, APP), &OTHERS, AGENT, "D1, all");
    assert_answered_by(&lab, (PROXY, PROXY), &OTHERS, UPSTREAM, "D3, all");
    drop(lab);

    let lab = Lab::new(mode, Capture::ResolversButPort53);
    assert_answered_by(&lab, (APP, APP), &SERVERS, UPSTREAM, "O1");
    drop(lab);

    let lab = Lab::new(mode, Capture::Off);
    assert_answered_by(&lab, (APP, APP), &SERVERS, UPSTREAM, "not captured");
}

#[test]
fn rows_hold_under_istios_rules_alone() {
    rows_hold(Mode::Iptables);
}

#[test]
fn rows_hold_under_the_accelerator_alone() {
    rows_hold(Mode::Accelerator);
}

#[test]
fn rows_hold_under_both() {
    rows_hold(Mode::Both);
}

#[test]
fn the_accelerator_counts_what_it_sends_to_the_agent() {
    let lab = Lab::new(Mode::Both, Capture::Resolvers);
    let server = dns(SERVERS[0]);
    lab.as_app(move || (ask_unconnected(server), ask_connected(server)));
    assert_eq!(lab.counter(Counter::DnsQueries), 2);
    let other = dns(OTHERS[0]);
    lab.as_app(move || (ask_unconnected(other), ask_connected(other)));
    assert_eq!(
        lab.counter(Counter::DnsQueries),
        2,
        "not what it leaves alone"
    );
}

/// musl sends each question to all servers at once, from one socket, and takes an answer from any.
#[test]
fn answers_to_one_socket_come_from_servers_that_it_asked() {
    for mode in [Mode::Iptables, Mode::Accelerator, Mode::Both] {
        let lab = Lab::new(mode, Capture::Resolvers);
        let sources = lab.as_app(|| {
            let socket = udp_socket(mapped(dns(SERVERS[0])));
            for server in SERVERS {
                socket
                    .send_to(&question(7), mapped(dns(server)))
                    .expect("a query can be sent");
            }
            SERVERS.map(|_| receive(&socket))
        });
        for (identity, source) in sources {
            assert_eq!(identity, IpAddr::from(AGENT), "{mode:?}");
            let is_asked = SERVERS.iter().any(|server| mapped(dns(server)) == source);
            assert!(is_asked, "{mode:?}: {source} was not asked");
        }
    }
}

#[test]
fn one_server_after_the_other_is_told_apart() {
    let lab = Lab::new(Mode::Accelerator, Capture::Resolvers);
    lab.as_app(|| {
        let socket = udp_socket(mapped(dns(SERVERS[0])));
        for server in [
            SERVERS[0], OTHERS[0], SERVERS[2], SERVERS[1], OTHERS[1], SERVERS[3],
        ] {
            let server = mapped(dns(server));
            socket
                .send_to(&question(7), server)
                .expect("a query can be sent");
            assert_eq!(receive(&socket).1, server);
        }
        // Who asks the agent itself hears from the agent itself.
        let agent = mapped(SocketAddr::new(ip("127.0.0.1"), 15_053));
        socket
            .send_to(&question(7), agent)
            .expect("a query can be sent");
        assert_eq!(receive(&socket), (AGENT.into(), agent));

        // The same with peers, one after the other.
        for server in [SERVERS[0], OTHERS[0], SERVERS[1]] {
            let server = mapped(dns(server));
            // A socket with a port of its own keeps the source address of its first peer, loopback, from
            // which no other host can be asked.
            connect_unspec(&socket).expect("a peer can be taken away");
            socket.connect(server).expect("a peer can be set");
            socket.send(&question(7)).expect("a query can be sent");
            assert_eq!(receive(&socket).1, server);
            assert_eq!(socket.peer_addr().expect("it has a peer"), server);
        }
        socket.connect(agent).expect("a peer can be set");
        assert_eq!(socket.peer_addr().expect("it has a peer"), agent);
    });
}

#[test]
fn every_call_that_shows_a_source_shows_the_server() {
    let lab = Lab::new(Mode::Accelerator, Capture::Resolvers);
    lab.as_app(|| {
        let server = dns(SERVERS[0]);
        let socket = udp_socket(server);
        socket
            .send_to(&question(7), server)
            .expect("a query can be sent");
        let mut buffer = [0; 512];
        for _ in 0..2 {
            let (_, from) = socket.peek_from(&mut buffer).expect("an answer comes");
            assert_eq!(from, server, "MSG_PEEK");
        }
        assert_eq!(receive(&socket).1, server, "after MSG_PEEK");

        for _ in 0..2 {
            socket
                .send_to(&question(7), server)
                .expect("a query can be sent");
        }
        assert_eq!(many_sources(&socket, 2), [server; 2], "recvmmsg");
    });
}

/// Receives `count` datagrams by one recvmmsg(2); returns where they came from.
fn many_sources(socket: &UdpSocket, count: usize) -> Vec<SocketAddr> {
    // SAFETY: all zero is a valid value of each of these.
    let mut names: Vec<libc::sockaddr_in> = vec![unsafe { std::mem::zeroed() }; count];
    let headers = names.iter_mut().map(|name| {
        // SAFETY: as above.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
        header.msg_hdr.msg_namelen = 16;
        header
    });
    let mut headers: Vec<libc::mmsghdr> = headers.collect();
    // SAFETY: as many headers as are passed, each with a name of its own.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            u32::try_from(count).expect("a few"),
            0,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(usize::try_from(received), Ok(count), "all of them");
    let address = |name: &libc::sockaddr_in| {
        let octets = name.sin_addr.s_addr.to_ne_bytes();
        SocketAddr::new(octets.into(), u16::from_be(name.sin_port))
    };
    names.iter().map(address).collect()
}

/// D2: with NAT, conntrack would take the one for the other.
#[test]
fn agent_and_application_may_use_one_source_port_in_turn() {
    for mode in [Mode::Iptables, Mode::Accelerator, Mode::Both] {
        let lab = Lab::new(mode, Capture::Resolvers);
        for server in [SERVERS[0], SERVERS[2]].map(dns) {
            let source = SocketAddr::new(lab.pod_addr(server), 40_053);
            let ask = move || ask_from(&shared_socket(source, server));
            for round in 0..3 {
                let answer = lab.as_app(ask);
                assert_eq!(answer, (AGENT.into(), server), "{mode:?}, {round}: app");
                let answer = lab.pod.run_as(PROXY, ask);
                assert_eq!(
                    answer,
                    (UPSTREAM.into(), server),
                    "{mode:?}, {round}: agent"
                );
            }
        }
    }
}

/// Istio's rules leave both with one tuple, so that the kernel gives all answers to one of them.
#[test]
fn agent_and_application_may_use_one_source_port_at_once() {
    for mode in [Mode::Accelerator, Mode::Both] {
        let lab = Lab::new(mode, Capture::Resolvers);
        for server in [SERVERS[0], SERVERS[2]].map(dns) {
            let source = SocketAddr::new(lab.pod_addr(server), 40_053);
            let connect = move || shared_socket(source, server);
            let (mut app, mut agent) = (lab.as_app(connect), lab.pod.run_as(PROXY, connect));
            for round in 0..3 {
                let answer;
                (answer, app) = lab.as_app(move || (ask_from(&app), app));
                assert_eq!(answer, (AGENT.into(), server), "{mode:?}, {round}: app");
                let answer;
                (answer, agent) = lab.pod.run_as(PROXY, move || (ask_from(&agent), agent));
                assert_eq!(
                    answer,
                    (UPSTREAM.into(), server),
                    "{mode:?}, {round}: agent"
                );
            }
        }
    }
}

fn ask_from(socket: &UdpSocket) -> Answer {
    exchange(socket, || socket.send(&question(7)))
}

/// A socket with a peer, on an address that another may have as well.
fn shared_socket(source: SocketAddr, peer: SocketAddr) -> UdpSocket {
    let family = if source.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .expect("a socket can be made");
    set_socket_reuseaddr(&fd, true).expect("an address can be shared");
    bind(&fd, &source).expect("the port is free, or shared");
    let socket = UdpSocket::from(fd);
    socket.connect(peer).expect("a peer can be set");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    socket
}

/// A socket without an address or a port, as most resolvers connect it.
fn unbound_socket(server: SocketAddr) -> UdpSocket {
    let family = if server.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .expect("a socket can be made");
    UdpSocket::from(fd)
}

#[test]
fn queries_come_from_where_they_would() {
    for mode in [Mode::Iptables, Mode::Accelerator, Mode::Both] {
        let mut lab = Lab::new(mode, Capture::All);
        lab.stop_agent();
        for server in [SERVERS[0], SERVERS[2]].map(dns) {
            let at = if server.is_ipv4() { "127.0.0.1" } else { "::1" };
            let agent = lab.pod.run_as(PROXY, move || {
                UdpSocket::bind((ip(at), 15_053)).expect("the address is free")
            });
            let own = lab.pod_addr(server);
            for (peer, source) in [(server, own), (SocketAddr::new(own, 53), own)] {
                for to in [peer, mapped(peer)] {
                    let sockets = lab.as_app(move || {
                        let (connected, other) = (unbound_socket(to), unbound_socket(to));
                        connected.connect(to).expect("a peer can be set");
                        connected.send(b"?").expect("a query can be sent");
                        let shown = connected.local_addr().expect("it has an address");
                        assert_eq!(shown.ip().to_canonical(), source, "getsockname");
                        other.send_to(b"?", to).expect("a query can be sent");
                        (connected, other)
                    });
                    for _ in 0..2 {
                        let (_, from) = agent.recv_from(&mut [0; 8]).expect("a query comes");
                        assert_eq!(from.ip(), source, "{mode:?}: {to}");
                    }
                    drop(sockets);
                }
            }
        }
    }
}

#[test]
fn a_socket_may_have_captured_and_other_peers_in_turn() {
    let lab = Lab::new(Mode::Accelerator, Capture::Resolvers);
    for servers in [[SERVERS[0], OTHERS[0]], [SERVERS[2], OTHERS[1]]] {
        lab.as_app(move || {
            let socket = unbound_socket(dns(servers[0]));
            for server in [servers[0], servers[1], servers[0]].map(dns) {
                socket.connect(server).expect("a peer can be set");
                socket.send(&question(7)).expect("a query can be sent");
                assert_eq!(receive(&socket).1, server);
            }
        });
    }
}

#[test]
fn without_an_agent_queries_are_refused_until_it_starts() {
    for mode in [Mode::Iptables, Mode::Accelerator, Mode::Both] {
        let mut lab = Lab::new(mode, Capture::Resolvers);
        lab.stop_agent();
        for server in [SERVERS[0], SERVERS[2]].map(dns) {
            let by_tcp = lab.as_app(move || TcpStream::connect(server).map(drop));
            let kind = by_tcp.map_err(|error| error.kind());
            assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{mode:?}: TCP");
            // Istio's rules keep the kernel's refusal of a datagram from the socket: conntrack looks for
            // it in another zone.
            if mode != Mode::Iptables {
                let by_udp = lab.as_app(move || {
                    let socket = udp_socket(server);
                    socket.connect(server).expect("a peer can be set");
                    socket.send(&question(7)).expect("a query can be sent");
                    socket.recv(&mut [0; 512])
                });
                let kind = by_udp.map_err(|error| error.kind());
                assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{mode:?}: UDP");
            }
        }
        lab.start_agent();
        let name = format!("{mode:?}, once it listens");
        assert_answered_by(&lab, (APP, APP), &SERVERS[..3], AGENT, &name);
    }
}

#[test]
fn sockets_that_had_a_peer_before_the_pod_was_captured_keep_it() {
    let mut lab = Lab::new(Mode::Accelerator, Capture::Off);
    let servers = [dns(SERVERS[0]), mapped(dns(SERVERS[0])), dns(SERVERS[2])];
    let sockets = lab.as_app(move || {
        servers.map(|server| {
            let socket = udp_socket(server);
            socket.connect(server).expect("a peer can be set");
            socket
        })
    });
    lab.set_flags(PodFlags::IPV6.with(PodFlags::DNS).with(PodFlags::DNS_ALL));
    for (server, socket) in servers.into_iter().zip(sockets) {
        let answer = lab.as_app(move || {
            socket.send(&question(7)).expect("a query can be sent");
            receive(&socket)
        });
        assert_eq!(answer, (UPSTREAM.into(), server));
    }
}

#[test]
fn rules_of_a_running_pod_may_change() {
    let mut lab = Lab::new(Mode::Accelerator, Capture::Resolvers);
    let excluded = PortKey::new(
        lab.pod.cookie,
        RuleList::EXCLUDE_OUTBOUND,
        53_u16.to_be_bytes(),
    );
    let server = &SERVERS[..1];
    assert_answered_by(&lab, (APP, APP), server, AGENT, "at first");
    lab.apply(MapOp::PutPort(excluded));
    assert_answered_by(&lab, (APP, APP), server, UPSTREAM, "O1 comes");
    lab.apply(MapOp::RemovePort(excluded));
    assert_answered_by(&lab, (APP, APP), server, AGENT, "O1 goes");
    lab.apply(MapOp::RemovePod {
        netns_cookie: lab.pod.cookie,
    });
    assert_answered_by(&lab, (APP, APP), server, UPSTREAM, "the pod goes");
}
