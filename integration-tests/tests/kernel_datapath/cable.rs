//! A pod that is dialled from outside, and who captures what arrives there.

use std::{
    ffi::CString,
    io::{self, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    time::Instant,
};

use isthmus_accel_abi::{PodConfig, PodFlags, PortKey, RuleList};
use isthmus_accel_core::MapOp;
use isthmus_integration_tests::iptables::{Capture, Ports, render_rules};

use crate::fixture::{
    self, APP, Fixture, PATIENCE, PROXY, Pod, SO_ORIGINAL_DST, SOCKADDR_BYTES, sockaddr, sockopt,
    tcp_socket,
};

pub(crate) const INBOUND_PORT: u16 = 15_006;
pub(crate) const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
pub(crate) const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

/// Who accepted: names for messages.
pub(crate) const APPLICATION: &str = "application";
pub(crate) const SIDECAR: &str = "sidecar";

pub(crate) type Listener = (&'static str, TcpListener);

/// Who takes part in capturing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    Iptables,
    Accelerator,
    Both,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Iptables, Self::Accelerator, Self::Both];
}

/// What both ends see of one connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Seen {
    Accepted {
        by: &'static str,
        original: Option<SocketAddr>,
        shown_to_client: SocketAddr,
    },
    Failed(io::ErrorKind),
}

impl Seen {
    /// Checks who accepted; the sidecar must know where the connection was going.
    pub(crate) fn assert(&self, name: &str, expected: &str, to: SocketAddr) {
        let Self::Accepted {
            by,
            original,
            shown_to_client,
        } = self
        else {
            panic!("{name}: {self:?}");
        };
        assert_eq!(*by, expected, "{name}");
        assert_eq!(*shown_to_client, to, "{name}");
        if *by == SIDECAR {
            assert_eq!(*original, Some(to), "{name}");
        }
    }
}

/// A pod, and a client that is no pod of ours, with a cable between them.
pub(crate) struct Cable {
    pub(crate) client: Pod,
    pub(crate) server: Pod,
}

impl Cable {
    pub(crate) fn new() -> Self {
        let (client, server) = Pod::pair();
        for (pod, addr) in [(&client, CLIENT_V6), (&server, SERVER_V6)] {
            let addr = format!("{addr}/64");
            pod.ip(&["addr", "add", &addr, "dev", "eth0", "nodad"]);
        }
        Self { client, server }
    }

    /// The addresses of the server.
    pub(crate) fn addrs(&self) -> [IpAddr; 2] {
        [self.server.addr.into(), SERVER_V6.into()]
    }

    /// Adds a second cable, with addresses of a /24.
    pub(crate) fn add_interface(&self, name: &str, client_addr: &str, server_addr: &str) {
        let peer = self.server.path();
        let peer = peer.to_str().expect("a number in /proc");
        self.client.ip(&[
            "link", "add", name, "type", "veth", "peer", "name", name, "netns", peer,
        ]);
        for (pod, addr) in [(&self.client, client_addr), (&self.server, server_addr)] {
            pod.ip(&["addr", "add", &format!("{addr}/24"), "dev", name]);
            pod.ip(&["link", "set", name, "up"]);
        }
    }

    /// The number of an interface of the server.
    pub(crate) fn ifindex(&self, name: &'static str) -> u32 {
        self.server.run_as(0, move || ifindex(name))
    }

    /// The server's link-local address on `eth0`, once it is usable.
    pub(crate) fn server_link_local(&self) -> Ipv6Addr {
        let mut found = None;
        fixture::wait_until("a link-local address", || {
            let output = self.server.run_as(0, || {
                let args = [
                    "-6",
                    "-o",
                    "addr",
                    "show",
                    "dev",
                    "eth0",
                    "scope",
                    "link",
                    "-tentative",
                ];
                Command::new("ip").args(args).output()
            });
            let output = output.expect("iproute2 is installed (`cargo xtask setup`)");
            let text = String::from_utf8_lossy(&output.stdout);
            let words = text.split_whitespace().skip_while(|word| *word != "inet6");
            found = words
                .skip(1)
                .find_map(|word| word.split('/').next()?.parse().ok());
            found.is_some()
        });
        found.expect("it was waited for")
    }

    /// Makes the sidecar and the application listen, at every address.
    pub(crate) fn listen(&self, ports: &[u16]) -> Vec<Listener> {
        let sidecar = (SIDECAR, listen(&self.server, PROXY, INBOUND_PORT));
        let application = |port: &u16| (APPLICATION, listen(&self.server, APP, *port));
        std::iter::once(sidecar)
            .chain(ports.iter().map(application))
            .collect()
    }

    /// Captures what arrives at the server.
    pub(crate) fn capture(&self, mode: Mode, policy: &Policy) -> Option<Fixture> {
        if mode != Mode::Accelerator {
            add_iptables(&self.server, &policy.capture);
        }
        (mode != Mode::Iptables).then(|| {
            let mut fixture = Fixture::load();
            fixture.govern(&self.server, policy);
            fixture
        })
    }

    pub(crate) fn remove_iptables(&self) {
        self.run("iptables", &["-F"]);
        self.run("ip6tables", &["-F"]);
    }

