//! The bytes of a dump of routes: the request, and what the kernel answers (rtnetlink(7)).

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use isthmus_accel_abi::LOOPBACK_IFINDEX;
use isthmus_accel_core::{MAX_ROUTES_PER_POD, Routes};
use isthmus_api::node_config::IpRange;
use nix::libc::{
    AF_INET, AF_INET6, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    RT_TABLE_MAIN, RTA_DST, RTA_MULTIPATH, RTA_OIF, RTA_PRIORITY, RTA_TABLE, RTM_F_CLONED,
    RTM_GETROUTE, RTM_NEWROUTE, RTN_BLACKHOLE, RTN_LOCAL, RTN_PROHIBIT, RTN_THROW, RTN_UNICAST,
    RTN_UNREACHABLE,
};

/// Routes of all tables that a dump may have: the kernel leaves out none. Forty times what a pod may have
/// in its main table.
const MAX_MESSAGES: usize = 20_000;

/// Sizes of `struct nlmsghdr`, `rtmsg`, `rtattr` and `rtnexthop` (Linux, `include/uapi/linux`).
const HEADER_BYTES: usize = 16;
const ROUTE_BYTES: usize = 12;
const ATTRIBUTE_BYTES: usize = 4;
const NEXT_HOP_BYTES: usize = 8;

/// Flag of a next hop, and of a route that has one only: its interface is down.
const RTNH_F_DEAD: u32 = 1;

/// Bits of an attribute's type that are not flags (`NLA_TYPE_MASK`).
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// Returns the message that asks for all routes of a family.
pub(super) fn request(family: u8) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + ROUTE_BYTES).expect("a small number");
    let flags = u16::try_from(NLM_F_REQUEST | NLM_F_DUMP).expect("bits of 16");
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(RTM_GETROUTE.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Number and port, which a single question needs not.
    message.extend([0; 8]);
    message.push(family);
    message.resize(HEADER_BYTES + ROUTE_BYTES, 0);
    message
}

/// Whether a dump has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    More,
    Done,
}

/// The main table as it comes in.
#[derive(Debug, Default)]
pub(super) struct Dump {
    messages: usize,
    routes: BTreeMap<IpRange, Route>,
}

#[derive(Debug, Eq, PartialEq)]
struct Route {
    interfaces: BTreeSet<u32>,
    metric: u32,
}

impl Dump {
    /// Takes in one datagram. Ends early with one route more than a pod may have.
    ///
    /// # Errors
    ///
    /// Returns what the kernel answers, `Interrupted` if the table changed while it was read, and
    /// `InvalidData` for what is no message.
    pub(super) fn handle(&mut self, mut datagram: &[u8]) -> io::Result<Progress> {
        while !datagram.is_empty() {
            let (header, body, rest) = message(datagram).ok_or_else(malformed)?;
            datagram = rest;
            if header.flags & NLM_F_DUMP_INTR != 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match header.kind {
                NLMSG_DONE => return Ok(Progress::Done),
                NLMSG_ERROR => {
                    let error = i32_at(body, 0).ok_or_else(malformed)?;
                    return Err(io::Error::from_raw_os_error(error.wrapping_neg()));
                }
                kind if kind == i32::from(RTM_NEWROUTE) => {
                    let message = RouteMessage::parse(body).ok_or_else(malformed)?;
                    if let Some((range, route)) = message.into_route() {
                        self.add(range, route);
                    }
                }
                _ => {}
            }
            self.messages += 1;
            if self.messages > MAX_MESSAGES {
                let error = format!("it has more than {MAX_MESSAGES} routes in all tables");
                return Err(io::Error::other(error));
            }
            if self.routes.len() > MAX_ROUTES_PER_POD {
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::More)
    }

    // The lowest metric is the kernel's choice. Among equals it may choose any.
    fn add(&mut self, range: IpRange, route: Route) {
        match self.routes.entry(range) {
            Entry::Vacant(entry) => {
                entry.insert(route);
            }
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                if route.metric < known.metric {
                    *known = route;
                } else if route.metric == known.metric {
                    known.interfaces.extend(route.interfaces);
                }
            }
        }
    }

    pub(super) fn into_routes(self) -> Routes {
        let routes = self.routes.into_iter();
        routes
            .map(|(range, route)| (range, route.interfaces))
            .collect()
    }
}

struct Header {
    flags: i32,
    kind: i32,
}

