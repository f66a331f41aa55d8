//! Pods without a container: a network namespace that lives as long as its descriptor, code that runs
//! in it as the application's or the proxy's user, and a datapath of its own for each test.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use isthmus_accel_abi::{
    Counter, Hop, HopKey, HopStats, PodConfig, PodFlags, SettingsMode, v4_mapped,
};
use isthmus_accel_core::MapOp;
use isthmus_accel_datapath::{
    Datapath as _, DatapathError,
    linux::{
        DEFAULT_BPFFS, DetachReport, LinuxDatapath, LoadOptions, Patience, cgroup_root, detach,
    },
};

/// User and group of the application.
pub(crate) const APP: u32 = 1000;
/// User and group of the proxy.
pub(crate) const PROXY: u32 = 1337;
/// A service address that nobody has.
pub(crate) const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 19, 7, 9), 80);
/// Longest time that any single wait of a test may take, on a machine that is busy with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Name of the pin directories, in front of the id of the process.
pub(crate) const PREFIX: &str = "isthmus-test-";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Programs and maps of one test, taken out again when it is dropped.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) datapath: LinuxDatapath,
    pub(crate) pin_dir: PathBuf,
    pub(crate) options: LoadOptions,
}

impl Fixture {
    /// Loads everything, with the sockmap on.
    pub(crate) fn load() -> Self {
        Self::load_with(LoadOptions {
            mode: SettingsMode::SOCKMAP,
            ..LoadOptions::default()
        })
    }

    pub(crate) fn load_with(options: LoadOptions) -> Self {
        remove_leftovers();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let pin_dir = Path::new(DEFAULT_BPFFS).join(format!("{PREFIX}{}-{id}", std::process::id()));
        let datapath = Self::open(&pin_dir, &options);
        Self {
            datapath,
            pin_dir,
            options,
        }
    }

    pub(crate) fn open(pin_dir: &Path, options: &LoadOptions) -> LinuxDatapath {
        let cgroup = cgroup_root().expect("cgroup v2 is mounted");
        LinuxDatapath::open_or_load(pin_dir, &cgroup, options)
            .unwrap_or_else(|error| panic!("this tier needs root and BPF: {}", chain(&error)))
    }

    pub(crate) fn apply(&mut self, op: MapOp) {
        self.datapath.apply(&op).expect("the operation is applied");
    }

    /// Makes a namespace a pod with Istio's defaults, where what the application writes may skip TCP.
    pub(crate) fn add_pod(&mut self, pod: &Pod) {
        self.add_pod_with(pod, PodFlags::APP_WRITES);
    }

    /// Makes a namespace a pod with Istio's defaults and more flags.
    pub(crate) fn add_pod_with(&mut self, pod: &Pod, flags: PodFlags) {
        let config = PodConfig::istio_default();
        let flags = config.flags.with(flags);
        self.add_pod_as(pod, PodConfig { flags, ..config });
    }

    pub(crate) fn add_pod_as(&mut self, pod: &Pod, config: PodConfig) {
        let netns_cookie = pod.cookie;
        self.apply(MapOp::PutPod {
            netns_cookie,
            config,
        });
        self.apply(MapOp::PutAddr {
            addr: v4_mapped(pod.addr.octets()),
            netns_cookie,
        });
    }

    /// Makes a namespace a pod with Istio's defaults and an IPv6 address besides.
    pub(crate) fn add_dual_stack_pod(&mut self, pod: &Pod, addr: Ipv6Addr) {
        self.apply(MapOp::PutAddr {
            addr: addr.octets(),
            netns_cookie: pod.cookie,
        });
        let config = PodConfig::istio_default();
        let flags = config.flags.with(PodFlags::IPV6);
        self.add_pod_as(pod, PodConfig { flags, ..config });
    }

    pub(crate) fn counter(&self, counter: Counter) -> u64 {
        let rows = self.datapath.counters().expect("the counters can be read");
        rows.iter()
            .find(|row| row.counter == counter)
            .map_or(0, |row| row.count)
    }

    /// Steers what arrives at a pod that was added.
    pub(crate) fn steer(&mut self, pod: &Pod) {
        self.datapath.locate([(pod.cookie, pod.path())].into());
        self.apply(MapOp::AttachNetns {
            netns_cookie: pod.cookie,
        });
    }

    pub(crate) fn hop(&self, pod: &Pod, hop: Hop) -> HopStats {
        let key = HopKey::new(pod.cookie, hop);
        let rows = self.datapath.hop_stats().expect("the counters can be read");
        rows.iter()
            .find(|row| row.key == key)
            .map(|row| row.stats)
            .unwrap_or_default()
    }
}

/// Takes everything out of the kernel.
pub(crate) fn take_out(pin_dir: &Path, patience: &Patience) -> Result<DetachReport, DatapathError> {
    detach(pin_dir, patience, &mut |_| {})
}

