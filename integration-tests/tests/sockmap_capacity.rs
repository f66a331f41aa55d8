//! More connections than the sockmap has room for (`redirection.md`, section 8, case 20).
//!
//! A process may have too few descriptors for both ends of all connections, so this program runs itself
//! once for each pod to hold the pod's share.
//!
//! Needs root, BPF, iproute2, 14,100 descriptors for each process and about 1 GiB of memory; fails with the
//! reason where something is missing.

#[path = "kernel_datapath/fixture.rs"]
#[allow(dead_code, reason = "shared with the suites of the other programs")]
mod fixture;

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use fixture::{APP, Fixture, PROXY, Pod, original_dst};
use isthmus_accel_abi::{Counter, Hop, PassReason, PodFlags, SettingsMode, map};
use isthmus_accel_datapath::{Datapath as _, linux::LoadOptions};
use rustix::process::{Resource, getrlimit, setrlimit};

const CONNECTIONS: u32 = 70_000;
/// Each has a process that holds its connections.
const PODS: u8 = 10;
const SHARE: u16 = 7_000;
/// Entries of the maps: one for each end of a connection.
const ROOM: u32 = 65_535;
/// Connections of a pod that are used: so many of the first, or so many of the last.
const SAMPLE: u16 = 200;
const OUTBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001);
/// Longest time that a holder may take for one answer, on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_mins(2);

/// The only test of this program.
const NAME: &str = "case_20_connections_without_room_go_by_tcp_and_disturb_no_other";
/// Makes the test a holder, and tells it the namespace of its pod.
const NETNS_VARIABLE: &str = "ISTHMUS_CAPACITY_NETNS";
const OPENED: &str = "opened";
const USE_FIRST: &str = "use first";
const USE_LAST: &str = "use last";
const USED: &str = "used";

#[test]
fn case_20_connections_without_room_go_by_tcp_and_disturb_no_other() {
    if let Some(netns) = env::var_os(NETNS_VARIABLE) {
        return hold(Path::new(&netns));
    }
    assert_eq!(u32::from(PODS) * u32::from(SHARE), CONNECTIONS);
    let mut fixture = Fixture::load_with(LoadOptions {
        mode: SettingsMode::SOCKMAP,
        max_entries: vec![(map::ENDS, ROOM), (map::SOCKETS, ROOM)],
        ..LoadOptions::default()
    });
    let pods: Vec<Pod> = (1..=PODS)
        .map(|last| Pod::alone([198, 18, 0, last]))
        .collect();
    for pod in &pods {
        fixture.add_pod_with(pod, PodFlags::APP_WRITES.with(PodFlags::APP_READS));
    }
    let (oldest, newest) = (&pods[0], &pods[pods.len() - 1]);
    let mut holders = vec![Holder::start(oldest)];
    let all = u64::from(SAMPLE);
    assert_eq!(holders[0].skips(&fixture, oldest, USE_FIRST), [all; 2]);
    assert_eq!(fixture.counter(Counter::SocketsRefused), 0);

    holders.extend(pods[1..].iter().map(Holder::start));
    let last = holders.len() - 1;
    assert_eq!(holders[last].skips(&fixture, newest, USE_LAST), [0; 2]);
    assert_eq!(holders[0].skips(&fixture, oldest, USE_FIRST), [all; 2]);
    assert_eq!(holders[0].skips(&fixture, oldest, USE_LAST), [all; 2]);

    let passes = fixture.hop(oldest, Hop::APP_TO_PROXY).passes;
    assert_eq!(passes, [0; PassReason::COUNT], "none of them went by TCP");
    assert_eq!(fixture.counter(Counter::HandshakesFull), 0);
    assert_eq!(fixture.counter(Counter::TuplesFull), 0);
    let redirects = fixture.counter(Counter::Redirects);
    assert_eq!(redirects, u64::from(CONNECTIONS));
    let refused = fixture.counter(Counter::SocketsRefused);
    assert_eq!(refused, u64::from(2 * CONNECTIONS - ROOM));
    for row in fixture.datapath.map_usage().expect("the maps can be read") {
        if row.name == map::ENDS || row.name == map::SOCKETS {
            assert_eq!((row.entries, row.max_entries), (ROOM, ROOM), "{}", row.name);
        }
    }
}

