//! Removals that wait until nothing refers to what is removed (R44).

use std::time::Duration;

use super::{Held, TypeState};
use crate::resource::Name;
use crate::stream::Variant;

/// A resource that is gone, and that the client keeps for the time being.
#[derive(Debug)]
pub(super) struct Break {
    pub(super) held: Held,
    since: Duration,
}

impl TypeState {
    /// Whether a removal is held back.
    pub(crate) fn has_breaks(&self) -> bool {
        !self.breaks.is_empty()
    }

    /// Since when the oldest of them is held back.
    pub(crate) fn oldest_break(&self) -> Option<Duration> {
        self.breaks.values().map(|held| held.since).min()
    }

    /// Lets removals go: those held since `before` or earlier. Returns whether there were any.
    pub(crate) fn release_breaks(&mut self, before: Duration, now: Duration) -> bool {
        let due = self.breaks.extract_if(.., |_, held| held.since <= before);
        let due: Vec<(Name, Break)> = due.collect();
        let has_released = !due.is_empty();
        for (name, kept) in due {
            self.remove_from_client(name, kept.held);
        }
        self.note_pending(now);
        has_released
    }

    pub(super) fn keep_or_remove(&mut self, name: Name, held: Held, since: Duration) {
        // A set that is restated can keep only what the client is known to hold.
        let is_unknown = self.is_restated() && held.accepted().is_none();
        // Nothing refers to it, and what replaces it may need its place: a listener's address.
        if is_unknown || matches!(held, Held::Nothing) || self.rules.breaks_after.is_empty() {
            self.remove_from_client(name, held);
        } else {
            self.breaks.insert(name, Break { held, since });
        }
    }

    fn remove_from_client(&mut self, name: Name, held: Held) {
        // A set without it is the removal; for the other types there is none.
        if self.is_restated() {
            self.owes_answer = true;
            self.is_smaller = true;
        }
        let is_told = self.variant == Variant::Delta || self.is_error_told(&name);
        if is_told {
            // It was refused before it was held, but it may have been asked for by name.
            self.todo.insert(name, held.doubted());
        } else if !self.is_restated() {
            self.doubt_no_more();
        }
    }
}