/// Removes what killed tests have left. (A test that only panics removes its own.)
fn remove_leftovers() {
    for dir in std::fs::read_dir(DEFAULT_BPFFS)
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = dir.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        let is_left = |pid| !Path::new("/proc").join(pid).exists();
        if pid.is_some_and(is_left)
            && let Err(error) = take_out(&dir.path(), &Patience::NONE)
        {
            eprintln!("{} stays: {}", dir.path().display(), chain(&error));
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Err(error) = take_out(&self.pin_dir, &Patience::NONE) {
            eprintln!(
                "{} is left behind: {}",
                self.pin_dir.display(),
                chain(&error)
            );
        }
    }
}

/// The error with everything that caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A network namespace without a name: gone with the last descriptor and socket.
#[derive(Debug)]
pub(crate) struct Pod {
    netns: OwnedFd,
    pub(crate) cookie: u64,
    pub(crate) addr: Ipv4Addr,
}

impl Pod {
    /// Makes a namespace whose address is on its loopback device.
    pub(crate) fn new(addr: [u8; 4]) -> Self {
        thread::spawn(move || {
            // SAFETY: changes this thread only, which ends with this closure.
            check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).expect("unshare works as root");
            Self::open(Path::new("/proc/thread-self/ns/net"), addr)
        })
        .join()
        .expect("the namespace is made")
    }

    /// Opens a namespace that somebody has made.
    pub(crate) fn open(netns: &Path, addr: [u8; 4]) -> Self {
        let netns = File::open(netns).expect("the namespace is there").into();
        let mut pod = Self {
            netns,
            cookie: 0,
            addr: addr.into(),
        };
        pod.ip(&["link", "set", "lo", "up"]);
        pod.cookie = pod.run_as(0, netns_cookie);
        pod
    }

    /// Makes a pod that has its address on its loopback device, and a route to everywhere.
    pub(crate) fn alone(addr: [u8; 4]) -> Self {
        let pod = Self::new(addr);
        pod.ip(&["addr", "add", &format!("{}/32", pod.addr), "dev", "lo"]);
        pod.ip(&["route", "add", "default", "dev", "lo"]);
        pod
    }

    /// Gives a pod an IPv6 address and Istio's `::6`, both on its loopback device, and a route to everywhere.
    pub(crate) fn add_ipv6(&self, addr: Ipv6Addr) {
        self.ip(&["-6", "addr", "add", &format!("{addr}/128"), "dev", "lo"]);
        self.ip(&["-6", "addr", "add", "::6/128", "dev", "lo"]);
        self.ip(&["-6", "route", "add", "default", "dev", "lo"]);
    }

    /// Makes two pods with a cable between them.
    pub(crate) fn pair() -> (Self, Self) {
        let (a, b) = (Self::new([198, 18, 0, 1]), Self::new([198, 18, 0, 2]));
        let peer = b.path();
        let peer = peer.to_str().expect("a number in /proc");
        a.ip(&[
            "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", peer,
        ]);
        for pod in [&a, &b] {
            pod.ip(&["addr", "add", &format!("{}/24", pod.addr), "dev", "eth0"]);
            pod.ip(&["link", "set", "eth0", "up"]);
            pod.ip(&["route", "add", "default", "dev", "eth0"]);
        }
        (a, b)
    }

    /// A file of the namespace, for as long as this pod is there.
    pub(crate) fn path(&self) -> PathBuf {
        let fd = self.netns.as_raw_fd();
        format!("/proc/{}/fd/{fd}", std::process::id()).into()
    }

    pub(crate) fn ip(&self, args: &[&str]) {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let output = self.run_as(0, move || Command::new("ip").args(&args).output());
        let output = output.expect("iproute2 is installed (`cargo xtask setup`)");
        assert!(
            output.status.success(),
            "ip: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Runs `work` in the namespace, as this user and group, on a thread of its own.
    pub(crate) fn run_as<T: Send + 'static>(
        &self,
        id: u32,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.spawn_as(id, id, work)
            .join()
            .expect("the work does not panic")
    }

    pub(crate) fn spawn_as<T: Send + 'static>(
        &self,
        uid: u32,
        gid: u32,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let netns = self
            .netns
            .try_clone()
            .expect("a descriptor can be duplicated");
        thread::spawn(move || {
            // Raw calls: the C library would change every thread of the process.
            // SAFETY: plain numbers; they change this thread only, which ends with this closure.
            unsafe {
                check(libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET)).expect("setns works");
                for (call, id) in [(libc::SYS_setresgid, gid), (libc::SYS_setresuid, uid)] {
                    let answer = libc::syscall(call, id, id, id);
                    assert_eq!(answer, 0, "the thread becomes user {uid}, group {gid}");
                }
            }
            work()
        })
    }

    /// Listens in the namespace, as this user.
    pub(crate) fn listen(&self, id: u32, addr: impl Into<SocketAddr>) -> TcpListener {
        let addr = addr.into();
        self.run_as(id, move || {
            TcpListener::bind(addr).expect("the address is free")
        })
    }

    /// Connects from the namespace, as this user.
    pub(crate) fn connect(&self, id: u32, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let to = to.into();
        self.run_as(id, move || TcpStream::connect(to))
    }
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn netns_cookie() -> u64 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    let bytes = sockopt(&socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, 8).expect("Linux 5.14");
    u64::from_ne_bytes(bytes.try_into().expect("a cookie has 8 bytes"))
}

