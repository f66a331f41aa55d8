//! Versions side by side: whichever agent starts last takes what is new, and the others serve what they
//! have, down to the last unread byte, and go.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
};

use isthmus_accel_abi::{ABI_VERSION, PodConfig, PodFlags, map, v4_mapped};
use isthmus_accel_core::MapOp;
use isthmus_accel_datapath::{
    Datapath as _, RetiredRow,
    linux::{DEFAULT_BPFFS, LinuxDatapath, Patience, Version, cgroup_root},
};

use crate::{
    fixture::{APP, Fixture, PREFIX, PROXY, Pod, VIP, original_dst, take_out, wait_until},
    lifecycle::Objects,
    versions::{install, options, other_versions},
};

const OUTBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001);
const UNREAD: usize = 10_000;

/// Directories of versions side by side, taken out again when it is dropped.
struct Versions {
    config: PodConfig,
    root: PathBuf,
}

impl Versions {
    fn new(name: &str, flags: PodFlags) -> Self {
        let root = Path::new(DEFAULT_BPFFS).join(format!("{PREFIX}{}-{name}", std::process::id()));
        let config = PodConfig::istio_default();
        let flags = config.flags.with(flags);
        Self {
            config: PodConfig { flags, ..config },
            root,
        }
    }

    fn dir(&self, abi_version: u32) -> PathBuf {
        self.root.join(format!("v{abi_version}"))
    }

    fn install(&self, version: &Version, pod: &Pod) {
        let addr = v4_mapped(pod.addr.octets());
        let dir = self.dir(version.abi_version);
        install(&dir, version, self.config, &[(pod.cookie, addr)]);
    }

    /// Starts the agent's datapath beside whatever is there.
    fn open(&self, pod: &Pod) -> LinuxDatapath {
        let mut datapath = Fixture::open(&self.dir(ABI_VERSION), &options());
        let netns_cookie = pod.cookie;
        for op in [
            MapOp::PutPod {
                netns_cookie,
                config: self.config,
            },
            MapOp::PutAddr {
                addr: v4_mapped(pod.addr.octets()),
                netns_cookie,
            },
        ] {
            datapath.apply(&op).expect("there is room");
        }
        datapath
    }
}

impl Drop for Versions {
    fn drop(&mut self) {
        for dir in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let _ = take_out(&dir.path(), &Patience::NONE);
        }
    }
}

/// A connection of the application with unread bytes at its proxy.
struct Idle {
    app: TcpStream,
    proxy: TcpStream,
}

impl Idle {
    fn open(pod: &Pod, listener: &TcpListener) -> Self {
        let mut app = pod.connect(APP, VIP).expect("the proxy listens");
        let (proxy, _) = listener.accept().expect("it is redirected");
        assert_eq!(original_dst(&proxy).expect("it was redirected"), VIP);
        app.write_all(&[7; UNREAD]).expect("there is room");
        Self { app, proxy }
    }

    fn check_both_ends(&self) {
        assert_eq!(original_dst(&self.proxy).expect("it was redirected"), VIP);
        let dialled = self.app.peer_addr().expect("it is connected");
        assert_eq!(dialled, VIP.into(), "what the application dialled");
    }

    /// Reads what was written before, and what comes behind it.
    fn finish(mut self) {
        self.app.write_all(b"end").expect("it is connected");
        drop(self.app);
        let mut bytes = Vec::new();
        self.proxy.read_to_end(&mut bytes).expect("nothing is lost");
        assert_eq!(bytes, [&[7; UNREAD][..], b"end"].concat());
    }
}

#[test]
fn another_version_is_taken_over_from_without_losing_a_byte() {
    for other in other_versions() {
        // Sockets in the sockmap with unread bytes, and sockets that are only redirected.
        for flags in [PodFlags::APP_WRITES, PodFlags::NONE] {
            take_over_from(&other, flags);
        }
    }
}

fn take_over_from(other: &Version, flags: PodFlags) {
    let name = format!("from-{}-{flags:?}", other.abi_version);
    let pod = Pod::alone([198, 18, 0, 1]);
    let versions = Versions::new(&name, flags);
    versions.install(other, &pod);
    let listener = pod.listen(PROXY, OUTBOUND);
    let before = Idle::open(&pod, &listener);
    let other_dir = versions.dir(other.abi_version);
    let theirs = Objects::pinned(&other_dir);

    let mut datapath = versions.open(&pod);
    before.check_both_ends();
    let both = Idle::open(&pod, &listener);
    both.check_both_ends();

    // Both ends of the second one are with the version whose programs run first: the new one, where the kernel lets a
    // program be put before others, or else the other.
    let sockets = datapath.retire_others().expect("it can be taken over")[0].sockets;
    assert!([2, 4].contains(&sockets), "{name}: {sockets}");
    let expected = [RetiredRow {
        version: other.abi_version,
        pin_dir: other_dir.clone(),
        sockets,
    }];
    for _ in 0..3 {
        let retired = datapath.retire_others().expect("it can be taken over");
        assert_eq!(retired, expected, "{name}: it serves what it has");
        assert_eq!(datapath.retired().expect("it can be read"), expected);
        before.check_both_ends();
        both.check_both_ends();
    }
    let after = Idle::open(&pod, &listener);
    let retired = datapath.retired().expect("it can be read");
    assert_eq!(retired, expected, "{name}: it takes nothing new");
    after.check_both_ends();

    before.finish();
    both.finish();
    wait_until("the other version goes with its last socket", || {
        let retired = datapath.retire_others().expect("it can be removed");
        retired.is_empty()
    });
    assert!(!other_dir.exists(), "{name}");
    wait_until("the kernel has let go", || theirs.left().is_empty());
    after.check_both_ends();
    after.finish();
    let programs = datapath.programs().expect("they can be listed");
    assert!(programs.iter().all(|row| row.is_attached), "{programs:?}");
}