/// A process with the connections of one pod, which ends with this.
struct Holder {
    process: Child,
    lines: BufReader<UnixStream>,
}

impl Holder {
    /// Returns when every connection is open.
    fn start(pod: &Pod) -> Self {
        let (ours, its) = UnixStream::pair().expect("a pair of sockets");
        ours.set_read_timeout(Some(PATIENCE))
            .expect("the time is not zero");
        let program = env::current_exe().expect("this program has a path");
        let process = Command::new(program)
            .args(["--exact", NAME, "--nocapture"])
            .env(NETNS_VARIABLE, pod.path())
            .stdin(OwnedFd::from(its))
            .stdout(Stdio::null())
            .spawn()
            .expect("this program runs");
        let mut holder = Self {
            process,
            lines: BufReader::new(ours),
        };
        holder.expect(OPENED);
        holder
    }

    fn expect(&mut self, answer: &str) {
        let mut line = String::new();
        self.lines
            .read_line(&mut line)
            .unwrap_or_else(|error| panic!("{answer} within {PATIENCE:?}: {error}"));
        assert_eq!(line.trim_end(), answer, "its error is above");
    }

    /// Has a sample exchange a byte in both directions; returns how many bytes skipped TCP in each.
    fn skips(&mut self, fixture: &Fixture, pod: &Pod, sample: &str) -> [u64; 2] {
        let hops = [Hop::APP_TO_PROXY, Hop::PROXY_TO_APP_RETURN];
        let skipped = || hops.map(|hop| fixture.hop(pod, hop).bytes_redirected);
        let before = skipped();
        writeln!(self.lines.get_mut(), "{sample}").expect("it listens");
        self.expect(USED);
        let after = skipped();
        [after[0] - before[0], after[1] - before[1]]
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("process {} is left behind: {error}", self.process.id());
        }
    }
}

/// What a holder does.
fn hold(netns: &Path) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("up to the hard limit");
    let stdin = rustix::io::dup(std::io::stdin()).expect("case 20 connects it");
    let mut answers = UnixStream::from(stdin);
    let orders = answers.try_clone().expect("a descriptor is free");

    // Its address is on its device already; nothing here asks for it.
    let pod = Pod::open(netns, Ipv4Addr::UNSPECIFIED.octets());
    let listener = pod.listen(PROXY, OUTBOUND);
    let mut held: Vec<Connection> = pod.run_as(APP, move || {
        (0..SHARE).map(|i| Connection::open(&listener, i)).collect()
    });
    writeln!(answers, "{OPENED}").expect("it is waited for");
    let sample = usize::from(SAMPLE);
    for order in BufReader::new(orders).lines() {
        let from = match order.expect("a line").as_str() {
            USE_FIRST => 0,
            USE_LAST => held.len() - sample,
            other => panic!("unknown order {other}"),
        };
        held[from..from + sample]
            .iter_mut()
            .for_each(Connection::exchange);
        writeln!(answers, "{USED}").expect("it is waited for");
    }
}

/// Both ends of a connection, and what the application has dialed.
struct Connection {
    app: TcpStream,
    proxy: TcpStream,
    service: SocketAddrV4,
}

impl Connection {
    /// Dials an address that no other connection of the pod has dialed.
    fn open(listener: &TcpListener, number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        let service = SocketAddrV4::new(Ipv4Addr::new(198, 19, high, low), 80);
        let app = TcpStream::connect(service).expect("the proxy listens");
        let (proxy, _) = listener.accept().expect("a descriptor is free");
        let connection = Self {
            app,
            proxy,
            service,
        };
        connection.check_original_dst();
        connection
    }

    fn check_original_dst(&self) {
        let seen = original_dst(&self.proxy).expect("it was redirected");
        assert_eq!(seen, self.service);
    }

    /// Sends a byte each way.
    fn exchange(&mut self) {
        self.check_original_dst();
        send(&mut self.app, &mut self.proxy, *b"q");
        send(&mut self.proxy, &mut self.app, *b"a");
    }
}

fn send(from: &mut TcpStream, to: &mut TcpStream, byte: [u8; 1]) {
    from.write_all(&byte).expect("it is connected");
    let mut seen = [0];
    to.read_exact(&mut seen).expect("it arrives");
    assert_eq!(seen, byte);
}
