//! Shadow mode: whether iptables sends each connection where the programs would have.
//!
//! ```text
//!  Decided (cookie, verdict) ─▶ Established (cookie, own address) ─▶ Accepted (whose peer that is)
//!                                        └─ nobody within ACCEPT_PATIENCE: it has left the node's pods
//! ```
//!
//! The accepting end is found by the address that dialled: no rule of Istio's changes that, whatever it
//! makes of the destination.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_accel_abi::{FlowEvent, FlowFacts, FlowKind, Hop, PassCause, VerdictCode, is_loopback};

/// Calls that are being watched. More than that at once are not judged, and counted.
pub const MAX_WATCHED_CALLS: usize = 16_384;
/// Accepted connections that nobody of ours has dialled yet, most of them from other nodes.
const MAX_EARLY_ENDS: usize = 4_096;
/// How long an accepting end may take to be told of, and how early: the two events of one connection are
/// written by different CPUs.
pub const ACCEPT_PATIENCE_NS: u64 = 2_000_000_000;
/// Linux retries a SYN for 127 s (`net.ipv4.tcp_syn_retries` 6).
pub const CONNECT_PATIENCE_NS: u64 = 130_000_000_000;

/// An address and a port, as the kernel has them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Endpoint {
    /// Address, v4-mapped.
    pub addr: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
}

/// A connect call, as the programs have decided about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Call {
    /// `CLOCK_MONOTONIC` of the call, in nanoseconds.
    pub time_ns: u64,
    /// Namespace of the caller.
    pub netns_cookie: u64,
    /// Process of the caller.
    pub pid: u32,
    /// User of the caller.
    pub uid: u32,
    /// Group of the caller.
    pub gid: u32,
    /// What was dialled.
    pub dialled: Endpoint,
    /// What was decided.
    pub verdict: VerdictCode,
    /// Where the verdict would have sent it, with the namespace; `None` if it would have been left.
    pub target: Option<(u64, Endpoint)>,
    /// Hop that it would have been on.
    pub hop: Hop,
}

impl Call {
    /// Returns the rows of Istio's rules by which it was decided, or the cause where there is no row.
    #[must_use]
    pub fn rows(&self) -> &'static str {
        if let Some(cause) = self.verdict.pass_cause() {
            let rows = cause.rows();
            return if rows.is_empty() { cause.name() } else { rows };
        }
        match self.target {
            None => "O2/O5/O8",
            Some((netns, _)) if netns != self.netns_cookie => "I5/I6",
            Some(_) if self.hop == Hop::PROXY_TO_PROXY_REQUEST => "O3/O6",
            Some(_) if self.dialled.port == 53_u16.to_be_bytes() => "D1/O12/O13",
            Some(_) => "O12/O13",
        }
    }
}

/// Where a connection really went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Observed {
    /// To a socket in a pod of this node.
    Accepted {
        /// Namespace of the pod.
        netns_cookie: u64,
        /// The socket's own address.
        local: Endpoint,
    },
    /// To something that is in no pod of this node.
    Elsewhere,
}

/// How iptables and the programs differ.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Difference {
    /// iptables left alone what the programs would have sent to a proxy.
    LetPass,
    /// iptables sent to a proxy what the programs would have left alone.
    Captured,
    /// Both send it somewhere else, but not to the same listener.
    OtherListener,
}

impl Difference {
    /// Returns the name that reports and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LetPass => "let_pass",
            Self::Captured => "captured",
            Self::OtherListener => "other_listener",
        }
    }
}

/// What has become known about one call. Each call is reported at most once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Judgement {
    /// iptables did what the programs would have done.
    Agreed(Call),
    /// It did not.
    Disagreed {
        /// The call.
        call: Call,
        /// In which way.
        difference: Difference,
        /// What happened instead.
        observed: Observed,
    },
    /// The connection did not come about, or the room for watching was full: nothing is known.
    Unobserved(Call),
}