    /// Changes the server's `nat` table.
    pub(crate) fn run(&self, program: &'static str, args: &'static [&'static str]) {
        let status = self.server.run_as(0, move || {
            let mut command = Command::new(program);
            command.args(["--wait", "-t", "nat"]).args(args).status()
        });
        assert!(status.expect("iptables is installed").success());
    }

    /// Dials from outside, and says who took it.
    pub(crate) fn dial(&self, to: SocketAddr, listeners: &[Listener]) -> Seen {
        let connect = move || TcpStream::connect_timeout(&to, PATIENCE);
        let client = match self.client.run_as(APP, connect) {
            Ok(client) => client,
            Err(error) => return Seen::Failed(error.kind()),
        };
        let source = client.local_addr().expect("it is connected");
        let (by, accepted) = accept(source, listeners);
        Seen::Accepted {
            by,
            original: original_dst(&accepted),
            shown_to_client: client.peer_addr().expect("it is connected"),
        }
    }
}

/// Gives a pod Istio's rules.
pub(crate) fn add_iptables(pod: &Pod, capture: &Capture) {
    let v4 = render_rules(capture);
    // What names an address is about what the sidecar itself dials.
    let v6: String = v4
        .lines()
        .filter(|line| !line.contains("127.0.0."))
        .flat_map(|line| [line, "\n"])
        .collect();
    for (program, rules) in [("iptables-restore", v4), ("ip6tables-restore", v6)] {
        pod.run_as(0, move || {
            let mut child = Command::new(program)
                .arg("--wait")
                .stdin(Stdio::piped())
                .spawn()
                .expect("iptables is installed (`cargo xtask setup`)");
            let mut stdin = child.stdin.take().expect("it is piped");
            stdin.write_all(rules.as_bytes()).expect("it reads");
            drop(stdin);
            assert!(child.wait().expect("it ends").success(), "{rules}");
        });
    }
}

/// The policy of a pod, for iptables and for the accelerator.
pub(crate) struct Policy {
    capture: Capture,
    config: PodConfig,
    rules: Vec<(RuleList, u16)>,
}

pub(crate) fn policy(include: Ports, exclude: &[u16]) -> Policy {
    let exclusion = |port: &u16| (RuleList::EXCLUDE_INBOUND, *port);
    let mut rules: Vec<_> = exclude.iter().map(exclusion).collect();
    let mut config = PodConfig::istio_default();
    config.flags = config.flags.with(PodFlags::IPV6);
    if let Ports::Listed(ports) = &include {
        config.flags = PodFlags::IPV6;
        rules.extend(ports.iter().map(|port| (RuleList::INCLUDE_INBOUND, *port)));
    }
    Policy {
        capture: Capture {
            exclude_inbound_ports: exclude.to_vec(),
            include_inbound_ports: include,
            ..Capture::default()
        },
        config,
        rules,
    }
}

impl Fixture {
    /// Makes a namespace a pod whose arriving connections are steered as its policy says.
    pub(crate) fn govern(&mut self, pod: &Pod, policy: &Policy) {
        for (list, port) in &policy.rules {
            let key = PortKey::new(pod.cookie, *list, port.to_be_bytes());
            self.apply(MapOp::PutPort(key));
        }
        self.add_pod_as(pod, policy.config);
        self.steer(pod);
    }
}

/// Returns what accepts the connection from this address.
pub(crate) fn accept(from: SocketAddr, listeners: &[Listener]) -> (&'static str, TcpStream) {
    let (by, accepted) = accept_any(listeners);
    let peer = accepted.peer_addr().expect("it is connected");
    assert_eq!(canonical(peer), from, "{by} sees the source as it is");
    (by, accepted)
}

/// Returns what accepts the next connection.
pub(crate) fn accept_any(listeners: &[Listener]) -> (&'static str, TcpStream) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for (name, listener) in listeners {
            listener.set_nonblocking(true).expect("a listener can be");
            match listener.accept() {
                Ok((accepted, _)) => {
                    accepted.set_nonblocking(false).expect("a stream can be");
                    return (name, accepted);
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert!(Instant::now() < deadline, "nobody accepts");
        std::thread::yield_now();
    }
}

// A socket that listens at `::` shows IPv4 addresses as IPv6.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// What a proxy learns of where an accepted connection was going.
pub(crate) fn original_dst(accepted: &TcpStream) -> Option<SocketAddr> {
    let local = accepted.local_addr().expect("it is connected");
    // Of these sizes, because iptables answers as much as it was asked for.
    let is_v4 = canonical(local).is_ipv4();
    let (level, size) = if is_v4 {
        (libc::SOL_IP, 16)
    } else {
        (libc::IPPROTO_IPV6, 28)
    };
    let bytes = sockopt(accepted, level, SO_ORIGINAL_DST, size).ok()?;
    assert_eq!(bytes.len(), size);
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let addr: IpAddr = if is_v4 {
        let octets: [u8; 4] = bytes[4..8].try_into().expect("four bytes");
        octets.into()
    } else {
        let octets: [u8; 16] = bytes[8..24].try_into().expect("16 bytes");
        octets.into()
    };
    Some(SocketAddr::new(addr, port))
}

/// Listens at every address of both families.
pub(crate) fn listen(pod: &Pod, id: u32, port: u16) -> TcpListener {
    let addr = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    pod.listen(id, addr)
}

/// The number of an interface in the namespace of this thread.
pub(crate) fn ifindex(name: &str) -> u32 {
    let name = CString::new(name).expect("no zero byte");
    // SAFETY: a string that ends in zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{name:?} is there");
    index
}

/// Connects by the device `eth0`, whatever the routes say.
pub(crate) fn connect_by_eth0(to: SocketAddrV4) -> TcpStream {
    const DEVICE: &[u8; 4] = b"eth0";
    let socket = tcp_socket(0);
    let to = sockaddr(to);
    // SAFETY: a buffer and its length, an address and its length.
    let answers = unsafe {
        let bound = libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            DEVICE.as_ptr().cast(),
            4,
        );
        let to = (&raw const to).cast();
        [bound, libc::connect(socket.as_raw_fd(), to, SOCKADDR_BYTES)]
    };
    assert_eq!(answers, [0, 0], "{}", io::Error::last_os_error());
    socket.into()
}
