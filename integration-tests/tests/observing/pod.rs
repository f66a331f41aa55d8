//! A pod without a container, and an agent for it alone.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use isthmus_accel_datapath::linux::{Patience, detach};
use isthmus_integration_tests::{
    accelerator::{Accelerator, Applications, BPF_DIR},
    netns::{self, NETNS_DIR, Netns},
};
use tempfile::TempDir;

/// User of the application.
pub(crate) const APP: u32 = 1000;
/// User of the proxy.
pub(crate) const PROXY: u32 = 1337;
/// Longest time that any single wait may take, on a machine that is busy with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Name of everything that a test leaves if it is killed, in front of the id of its process.
const PREFIX: &str = "isthmus-observed-";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace, and the world at the other end of its cable, which is no pod.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) netns: Netns,
    world: Netns,
}

impl Pod {
    /// The pod's address.
    pub(crate) const ADDR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    /// An address of the world.
    pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 7, 9);

    /// Makes both.
    pub(crate) fn new() -> Self {
        remove_leftovers();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{id}", std::process::id());
        let netns = Netns::create(&name).expect("this tier needs root and iproute2");
        let world = Netns::create(&format!("{name}-world")).expect("the name is free");
        let ip = |netns: &Netns, line: &str| {
            let args: Vec<&str> = line.split(' ').collect();
            netns.ip(&args).expect("the namespace is empty");
        };
        let peer = world.name();
        ip(
            &netns,
            &format!("link add eth0 type veth peer name eth0 netns {peer}"),
        );
        ip(&netns, &format!("addr add {}/24 dev eth0", Self::ADDR));
        ip(&world, "addr add 198.18.0.254/24 dev eth0");
        ip(&world, &format!("addr add {}/32 dev lo", Self::VIP));
        ip(&world, "link set eth0 up");
        ip(&netns, "link set eth0 up");
        ip(&netns, "route add default via 198.18.0.254");
        Self { netns, world }
    }

    /// Listens in the pod; nobody ever accepts.
    pub(crate) fn listen(&self, addr: Ipv4Addr, port: u16) -> TcpListener {
        listen_in(&self.netns, addr, port)
    }

    /// Listens on [`Self::VIP`], in the world.
    pub(crate) fn listen_outside(&self, port: u16) -> TcpListener {
        listen_in(&self.world, Self::VIP, port)
    }

    /// Connects from the world to the pod. Tells whether somebody listened.
    pub(crate) fn dial_from_outside(&self, port: u16) -> bool {
        let to = SocketAddr::from((Self::ADDR, port));
        let connect = move || TcpStream::connect_timeout(&to, PATIENCE).is_ok();
        self.world.enter(connect).expect("the namespace is there")
    }

    /// Connects and closes, as this user and group. Tells whether somebody listened.
    pub(crate) fn dial(&self, id: u32, addr: Ipv4Addr, port: u16) -> bool {
        let connect = format!("exec 3<>/dev/tcp/{addr}/{port}");
        let status = self
            .netns
            .command("setpriv")
            .args([format!("--reuid={id}"), format!("--regid={id}")])
            .args(["--clear-groups", "--", "bash", "-c", &connect])
            .stderr(std::process::Stdio::null())
            .status();
        status.expect("util-linux is installed").success()
    }
}

fn listen_in(netns: &Netns, addr: Ipv4Addr, port: u16) -> TcpListener {
    let bound = netns.enter(move || TcpListener::bind(SocketAddrV4::new(addr, port)));
    bound
        .expect("the namespace is there")
        .expect("the address is free")
}

/// An agent whose files are gone after the test.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) accelerator: Accelerator,
    _dir: TempDir,
}

impl Agent {
    /// Starts an agent for one pod, `default/app`, with these arguments for its `run`.
    pub(crate) fn start(pod: &Pod, args: &[&str]) -> Self {
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir();
        let dir = dir.expect("the directory for temporary files is writable");
        let mut accelerator = Accelerator::prepare(dir.path())
            .expect("its directory is writable")
            .with_args(args);
        accelerator
            .write_namespaces([("app", pod.netns.path())], Applications::Write)
            .expect("its directory is writable");
        accelerator.start(1).expect("this tier needs root and BPF");
        Self {
            accelerator,
            _dir: dir,
        }
    }

    /// Runs a command of the agent's program to its end; returns what it printed.
    pub(crate) fn ask(&self, verb: &str, args: &[&str]) -> String {
        let output = self.command(verb).args(args).output();
        let output = output.expect("the program can be started");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb} {args:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn command(&self, verb: &str) -> Command {
        let command = self.accelerator.command(verb);
        command.expect("the program is built (`cargo xtask test` does)")
    }
}

/// Removes what killed tests have left. (A test that only panics removes its own.)
fn remove_leftovers() {
    for dir in left_in(NETNS_DIR) {
        let name = dir.file_name().and_then(|name| name.to_str());
        if let Some(Err(error)) = name.map(netns::remove) {
            eprintln!("{} stays: {error:#}", dir.display());
        }
    }
    for dir in left_in(BPF_DIR) {
        if let Err(error) = detach(&dir, &Patience::NONE, &mut |_| {}) {
            eprintln!("{} stays: {error}", dir.display());
        }
    }
}

fn left_in(dir: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let is_left = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let pid = name.and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    files.map(|file| file.path()).filter(is_left).collect()
}
