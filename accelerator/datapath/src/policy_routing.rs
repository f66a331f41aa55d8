//! `ip rule` and local routes in the network namespace of a pod.
//!
//! Whose a rule or route is, is written in the kernel itself: in the protocol number that each of them has
//! (`ip rule show`, `proto`). So whatever an agent was killed in, the next one, or `detach`, finds what is
//! left of it, and what somebody else has put there is never touched.
//!
//! ```text
//!  present_here(owner) ──▶ Present ─┐
//!                                   ├─▶ changes() ──▶ [Change] ──▶ carry_out_here()
//!             what a feature wants ─┘
//! ```
//!
//! Invariant: [`changes`] is pure, and what it returns may be stopped anywhere and begun anew.

mod message;

use std::{collections::BTreeSet, io, net::IpAddr};

use nix::libc::{EAFNOSUPPORT, EEXIST, ENOENT, ESRCH, RTM_NEWROUTE, RTM_NEWRULE};

use crate::netlink::{Appetite, Socket, malformed};

/// Who made a rule or route: a routing protocol's number that nobody else has (`/etc/iproute2/rt_protos`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Owner(u8);

impl Owner {
    /// The way back to a sidecar that dials with the addresses of others (row T1).
    pub const WAY_BACK: Self = Self(173);
    /// What virtual machines send (row I2).
    pub const VIRTUAL_MACHINES: Self = Self(174);
}

/// Rules and routes exist for each family.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// `ip rule add pref PRIORITY [fwmark FWMARK] [iif INCOMING] [ipproto IP_PROTO] lookup TABLE`
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Rule {
    /// For which addresses.
    pub family: Family,
    /// Its place; the main table has 32766.
    pub priority: u32,
    /// Mark of the packets, all of its bits; `None` for any.
    pub fwmark: Option<u32>,
    /// Interface that they came in by; `None` for any.
    pub incoming: Option<String>,
    /// Protocol above IP; `None` for any.
    pub ip_proto: Option<u8>,
    /// Where to look.
    pub table: u32,
}

/// `ip route add local ADDR/PREFIX_LEN dev lo table TABLE`: what is for the range is for this namespace.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct LocalRoute {
    /// The lowest address of the range.
    pub addr: IpAddr,
    /// Bits that all addresses of the range have in common.
    pub prefix_len: u8,
    /// In which table.
    pub table: u32,
}

/// Rules and routes that belong together.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Policy {
    /// The rules.
    pub rules: BTreeSet<Rule>,
    /// The routes of their tables.
    pub routes: BTreeSet<LocalRoute>,
}

/// What a namespace has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Present {
    /// What is the owner's.
    pub own: Policy,
    /// Rules of everybody else, as far as a [`Rule`] can say what they do.
    pub others: BTreeSet<Rule>,
}

/// One step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Adds a rule.
    AddRule(Rule),
    /// Adds a route.
    AddRoute(LocalRoute),
    /// Removes a route.
    RemoveRoute(LocalRoute),
    /// Removes a rule.
    RemoveRule(Rule),
}

/// Returns what makes `present` what is `wanted`: rules before routes, which do nothing without them, new
/// before old, and the other way round for what goes. An empty table is passed over, so each step alone
/// leads packets as before or as wanted.
#[must_use]
pub fn changes(wanted: &Policy, present: &Policy) -> Vec<Change> {
    let rules = |ours: &Policy, theirs: &Policy| -> Vec<Rule> {
        ours.rules.difference(&theirs.rules).cloned().collect()
    };
    let routes = |ours: &Policy, theirs: &Policy| -> Vec<LocalRoute> {
        ours.routes.difference(&theirs.routes).copied().collect()
    };
    let added_rules = rules(wanted, present).into_iter().map(Change::AddRule);
    let added_routes = routes(wanted, present).into_iter().map(Change::AddRoute);
    let old_routes = routes(present, wanted).into_iter().map(Change::RemoveRoute);
    let old_rules = rules(present, wanted).into_iter().map(Change::RemoveRule);
    added_rules
        .chain(added_routes)
        .chain(old_routes)
        .chain(old_rules)
        .collect()
}

/// Reads the rules and local routes of the calling thread's namespace. Costs four dumps.
///
/// # Errors
///
/// Returns the kernel's answer, or `Interrupted` if something changed meanwhile.
pub fn present_here(owner: Owner) -> io::Result<Present> {
    let mut present = Present::default();
    for family in [Family::V4, Family::V6] {
        unless_without_family(read_rules(family, owner, &mut present))?;
        unless_without_family(read_routes(family, owner, &mut present))?;
    }
    Ok(present)
}

/// Does one step in the calling thread's namespace. What is done already is no error.
///
/// # Errors
///
/// Returns the kernel's answer.
pub fn carry_out_here(owner: Owner, change: &Change) -> io::Result<()> {
    let outcome = Socket::open()?.change(&message::request(owner, change));
    let done_already: &[i32] = match change {
        Change::AddRule(_) | Change::AddRoute(_) => &[EEXIST],
        Change::RemoveRoute(_) | Change::RemoveRule(_) => &[ENOENT, ESRCH],
    };
    match outcome {
        Err(error)
            if error
                .raw_os_error()
                .is_some_and(|it| done_already.contains(&it)) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

/// Makes the calling thread's namespace have exactly these of the owner; returns how many steps that took.
///
/// # Errors
///
/// Returns the kernel's answer to the first step that failed; calling it again goes on.
pub fn converge_here(owner: Owner, wanted: &Policy) -> io::Result<usize> {
    let changes = changes(wanted, &present_here(owner)?.own);
    for change in &changes {
        carry_out_here(owner, change)?;
    }
    Ok(changes.len())
}

fn read_rules(family: Family, owner: Owner, present: &mut Present) -> io::Result<()> {
    Socket::open()?.read(&message::rules_of(family), &mut |kind, body| {
        if kind == RTM_NEWRULE {
            let found = message::FoundRule::parse(body).ok_or_else(malformed)?;
            if found.owner == owner {
                present.own.rules.insert(found.rule);
            } else if found.is_plain {
                present.others.insert(found.rule);
            }
        }
        Ok(Appetite::More)
    })
}

fn read_routes(family: Family, owner: Owner, present: &mut Present) -> io::Result<()> {
    Socket::open()?.read(&message::routes_of(family), &mut |kind, body| {
        // A kernel without this family answers for all the others.
        if kind == RTM_NEWROUTE && message::is_of(family, body) {
            let found = message::FoundRoute::parse(body).ok_or_else(malformed)?;
            present.own.routes.extend(found.local_route(owner));
        }
        Ok(Appetite::More)
    })
}

// A kernel that was told to do without IPv6 (`ipv6.disable=1`) has no rules of it.
fn unless_without_family(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(EAFNOSUPPORT) => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests;
