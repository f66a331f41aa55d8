//! NAT between the two ends of a connection, which then see two tuples: where a pod keeps Istio's rules, conntrack
//! gives a connection another port if one that went by them had the same.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
};

use isthmus_accel_abi::{Counter, Hop, HopStats, PassReason, PodFlags, map};
use isthmus_accel_core::MapOp;
use isthmus_accel_datapath::Datapath as _;
use isthmus_integration_tests::iptables::{Capture, INBOUND_PORT, OUTBOUND_PORT};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use crate::{
    cable::{CLIENT_V6, Cable, add_iptables, original_dst},
    fixture::{APP, Fixture, PATIENCE, PROXY, Pod, VIP, set_sockopt, wait_until},
};

const SIZE: usize = 300;
/// A source port; the ones after it are used too.
const PORT: u16 = 40_000;

/// What happens to the connection by way of iptables before the next one has its port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum First {
    Closed,
    Open,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Accepting {
    AtOnce,
    /// `TCP_DEFER_ACCEPT`: the accepting end is made by the first bytes.
    Deferred,
    /// By a SYN cookie: nothing is kept of the SYN.
    ByCookie,
}

/// A connection, both ends.
struct Pair {
    client: TcpStream,
    accepted: TcpStream,
}

impl Pair {
    /// Lets both ends say something.
    fn talk(&mut self, mark: u8) {
        say(&mut self.client, &mut self.accepted, mark);
        say(&mut self.accepted, &mut self.client, mark);
    }

    fn port_at_accepted(&self) -> u16 {
        let peer = self.accepted.peer_addr().expect("it is connected");
        let own = self.client.local_addr().expect("it is connected");
        assert_eq!(peer.ip(), own.ip(), "NAT here changes ports only");
        peer.port()
    }
}

fn say(writer: &mut TcpStream, reader: &mut TcpStream, mark: u8) {
    writer.write_all(&[mark; SIZE]).expect("it is connected");
    let mut bytes = [0; SIZE];
    reader.read_exact(&mut bytes).expect("it arrives");
    assert_eq!(bytes, [mark; SIZE]);
}

fn end(writer: &TcpStream, mut reader: &TcpStream) {
    writer.shutdown(Shutdown::Write).expect("it is connected");
    assert_eq!(reader.read(&mut [0]).expect("it ends"), 0);
}

fn listen(pod: &Pod, addr: impl Into<SocketAddr>, accepting: Accepting) -> TcpListener {
    let listener = pod.listen(PROXY, addr);
    match accepting {
        Accepting::AtOnce => {}
        Accepting::Deferred => {
            set_sockopt(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 30);
        }
        Accepting::ByCookie => write(pod, "net/ipv4/tcp_syncookies", "2"),
    }
    listener
}

/// Connects from a port that others may have, to other destinations.
fn connect(pod: &Pod, id: u32, from: SocketAddr, to: SocketAddr) -> TcpStream {
    pod.run_as(id, move || {
        let socket = bound(from, SocketFlags::empty());
        rustix::net::connect(&socket, &to).expect("somebody listens");
        socket.into()
    })
}

fn bound(from: SocketAddr, flags: SocketFlags) -> std::os::fd::OwnedFd {
    let family = if from.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, flags, None).expect("it can be made");
    sockopt::set_socket_reuseaddr(&socket, true).expect("the option can be set");
    bind(&socket, &from).expect("the address is the pod's");
    socket
}

fn pair(pod: &Pod, id: u32, (from, to): (SocketAddr, SocketAddr), listener: &TcpListener) -> Pair {
    let mut client = connect(pod, id, from, to);
    // A listener that defers waits for it.
    client.write_all(&[0; SIZE]).expect("it is connected");
    let (mut accepted, _) = listener.accept().expect("a connection");
    for stream in [&client, &accepted] {
        let set = stream.set_read_timeout(Some(PATIENCE));
        set.expect("a timeout can be set");
    }
    accepted
        .read_exact(&mut [0; SIZE])
        .expect("what was sent arrives");
    assert_eq!(original_dst(&accepted), Some(to), "{from} to {to}");
    assert_eq!(client.peer_addr().expect("it is connected"), to);
    Pair { client, accepted }
}