/// Calls getsockopt(2) with a buffer of `len` bytes.
pub(crate) fn sockopt(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    len: usize,
) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xa5_u8; len];
    let mut len = libc::socklen_t::try_from(len).expect("a short buffer");
    // SAFETY: a buffer and its length.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            bytes.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    bytes.truncate(len as usize);
    Ok(bytes)
}

pub(crate) fn set_sockopt(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) {
    // SAFETY: a pointer to an integer and its length.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            4,
        )
    })
    .expect("the option can be set");
}

pub(crate) const SO_ORIGINAL_DST: libc::c_int = 80;

/// What a proxy asks its accepted socket.
pub(crate) fn original_dst(socket: &impl AsRawFd) -> io::Result<SocketAddrV4> {
    let bytes = sockopt(socket, libc::SOL_IP, SO_ORIGINAL_DST, 128)?;
    assert_eq!(bytes.len(), 16, "a sockaddr_in");
    assert_eq!(bytes[..2], AF_INET.to_ne_bytes(), "AF_INET");
    let addr = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
    Ok(SocketAddrV4::new(
        addr,
        u16::from_be_bytes([bytes[2], bytes[3]]),
    ))
}

/// What a proxy asks a socket that it accepted from an IPv6 address.
pub(crate) fn original_dst_v6(socket: &impl AsRawFd) -> io::Result<SocketAddrV6> {
    let bytes = sockopt(socket, libc::IPPROTO_IPV6, SO_ORIGINAL_DST, 128)?;
    assert_eq!(bytes.len(), 28, "a sockaddr_in6");
    assert_eq!(bytes[..2], AF_INET6.to_ne_bytes(), "AF_INET6");
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let addr: [u8; 16] = bytes[8..24].try_into().expect("it has 28 bytes");
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    Ok(SocketAddrV6::new(
        Ipv6Addr::from(addr),
        port,
        word(4),
        word(24),
    ))
}

/// Waits until `is_true`, or fails with `what`.
pub(crate) fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "{what} within {PATIENCE:?}");
        thread::yield_now();
    }
}

/// Answers every message of `size` bytes with as many, until the other end closes.
pub(crate) fn echo(mut stream: TcpStream, size: usize) {
    let mut buffer = vec![0; size];
    while stream.read_exact(&mut buffer).is_ok() {
        if stream.write_all(&buffer).is_err() {
            return;
        }
    }
}

/// Sends `rounds` messages of `size` bytes and reads as many back; returns the time of one round trip.
pub(crate) fn ping_pong(stream: &mut TcpStream, size: usize, rounds: u32) -> Duration {
    let message = vec![0x5a; size];
    let mut answer = vec![0; size];
    let start = Instant::now();
    for _ in 0..rounds {
        stream.write_all(&message).expect("the peer reads");
        stream.read_exact(&mut answer).expect("the peer answers");
    }
    assert_eq!(answer, message);
    start.elapsed() / rounds
}

/// Calls socket(2), for what the standard library has no call for. No program that a test starts keeps it open.
pub(crate) fn open_socket(
    domain: libc::c_int,
    kind: libc::c_int,
    protocol: libc::c_int,
) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    check(fd.min(0))?;
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor of a new TCP socket.
pub(crate) fn tcp_socket(flags: libc::c_int) -> OwnedFd {
    open_socket(libc::AF_INET, libc::SOCK_STREAM | flags, 0).expect("a socket can be made")
}

const AF_INET: libc::sa_family_t = 2;
const AF_INET6: libc::sa_family_t = 10;
/// Length of what [`sockaddr`] returns.
pub(crate) const SOCKADDR_BYTES: libc::socklen_t = 16;

/// Connects from a chosen address.
pub(crate) fn connect_from(source: SocketAddrV4, to: SocketAddrV4) -> TcpStream {
    let socket = tcp_socket(0);
    let (source, to) = (sockaddr(source), sockaddr(to));
    // SAFETY: two addresses and their length.
    unsafe {
        check(libc::bind(
            socket.as_raw_fd(),
            (&raw const source).cast(),
            SOCKADDR_BYTES,
        ))
        .expect("the source is free");
        check(libc::connect(
            socket.as_raw_fd(),
            (&raw const to).cast(),
            SOCKADDR_BYTES,
        ))
        .expect("somebody listens");
    }
    socket.into()
}

/// The address as the kernel takes it.
pub(crate) fn sockaddr(addr: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: AF_INET,
        sin_port: addr.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(addr.ip().octets()),
        },
        sin_zero: [0; 8],
    }
}
