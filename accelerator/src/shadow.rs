//! What shadow mode has found: whether iptables does what the programs would do.

mod table;

use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddr},
};

use isthmus_accel_core::{Call, Difference, Endpoint, Judgement, Observed};
use serde::{Deserialize, Serialize};

pub use self::table::render_table;
use crate::flows::{Caller, Names, hubble::render_time};

/// Disagreements that are listed apart, by pod, rule, kind and port. All are counted.
const MAX_LISTED: usize = 256;

/// The answer of `shadow`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Report {
    /// When the agent began to watch, RFC 3339.
    pub since: String,
    /// Calls that iptables treated as the programs would have.
    pub agreed: u64,
    /// Calls that it did not.
    pub disagreed: u64,
    /// Calls of which nothing is known, most often because the connection did not come about.
    pub unobserved: u64,
    /// Events that found the ring full meanwhile: a call of which one was lost may be misjudged.
    pub lost_events: u64,
    /// Disagreements that are in `disagreed` and not in `disagreements`, for want of room.
    pub unlisted: u64,
    /// Disagreements of one kind each, the most frequent first.
    pub disagreements: Vec<Disagreement>,
}

/// Calls of one pod to one port about which iptables and the programs disagree in the same way.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Disagreement {
    /// The calling pod, `null` if it has no name.
    pub pod: Option<String>,
    /// Its network namespace.
    pub netns_cookie: u64,
    /// `let_pass`, `captured` or `other_listener`: what iptables did.
    pub difference: String,
    /// The rows of Istio's rules by which the programs decided.
    pub rows: String,
    /// What the programs would have done.
    pub expected: String,
    /// What iptables did, by where the last of the calls was accepted.
    pub observed: String,
    /// How many calls.
    pub calls: u64,
    /// When the last of them was made, RFC 3339.
    pub last_time: String,
    /// What the last of them dialled.
    pub last_dialled: String,
    /// Who made the last of them.
    pub last_caller: Caller,
}

/// Counts judgements.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    agreed: u64,
    disagreed: u64,
    listed: BTreeMap<Kind, Disagreement>,
    since_unix_ns: u64,
    unlisted: u64,
    unobserved: u64,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Kind {
    netns_cookie: u64,
    rows: &'static str,
    difference: Difference,
    port: [u8; 2],
}

impl Tally {
    /// Starts with nothing. The time is since 1970.
    #[must_use]
    pub fn new(since_unix_ns: u64) -> Self {
        Self {
            since_unix_ns,
            ..Self::default()
        }
    }

    /// Takes in one judgement. `boot_unix_ns` is the time since 1970 at which `CLOCK_MONOTONIC` was zero.
    pub fn record(&mut self, judgement: &Judgement, names: &Names, boot_unix_ns: u64) {
        let (call, difference, observed) = match judgement {
            Judgement::Agreed(_) => {
                self.agreed += 1;
                return;
            }
            Judgement::Unobserved(_) => {
                self.unobserved += 1;
                return;
            }
            Judgement::Disagreed {
                call,
                difference,
                observed,
            } => (call, *difference, observed),
        };
        self.disagreed += 1;
        let kind = Kind {
            netns_cookie: call.netns_cookie,
            rows: call.rows(),
            difference,
            port: call.dialled.port,
        };
        if self.listed.len() >= MAX_LISTED && !self.listed.contains_key(&kind) {
            self.unlisted += 1;
            return;
        }
        let before = self.listed.get(&kind).map_or(0, |row| row.calls);
        let row = Disagreement {
            pod: names.of_netns(call.netns_cookie).map(str::to_owned),
            netns_cookie: call.netns_cookie,
            difference: difference.name().to_owned(),
            rows: kind.rows.to_owned(),
            expected: expected(call, names),
            observed: observed_words(difference, observed, names),
            calls: before + 1,
            last_time: render_time(boot_unix_ns.saturating_add(call.time_ns)),
            last_dialled: socket_addr(call.dialled).to_string(),
            last_caller: Caller {
                pid: call.pid,
                uid: call.uid,
                gid: call.gid,
            },
        };
        self.listed.insert(kind, row);
    }

    /// Returns what has been found so far, where so many events were lost.
    #[must_use]
    pub fn report(&self, lost_events: u64) -> Report {
        let mut disagreements: Vec<Disagreement> = self.listed.values().cloned().collect();
        disagreements.sort_by_key(|row| std::cmp::Reverse(row.calls));
        Report {
            since: render_time(self.since_unix_ns),
            agreed: self.agreed,
            disagreed: self.disagreed,
            unobserved: self.unobserved,
            lost_events,
            unlisted: self.unlisted,
            disagreements,
        }
    }
}

fn expected(call: &Call, names: &Names) -> String {
    match (call.target, call.verdict.pass_cause()) {
        (Some((netns, target)), _) => {
            format!("redirect to {}", place(netns, target, names))
        }
        (None, Some(cause)) => format!("leave alone: {}", cause.name()),
        (None, None) => "leave alone: the proxy's dial to its application".to_owned(),
    }
}

fn observed_words(difference: Difference, observed: &Observed, names: &Names) -> String {
    let verb = match difference {
        Difference::LetPass => "let it pass",
        Difference::Captured => "captured it",
        Difference::OtherListener => "sent it to another listener",
    };
    match observed {
        Observed::Accepted {
            netns_cookie,
            local,
        } => format!(
            "iptables {verb}: accepted by {}",
            place(*netns_cookie, *local, names)
        ),
        Observed::Elsewhere => format!("iptables {verb}: accepted by no pod of this node"),
    }
}

fn place(netns_cookie: u64, endpoint: Endpoint, names: &Names) -> String {
    let addr = socket_addr(endpoint);
    match names.of_netns(netns_cookie) {
        Some(pod) => format!("{pod} {addr}"),
        None => format!("netns:{netns_cookie} {addr}"),
    }
}

fn socket_addr(endpoint: Endpoint) -> SocketAddr {
    let addr = Ipv6Addr::from(endpoint.addr).to_canonical();
    SocketAddr::new(addr, u16::from_be_bytes(endpoint.port))
}

#[cfg(test)]
mod tests;