fn entries(fixture: &Fixture, name: &str) -> u32 {
    let usage = fixture.datapath.map_usage().expect("the maps can be read");
    let row = usage.iter().find(|row| row.name == name);
    row.expect("it is listed").entries
}

fn wait_until_nothing_is_left(fixture: &Fixture) {
    assert_eq!(
        entries(fixture, map::ORIG_DST_BY_TUPLE),
        0,
        "all were taken"
    );
    assert_eq!(entries(fixture, map::HANDSHAKES), 0, "all are established");
    wait_until("nothing is left", || {
        [map::ENDS, map::SOCKETS].map(|name| entries(fixture, name)) == [0; 2]
    });
    assert_eq!(fixture.counter(Counter::TuplesFull), 0);
}

/// One family, as far as an application and its sidecar are concerned.
struct Family {
    own: IpAddr,
    loopback: IpAddr,
    services: [SocketAddr; 2],
}

impl Family {
    fn both(pod: &Pod) -> [Self; 2] {
        let service = |last: u16| Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, last);
        [
            Self {
                own: pod.addr.into(),
                loopback: Ipv4Addr::LOCALHOST.into(),
                services: [7, 8].map(|last| (Ipv4Addr::new(198, 19, 7, last), 80).into()),
            },
            Self {
                own: CLIENT_V6.into(),
                loopback: Ipv6Addr::LOCALHOST.into(),
                services: [7, 8].map(|last| (service(last), 80).into()),
            },
        ]
    }
}

#[test]
fn an_application_whose_port_went_by_iptables_reaches_its_proxy() {
    for accepting in [Accepting::AtOnce, Accepting::Deferred, Accepting::ByCookie] {
        let cable = Cable::new();
        let pod = &cable.client;
        pod.ip(&["-6", "route", "add", "default", "dev", "eth0"]);
        add_iptables(pod, &Capture::default());
        let mut fixture = Fixture::load();
        for family in Family::both(pod) {
            let [former, next] = family.services;
            let listener = listen(pod, (family.loopback, OUTBOUND_PORT), accepting);
            let firsts = [(First::Closed, PORT), (First::Open, PORT + 1)].map(|(first, port)| {
                let from = SocketAddr::new(family.own, port);
                let pair = pair(pod, APP, (from, former), &listener);
                (from, (first == First::Open).then_some(pair))
            });

            fixture.add_dual_stack_pod(pod, CLIENT_V6);
            for (from, mut first) in firsts {
                let mut second = pair(pod, APP, (from, next), &listener);
                let name = format!("{from}, {accepting:?}");
                assert_ne!(second.port_at_accepted(), from.port(), "{name}");
                second.talk(7);
                if let Some(first) = &mut first {
                    first.talk(8);
                }
            }
            wait_until_nothing_is_left(&fixture);
            let netns_cookie = pod.cookie;
            fixture.apply(MapOp::RemovePod { netns_cookie });
        }
    }
}

/// A pod whose application lets messages skip TCP both ways.
struct OptedIn {
    cable: Cable,
    listener: TcpListener,
    fixture: Fixture,
}

impl OptedIn {
    /// Makes it with a connection that went by Istio's rules, and is open.
    fn after_a_first_connection() -> (Self, Pair) {
        let cable = Cable::new();
        let pod = &cable.client;
        add_iptables(pod, &Capture::default());
        let outbound = (Ipv4Addr::LOCALHOST, OUTBOUND_PORT);
        let listener = listen(pod, outbound, Accepting::AtOnce);
        let mut fixture = Fixture::load();
        let first = pair(pod, APP, (source(pod, PORT), service(1)), &listener);
        fixture.add_pod_with(pod, PodFlags::APP_WRITES.with(PodFlags::APP_READS));
        let opted_in = Self {
            cable,
            listener,
            fixture,
        };
        (opted_in, first)
    }

    fn pod(&self) -> &Pod {
        &self.cable.client
    }

    fn connect(&self, port: u16, to: SocketAddr) -> Pair {
        pair(
            self.pod(),
            APP,
            (source(self.pod(), port), to),
            &self.listener,
        )
    }
}

