//! Sockets with options that the standard library has no call for.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::fixture::{open_socket, set_sockopt};
use crate::net::Family;

/// An address as the kernel takes it, with its length.
pub(crate) struct RawAddr {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl RawAddr {
    /// Writes the address for a socket of this family.
    pub(crate) fn new(addr: SocketAddr, family: Family) -> Self {
        // SAFETY: all zeroes is a value of this structure of numbers.
        let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
        let len = match (addr.ip(), family) {
            (IpAddr::V4(ip), Family::V4 | Family::V6) => {
                let v4 = libc::sockaddr_in {
                    sin_family: AF_INET,
                    sin_port: addr.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(ip.octets()),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is made for addresses of every family.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(v4) };
                size_of::<libc::sockaddr_in>()
            }
            (ip, _) => {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                let v6 = libc::sockaddr_in6 {
                    sin6_family: AF_INET6,
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr {
                        s6_addr: ip.octets(),
                    },
                    sin6_scope_id: 0,
                };
                // SAFETY: as above.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(v6) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        let len = libc::socklen_t::try_from(len).expect("an address is short");
        Self { storage, len }
    }

    /// Pointer and length, for a system call.
    pub(crate) fn as_raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        ((&raw const self.storage).cast(), self.len)
    }
}

// What the C library calls `int` in one place and `sa_family_t` in another.
const AF_INET: libc::sa_family_t = 2;
const AF_INET6: libc::sa_family_t = 10;

/// Reads an address that the kernel wrote, at the beginning of what may be a longer buffer: Linux itself
/// does not tell the length of `SO_ORIGINAL_DST`.
pub(crate) fn read_sockaddr(bytes: &[u8]) -> SocketAddr {
    let family = libc::sa_family_t::from_ne_bytes([bytes[0], bytes[1]]);
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let ip: IpAddr = match family {
        AF_INET => {
            let octets: [u8; 4] = bytes[4..8].try_into().expect("four bytes");
            Ipv4Addr::from(octets).into()
        }
        AF_INET6 => {
            let octets: [u8; 16] = bytes[8..24].try_into().expect("sixteen bytes");
            Ipv6Addr::from(octets).into()
        }
        family => panic!("an address of family {family}"),
    };
    SocketAddr::new(ip, port)
}

/// Makes a socket of this family and type.
pub(crate) fn socket(family: Family, kind: libc::c_int) -> OwnedFd {
    let domain = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 | Family::Mapped => libc::AF_INET6,
    };
    open_socket(domain, kind, 0).expect("a socket can be made")
}

/// Binds a socket.
pub(crate) fn bind(socket: &OwnedFd, addr: SocketAddr, family: Family) {
    let raw = RawAddr::new(addr, family);
    let (pointer, len) = raw.as_raw();
    // SAFETY: an address and its length.
    let answer = unsafe { libc::bind(socket.as_raw_fd(), pointer, len) };
    assert_eq!(answer, 0, "bind {addr}: {}", io::Error::last_os_error());
}

fn family_of(addr: SocketAddr) -> Family {
    if addr.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    }
}

fn bound(addr: SocketAddr, kind: libc::c_int, options: &[(libc::c_int, libc::c_int)]) -> OwnedFd {
    let family = family_of(addr);
    let socket = socket(family, kind);
    set_sockopt(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    if family == Family::V6 {
        set_sockopt(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
    }
    for (level, name) in options {
        set_sockopt(&socket, *level, *name, 1);
    }
    bind(&socket, addr, family);
    socket
}

/// Listens at an address, for its own family only.
pub(crate) fn listen(addr: SocketAddr) -> TcpListener {
    listening(bound(addr, libc::SOCK_STREAM, &[]))
}

/// As [`listen`], also for connections to addresses of others.
pub(crate) fn listen_transparently(addr: SocketAddr) -> TcpListener {
    let listener = listen(addr);
    make_transparent(&listener, family_of(addr));
    listener
}

/// Lets a socket have the address of somebody else. Needs `CAP_NET_ADMIN`.
pub(crate) fn make_transparent(socket: &impl AsRawFd, family: Family) {
    set_sockopt(socket, libc::SOL_IP, libc::IP_TRANSPARENT, 1);
    if family != Family::V4 {
        set_sockopt(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1);
    }
}

fn listening(socket: OwnedFd) -> TcpListener {
    // SAFETY: plain numbers.
    let answer = unsafe { libc::listen(socket.as_raw_fd(), 128) };
    assert_eq!(answer, 0, "listen: {}", io::Error::last_os_error());
    socket.into()
}

/// A datagram socket at an address, which answers from where it was asked.
pub(crate) fn bind_udp(addr: SocketAddr) -> UdpSocket {
    // The world has no IPv6 address of its own to bind to, only a route that makes them local.
    let option = match family_of(addr) {
        Family::V4 => (libc::SOL_IP, libc::IP_FREEBIND),
        Family::V6 | Family::Mapped => (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
    };
    bound(addr, libc::SOCK_DGRAM, &[option]).into()
}
