//! Signs of life for resources that have a time to live (R54).

use std::sync::Arc;
use std::time::Duration;

use super::TypeState;
use super::compose::Content;
use crate::resource::Name;
use crate::stream::Variant;

impl TypeState {
    /// When the next heartbeat is due, if the client holds anything that needs one.
    pub(crate) fn next_beat(&self) -> Option<Duration> {
        if self.must_beat_wait() {
            return None;
        }
        self.heartbeats.values().min().copied()
    }

    pub(super) fn is_beat_due(&self, now: Duration) -> bool {
        self.next_beat().is_some_and(|due| due <= now)
    }

    // State of the world: Envoy knows a heartbeat by the version that it accepted last, and one
    // of another version would be a resource without a body. A set that is restated is one.
    fn must_beat_wait(&self) -> bool {
        let is_partial = self.variant == Variant::Sotw && !self.rules.is_full_state;
        is_partial && (!self.in_flight.is_empty() || self.acked_version.is_none())
    }

    // Twice in its time to live, so that one that is lost or late does not kill the resource.
    pub(super) fn beat(&mut self, content: &mut Content, now: Duration) {
        if !self.has_ttl() {
            return;
        }
        for name in &content.removed {
            self.heartbeats.remove(name);
        }
        for resource in &content.upserts {
            match resource.ttl() {
                Some(ttl) => self
                    .heartbeats
                    .insert(Name::clone(resource.name()), now + ttl / 2),
                None => self.heartbeats.remove(resource.name()),
            };
        }
        let is_sotw = self.variant == Variant::Sotw;
        let is_restated = self.is_restated();
        let may_carry = !is_sotw || (!is_restated && content.is_empty() && !self.must_beat_wait());
        let (base, todo, isolation) = (&self.base, &self.todo, &self.isolation);
        self.heartbeats.retain(|name, due| {
            let Some(resource) = base.resource(name) else {
                return false;
            };
            // Of a version that was refused, the client would not know what it hears.
            let is_refused = isolation.as_ref().is_some_and(|it| it.has(name));
            let is_due = *due <= now && !todo.contains_key(name) && !is_refused;
            if let Some(ttl) = resource.ttl().filter(|_| is_due && may_carry) {
                content.alive.push(Arc::clone(resource));
                *due = now + ttl / 2;
            }
            // A set that is restated has all that the client holds.
            let is_gone = is_restated && is_due;
            resource.ttl().is_some() && !is_refused && !is_gone
        });
        if is_sotw && !content.alive.is_empty() {
            content.version = self.acked_version;
        }
    }

    fn has_ttl(&self) -> bool {
        let is_wrapped = self.variant == Variant::Delta || self.features.reads_wrapped;
        self.features.reads_ttl && is_wrapped
    }
}
