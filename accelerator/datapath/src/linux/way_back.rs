//! Row T1: the way back to a sidecar that dials its application with the address of a client.
//!
//! The application's answers are for the client, and would leave the pod. They stay because they carry the mark
//! of the sidecar's dial (Envoy's `original_src`, mark 1337), and a rule makes everything with that mark local:
//!
//! ```text
//!  sidecar ──SYN, mark 1337──▶ application    the accepted socket takes the mark: net.ipv4.tcp_fwmark_accept
//!     ▲                             │         a refusal takes it too: net.ipv4/ipv6.fwmark_reflect
//!     └─ lo ◀── local default ◀─────┘         ip rule fwmark 1337 lookup 15006
//! ```
//!
//! Istio does the same with `CONNMARK` in its `mangle` table and a rule to table 133. Where its rule is, nothing
//! is made here, and what was made goes: its `mangle` rules give the mark to what clients send as well, and with
//! these settings the sidecar's answers to them would turn back, too. A table of our own, since with 133 in ours
//! `istio-init`, should it come later, would fail to add its rule.
//!
//! Which settings were changed is written in the priority of our IPv4 rule, which is there before they change and
//! as long as they are changed: a setting that somebody else has made is left as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::policy_routing::{
    Change, Family, LocalRoute, Owner, Policy, Present, Rule, carry_out_here, changes, present_here,
};

/// Mark of what a sidecar dials for its clients (`INBOUND_TPROXY_MARK`).
const MARK: u32 = 1337;
/// The table of our route: the number of the sidecar's inbound port.
const TABLE: u32 = 15_006;
/// The first of the priorities of our rules. Before those that choose a table by address, as some networks
/// have for each interface.
const FIRST_PRIORITY: u32 = 133;

/// Makes the way back in the calling thread's namespace, for IPv6 too if the pod has rules for it; leaves it
/// to Istio's rules where they are.
pub(super) fn establish_here(families: Families) -> Result<(), WayBackError> {
    let steps = establishing(&Found::here()?, families)?;
    steps.iter().try_for_each(Step::carry_out_here)
}

/// Removes it, and leaves what was there before.
pub(super) fn withdraw_here() -> Result<(), WayBackError> {
    let steps = withdrawing(&Found::here()?);
    steps.iter().try_for_each(Step::carry_out_here)
}

/// Whose connections need it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Families {
    V4,
    Both,
}

