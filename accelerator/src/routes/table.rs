//! The main table, from the routes of a dump (rtnetlink(7)).

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use isthmus_accel_abi::LOOPBACK_IFINDEX;
use isthmus_accel_core::{MAX_ROUTES_PER_POD, Routes};
use isthmus_accel_datapath::netlink::{
    Appetite, Request, attribute, behind, malformed, u16_at, u32_at,
};
use isthmus_api::node_config::IpRange;
use nix::libc::{
    AF_INET, AF_INET6, RT_TABLE_MAIN, RTA_DST, RTA_MULTIPATH, RTA_OIF, RTA_PRIORITY, RTA_TABLE,
    RTM_F_CLONED, RTM_GETROUTE, RTM_NEWROUTE, RTN_BLACKHOLE, RTN_LOCAL, RTN_PROHIBIT, RTN_THROW,
    RTN_UNICAST, RTN_UNREACHABLE,
};

/// Sizes of `struct rtmsg` and `rtnexthop` (Linux, `include/uapi/linux`).
const ROUTE_BYTES: usize = 12;
const NEXT_HOP_BYTES: usize = 8;

/// Flag of a next hop, and of a route that has one only: its interface is down.
const RTNH_F_DEAD: u32 = 1;

/// Returns the message that asks for all routes of a family.
pub(super) fn request(family: u8) -> Request {
    let mut fixed = [0; ROUTE_BYTES];
    fixed[0] = family;
    Request::dump(RTM_GETROUTE, &fixed)
}

/// The main table as it comes in.
#[derive(Debug, Default)]
pub(super) struct Table {
    routes: BTreeMap<IpRange, Route>,
}

#[derive(Debug, Eq, PartialEq)]
struct Route {
    interfaces: BTreeSet<u32>,
    metric: u32,
}

impl Table {
    /// Takes in one message. Has enough with one route more than a pod may have.
    ///
    /// # Errors
    ///
    /// Returns `InvalidData` for what is no route message.
    pub(super) fn take(&mut self, kind: u16, body: &[u8]) -> io::Result<Appetite> {
        if kind == RTM_NEWROUTE {
            let message = RouteMessage::parse(body).ok_or_else(malformed)?;
            if let Some((range, route)) = message.into_route() {
                self.add(range, route);
            }
        }
        Ok(if self.routes.len() > MAX_ROUTES_PER_POD {
            Appetite::Enough
        } else {
            Appetite::More
        })
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

#[cfg(test)]
mod tests;
