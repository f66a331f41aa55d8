//! Whose connection it is: as netfilter's `owner` match sees it, by the socket and not by its user.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
};

use isthmus_accel_abi::{Counter, GroupKey, PodConfig, PodFlags, RuleList};
use isthmus_accel_core::MapOp;

use crate::fixture::{
    APP, Fixture, PROXY, Pod, SOCKADDR_BYTES, VIP, open_socket, original_dst, sockaddr, tcp_socket,
    wait_until,
};

const OUTBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001);

/// A pod, somebody at the service's address, and the proxy.
fn pod_with_service() -> (Pod, TcpListener, TcpListener) {
    let pod = Pod::alone([198, 18, 0, 1]);
    pod.ip(&["addr", "add", "198.19.7.9/32", "dev", "lo"]);
    let (direct, proxy) = (pod.listen(0, VIP), pod.listen(PROXY, OUTBOUND));
    (pod, direct, proxy)
}

fn dial(socket: OwnedFd, to: SocketAddrV4) -> io::Result<TcpStream> {
    let to = sockaddr(to);
    // SAFETY: an address and its length.
    let answer =
        unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), SOCKADDR_BYTES) };
    if answer == 0 {
        Ok(socket.into())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[test]
fn a_socket_belongs_to_who_made_it() {
    let (pod, direct, proxy) = pod_with_service();
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    for (name, maker, user, listener) in [
        ("the application's, handed to the proxy", APP, PROXY, &proxy),
        (
            "the proxy's, handed to the application",
            PROXY,
            APP,
            &direct,
        ),
    ] {
        let socket = pod.run_as(maker, || tcp_socket(0));
        let _client = pod.run_as(user, move || dial(socket, VIP)).expect(name);
        listener.accept().expect(name);
    }
}

#[test]
fn the_proxys_user_and_group_are_the_pods_own() {
    let (pod, direct, proxy) = pod_with_service();
    let mut fixture = Fixture::load();
    let config = PodConfig {
        proxy_uid: 2000,
        proxy_gid: 3000,
        ..PodConfig::istio_default()
    };
    fixture.add_pod_as(&pod, config);
    for (name, uid, gid, listener) in [
        ("its user", 2000, 0, &direct),
        ("its group", 0, 3000, &direct),
        ("its user as a group", 0, 2000, &proxy),
        ("Istio's user and group", PROXY, PROXY, &proxy),
    ] {
        let connect = || TcpStream::connect(VIP).expect("somebody listens");
        let _client = pod.spawn_as(uid, gid, connect).join().expect(name);
        listener.accept().expect(name);
    }
}

#[test]
fn owner_groups_are_the_sockets_own() {
    let (pod, direct, proxy) = pod_with_service();
    let mut fixture = Fixture::load();
    let group = GroupKey {
        netns_cookie: pod.cookie,
        list: RuleList::EXCLUDE_OUTBOUND,
        gid: 2000,
    };
    fixture.apply(MapOp::PutGroup(group));
    let config = PodConfig::istio_default();
    let flags = config.flags.with(PodFlags::EXCLUDES_GROUPS);
    fixture.add_pod_as(&pod, PodConfig { flags, ..config });
    for (name, uid, gid, listener) in [
        ("O9: the group", APP, 2000, &direct),
        ("a user of the same number", 2000, APP, &proxy),
    ] {
        let connect = || TcpStream::connect(VIP).expect("somebody listens");
        let _client = pod.spawn_as(uid, gid, connect).join().expect(name);
        listener.accept().expect(name);
    }
}

#[test]
fn a_supplementary_group_exempts_nobody() {
    let (pod, _direct, proxy) = pod_with_service();
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let _client = pod.run_as(0, || {
        let groups = [PROXY];
        // SAFETY: a list and its length; a raw call, so that it changes this thread only, which ends.
        let answer = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        assert_eq!(answer, 0, "root may choose its groups");
        TcpStream::connect(VIP).expect("somebody listens")
    });
    let (accepted, _) = proxy.accept().expect("a connection");
    assert_eq!(original_dst(&accepted).expect("it was redirected"), VIP);
}

fn mptcp_socket() -> OwnedFd {
    open_socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).expect("CONFIG_MPTCP")
}

fn joined_subflows(pod: &Pod) -> u64 {
    let text = pod.run_as(0, || fs::read_to_string("/proc/thread-self/net/netstat"));
    let text = text.expect("the namespace's counters can be read");
    let mut lines = text.lines().filter(|line| line.starts_with("MPTcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut columns = names.split(' ').zip(values.split(' '));
    let (_, value) = columns
        .find(|(name, _)| *name == "MPJoinAckRx")
        .expect("Linux 5.7");
    value.parse().expect("a number")
}

/// The client of the kernel's own that every kernel with MPTCP has: like those of NFS, SMB and Ceph it
/// dials by a socket without a file, from a kernel thread.
#[test]
fn what_the_kernel_dials_for_itself_is_left_alone() {
    let (client, server) = Pod::pair();
    client.ip(&["addr", "add", "198.18.0.3/24", "dev", "eth0"]);
    for pod in [&client, &server] {
        pod.ip(&[
            "mptcp",
            "limits",
            "set",
            "subflow",
            "2",
            "add_addr_accepted",
            "2",
        ]);
    }
    let to = SocketAddrV4::new(server.addr, 8080);
    let listener: TcpListener = server.run_as(APP, move || {
        let (socket, to) = (mptcp_socket(), sockaddr(to));
        // SAFETY: an address and its length; a number.
        unsafe {
            let bound = libc::bind(socket.as_raw_fd(), (&raw const to).cast(), SOCKADDR_BYTES);
            assert_eq!((bound, libc::listen(socket.as_raw_fd(), 8)), (0, 0));
        }
        socket.into()
    });
    let mut stream = client
        .run_as(APP, move || dial(mptcp_socket(), to))
        .expect("it listens");
    let (mut accepted, _) = listener.accept().expect("a connection");
    // Both ends take further paths once they have seen data of the other.
    let mut byte = [0];
    stream.write_all(&[1]).expect("it is connected");
    accepted.read_exact(&mut byte).expect("it arrives");
    accepted.write_all(&[2]).expect("it is connected");
    stream.read_exact(&mut byte).expect("it arrives");

    // From here on whatever leaves the client goes to a proxy that is not there.
    let mut fixture = Fixture::load();
    fixture.add_pod(&client);
    let error = client.connect(APP, to).expect_err("15001 does not listen");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(joined_subflows(&server), 0);
    client.ip(&[
        "mptcp",
        "endpoint",
        "add",
        "198.18.0.3",
        "dev",
        "eth0",
        "subflow",
    ]);
    wait_until("the second path is there", || joined_subflows(&server) == 1);
    assert_eq!(
        fixture.counter(Counter::Redirects),
        1,
        "the application's alone"
    );
}

#[test]
fn an_applications_mptcp_connection_is_an_applications_connection() {
    let (pod, _direct, proxy) = pod_with_service();
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let _client = pod
        .run_as(APP, || dial(mptcp_socket(), VIP))
        .expect("somebody listens");
    assert_eq!(fixture.counter(Counter::Redirects), 1);
    let (accepted, _) = proxy.accept().expect("a connection");
    assert_eq!(original_dst(&accepted).expect("it was redirected"), VIP);
}
