//! The bytes of rules and routes (Linux, `include/uapi/linux/fib_rules.h` and `rtnetlink.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc::{
    AF_INET, AF_INET6, RT_SCOPE_HOST, RT_TABLE_UNSPEC, RTA_DST, RTA_OIF, RTA_TABLE, RTM_DELROUTE,
    RTM_DELRULE, RTM_F_CLONED, RTM_GETROUTE, RTM_GETRULE, RTM_NEWROUTE, RTM_NEWRULE, RTN_LOCAL,
};

use super::{Change, Family, LocalRoute, Owner, Rule};
use crate::netlink::{Request, attribute, u32_at};

/// The loopback device is the first of every namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// Size of `struct fib_rule_hdr` and of `struct rtmsg`.
const FIXED_BYTES: usize = 12;

const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;

const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;
const WHOLE_MARK: u32 = u32::MAX;
/// What the kernel says of a rule that suppresses nothing.
const NOTHING: u32 = u32::MAX;

pub(super) fn rules_of(family: Family) -> Request {
    Request::dump(RTM_GETRULE, &rule_header(family, 0))
}

pub(super) fn routes_of(family: Family) -> Request {
    let mut fixed = [0; FIXED_BYTES];
    fixed[0] = number(family);
    Request::dump(RTM_GETROUTE, &fixed)
}

/// Tells whether the body of a message is about this family.
pub(super) fn is_of(family: Family, body: &[u8]) -> bool {
    body.first() == Some(&number(family))
}

pub(super) fn request(owner: Owner, change: &Change) -> Request {
    match change {
        Change::AddRule(rule) => {
            let header = rule_header(rule.family, FR_ACT_TO_TBL);
            with_rule(Request::add(RTM_NEWRULE, &header), owner, rule)
        }
        Change::RemoveRule(rule) => {
            let header = rule_header(rule.family, FR_ACT_TO_TBL);
            with_rule(Request::remove(RTM_DELRULE, &header), owner, rule)
        }
        Change::AddRoute(route) => {
            let header = route_header(owner, route);
            with_route(Request::add(RTM_NEWROUTE, &header), route)
        }
        Change::RemoveRoute(route) => {
            let header = route_header(owner, route);
            with_route(Request::remove(RTM_DELROUTE, &header), route)
        }
    }
}

// `struct fib_rule_hdr`
fn rule_header(family: Family, action: u8) -> [u8; FIXED_BYTES] {
    let mut fixed = [0; FIXED_BYTES];
    fixed[0] = number(family);
    fixed[7] = action;
    fixed
}

fn with_rule(request: Request, owner: Owner, rule: &Rule) -> Request {
    let mut request = request
        .with(FRA_PRIORITY, &rule.priority.to_ne_bytes())
        .with(FRA_TABLE, &rule.table.to_ne_bytes())
        .with(FRA_PROTOCOL, &[owner.0]);
    if let Some(fwmark) = rule.fwmark {
        request = request
            .with(FRA_FWMARK, &fwmark.to_ne_bytes())
            .with(FRA_FWMASK, &WHOLE_MARK.to_ne_bytes());
    }
    if let Some(incoming) = &rule.incoming {
        request = request.with(FRA_IIFNAME, &[incoming.as_bytes(), &[0]].concat());
    }
    if let Some(ip_proto) = rule.ip_proto {
        request = request.with(FRA_IP_PROTO, &[ip_proto]);
    }
    request
}

// `struct rtmsg`
fn route_header(owner: Owner, route: &LocalRoute) -> [u8; FIXED_BYTES] {
    let mut fixed = [0; FIXED_BYTES];
    fixed[0] = number(family_of(route.addr));
    fixed[1] = route.prefix_len;
    fixed[4] = RT_TABLE_UNSPEC;
    fixed[5] = owner.0;
    fixed[6] = RT_SCOPE_HOST;
    fixed[7] = RTN_LOCAL;
    fixed
}

fn with_route(request: Request, route: &LocalRoute) -> Request {
    let request = request
        .with(RTA_TABLE, &route.table.to_ne_bytes())
        .with(RTA_OIF, &LOOPBACK_IFINDEX.to_ne_bytes());
    match route.addr {
        IpAddr::V4(addr) => request.with(RTA_DST, &addr.octets()),
        IpAddr::V6(addr) => request.with(RTA_DST, &addr.octets()),
    }
}