/// Joins the events of both ends of connections. Holds at most [`MAX_WATCHED_CALLS`].
#[derive(Debug, Default)]
pub struct Judge {
    calls: BTreeMap<u64, Watched>,
    due: BTreeSet<(u64, u64)>,
    early: BTreeMap<Endpoint, Early>,
    by_source: BTreeMap<Endpoint, BTreeSet<u64>>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    call: Call,
    due_ns: u64,
    /// The caller's own address, once it is established.
    source: Option<Endpoint>,
}

#[derive(Clone, Copy, Debug)]
struct Early {
    time_ns: u64,
    netns_cookie: u64,
    local: Endpoint,
}

impl Judge {
    /// Takes in one event; returns what is known by it. Events of other modes are of no interest.
    pub fn handle(&mut self, event: &FlowEvent) -> Option<Judgement> {
        match event.kind {
            FlowKind::DECIDED => self.watch(event),
            FlowKind::ESTABLISHED => self.establish(event),
            FlowKind::ACCEPTED => self.accept(event),
            FlowKind::CLOSED => self.close(event.socket_cookie),
            _ => None,
        }
    }

    /// Returns what is known because nothing more can come. `now_ns` is `CLOCK_MONOTONIC`.
    pub fn expire(&mut self, now_ns: u64) -> Vec<Judgement> {
        self.early
            .retain(|_, early| early.time_ns.saturating_add(ACCEPT_PATIENCE_NS) > now_ns);
        let mut judgements = Vec::new();
        while let Some((due_ns, cookie)) = self.due.first().copied()
            && due_ns <= now_ns
        {
            self.due.pop_first();
            judgements.extend(self.forget(cookie).map(|watched| match watched.source {
                Some(_) => judge(watched.call, Observed::Elsewhere),
                None => Judgement::Unobserved(watched.call),
            }));
        }
        judgements
    }

    /// Returns the number of calls that are being watched.
    #[must_use]
    pub fn watched_calls(&self) -> usize {
        self.calls.len()
    }

    fn watch(&mut self, event: &FlowEvent) -> Option<Judgement> {
        if event.facts.flags & FlowFacts::IS_SHADOW == 0 {
            return None;
        }
        // The socket may have dialled before, in vain.
        let is_full = self.calls.len() >= MAX_WATCHED_CALLS;
        let displaced = match self.forget(event.socket_cookie) {
            None if is_full => self
                .due
                .first()
                .copied()
                .and_then(|(_, cookie)| self.forget(cookie)),
            earlier => earlier,
        };
        let watched = Watched {
            call: call(event),
            due_ns: event.time_ns.saturating_add(CONNECT_PATIENCE_NS),
            source: None,
        };
        self.due.insert((watched.due_ns, event.socket_cookie));
        self.calls.insert(event.socket_cookie, watched);
        displaced.map(|watched| Judgement::Unobserved(watched.call))
    }

    fn establish(&mut self, event: &FlowEvent) -> Option<Judgement> {
        let cookie = event.socket_cookie;
        let mut watched = self.forget(cookie)?;
        let source = Endpoint {
            addr: event.key.local_addr,
            port: event.key.local_port,
        };
        let early = self.early.get(&source).copied();
        if let Some(early) = early
            && is_possible(&watched.call, source, early.netns_cookie)
        {
            self.early.remove(&source);
            let (netns_cookie, local) = (early.netns_cookie, early.local);
            let observed = Observed::Accepted {
                netns_cookie,
                local,
            };
            return Some(judge(watched.call, observed));
        }
        watched.source = Some(source);
        watched.due_ns = event.time_ns.saturating_add(ACCEPT_PATIENCE_NS);
        self.due.insert((watched.due_ns, cookie));
        self.by_source.entry(source).or_default().insert(cookie);
        self.calls.insert(cookie, watched);
        None
    }

