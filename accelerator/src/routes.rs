//! The main routing table of a network namespace, by rtnetlink(7): what leaves by which interface.
//!
//! A connect program cannot ask for a route, so that the agent loads them for pods that leave interfaces
//! alone. Other tables, and the rules that lead to them (`ip rule`), are not looked at.

mod table;

use std::io;

use isthmus_accel_core::Routes;
use isthmus_accel_datapath::netlink::Socket;
use nix::libc::{AF_INET, AF_INET6};

use self::table::{Table, request};

/// Returns the main routing table of the calling thread's namespace, of both families. A table that is too
/// long for a pod is cut off behind the limit, by which it shows.
///
/// # Errors
///
/// Returns the kernel's answer, or `Interrupted` if the table changed meanwhile.
pub(crate) fn routes_here() -> io::Result<Routes> {
    let mut table = Table::default();
    for family in [AF_INET, AF_INET6] {
        let family = u8::try_from(family).expect("both are small numbers");
        Socket::open()?.read(&request(family), &mut |kind, body| table.take(kind, body))?;
    }
    Ok(table.into_routes())
}