fn source(pod: &Pod, port: u16) -> SocketAddr {
    (pod.addr, port).into()
}

fn service(last: u8) -> SocketAddr {
    (Ipv4Addr::new(198, 19, 7, last), 80).into()
}

fn assert_all_skips_tcp(stats: &HopStats, bytes: usize) {
    assert_eq!(stats.bytes_total, bytes as u64, "{stats:?}");
    assert_eq!(stats.bytes_redirected, stats.bytes_total, "{stats:?}");
}

/// Conntrack gives the second one the port of the third, which then is given another itself: by the tuples
/// alone, each would take the other for its own.
#[test]
fn connections_that_see_two_tuples_skip_tcp() {
    let (net, mut first) = OptedIn::after_a_first_connection();
    let mut second = net.connect(PORT, service(2));
    let given = second.port_at_accepted();
    assert_ne!(given, PORT);
    let mut third = net.connect(given, service(3));
    assert_ne!(third.port_at_accepted(), given);
    for mark in 0..3 {
        first.talk(mark);
        second.talk(mark + 10);
        third.talk(mark + 20);
    }
    let said = 2 * 3 * SIZE;
    let greetings = 2 * SIZE;
    let hop = |hop| net.fixture.hop(net.pod(), hop);
    assert_all_skips_tcp(&hop(Hop::APP_TO_PROXY), said + greetings);
    assert_all_skips_tcp(&hop(Hop::PROXY_TO_APP_RETURN), said);
    drop((first, second, third));
    wait_until_nothing_is_left(&net.fixture);
}

/// An accepting end outlives the other, whose port is used again: neither the messages of the next one nor
/// the answers to it go astray, and what is unread there stays.
#[test]
fn a_port_that_is_used_again_belongs_to_its_new_owner() {
    let (net, _first) = OptedIn::after_a_first_connection();
    let mut former = net.connect(PORT, service(2));
    assert_ne!(former.port_at_accepted(), PORT);
    let Pair { client, accepted } = &mut former;
    client.write_all(&[1; SIZE]).expect("it is connected");
    // Conntrack forgets it, and the other end does not hear of it.
    let setting = "net/netfilter/nf_conntrack_tcp_timeout_close";
    write(net.pod(), setting, "0");
    let drop_resets = "-A INPUT -p tcp --tcp-flags RST RST -j DROP";
    iptables(net.pod(), drop_resets);
    // Not by close(2): another test's child may have the descriptor for a moment.
    rustix::net::connect_unspec(client).expect("it can be taken apart");

    let mut latter = net.connect(PORT, service(3));
    latter.talk(2);
    let _ = accepted.write_all(&[3; SIZE]);
    latter.talk(4);
    let mut unread = [0; SIZE];
    accepted.read_exact(&mut unread).expect("it was sent");
    assert_eq!(unread, [1; SIZE]);
    assert_eq!(net.fixture.counter(Counter::SocketsRefused), 1);
    let stats = net.fixture.hop(net.pod(), Hop::APP_TO_PROXY);
    assert_eq!(stats.bytes_redirected, 2 * SIZE as u64, "{stats:?}");
    let unknown = stats.passes[PassReason::PeerUnknown.index()];
    assert_eq!(unknown, 1, "{stats:?}");
}

/// The first connection is closed: on Linux 6.1 a SYN whose port conntrack changes on arrival gets no answer while
/// the connection that has the port is open.
#[test]
fn a_proxy_whose_port_went_by_iptables_reaches_the_next_proxy() {
    let (client, server) = Pod::pair();
    add_iptables(&server, &Capture::default());
    let inbound = (Ipv4Addr::UNSPECIFIED, INBOUND_PORT);
    let listener = listen(&server, inbound, Accepting::AtOnce);
    let to = |port| SocketAddr::from((server.addr, port));
    let mut fixture = Fixture::load();
    let from = source(&client, PORT);
    let first = pair(&client, PROXY, (from, to(8080)), &listener);
    end(&first.client, &first.accepted);
    end(&first.accepted, &first.client);

    fixture.add_pod(&client);
    fixture.add_pod(&server);
    let mut second = pair(&client, PROXY, (from, to(8080)), &listener);
    assert_ne!(second.port_at_accepted(), PORT);
    second.talk(7);
    drop(second);
    wait_until_nothing_is_left(&fixture);
}

