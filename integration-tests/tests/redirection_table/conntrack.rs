//! Row X1: packets that belong to no connection, or to one but not at this place in its stream.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::fixture::{PATIENCE, PROXY, open_socket, set_sockopt};
use crate::modes::{Mode, Redirection};
use crate::net::{Addr, Family, NO_MAPPED, Net};
use crate::row::row;
use crate::servers::INBOUND_PORT;
use crate::socket::{self, RawAddr};

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// The application's.
const APP_PORT: u16 = 8080;
/// Never captured, and nobody listens at it: what opens a connection to it is answered with a reset.
const CLOSED_PORT: u16 = 15_008;
/// Sends what no connection expects.
const STRAY_PORT: u16 = 40_001;
/// Sends what is answered in any case: answers come in order.
const FENCE_PORT: u16 = 40_002;
/// Further ahead than any window reaches.
const FAR_AHEAD: u32 = 1 << 30;
const TCP_HEADER_BYTES: usize = 20;
/// Place of the checksum in the header.
const CHECKSUM_AT: usize = 16;

/// Nobody listens in the pod, so that the kernel answers with a reset, unless the packet is dropped.
///
/// The accelerator alone has no conntrack to tell what belongs to no connection; where iptables asks it,
/// the accelerator changes nothing.
#[test]
fn strays_are_dropped_where_the_pod_asks_for_it() {
    let net = Net::new();
    for mode in [Mode::IptablesAlone, Mode::Both] {
        let mut redirection = Redirection::new(&net, mode);
        for (setting, is_answered) in [("false", true), ("true", false)] {
            redirection.apply(&row("X1").metadata("INVALID_DROP", setting).settings);
            for family in NO_MAPPED {
                let found = is_stray_answered(&net, *family);
                assert_eq!(found, is_answered, "{mode:?}, {family:?}, {setting}");
            }
        }
    }
}

/// A packet out of the window of a captured connection, which a router was slow with, say.
///
/// Conntrack does not take it for the connection's, so NAT leaves the port that was dialled in it, where no
/// socket is: the kernel resets the client's connection, and that is what the setting is for. The
/// accelerator alone changes no port, so the packet finds its socket, which drops it, with the setting and
/// without.
#[test]
fn a_packet_out_of_window_does_not_end_a_captured_connection() {
    let net = Net::new();
    let any: [(Family, IpAddr); 2] = [
        (Family::V4, Ipv4Addr::UNSPECIFIED.into()),
        (Family::V6, Ipv6Addr::UNSPECIFIED.into()),
    ];
    let listeners = any.map(|(family, addr)| {
        let at = SocketAddr::new(addr, INBOUND_PORT);
        (family, net.pod.run_as(PROXY, move || socket::listen(at)))
    });
    // The accelerator first, in namespaces that never had a table of iptables.
    for (mode, ends_unless_dropped) in [
        (Mode::AcceleratorAlone, false),
        (Mode::IptablesAlone, true),
        (Mode::Both, true),
    ] {
        let mut redirection = Redirection::new(&net, mode);
        for (setting, is_reset) in [("false", ends_unless_dropped), ("true", false)] {
            let settings = row("X1").metadata("INVALID_DROP", setting).settings;
            assert_eq!(redirection.apply(&settings), None);
            for (family, listener) in &listeners {
                let case = format!("{mode:?}, {family:?}, {setting}");
                let mut captured = Captured::open(&net, *family, listener);
                captured.carry().expect("a new connection carries bytes");
                assert_eq!(captured.is_packet_reset(&net), is_reset, "{case}");
                let carried = captured.carry().map_err(|error| error.kind());
                let expected = if is_reset {
                    Err(ErrorKind::ConnectionReset)
                } else {
                    Ok(())
                };
                assert_eq!(carried, expected, "{case}");
            }
        }
    }
}

/// Both ends of a connection from the world to the pod's application, which the sidecar has, and a look at
/// what the world receives.
struct Captured {
    client: TcpStream,
    sidecar: TcpStream,
    raw: OwnedFd,
    family: Family,
}

impl Captured {
    fn open(net: &Net, family: Family, listener: &TcpListener) -> Self {
        let raw = net.world.run_as(0, move || raw_socket(family));
        let to = SocketAddr::new(Addr::Pod.of(family), APP_PORT);
        let client = net.world.connect(0, to).expect("the sidecar listens");
        let (sidecar, _) = listener.accept().expect("the connection is captured");
        for end in [&client, &sidecar] {
            let patience = Some(PATIENCE);
            end.set_read_timeout(patience)
                .expect("a timeout can be set");
        }
        Self {
            client,
            sidecar,
            raw,
            family,
        }
    }

    /// Sends a byte each way.
    fn carry(&mut self) -> io::Result<()> {
        let mut byte = [0];
        self.client.write_all(b">")?;
        self.sidecar.read_exact(&mut byte)?;
        self.sidecar.write_all(b"<")?;
        self.client.read_exact(&mut byte)
    }

    /// Whether a reset answers the packet. What it acknowledges makes an answer one that the client believes.
    fn is_packet_reset(&self, net: &Net) -> bool {
        let client_port = self.client.local_addr().expect("it is connected").port();
        let (next_of_client, next_of_sidecar) = self.next_in_streams(client_port);
        let stray = Segment {
            from_port: client_port,
            to_port: APP_PORT,
            sequence: next_of_client.wrapping_add(FAR_AHEAD),
            acknowledged: next_of_sidecar,
            flags: ACK,
        };
        let raw = self
            .raw
            .try_clone()
            .expect("a descriptor can be duplicated");
        let family = self.family;
        net.world
            .run_as(0, move || is_reset(&raw, stray, CLOSED_PORT, family))
    }

