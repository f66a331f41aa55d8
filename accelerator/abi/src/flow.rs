//! What the programs tell about single connections: an event for each step of a connection's life, and
//! the facts that make one event complete, kept with the socket from the first step on.
//!
//! The consumer is the agent. An event that finds the ring full is lost and counted
//! ([`crate::Counter::FlowsLost`]); the connection never notices.

use crate::{Hop, OriginalDst, PassCause, SockKey, Verdict};

/// What became of a connect call, as one number: an index into [`PodVerdicts::counts`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct VerdictCode(u32);

impl VerdictCode {
    /// Nothing was decided: the socket has accepted a connection.
    pub const NONE: Self = Self(0);
    /// The destination was rewritten.
    pub const REDIRECTED: Self = Self(1);
    /// The destination is right as it is, and both ends are known.
    pub const FOLLOWED: Self = Self(2);
    /// It should have been redirected or followed, but a map was full: left alone.
    pub const NO_ROOM: Self = Self(3);

    const FIRST_PASS: u32 = 4;

    /// Number of codes.
    pub const COUNT: usize = Self::FIRST_PASS as usize + PassCause::COUNT;

    /// Returns the code of a connection that was left alone.
    #[must_use]
    #[inline]
    pub const fn passed(cause: PassCause) -> Self {
        Self(Self::FIRST_PASS + cause as u32)
    }

    /// Returns the code of a verdict that was carried out.
    #[must_use]
    #[inline]
    pub const fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Pass(cause) => Self::passed(*cause),
            Verdict::Redirect(_) => Self::REDIRECTED,
            Verdict::Follow => Self::FOLLOWED,
        }
    }

    /// Returns every code, by index.
    pub fn all() -> impl Iterator<Item = Self> {
        let count = u32::try_from(Self::COUNT).unwrap_or(u32::MAX);
        (0..count).map(Self)
    }

    /// Returns why the connection was left alone, `None` if it was not.
    #[must_use]
    pub fn pass_cause(self) -> Option<PassCause> {
        let index = self.0.checked_sub(Self::FIRST_PASS)?;
        PassCause::ALL.get(usize::try_from(index).ok()?).copied()
    }

    /// Returns the index into [`PodVerdicts::counts`].
    #[must_use]
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns the word that `flows`, metrics and documents use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NONE => "none",
            Self::REDIRECTED => "redirected",
            Self::FOLLOWED => "followed",
            Self::NO_ROOM => "no_room",
            _ => "passed",
        }
    }
}

/// Value of `VERDICTS`, one per CPU: connect calls of one pod since it was added.
#[derive(Clone, Copy, Debug, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PodVerdicts {
    /// Calls by [`VerdictCode::index`].
    pub counts: [u64; VerdictCode::COUNT],
}

impl PodVerdicts {
    /// No calls.
    pub const EMPTY: Self = Self {
        counts: [0; VerdictCode::COUNT],
    };

    /// Adds the counts of another CPU.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum = sum.wrapping_add(count);
        }
    }
}

impl Default for PodVerdicts {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// A step in the life of a connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct FlowKind(u32);

impl FlowKind {
    /// connect(2) was called and decided upon. The socket has no tuple yet.
    pub const DECIDED: Self = Self(1);
    /// The connecting end is established.
    pub const ESTABLISHED: Self = Self(2);
    /// The accepting end is established.
    pub const ACCEPTED: Self = Self(3);
    /// The socket is closed, or its connect has failed.
    pub const CLOSED: Self = Self(4);

    /// Returns the word that `flows` and documents use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DECIDED => "decided",
            Self::ESTABLISHED => "established",
            Self::ACCEPTED => "accepted",
            Self::CLOSED => "closed",
            _ => "unknown",
        }
    }
}

/// Value of `FLOW_STATE`: what is known of a socket from its first step on. Freed with the socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FlowFacts {
    /// `CLOCK_MONOTONIC` of the first step, in nanoseconds.
    pub started_ns: u64,
    /// Namespace of the socket.
    pub netns_cookie: u64,
    /// Namespace that the decision names for the accepting end, 0 if none.
    pub peer_netns: u64,
    /// Cgroup v2 of the caller, 0 on an accepting end: the kernel accepts in nobody's name.
    pub cgroup_id: u64,
    /// What the caller dialled; on an accepting end what the client dialled, zero if not known.
    pub dialled: OriginalDst,
    /// Address that the decision names, v4-mapped; zero unless it was a redirect.
    pub target_addr: [u8; 16],
    /// Port that the decision names, network order.
    pub target_port: [u8; 2],
    /// Always zero.
    pub reserved: [u8; 6],
    /// Process of the caller, 0 on an accepting end.
    pub pid: u32,
    /// User of the caller, 0 on an accepting end.
    pub uid: u32,
    /// Group of the caller, 0 on an accepting end.
    pub gid: u32,
    /// What was decided.
    pub verdict: VerdictCode,
    /// Hop of what this socket sends, 0 if it is on none.
    pub hop: Hop,
    /// [`Self::IS_SHADOW`] or 0.
    pub flags: u32,
}

impl FlowFacts {
    /// Bit of [`Self::flags`]: the verdict was recorded and not carried out.
    pub const IS_SHADOW: u32 = 1;
}

/// One record of the ring buffer `FLOWS`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct FlowEvent {
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// Socket cookie, unique on the machine until reboot.
    pub socket_cookie: u64,
    /// What is known of the socket.
    pub facts: FlowFacts,
    /// Both ends as this socket sees them; zero before it has a tuple.
    pub key: SockKey,
    /// When closed: bytes that the other end has acknowledged, SYN and FIN one each (RFC 4898,
    /// tcpEStatsAppHCThruOctetsAcked).
    pub bytes_acked: u64,
    /// When closed: bytes that TCP has received, FIN one.
    pub bytes_received: u64,
    /// When closed: bytes that this socket has sent past TCP.
    pub bytes_redirected: u64,
    /// Which step.
    pub kind: FlowKind,
    /// When established: microseconds since the SYN.
    pub connect_us: u32,
    /// When closed: smoothed round-trip time in microseconds, 0 if never measured.
    pub srtt_us: u32,
    /// When closed: why this socket sends by TCP, a [`crate::PassReason::index`] + 1; 0 if it does not,
    /// or never was a socket that could do without.
    pub on_tcp_because: u32,
}

const _: () = assert!(size_of::<FlowFacts>() == 104);
const _: () = assert!(size_of::<FlowEvent>() == 208);
const _: () = assert!(size_of::<FlowEvent>().is_multiple_of(8));

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn every_code_has_its_place_and_says_its_cause() {
        for cause in PassCause::ALL {
            let code = VerdictCode::passed(cause);
            assert_eq!(code, VerdictCode::of(&Verdict::Pass(cause)));
            assert_eq!(code.pass_cause(), Some(cause));
            assert_eq!(code.name(), "passed", "{cause:?}");
            assert!(code.index() < VerdictCode::COUNT, "{cause:?}");
        }
        let others = VerdictCode::all().filter(|code| code.pass_cause().is_none());
        assert_eq!(
            others.map(VerdictCode::name).collect::<std::vec::Vec<_>>(),
            ["none", "redirected", "followed", "no_room"]
        );
    }
}
