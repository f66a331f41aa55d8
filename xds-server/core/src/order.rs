//! Which type may go now: make before break, gated on answers, never overtaking (R43 to R46a).

use std::time::Duration;

use crate::limits;
use crate::type_state::TypeState;

/// When a type's pending content may be sent; `None` if only an event can tell.
///
/// Content that refers to other types waits until those were sent (R45) and answered (R46), but
/// never longer than [`limits::MAKE_PATIENCE`]. A refusal is an answer: waiting would not help.
pub(crate) fn make_at(state: &TypeState, all: &[TypeState]) -> Option<Duration> {
    let own = state.may_send_at();
    if !state.has_makes() {
        // A heartbeat carries nothing that could come too early.
        return finite(own.max(state.next_beat()?));
    }
    if state.rules.makes_after.is_empty() {
        return finite(own);
    }
    let is_waited_for = |other: &TypeState| {
        let is_overtaken = other.rules.rank < state.rules.rank && other.has_makes();
        let is_named = state.rules.makes_after.has(other.rules.id);
        is_overtaken || (is_named && !other.is_answered())
    };
    if all.iter().any(is_waited_for) {
        let since = state.pending_since().unwrap_or(Duration::ZERO);
        return finite(own.max(since + limits::MAKE_PATIENCE));
    }
    finite(own)
}

/// When a type's removals may be sent, and from when on they must be held to go then.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum BreakGate {
    /// All of them may go now.
    Open,
    /// Those that waited for [`limits::BREAK_PATIENCE`] may go.
    AfterPatience,
    /// None may go: a refused type still refers to what it referred to before.
    Shut,
}

/// Says whether what a type wants to remove can still be referred to (R44). A referrer that keeps
/// what it has keeps what that refers to, in turn; no type refers to itself by way of others.
pub(crate) fn break_gate(state: &TypeState, all: &[TypeState]) -> BreakGate {
    let referrers = all
        .iter()
        .filter(|other| state.rules.breaks_after.has(other.rules.id));
    let own = if state.is_answered() {
        BreakGate::Open
    } else {
        BreakGate::AfterPatience
    };
    let gates = referrers.map(|other| {
        if other.may_keep_old() {
            BreakGate::Shut
        } else if other.has_breaks() {
            break_gate(other, all).max(BreakGate::AfterPatience)
        } else if other.is_answered() {
            BreakGate::Open
        } else {
            BreakGate::AfterPatience
        }
    });
    gates.fold(own, BreakGate::max)
}

fn finite(at: Duration) -> Option<Duration> {
    (at < Duration::MAX).then_some(at)
}
