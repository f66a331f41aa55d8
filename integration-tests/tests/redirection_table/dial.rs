//! One connection or one datagram, and what its two ends saw.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::fixture::{PATIENCE, set_sockopt};
use crate::modes::Mode;
use crate::net::{Addr, Family, Net, Place};
use crate::servers::Role;
use crate::socket::{self, RawAddr};

/// How to ask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Protocol {
    Tcp,
    /// A datagram by a connected socket.
    Udp,
    /// A datagram by sendto(2).
    UdpUnconnected,
}

/// Who dials whom, and who should answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dial {
    pub(crate) from: Place,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Address that the caller binds its socket to, if it does.
    pub(crate) source: Option<Addr>,
    /// Port that it binds its socket to; 0 for any.
    pub(crate) source_port: u16,
    /// Mark of its packets, with which it may also bind to an address of somebody else; 0 for none.
    pub(crate) mark: libc::c_int,
    pub(crate) protocol: Protocol,
    pub(crate) to: Addr,
    pub(crate) port: u16,
    pub(crate) families: &'static [Family],
    /// Where, and which of its listeners, answers.
    pub(crate) answers: (Place, Role),
}

impl Dial {
    pub(crate) fn target(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.to.of(family), self.port)
    }

    /// The same by a port of its own for each mode: an answer to a datagram that Istio's rules redirected
    /// is rewritten for as long as conntrack remembers it, also after the programs took over.
    pub(crate) fn in_mode(self, mode: Mode) -> Self {
        let source_port = match self.source_port {
            0 => 0,
            port => port + mode as u16,
        };
        Self {
            source_port,
            ..self
        }
    }

    // Where the caller binds its socket.
    fn source(&self, family: Family) -> Option<SocketAddr> {
        let any: IpAddr = match family {
            Family::V4 | Family::Mapped => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let is_bound = self.source.is_some() || self.source_port != 0;
        let addr = self.source.map_or(any, |addr| addr.of(family));
        is_bound.then(|| SocketAddr::new(addr, self.source_port))
    }
}

/// What the client saw, with what the server told it that it saw.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Seen {
    /// The system call that failed, and how.
    Failed(&'static str, String),
    Answered {
        /// getpeername(2); for an unconnected datagram the source of the answer.
        peer: SocketAddr,
        /// getsockname(2), without the port.
        own: IpAddr,
        /// Name of who answered.
        by: String,
        /// Address that the server saw.
        from: IpAddr,
        /// Whether the server saw the client's own port.
        has_own_port: bool,
        /// `SO_ORIGINAL_DST` at the server.
        original: String,
    },
}

const GREETING: &str = "hello";

/// Dials as the row says.
pub(crate) fn dial(net: &Net, dial: &Dial, family: Family) -> Seen {
    let to = dial.target(family);
    let source = dial.source(family);
    let (protocol, mark) = (dial.protocol, dial.mark);
    let make = move || {
        let kind = match protocol {
            Protocol::Tcp => libc::SOCK_STREAM,
            Protocol::Udp | Protocol::UdpUnconnected => libc::SOCK_DGRAM,
        };
        let socket = socket::socket(family, kind);
        if mark != 0 {
            set_sockopt(&socket, libc::SOL_SOCKET, libc::SO_MARK, mark);
            socket::make_transparent(&socket, family);
        }
        if let Some(source) = source {
            set_sockopt(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
            socket::bind(&socket, source, family);
        }
        socket
    };
    let work = move || match ask(make(), protocol, to, family) {
        Ok(seen) => seen,
        Err((call, error)) => {
            let number = error.raw_os_error();
            Seen::Failed(call, number.map_or(error.to_string(), errno))
        }
    };
    let caller = net.at(dial.from).spawn_as(dial.uid, dial.gid, work);
    caller.join().expect("a caller reports its errors")
}

fn errno(number: i32) -> String {
    io::Error::from_raw_os_error(number).to_string()
}

type Failure = (&'static str, io::Error);

fn ask(
    socket: OwnedFd,
    protocol: Protocol,
    to: SocketAddr,
    family: Family,
) -> Result<Seen, Failure> {
    match protocol {
        Protocol::Tcp => {
            connect(&socket, to, family)?;
            ask_stream(socket.into())
        }
        Protocol::Udp => {
            connect(&socket, to, family)?;
            let socket = UdpSocket::from(socket);
            socket.send(GREETING.as_bytes()).map_err(at("send"))?;
            let (text, _) = receive(&socket)?;
            let peer = socket.peer_addr().map_err(at("getpeername"))?;
            report(&text, peer, socket.local_addr())
        }
        Protocol::UdpUnconnected => {
            send_to(&socket, to, family)?;
            let socket = UdpSocket::from(socket);
            let (text, from) = receive(&socket)?;
            report(&text, from, socket.local_addr())
        }
    }
}

fn at(call: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| (call, error)
}

/// Calls connect(2).
pub(crate) fn connect(socket: &OwnedFd, to: SocketAddr, family: Family) -> Result<(), Failure> {
    let raw = RawAddr::new(to, family);
    let (pointer, len) = raw.as_raw();
    // SAFETY: an address and its length.
    let answer = unsafe { libc::connect(socket.as_raw_fd(), pointer, len) };
    if answer == 0 {
        Ok(())
    } else {
        Err(("connect", io::Error::last_os_error()))
    }
}

fn send_to(socket: &OwnedFd, to: SocketAddr, family: Family) -> Result<(), Failure> {
    let raw = RawAddr::new(to, family);
    let (pointer, len) = raw.as_raw();
    let bytes = GREETING.as_bytes();
    // SAFETY: a buffer and an address, each with its length.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            pointer,
            len,
        )
    };
    if sent < 0 {
        return Err(("sendto", io::Error::last_os_error()));
    }
    Ok(())
}

fn ask_stream(mut stream: TcpStream) -> Result<Seen, Failure> {
    let peer = stream.peer_addr().map_err(at("getpeername"))?;
    let own = stream.local_addr();
    stream
        .set_read_timeout(Some(PATIENCE))
        .map_err(at("setsockopt"))?;
    stream.write_all(GREETING.as_bytes()).map_err(at("write"))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(at("read"))?;
    if text.is_empty() {
        return Err(("read", io::ErrorKind::UnexpectedEof.into()));
    }
    report(&text, peer, own)
}

fn receive(socket: &UdpSocket) -> Result<(String, SocketAddr), Failure> {
    socket
        .set_read_timeout(Some(PATIENCE))
        .map_err(at("setsockopt"))?;
    let mut bytes = [0; 512];
    let (len, from) = socket.recv_from(&mut bytes).map_err(at("recvfrom"))?;
    Ok((String::from_utf8_lossy(&bytes[..len]).into_owned(), from))
}

// The server's report: `hello PLACE/ROLE ADDR:PORT ORIGINAL`.
fn report(text: &str, peer: SocketAddr, own: io::Result<SocketAddr>) -> Result<Seen, Failure> {
    let own = own.map_err(at("getsockname"))?;
    let mut words = text.splitn(4, ' ');
    let mut word = || {
        words
            .next()
            .unwrap_or_else(|| panic!("an answer: {text:?}"))
    };
    assert_eq!(word(), GREETING, "what was sent comes back");
    let by = word().to_owned();
    let from: SocketAddr = word().parse().expect("a server reports an address");
    Ok(Seen::Answered {
        peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        own: own.ip().to_canonical(),
        by,
        from: from.ip(),
        has_own_port: from.port() == own.port(),
        original: word().to_owned(),
    })
}
