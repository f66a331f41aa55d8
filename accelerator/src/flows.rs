//! Connections one by one: what the programs tell of each, with the names of the pods.
//!
//! ```text
//!  ring ─▶ hub (in the agent, the ring's one reader) ─▶ Flow ─▶ bounded history
//!                                                          └──▶ viewers: `isthmus-accelerator flows`
//! ```

pub mod filter;
pub mod hub;
pub mod hubble;
pub mod table;
pub mod view;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use isthmus_accel_abi::{FlowEvent, FlowFacts, FlowKind, Hop, PassReason, VerdictCode};
use serde::{Deserialize, Serialize};

use crate::runtime_dir::Roster;

/// One step of one connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Flow {
    /// Nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// `decided`, `established`, `accepted` or `closed`.
    pub step: String,
    /// `redirected`, `followed`, `passed`, `no_room`; `none` on an accepting end.
    pub verdict: String,
    /// Why it was left alone, see [`isthmus_accel_abi::PassCause::name`].
    pub reason: Option<String>,
    /// The rows of Istio's rules that say so.
    pub rows: Option<String>,
    /// Tells whether the verdict was recorded only.
    pub is_shadow: bool,
    /// Who dialled.
    pub source: FlowEnd,
    /// What was dialled; on an accepting end for which nobody said so, its own address.
    pub destination: FlowEnd,
    /// Where the verdict sends it instead.
    pub target: Option<FlowEnd>,
    /// Tells whether the socket has accepted the connection.
    pub is_accepting: bool,
    /// Hop of what the socket sends.
    pub hop: Option<String>,
    /// Network namespace of the socket.
    pub netns_cookie: u64,
    /// The socket.
    pub socket_cookie: u64,
    /// Cgroup of the caller, `None` on an accepting end.
    pub cgroup_id: Option<u64>,
    /// Who called, `None` on an accepting end.
    pub caller: Option<Caller>,
    /// When established: microseconds since the SYN.
    pub connect_us: Option<u32>,
    /// When closed: what went over the socket.
    pub traffic: Option<Traffic>,
}

/// One end of a connection.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct FlowEnd {
    /// `namespace/name` of its pod, if it is one of this node.
    pub pod: Option<String>,
    /// Its address, if known yet.
    pub addr: Option<IpAddr>,
    /// Its port, 0 if not known yet.
    pub port: u16,
}

/// Who called connect(2).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Caller {
    /// Process.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What went over a socket until it was closed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Traffic {
    /// Bytes that the other end has acknowledged, SYN and FIN one each.
    pub bytes_acked: u64,
    /// Bytes that TCP has received, FIN one.
    pub bytes_received: u64,
    /// Bytes that the socket has sent past TCP.
    pub bytes_redirected: u64,
    /// Why it sends by TCP, see [`PassReason::name`]; `None` if it does not, or is on no hop.
    pub on_tcp_because: Option<String>,
    /// Smoothed round-trip time in microseconds, `None` if never measured.
    pub srtt_us: Option<u32>,
}

/// The names of pods, by what events say.
#[derive(Clone, Debug, Default)]
pub struct Names {
    by_addr: BTreeMap<IpAddr, String>,
    by_netns: BTreeMap<u64, String>,
}

impl From<&Roster> for Names {
    fn from(roster: &Roster) -> Self {
        let mut names = Self::default();
        for (name, pod) in &roster.pods {
            let addrs = pod.addresses.iter();
            names
                .by_addr
                .extend(addrs.map(|addr| (addr.to_canonical(), name.clone())));
            names
                .by_netns
                .extend(pod.netns_cookie.map(|cookie| (cookie, name.clone())));
        }
        names
    }
}

impl Names {
    /// Returns the name of the pod in a namespace.
    #[must_use]
    pub fn of_netns(&self, netns_cookie: u64) -> Option<&str> {
        self.by_netns.get(&netns_cookie).map(String::as_str)
    }

    fn end(&self, addr: [u8; 16], port: [u8; 2]) -> FlowEnd {
        let addr = Ipv6Addr::from(addr);
        let addr = (!addr.is_unspecified()).then(|| addr.to_canonical());
        FlowEnd {
            pod: addr.and_then(|addr| self.by_addr.get(&addr)).cloned(),
            addr,
            port: u16::from_be_bytes(port),
        }
    }

    fn end_in(&self, netns_cookie: u64, addr: [u8; 16], port: [u8; 2]) -> FlowEnd {
        let end = self.end(addr, port);
        FlowEnd {
            pod: self.of_netns(netns_cookie).map(str::to_owned).or(end.pod),
            ..end
        }
    }
}

impl Flow {
    /// Reads an event. `boot_unix_ns` is the time since 1970 at which `CLOCK_MONOTONIC` was zero.
    #[must_use]
    pub fn new(event: &FlowEvent, names: &Names, boot_unix_ns: u64) -> Self {
        let facts = &event.facts;
        let is_accepting = facts.verdict == VerdictCode::NONE;
        let (source, destination) = ends(event, names);
        let cause = facts.verdict.pass_cause();
        let caller = Caller {
            pid: facts.pid,
            uid: facts.uid,
            gid: facts.gid,
        };
        Self {
            time_unix_ns: boot_unix_ns.saturating_add(event.time_ns),
            step: event.kind.name().to_owned(),
            verdict: facts.verdict.name().to_owned(),
            reason: cause.map(|cause| cause.name().to_owned()),
            rows: cause
                .map(|cause| cause.rows().to_owned())
                .filter(|rows| !rows.is_empty()),
            is_shadow: facts.flags & FlowFacts::IS_SHADOW != 0,
            source,
            destination,
            target: (facts.target_port != [0; 2])
                .then(|| names.end_in(facts.peer_netns, facts.target_addr, facts.target_port)),
            is_accepting,
            hop: (facts.hop != Hop::NONE).then(|| facts.hop.name().to_owned()),
            netns_cookie: facts.netns_cookie,
            socket_cookie: event.socket_cookie,
            cgroup_id: (!is_accepting).then_some(facts.cgroup_id),
            caller: (!is_accepting).then_some(caller),
            connect_us: (event.kind == FlowKind::ESTABLISHED).then_some(event.connect_us),
            traffic: (event.kind == FlowKind::CLOSED).then(|| traffic(event)),
        }
    }
}

// Whatever the socket is, the source is who dialled.
fn ends(event: &FlowEvent, names: &Names) -> (FlowEnd, FlowEnd) {
    let (facts, key) = (&event.facts, &event.key);
    let own = names.end_in(facts.netns_cookie, key.local_addr, key.local_port);
    let dialled = names.end(facts.dialled.addr, facts.dialled.port);
    if facts.verdict != VerdictCode::NONE {
        return (own, dialled);
    }
    let client = names.end_in(facts.peer_netns, key.peer_addr, key.peer_port);
    let server = if dialled.addr.is_some() { dialled } else { own };
    (client, server)
}

fn traffic(event: &FlowEvent) -> Traffic {
    let reason = event
        .on_tcp_because
        .checked_sub(1)
        .and_then(|index| PassReason::ALL.get(usize::try_from(index).ok()?));
    Traffic {
        bytes_acked: event.bytes_acked,
        bytes_received: event.bytes_received,
        bytes_redirected: event.bytes_redirected,
        on_tcp_because: reason.map(|reason| reason.name().to_owned()),
        srtt_us: (event.srtt_us > 0).then_some(event.srtt_us),
    }
}

#[cfg(test)]
pub(crate) mod tests;
