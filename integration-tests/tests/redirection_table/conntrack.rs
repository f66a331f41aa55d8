//! Row X1: packets of no connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::fixture::{PATIENCE, open_socket, set_sockopt};
use crate::modes::{Mode, Redirection};
use crate::net::{Addr, Family, NO_MAPPED, Net};
use crate::row::row;
use crate::socket::RawAddr;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// Sends what no connection expects.
const STRAY_PORT: u16 = 40_001;
/// Sends what is answered in any case: answers come in order.
const FENCE_PORT: u16 = 40_002;
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

fn is_stray_answered(net: &Net, family: Family) -> bool {
    net.world.run_as(0, move || {
        let (own, pod) = (Addr::World.of(family), Addr::Pod.of(family));
        let raw = raw_socket(family);
        for (port, flags) in [(STRAY_PORT, SYN | ACK), (FENCE_PORT, SYN)] {
            let header = header(own, pod, port, flags);
            send(&raw, &header, SocketAddr::new(pod, 0), family);
        }
        let mut is_answered = false;
        loop {
            match reset_port(&raw, family) {
                Some(STRAY_PORT) => is_answered = true,
                Some(FENCE_PORT) => return is_answered,
                _ => {}
            }
        }
    })
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

// The source port of the next packet, if it is a reset: the port that it is for.
fn reset_port(raw: &OwnedFd, family: Family) -> Option<u16> {
    let mut ready = libc::pollfd {
        fd: raw.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let patience = libc::c_int::try_from(PATIENCE.as_millis()).expect("seconds");
    // SAFETY: one structure.
    let found = unsafe { libc::poll(&raw mut ready, 1, patience) };
    assert_eq!(found, 1, "the fence is answered");
    let mut packet = [0_u8; 256];
    // SAFETY: a buffer and its length.
    let len = unsafe { libc::recv(raw.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
    assert!(len > 0, "recv: {}", io::Error::last_os_error());
    // Raw sockets of IPv4 show the header of IP too.
    let offset = if family == Family::V4 {
        usize::from(packet[0] & 0xf) * 4
    } else {
        0
    };
    let tcp = &packet[offset..];
    (tcp[13] & RST != 0).then(|| u16::from_be_bytes([tcp[2], tcp[3]]))
}

fn send(raw: &OwnedFd, header: &[u8], to: SocketAddr, family: Family) {
    let to = RawAddr::new(to, family);
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

fn header(from: IpAddr, to: IpAddr, port: u16, flags: u8) -> [u8; TCP_HEADER_BYTES] {
    let mut header = [0; TCP_HEADER_BYTES];
    header[..2].copy_from_slice(&port.to_be_bytes());
    header[2..4].copy_from_slice(&8080_u16.to_be_bytes());
    header[7] = 1;
    header[12] = 5 << 4;
    header[13] = flags;
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