/// A rule of a dump.
#[derive(Debug)]
pub(super) struct FoundRule {
    /// Whether [`Self::rule`] says all that it does.
    pub(super) is_plain: bool,
    pub(super) owner: Owner,
    pub(super) rule: Rule,
}

impl FoundRule {
    /// Returns `None` for what is no rule.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let fixed = body.get(..FIXED_BYTES)?;
        let [dst_len, src_len, tos] = [fixed[1], fixed[2], fixed[3]];
        let is_everywhere = dst_len == 0 && src_len == 0 && tos == 0;
        let is_inverted = u32_at(fixed, 8)? & FIB_RULE_INVERT != 0;
        let mut found = Self {
            is_plain: fixed[7] == FR_ACT_TO_TBL && is_everywhere && !is_inverted,
            owner: Owner(0),
            rule: Rule {
                family: family(fixed[0])?,
                priority: 0,
                fwmark: None,
                incoming: None,
                ip_proto: None,
                table: fixed[4].into(),
            },
        };
        let mut attributes = &body[FIXED_BYTES..];
        while !attributes.is_empty() {
            let (name, value, rest) = attribute(attributes)?;
            attributes = rest;
            found.take(name, value)?;
        }
        Some(found)
    }

    fn take(&mut self, name: u16, value: &[u8]) -> Option<()> {
        let rule = &mut self.rule;
        match name {
            FRA_PRIORITY => rule.priority = u32_at(value, 0)?,
            FRA_FWMARK => rule.fwmark = Some(u32_at(value, 0)?),
            FRA_FWMASK => self.is_plain &= u32_at(value, 0)? == WHOLE_MARK,
            FRA_TABLE => rule.table = u32_at(value, 0)?,
            FRA_IIFNAME => {
                let name = value.split(|byte| *byte == 0).next()?;
                rule.incoming = Some(String::from_utf8_lossy(name).into_owned());
            }
            FRA_IP_PROTO => rule.ip_proto = Some(*value.first()?),
            FRA_PROTOCOL => self.owner = Owner(*value.first()?),
            FRA_SUPPRESS_PREFIXLEN => self.is_plain &= u32_at(value, 0)? == NOTHING,
            _ => self.is_plain = false,
        }
        Some(())
    }
}

/// A route of a dump.
#[derive(Debug)]
pub(super) struct FoundRoute {
    addr: IpAddr,
    is_cached: bool,
    kind: u8,
    owner: Owner,
    prefix_len: u8,
    table: u32,
}

impl FoundRoute {
    /// Returns `None` for what is no route.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let fixed = body.get(..FIXED_BYTES)?;
        let mut found = Self {
            addr: match family(fixed[0])? {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            },
            is_cached: u32_at(fixed, 8)? & RTM_F_CLONED != 0,
            kind: fixed[7],
            owner: Owner(fixed[5]),
            prefix_len: fixed[1],
            table: fixed[4].into(),
        };
        let mut attributes = &body[FIXED_BYTES..];
        while !attributes.is_empty() {
            let (name, value, rest) = attribute(attributes)?;
            attributes = rest;
            match name {
                RTA_DST => found.addr = addr_of(found.addr, value)?,
                RTA_TABLE => found.table = u32_at(value, 0)?,
                _ => {}
            }
        }
        Some(found)
    }

    /// Returns the route if it is one of the owner's.
    pub(super) fn local_route(self, owner: Owner) -> Option<LocalRoute> {
        let is_own = self.owner == owner && self.kind == RTN_LOCAL && !self.is_cached;
        is_own.then_some(LocalRoute {
            addr: self.addr,
            prefix_len: self.prefix_len,
            table: self.table,
        })
    }
}

fn addr_of(family: IpAddr, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        IpAddr::V4(_) => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        IpAddr::V6(_) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

fn family_of(addr: IpAddr) -> Family {
    match addr {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

fn number(family: Family) -> u8 {
    let number = match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    u8::try_from(number).expect("both are small numbers")
}

fn family(number: u8) -> Option<Family> {
    match i32::from(number) {
        AF_INET => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}
