//! Who answers: each tells its client what it saw of it.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::fixture::{APP, PATIENCE, PROXY, Pod, SO_ORIGINAL_DST, sockopt};
use crate::net::{Addr, NO_MAPPED, Net, Place};
use crate::socket;

/// Ports of the sidecar, and of the name server in it.
pub(crate) const OUTBOUND_PORT: u16 = 15_001;
pub(crate) const INBOUND_PORT: u16 = 15_006;
pub(crate) const DNS_PORT: u16 = 15_053;

/// What an application, and the world, serves by TCP.
const TCP_PORTS: [u16; 14] = [
    53, 80, 443, 3306, 8080, 8443, 9090, 9300, 15_002, 15_008, 15_020, 15_021, 15_090, 15_099,
];
const UDP_PORTS: [u16; 3] = [53, 3306, 8080];
const ANY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];
/// How long a look at the listeners may take before the next look at whether to end.
const TICK_MS: i32 = 50;

/// Who it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// The sidecar's listener for what leaves the pod.
    Outbound,
    /// Its listener for what arrives.
    Inbound,
    /// Its name server.
    Dns,
    /// The application, or whoever else was dialled.
    Direct,
}

impl Role {
    fn of(port: u16) -> Self {
        match port {
            OUTBOUND_PORT => Self::Outbound,
            INBOUND_PORT => Self::Inbound,
            DNS_PORT => Self::Dns,
            _ => Self::Direct,
        }
    }
}

enum Listener {
    Tcp(TcpListener, Role),
    Udp(UdpSocket, Role),
}

/// Everybody who listens. Dropping it ends them.
pub(crate) struct Servers {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").finish_non_exhaustive()
    }
}

impl Servers {
    /// Starts an application in every namespace, and a sidecar in the pods.
    pub(crate) fn start(net: &Net, transparency: Transparency) -> Self {
        let mut servers = Self {
            is_over: Arc::default(),
            threads: Vec::new(),
        };
        for place in [Place::Pod, Place::Peer, Place::World] {
            let at = (net.at(place), place);
            servers.serve(at, (APP, Transparency::Off), move || application(place));
        }
        for place in [Place::Pod, Place::Peer] {
            let at = (net.at(place), place);
            servers.serve(at, (PROXY, transparency), move || sidecar(transparency));
        }
        servers
    }

    fn serve(
        &mut self,
        (pod, place): (&Pod, Place),
        (id, transparency): (u32, Transparency),
        listen: impl FnOnce() -> Vec<Listener> + Send + 'static,
    ) {
        // A socket belongs to whoever made it, which the rules for the sidecar's answers (D2) ask for. The
        // application's ports need root, and so does transparency.
        let owner = match (id, transparency) {
            (PROXY, Transparency::Off) => PROXY,
            _ => 0,
        };
        let listeners = pod.spawn_as(owner, owner, listen).join();
        let listeners = listeners.expect("the ports are free in a namespace of ours");
        let is_over = Arc::clone(&self.is_over);
        let answer = move || answer_all(&listeners, place, &is_over);
        self.threads.push(pod.spawn_as(id, id, answer));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let has_panicked = thread.join().is_err();
            assert!(!has_panicked || thread::panicking(), "a server failed");
        }
    }
}

/// Whether the sidecar takes connections for addresses that are not its own (`IP_TRANSPARENT`), as
/// Istio has it do in TPROXY mode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Transparency {
    Off,
    On,
}

fn application(place: Place) -> Vec<Listener> {
    let tcp = TCP_PORTS.iter().flat_map(|port| {
        ANY.map(|addr| Listener::Tcp(socket::listen((addr, *port).into()), Role::Direct))
    });
    // An answer must come from where the question went, which a socket without address does not see to.
    let addrs: &[Addr] = match place {
        Place::World => &[
            Addr::Vip,
            Addr::OtherRange,
            Addr::NameServer,
            Addr::OtherNameServer,
            Addr::BehindEth1,
        ],
        Place::Pod => &[Addr::Pod, Addr::Loopback],
        Place::Peer | Place::Vm => &[],
    };
    let udp = addrs.iter().flat_map(|addr| {
        NO_MAPPED.iter().flat_map(|family| {
            let addr = addr.of(*family);
            UDP_PORTS.map(|port| Listener::Udp(socket::bind_udp((addr, port).into()), Role::Direct))
        })
    });
    tcp.chain(udp).collect()
}