/// Why there is no way back, or why it stays.
#[derive(Debug, thiserror::Error)]
pub enum WayBackError {
    /// Istio has made it for IPv4 only, and the pod's IPv6 is captured too.
    #[error(
        "Istio's ip rule for mark {MARK} is there for IPv4 and not for IPv6: set ISTIO_DUAL_STACK to \
         \"false\" in the pod's proxy.istio.io/config"
    )]
    OneFamily,
    /// The rules and routes could not be read.
    #[error("reading ip rules and routes failed")]
    Present(#[source] io::Error),
    /// One of them could not be changed.
    #[error("changing {what} failed (that takes CAP_NET_ADMIN)")]
    Routing {
        /// A rule or a route.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A switch of the namespace could not be read or set.
    #[error("{action} {file} failed (/proc/sys must be writable, as in a privileged container)")]
    Setting {
        /// What was tried.
        action: &'static str,
        /// Which.
        file: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A switch of the namespace.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Setting {
    TakeMarks,
    ReflectV4,
    ReflectV6,
}

impl Setting {
    const ALL: [Self; 3] = [Self::TakeMarks, Self::ReflectV4, Self::ReflectV6];

    const fn file(self) -> &'static str {
        match self {
            Self::TakeMarks => "/proc/sys/net/ipv4/tcp_fwmark_accept",
            Self::ReflectV4 => "/proc/sys/net/ipv4/fwmark_reflect",
            Self::ReflectV6 => "/proc/sys/net/ipv6/fwmark_reflect",
        }
    }

    // Its bit in the priority of our rule.
    const fn bit(self) -> u32 {
        match self {
            Self::TakeMarks => 1,
            Self::ReflectV4 => 2,
            Self::ReflectV6 => 4,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Switch {
    Off,
    On,
}

/// What a namespace has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Found {
    present: Present,
    /// Without what the kernel does not have: IPv6 may be missing.
    settings: BTreeMap<Setting, Switch>,
}

impl Found {
    fn here() -> Result<Self, WayBackError> {
        let present = present_here(Owner::WAY_BACK).map_err(WayBackError::Present)?;
        let mut settings = BTreeMap::new();
        for setting in Setting::ALL {
            match fs::read_to_string(setting.file()) {
                Ok(text) if text.trim() == "0" => settings.insert(setting, Switch::Off),
                Ok(_) => settings.insert(setting, Switch::On),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(source) => {
                    return Err(WayBackError::Setting {
                        action: "reading",
                        file: setting.file(),
                        source,
                    });
                }
            };
        }
        Ok(Self { present, settings })
    }

    /// Settings that an agent has changed, or was about to.
    fn changed(&self) -> BTreeSet<Setting> {
        let rules = self.present.own.rules.iter();
        let ours = rules.filter(|rule| rule.family == Family::V4);
        let bits = ours.map(|rule| rule.priority.saturating_sub(FIRST_PRIORITY));
        let bits = bits.fold(0, |all, bits| all | bits);
        let of_bits = |setting: &Setting| bits & setting.bit() != 0;
        Setting::ALL.into_iter().filter(of_bits).collect()
    }

    fn has_istios(&self, family: Family) -> bool {
        let is_istios = |rule: &Rule| {
            rule.family == family && rule.fwmark == Some(MARK) && rule.incoming.is_none()
        };
        self.present.others.iter().any(is_istios)
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Step {
    Routing(Change),
    Set(Setting, Switch),
}

impl Step {
    fn carry_out_here(&self) -> Result<(), WayBackError> {
        match self {
            Self::Routing(change) => {
                let what = match change {
                    Change::AddRule(_) | Change::RemoveRule(_) => "an ip rule",
                    Change::AddRoute(_) | Change::RemoveRoute(_) => "a local route",
                };
                carry_out_here(Owner::WAY_BACK, change)
                    .map_err(|source| WayBackError::Routing { what, source })
            }
            Self::Set(setting, switch) => {
                let text = match switch {
                    Switch::Off => "0",
                    Switch::On => "1",
                };
                fs::write(setting.file(), text).map_err(|source| WayBackError::Setting {
                    action: "writing",
                    file: setting.file(),
                    source,
                })
            }
        }
    }
}

fn establishing(found: &Found, families: Families) -> Result<Vec<Step>, WayBackError> {
    if found.has_istios(Family::V4) {
        return match families {
            Families::Both if !found.has_istios(Family::V6) => Err(WayBackError::OneFamily),
            Families::Both | Families::V4 => Ok(withdrawing(found)),
        };
    }
    let off = found.settings.iter();
    let off = off.filter(|(_, switch)| **switch == Switch::Off);
    let off: BTreeSet<Setting> = off.map(|(setting, _)| *setting).collect();
    let changed: BTreeSet<Setting> = found.changed().union(&off).copied().collect();
    let (mut steps, rest) = split(changes(&wanted(&changed, families), &found.present.own));
    let switched_on = off.into_iter();
    steps.extend(switched_on.map(|setting| Step::Set(setting, Switch::On)));
    steps.extend(rest);
    Ok(steps)
}

fn withdrawing(found: &Found) -> Vec<Step> {
    let (added, removed) = split(changes(&Policy::default(), &found.present.own));
    debug_assert!(added.is_empty(), "nothing is wanted");
    let is_record = |step: &Step| matches!(step, Step::Routing(Change::RemoveRule(rule)) if rule.family == Family::V4);
    let (records, mut steps): (Vec<Step>, Vec<Step>) = removed.into_iter().partition(is_record);
    let changed = found.changed().into_iter();
    let changed = changed.filter(|setting| found.settings.get(setting) == Some(&Switch::On));
    steps.extend(changed.map(|setting| Step::Set(setting, Switch::Off)));
    steps.extend(records);
    steps
}

// What comes before the settings change, and what comes after.
fn split(changes: Vec<Change>) -> (Vec<Step>, Vec<Step>) {
    let is_first = |step: &Step| matches!(step, Step::Routing(Change::AddRule(_)));
    changes.into_iter().map(Step::Routing).partition(is_first)
}

fn wanted(changed: &BTreeSet<Setting>, families: Families) -> Policy {
    let record: u32 = changed.iter().map(|setting| setting.bit()).sum();
    let rule = |family, priority| Rule {
        family,
        priority,
        fwmark: Some(MARK),
        incoming: None,
        ip_proto: None,
        table: TABLE,
    };
    let route = |addr| LocalRoute {
        addr,
        prefix_len: 0,
        table: TABLE,
    };
    let mut policy = Policy {
        rules: [rule(Family::V4, FIRST_PRIORITY + record)].into(),
        routes: [route(Ipv4Addr::UNSPECIFIED.into())].into(),
    };
    if families == Families::Both {
        policy.rules.insert(rule(Family::V6, FIRST_PRIORITY));
        policy.routes.insert(route(Ipv6Addr::UNSPECIFIED.into()));
    }
    policy
}

#[cfg(test)]
mod tests;