    fn accept(&mut self, event: &FlowEvent) -> Option<Judgement> {
        let key = &event.key;
        let source = Endpoint {
            addr: key.peer_addr,
            port: key.peer_port,
        };
        let local = Endpoint {
            addr: key.local_addr,
            port: key.local_port,
        };
        let netns_cookie = key.netns_cookie;
        let observed = Observed::Accepted {
            netns_cookie,
            local,
        };
        // One address may have dialled several destinations: whoever dialled this one comes first, then
        // whoever would have been sent here.
        let candidates = self.by_source.get(&source).into_iter().flatten();
        let best = candidates
            .filter_map(|cookie| Some((cookie, self.calls.get(cookie)?)))
            .filter(|(_, watched)| is_possible(&watched.call, source, netns_cookie))
            .min_by_key(|(_, watched)| {
                let is_direct = watched.call.dialled == local;
                let is_agreed = matches!(judge(watched.call, observed), Judgement::Agreed(_));
                (!is_direct, !is_agreed)
            });
        let Some(cookie) = best.map(|(cookie, _)| *cookie) else {
            if self.early.len() >= MAX_EARLY_ENDS {
                self.early.pop_first();
            }
            let time_ns = event.time_ns;
            let early = Early {
                time_ns,
                netns_cookie,
                local,
            };
            self.early.insert(source, early);
            return None;
        };
        let watched = self.forget(cookie)?;
        Some(judge(watched.call, observed))
    }

    fn close(&mut self, cookie: u64) -> Option<Judgement> {
        // An established one may be shorter than the way of the other end's event.
        if self.calls.get(&cookie)?.source.is_some() {
            return None;
        }
        self.forget(cookie)
            .map(|watched| Judgement::Unobserved(watched.call))
    }

    fn forget(&mut self, cookie: u64) -> Option<Watched> {
        let watched = self.calls.remove(&cookie)?;
        self.due.remove(&(watched.due_ns, cookie));
        if let Some(source) = watched.source
            && let Some(cookies) = self.by_source.get_mut(&source)
        {
            cookies.remove(&cookie);
            if cookies.is_empty() {
                self.by_source.remove(&source);
            }
        }
        Some(watched)
    }
}

fn call(event: &FlowEvent) -> Call {
    let facts = &event.facts;
    let target = Endpoint {
        addr: facts.target_addr,
        port: facts.target_port,
    };
    let is_redirect = facts.verdict == VerdictCode::REDIRECTED;
    Call {
        time_ns: event.time_ns,
        netns_cookie: facts.netns_cookie,
        pid: facts.pid,
        uid: facts.uid,
        gid: facts.gid,
        dialled: Endpoint {
            addr: facts.dialled.addr,
            port: facts.dialled.port,
        },
        verdict: facts.verdict,
        target: is_redirect.then_some((facts.peer_netns, target)),
        hop: facts.hop,
    }
}

// Loopback addresses are in every pod.
fn is_possible(call: &Call, source: Endpoint, netns_cookie: u64) -> bool {
    call.netns_cookie == netns_cookie || !is_loopback(&source.addr)
}

/// What a redirect by iptables keeps is the port of the listener: its address becomes that of the
/// interface. Where the programs leave a call to another pod alone, that pod's own rules for what arrives
/// decide, unless the verdict is about those.
fn judge(call: Call, observed: Observed) -> Judgement {
    let difference = match (call.target, observed) {
        (Some(_), Observed::Elsewhere) => Some(Difference::LetPass),
        (
            Some((target_netns, target)),
            Observed::Accepted {
                netns_cookie,
                local,
            },
        ) => {
            if netns_cookie == target_netns && local.port == target.port {
                None
            } else if local.port == call.dialled.port {
                Some(Difference::LetPass)
            } else {
                Some(Difference::OtherListener)
            }
        }
        (None, Observed::Elsewhere) => None,
        (
            None,
            Observed::Accepted {
                netns_cookie,
                local,
            },
        ) => {
            let is_about_arrival = call.verdict.pass_cause() == Some(PassCause::NotCapturedInbound);
            let is_judged = netns_cookie == call.netns_cookie || is_about_arrival;
            (is_judged && local.port != call.dialled.port).then_some(Difference::Captured)
        }
    };
    match difference {
        None => Judgement::Agreed(call),
        Some(difference) => Judgement::Disagreed {
            call,
            difference,
            observed,
        },
    }
}

#[cfg(test)]
mod tests;