/// The listener waits for a first byte that never comes.
#[test]
fn what_nobody_has_accepted_leaves_with_its_caller() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let outbound = (Ipv4Addr::LOCALHOST, OUTBOUND_PORT);
    let _listener = listen(&pod, outbound, Accepting::Deferred);
    let client = connect(&pod, APP, source(&pod, PORT), VIP.into());
    let left = || [map::ORIG_DST_BY_TUPLE, map::HANDSHAKES].map(|name| entries(&fixture, name));
    assert_eq!(left(), [1, 1]);
    rustix::net::connect_unspec(&client).expect("it can be taken apart");
    assert_eq!(left(), [0, 0]);
}

fn write(pod: &Pod, setting: &'static str, value: &'static str) {
    let file = Path::new("/proc/sys").join(setting);
    let set = pod.run_as(0, move || std::fs::write(file, value));
    set.expect("a namespace has settings of its own");
}

fn iptables(pod: &Pod, rule: &'static str) {
    let mut command = Command::new("iptables");
    command.arg("--wait").args(rule.split(' '));
    let status = pod.run_as(0, move || command.status());
    let status = status.expect("iptables is installed (`cargo xtask setup`)");
    assert!(status.success(), "{rule}");
}

/// The source address of what arrives need not be the one that dialled.
#[test]
fn original_destinations_survive_a_change_of_the_source() {
    let (client, server) = Pod::pair();
    client.ip(&["addr", "add", "198.18.0.7/24", "dev", "eth0"]);
    iptables(
        &client,
        "-t nat -A POSTROUTING -p tcp -j SNAT --to-source 198.18.0.7",
    );
    let mut fixture = Fixture::load();
    fixture.add_pod(&client);
    fixture.add_pod(&server);
    let inbound = (Ipv4Addr::UNSPECIFIED, INBOUND_PORT);
    let listener = listen(&server, inbound, Accepting::AtOnce);
    let route = (source(&client, PORT), (server.addr, 8080).into());
    let mut pair = pair(&client, PROXY, route, &listener);
    let seen = pair.accepted.peer_addr().expect("it is connected");
    assert_eq!(seen.ip().to_string(), "198.18.0.7");
    pair.talk(1);
    drop(pair);
    wait_until_nothing_is_left(&fixture);
}

/// A SYN that gets no answer has left an entry under a tuple, and NAT gives that tuple to another connection.
#[test]
fn what_waits_for_an_answer_is_not_anothers() {
    let (client, server) = Pod::pair();
    iptables(&client, "-A OUTPUT -p tcp --sport 40000 -j DROP");
    iptables(
        &client,
        "-t nat -A POSTROUTING -p tcp --sport 40001 -j SNAT --to-source 198.18.0.1:40000",
    );
    let mut fixture = Fixture::load();
    fixture.add_pod(&client);
    fixture.add_pod(&server);
    let inbound = (Ipv4Addr::UNSPECIFIED, INBOUND_PORT);
    let listener = listen(&server, inbound, Accepting::AtOnce);
    let to = SocketAddr::from((server.addr, 8080));
    let waiting = source(&client, PORT);
    let _waiting = client.run_as(PROXY, move || {
        let socket = bound(waiting, SocketFlags::NONBLOCK);
        let refused = rustix::net::connect(&socket, &to);
        assert_eq!(refused, Err(rustix::io::Errno::INPROGRESS));
        socket
    });
    assert_eq!(entries(&fixture, map::ORIG_DST_BY_TUPLE), 1);

    // To the inbound port itself, which is left alone.
    let from = source(&client, PORT + 1);
    let _other = connect(&client, PROXY, from, (server.addr, INBOUND_PORT).into());
    let (accepted, _) = listener.accept().expect("a connection");
    assert_eq!(accepted.peer_addr().expect("it is connected"), waiting);
    assert_ne!(original_dst(&accepted), Some(to));
    assert_eq!(entries(&fixture, map::ORIG_DST_BY_TUPLE), 1);
}