#[test]
fn an_agent_that_is_killed_while_it_takes_over_is_followed_by_one_that_finishes() {
    let [_, newer] = other_versions();
    let pod = Pod::alone([198, 18, 0, 1]);
    let versions = Versions::new("killed", PodFlags::APP_WRITES);
    versions.install(&newer, &pod);
    let listener = pod.listen(PROXY, OUTBOUND);
    let idle = Idle::open(&pod, &listener);
    drop(versions.open(&pod));

    // The one that was killed had loaded its own, and no more. The next one is of the other version,
    // which takes over in the same way; then this one comes back.
    let mut datapath = versions.open(&pod);
    assert_eq!(datapath.retire_others().expect("it works").len(), 1);
    versions.install(&newer, &pod);
    let again = Idle::open(&pod, &listener);
    let mut datapath = versions.open(&pod);
    assert_eq!(datapath.retire_others().expect("it works").len(), 1);
    idle.check_both_ends();
    again.check_both_ends();
    idle.finish();
    again.finish();
    wait_until("the other version is gone", || {
        let retired = datapath.retire_others().expect("it can be removed");
        retired.is_empty()
    });
}

#[test]
fn a_datagram_socket_keeps_the_version_that_knows_its_server() {
    let [_, newer] = other_versions();
    let pod = Pod::alone([198, 18, 0, 1]);
    let versions = Versions::new("dns", PodFlags::DNS.with(PodFlags::DNS_ALL));
    versions.install(&newer, &pod);
    let server = SocketAddr::from(([198, 19, 0, 53], 53));
    let agent = pod.run_as(PROXY, || {
        UdpSocket::bind("127.0.0.1:15053").expect("the address is free")
    });
    let app = pod.run_as(APP, move || {
        let app = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
        app.connect(server).expect("a peer can be set");
        app
    });
    let check = |app: &UdpSocket| {
        let shown = app.peer_addr().expect("it has a peer");
        assert_eq!(shown, server, "getpeername");
        app.send(b"?").expect("a query can be sent");
        let (_, from) = agent.recv_from(&mut [0; 8]).expect("it comes here");
        agent.send_to(b"!", from).expect("an answer can be sent");
        let (_, from) = app.recv_from(&mut [0; 8]).expect("the answer comes");
        assert_eq!(from, server, "recvfrom");
    };
    check(&app);

    let mut datapath = versions.open(&pod);
    for _ in 0..3 {
        let retired = datapath.retire_others().expect("it can be taken over");
        let sockets: Vec<usize> = retired.iter().map(|row| row.sockets).collect();
        assert_eq!(sockets, [1], "it serves what it has");
        check(&app);
    }
    drop(app);
    wait_until("the other version goes with its last socket", || {
        let retired = datapath.retire_others().expect("it can be removed");
        retired.is_empty()
    });
}

#[test]
fn a_map_of_another_layout_is_refused_and_what_runs_goes_on() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let programs = fixture.datapath.programs().expect("they can be listed");
    let path = fixture.pin_dir.join("maps").join(map::HANDSHAKES);
    fs::remove_file(&path).expect("it is pinned");
    let status = Command::new("bpftool")
        .args(["map", "create"])
        .arg(&path)
        .args(["type", "hash", "key", "8", "value", "4", "entries", "7"])
        .args(["name", "HANDSHAKES"])
        .status();
    assert!(status.expect("bpftool is installed").success());

    let cgroup = cgroup_root().expect("cgroup v2 is mounted");
    let error = LinuxDatapath::open_or_load(&fixture.pin_dir, &cgroup, &fixture.options)
        .expect_err("nothing fits into that map");
    let chain = crate::fixture::chain(&error);
    assert!(
        chain.contains("HANDSHAKES") && chain.contains("detach"),
        "{chain}"
    );
    assert_eq!(
        fixture.datapath.programs().expect("they can be listed"),
        programs
    );
    let listener = pod.listen(PROXY, OUTBOUND);
    Idle::open(&pod, &listener).finish();
}
