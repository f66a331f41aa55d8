//! The main routing table of a network namespace, by rtnetlink(7): what leaves by which interface.
//!
//! A connect program cannot ask for a route, so that the agent loads them for pods that leave interfaces
//! alone. Other tables, and the rules that lead to them (`ip rule`), are not looked at.

mod dump;

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use isthmus_accel_core::Routes;
use nix::{
    libc::{AF_INET, AF_INET6},
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv,
            send, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use self::dump::{Dump, Progress, request};

/// The kernel fills datagrams up to this size in a dump (Linux, `netlink_recvmsg`).
const DATAGRAM_BYTES: usize = 32 * 1024;

/// Far more than the kernel takes for the next part of a dump.
const PATIENCE_SECONDS: i64 = 2;

/// Returns the main routing table of the calling thread's namespace, of both families. A table that is too
/// long for a pod is cut off behind the limit, by which it shows.
///
/// # Errors
///
/// Returns the kernel's answer, or `Interrupted` if the table changed meanwhile.
pub(crate) fn routes_here() -> io::Result<Routes> {
    let mut dump = Dump::default();
    for family in [AF_INET, AF_INET6] {
        read(family, &mut dump)?;
    }
    Ok(dump.into_routes())
}

fn read(family: i32, dump: &mut Dump) -> io::Result<()> {
    let socket = open()?;
    let fd = socket.as_raw_fd();
    let family = u8::try_from(family).expect("both are small numbers");
    send(fd, &request(family), MsgFlags::empty())?;
    let mut datagram = vec![0; DATAGRAM_BYTES];
    loop {
        // With the flag the kernel says how long the datagram was, whether it fitted or not.
        let length = recv(fd, &mut datagram, MsgFlags::MSG_TRUNC)?;
        let received = datagram.get(..length);
        let received =
            received.ok_or_else(|| io::Error::other("a netlink datagram is too long"))?;
        if dump.handle(received)? == Progress::Done {
            return Ok(());
        }
    }
}

// Connected to the kernel, so that nobody else in the namespace can answer.
fn open() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}