    // Where the streams of the client and of the sidecar go on: as the sidecar's newest segment says.
    fn next_in_streams(&self, client_port: u16) -> (u32, u32) {
        let newest = std::iter::from_fn(|| receive(&self.raw, self.family, Wait::No))
            .filter(|found| found.segment.to_port == client_port && found.len_bytes > 0)
            .last()
            .expect("the sidecar has sent a byte");
        let Segment {
            sequence,
            acknowledged,
            ..
        } = newest.segment;
        (acknowledged, sequence.wrapping_add(newest.len_bytes))
    }
}

fn is_stray_answered(net: &Net, family: Family) -> bool {
    net.world.run_as(0, move || {
        let raw = raw_socket(family);
        let stray = Segment::new(STRAY_PORT, APP_PORT, SYN | ACK);
        is_reset(&raw, stray, APP_PORT, family)
    })
}

/// A TCP header without options.
#[derive(Clone, Copy, Debug)]
struct Segment {
    from_port: u16,
    to_port: u16,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
}

impl Segment {
    /// The first of a connection.
    fn new(from_port: u16, to_port: u16, flags: u8) -> Self {
        Self {
            from_port,
            to_port,
            sequence: 1,
            acknowledged: 0,
            flags,
        }
    }
}

/// A segment that came to the world.
#[derive(Clone, Copy, Debug)]
struct Arrived {
    segment: Segment,
    /// Of what it carries.
    len_bytes: u32,
}

/// Sends the stray from the world to the pod, and tells whether a reset answers it before one answers what
/// is sent after it, to a port that nobody listens at.
fn is_reset(raw: &OwnedFd, stray: Segment, closed_port: u16, family: Family) -> bool {
    let fence = Segment::new(FENCE_PORT, closed_port, SYN);
    for segment in [stray, fence] {
        send(raw, segment, family);
    }
    let mut is_reset = false;
    loop {
        let arrived = receive(raw, family, Wait::Yes).expect("the fence is answered");
        if arrived.segment.flags & RST == 0 {
            continue;
        }
        match arrived.segment.to_port {
            FENCE_PORT => return is_reset,
            port => is_reset |= port == stray.from_port,
        }
    }
}

fn raw_socket(family: Family) -> OwnedFd {
    let domain = if family == Family::V4 {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let raw = open_socket(domain, libc::SOCK_RAW, libc::IPPROTO_TCP).expect("root can");
    if family == Family::V6 {
        // The kernel fills it in, as it does not for IPv4.
        let at = libc::c_int::try_from(CHECKSUM_AT).expect("a small number");
        set_sockopt(&raw, libc::IPPROTO_IPV6, libc::IPV6_CHECKSUM, at);
    }
    raw
}

/// Whether to wait for a segment that is not there yet.
#[derive(Clone, Copy, Debug)]
enum Wait {
    Yes,
    No,
}

/// The next segment that the world has received, if there is one in time.
fn receive(raw: &OwnedFd, family: Family, wait: Wait) -> Option<Arrived> {
    let mut ready = libc::pollfd {
        fd: raw.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let patience = match wait {
        Wait::Yes => libc::c_int::try_from(PATIENCE.as_millis()).expect("seconds"),
        Wait::No => 0,
    };
    // SAFETY: one structure.
    if unsafe { libc::poll(&raw mut ready, 1, patience) } != 1 {
        return None;
    }
    let mut packet = [0_u8; 256];
    // SAFETY: a buffer and its length.
    let len = unsafe { libc::recv(raw.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
    let len =
        usize::try_from(len).unwrap_or_else(|_| panic!("recv: {}", io::Error::last_os_error()));
    // Raw sockets of IPv4 show the header of IP too.
    let offset = if family == Family::V4 {
        usize::from(packet[0] & 0xf) * 4
    } else {
        0
    };
    let tcp = &packet[offset..len];
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let header_bytes = usize::from(tcp[12] >> 4) * 4;
    Some(Arrived {
        segment: Segment {
            from_port: port(0),
            to_port: port(2),
            sequence: number(4),
            acknowledged: number(8),
            flags: tcp[13],
        },
        len_bytes: u32::try_from(tcp.len() - header_bytes).expect("a short packet"),
    })
}

fn send(raw: &OwnedFd, segment: Segment, family: Family) {
    let pod = Addr::Pod.of(family);
    let header = header(Addr::World.of(family), pod, segment);
    let to = RawAddr::new(SocketAddr::new(pod, 0), family);
    let (pointer, len) = to.as_raw();
    // SAFETY: a buffer and an address, each with its length.
    let sent = unsafe {
        libc::sendto(
            raw.as_raw_fd(),
            header.as_ptr().cast(),
            header.len(),
            0,
            pointer,
            len,
        )
    };
    assert!(sent > 0, "sendto: {}", io::Error::last_os_error());
}

fn header(from: IpAddr, to: IpAddr, segment: Segment) -> [u8; TCP_HEADER_BYTES] {
    let mut header = [0; TCP_HEADER_BYTES];
    header[..2].copy_from_slice(&segment.from_port.to_be_bytes());
    header[2..4].copy_from_slice(&segment.to_port.to_be_bytes());
    header[4..8].copy_from_slice(&segment.sequence.to_be_bytes());
    header[8..12].copy_from_slice(&segment.acknowledged.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = segment.flags;
    header[14] = 0xff;
    if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
        let pseudo = [0, 6, 0, 20];
        let all = [&from.octets()[..], &to.octets(), &pseudo, &header].concat();
        let sum: u32 = all
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        let checksum = !u16::try_from(folded).expect("folded twice");
        header[CHECKSUM_AT..].copy_from_slice(&[checksum.to_be_bytes(), [0; 2]].concat());
    }
    header
}