// A message's header and body, and what comes behind it.
fn message(datagram: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
    let header = Header {
        kind: u16_at(datagram, 4)?.into(),
        flags: u16_at(datagram, 6)?.into(),
    };
    let body = datagram.get(HEADER_BYTES..length)?;
    Some((header, body, behind(datagram, length)))
}

/// A route message, as far as it matters here.
struct RouteMessage {
    destination: Option<IpAddr>,
    flags: u32,
    interfaces: BTreeSet<u32>,
    /// One of `RTN_*`.
    kind: u8,
    metric: u32,
    prefix_len: u8,
    source_len: u8,
    table: u32,
    tos: u8,
}

impl RouteMessage {
    /// Returns `None` for what is no route message.
    fn parse(body: &[u8]) -> Option<Self> {
        let fixed = body.get(..ROUTE_BYTES)?;
        let family = fixed[0];
        let mut message = Self {
            destination: unspecified(family),
            flags: u32_at(fixed, 8)?,
            interfaces: BTreeSet::new(),
            kind: fixed[7],
            metric: 0,
            prefix_len: fixed[1],
            source_len: fixed[2],
            table: fixed[4].into(),
            tos: fixed[3],
        };
        let mut attributes = &body[ROUTE_BYTES..];
        while !attributes.is_empty() {
            let (name, value, rest) = attribute(attributes)?;
            attributes = rest;
            match name {
                RTA_DST => message.destination = address(family, value),
                RTA_MULTIPATH => message.interfaces.extend(next_hops(value)?),
                RTA_OIF if message.flags & RTNH_F_DEAD == 0 => {
                    message.interfaces.insert(u32_at(value, 0)?);
                }
                RTA_PRIORITY => message.metric = u32_at(value, 0)?,
                RTA_TABLE => message.table = u32_at(value, 0)?,
                _ => {}
            }
        }
        Some(message)
    }

    /// Returns the route, or `None` if it does not count.
    fn into_route(self) -> Option<(IpRange, Route)> {
        let destination = self.destination?;
        // Entries of the cache, and routes by more than the destination: the latter are policy routing too.
        let is_plain = self.flags & RTM_F_CLONED == 0 && self.source_len == 0 && self.tos == 0;
        if self.table != u32::from(RT_TABLE_MAIN) || !is_plain || is_link_local(destination) {
            return None;
        }
        let interfaces = match self.kind {
            RTN_UNICAST if self.interfaces.is_empty() => return None,
            RTN_UNICAST => self.interfaces,
            RTN_LOCAL => [LOOPBACK_IFINDEX].into(),
            RTN_BLACKHOLE | RTN_UNREACHABLE | RTN_PROHIBIT | RTN_THROW => BTreeSet::new(),
            // Nothing that a connection is made to.
            _ => return None,
        };
        let range = IpRange::around(destination, self.prefix_len);
        let metric = self.metric;
        Some((range, Route { interfaces, metric }))
    }
}

// An attribute's type and value, and what comes behind it.
fn attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16_at(bytes, 0)?);
    let name = u16_at(bytes, 2)? & ATTRIBUTE_TYPE;
    let value = bytes.get(ATTRIBUTE_BYTES..length)?;
    Some((name, value, behind(bytes, length)))
}

fn next_hops(mut bytes: &[u8]) -> Option<BTreeSet<u32>> {
    let mut interfaces = BTreeSet::new();
    while !bytes.is_empty() {
        let length = usize::from(u16_at(bytes, 0)?);
        let hop = bytes.get(..length)?;
        let fixed = hop.get(..NEXT_HOP_BYTES)?;
        if u32::from(fixed[2]) & RTNH_F_DEAD == 0 {
            interfaces.insert(u32_at(fixed, 4)?);
        }
        bytes = behind(bytes, length);
    }
    Some(interfaces)
}

// Everything is aligned to four bytes, except for the end of the last one.
fn behind(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(length.next_multiple_of(4)..).unwrap_or_default()
}

fn unspecified(family: u8) -> Option<IpAddr> {
    match i32::from(family) {
        AF_INET => Some(Ipv4Addr::UNSPECIFIED.into()),
        AF_INET6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        AF_INET => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        AF_INET6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

// Every interface has a route for it, and what goes there is not captured.
fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(i32::from_ne_bytes(*bytes))
}

fn malformed() -> io::Error {
    let text = "the kernel's answer about routes is not understood";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests;