// As Envoy and Istio's agent bind them.
fn sidecar(transparency: Transparency) -> Vec<Listener> {
    let loopback = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let mut listeners = Vec::new();
    for addr in ANY {
        for port in [OUTBOUND_PORT, INBOUND_PORT] {
            let at = SocketAddr::from((addr, port));
            let listener = if transparency == Transparency::On {
                socket::listen_transparently(at)
            } else {
                socket::listen(at)
            };
            listeners.push(Listener::Tcp(listener, Role::of(port)));
        }
    }
    for addr in loopback {
        let at = SocketAddr::from((addr, DNS_PORT));
        listeners.push(Listener::Tcp(socket::listen(at), Role::Dns));
        listeners.push(Listener::Udp(socket::bind_udp(at), Role::Dns));
    }
    listeners
}

fn answer_all(listeners: &[Listener], place: Place, is_over: &AtomicBool) {
    let mut ready: Vec<libc::pollfd> = listeners
        .iter()
        .map(|listener| libc::pollfd {
            fd: match listener {
                Listener::Tcp(listener, _) => listener.as_raw_fd(),
                Listener::Udp(socket, _) => socket.as_raw_fd(),
            },
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    while !is_over.load(Ordering::Relaxed) {
        // SAFETY: a slice and its length.
        let found = unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, TICK_MS) };
        assert!(found >= 0, "poll: {}", std::io::Error::last_os_error());
        for (listener, ready) in listeners.iter().zip(&ready) {
            if ready.revents != 0 {
                match listener {
                    Listener::Tcp(listener, role) => answer_tcp(listener, *role, place),
                    Listener::Udp(socket, role) => answer_udp(socket, *role, place),
                }
            }
        }
    }
}

// A client that is gone already gets no answer, and misses none.
fn answer_tcp(listener: &TcpListener, role: Role, place: Place) {
    let Ok((mut stream, from)) = listener.accept() else {
        return;
    };
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    let mut greeting = [0; 5];
    if stream.read_exact(&mut greeting).is_err() {
        return;
    }
    // Nobody else asks; what conntrack says of a connection that was not redirected has no meaning.
    let original = match role {
        Role::Outbound | Role::Inbound => original_dst(&stream, from),
        Role::Dns | Role::Direct => "not asked".to_owned(),
    };
    let report = format!("{} {} {original}", name(place, role), plain(from));
    let greeting = String::from_utf8_lossy(&greeting);
    let _ = stream.write_all(format!("{greeting} {report}").as_bytes());
}

fn answer_udp(socket: &UdpSocket, role: Role, place: Place) {
    let mut greeting = [0; 64];
    let Ok((len, from)) = socket.recv_from(&mut greeting) else {
        return;
    };
    let greeting = String::from_utf8_lossy(&greeting[..len]);
    let report = format!("{greeting} {} {} not asked", name(place, role), plain(from));
    let _ = socket.send_to(report.as_bytes(), from);
}

/// The name that a server gives itself.
pub(crate) fn name(place: Place, role: Role) -> String {
    format!("{place:?}/{role:?}")
}

/// What a sidecar asks of a connection that it accepted.
pub(crate) fn original_dst(stream: &TcpStream, from: SocketAddr) -> String {
    let is_v4 = from.is_ipv4();
    let level = if is_v4 {
        libc::SOL_IP
    } else {
        libc::IPPROTO_IPV6
    };
    match sockopt(stream, level, SO_ORIGINAL_DST, 128) {
        Ok(bytes) => socket::read_sockaddr(&bytes).to_string(),
        Err(error) => error.to_string(),
    }
}

fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
