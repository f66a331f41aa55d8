//! One type on one stream: what the client wants, what it was sent, and what it still lacks.
//!
//! The client's holdings are never listed. The client holds `base` as far as it wants it, except
//! for the names in `todo` and `breaks`; a stream that has converged costs one pointer per type.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::limits;
use crate::resource::{Name, Resource, Version};
use crate::stream::Variant;
use crate::subscription::{LegacyWildcard, Subscription, SubscriptionChange};
use crate::type_rules::TypeRules;
use crate::view::TypeSet;

/// State of one type on one stream.
#[derive(Debug)]
pub(crate) struct TypeState {
    pub(crate) rules: &'static TypeRules,
    variant: Variant,
    subscription: Subscription,
    base: Arc<TypeSet>,
    // Names to look at for the next response, with what the client holds of each.
    todo: BTreeMap<Name, Held>,
    // Resources that are gone from `base` but that the client may still refer to (R44).
    breaks: BTreeMap<Name, Break>,
    // A response is due even if it carries nothing (R34), or the whole set must be restated.
    owes_answer: bool,
    // The client asked for something in `todo`: it is not made to wait for an earlier answer.
    has_asked: bool,
    // When the oldest unsent content came to be known.
    pending_since: Option<Duration>,
    in_flight: VecDeque<InFlight>,
    acked_generation: Option<u64>,
    refusal: Option<Refusal>,
}

/// What the client holds of a name in `todo`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Held {
    Nothing,
    Version(Version),
    // It asked, so it gets an answer whatever it holds (R21, R28).
    Unknown,
}

#[derive(Debug)]
struct Break {
    // As it was last, which may be newer than what the client holds.
    resource: Arc<Resource>,
    held: Version,
    since: Duration,
}

#[derive(Debug)]
struct InFlight {
    nonce: u64,
    generation: u64,
    sent_at: Duration,
}

/// The client's last word on a type, if it was a refusal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Generation of the content that was refused.
    pub generation: u64,
    /// The client's own words, cut at [`limits::ERROR_TEXT_BYTES`].
    pub message: String,
}

/// What a request meant as an answer to an earlier response.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// The newest or an earlier unanswered response was accepted.
    Ack { generation: u64, sent_at: Duration },
    /// It was refused.
    Nack(Refusal),
    /// It names no unanswered response of this stream.
    Stale,
}

/// The content of one response, before it is put into bytes.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) upserts: Vec<Arc<Resource>>,
    pub(crate) removed: Vec<Name>,
    pub(crate) version: Option<Version>,
    // Clusters of this response that the client does not hold yet in this very version.
    pub(crate) changed_endpoints: Vec<Name>,
}

impl TypeState {
    pub(crate) fn new(
        rules: &'static TypeRules,
        variant: Variant,
        legacy: LegacyWildcard,
        base: Arc<TypeSet>,
    ) -> Self {
        Self {
            rules,
            variant,
            subscription: Subscription::new(legacy),
            base,
            todo: BTreeMap::new(),
            breaks: BTreeMap::new(),
            owes_answer: false,
            has_asked: false,
            pending_since: None,
            in_flight: VecDeque::new(),
            acked_generation: None,
            refusal: None,
        }
    }

    /// Settles the response that `nonce` names and all before it (R47).
    pub(crate) fn handle_answer(&mut self, nonce: Option<u64>, error: Option<&str>) -> Answer {
        let position = self
            .in_flight
            .iter()
            .position(|sent| Some(sent.nonce) == nonce);
        let Some(position) = position else {
            return Answer::Stale;
        };
        let Some(sent) = self.in_flight.drain(..=position).next_back() else {
            return Answer::Stale;
        };
        let generation = sent.generation;
        if let Some(error) = error {
            let refusal = Refusal {
                generation,
                message: cut(error).to_owned(),
            };
            self.refusal = Some(refusal.clone());
            return Answer::Nack(refusal);
        }
        self.acked_generation = Some(generation);
        self.refusal = None;
        Answer::Ack {
            generation,
            sent_at: sent.sent_at,
        }
    }

    /// Applies the names of a state-of-the-world request.
    pub(crate) fn handle_names(&mut self, names: &[Name], is_first: bool, now: Duration) {
        let change = self.subscription.replace(names);
        self.forget_unwanted(&change);
        if self.rules.is_full_state {
            self.owes_answer |= change.is_wildcard_added || !change.added.is_empty();
        } else {
            // R34: the first wildcard is answered even if there is nothing.
            self.owes_answer |= is_first && change.is_wildcard_added;
            self.ask(&change);
        }
        self.note_pending(now);
    }

    /// Applies the names of an incremental request. `initial` counts only on the first request of
    /// the type (R38).
    pub(crate) fn handle_amendment(
        &mut self,
        subscribe: &[Name],
        unsubscribe: &[Name],
        initial: Option<&[(Name, Option<Version>)]>,
        now: Duration,
    ) {
        let change = self.subscription.amend(subscribe, unsubscribe);
        self.forget_unwanted(&change);
        if let Some(initial) = initial {
            self.owes_answer |= change.is_wildcard_added && initial.is_empty();
            self.ask_beyond(&change, initial);
        } else {
            self.ask(&change);
        }
        // R22: what the wildcard still wants is told once more.
        if self.subscription.is_wildcard() {
            for name in &change.dropped {
                self.todo.insert(Name::clone(name), Held::Unknown);
                self.has_asked = true;
            }
        }
        self.note_pending(now);
    }

    /// Moves on to the set that follows. Costs what changed, and nothing is sent yet.
    pub(crate) fn advance(&mut self, set: &Arc<TypeSet>, now: Duration) {
        if Arc::ptr_eq(&self.base, set) {
            return;
        }
        for name in set.changed_since(&self.base) {
            if !self.subscription.wants(&name) {
                continue;
            }
            match (self.base.resource(&name).cloned(), set.resource(&name)) {
                (Some(old), None) => self.take_away(name, old, now),
                (old, Some(resource)) => {
                    let version = resource.version();
                    self.bring(name, old.map(|old| old.version()), version);
                }
                (None, None) => {}
            }
        }
        self.base = Arc::clone(set);
        self.note_pending(now);
    }

    fn take_away(&mut self, name: Name, old: Arc<Resource>, now: Duration) {
        match self.todo.remove(&name) {
            Some(Held::Nothing) => {}
            Some(Held::Unknown) => {
                self.todo.insert(name, Held::Unknown);
            }
            Some(Held::Version(held)) => self.keep_or_remove(name, old, held, now),
            None => {
                let held = old.version();
                self.keep_or_remove(name, old, held, now);
            }
        }
    }

    fn keep_or_remove(
        &mut self,
        name: Name,
        resource: Arc<Resource>,
        held: Version,
        since: Duration,
    ) {
        // Nothing refers to it, and what replaces it may need its place: a listener's address.
        if self.rules.breaks_after.is_empty() {
            self.remove_from_client(name, held);
            return;
        }
        let kept = Break {
            resource,
            held,
            since,
        };
        self.breaks.insert(name, kept);
    }

    fn bring(&mut self, name: Name, old: Option<Version>, version: Version) {
        let held = match (self.breaks.remove(&name), self.todo.get(&name)) {
            (Some(kept), _) => Held::Version(kept.held),
            (None, Some(held)) => *held,
            (None, None) => old.map_or(Held::Nothing, Held::Version),
        };
        if held == Held::Version(version) {
            self.todo.remove(&name);
        } else {
            self.todo.insert(name, held);
        }
    }

    /// Has a resource sent again if the client wants and holds it, since something that the
    /// client was sent makes it wait for this one (R48).
    pub(crate) fn restate(&mut self, name: &Name, now: Duration) {
        if self.subscription.wants(name) && self.base.resource(name).is_some() {
            self.todo.insert(Name::clone(name), Held::Unknown);
            self.note_pending(now);
        }
    }

    /// Whether there is content, or an answer, that was not sent.
    pub(crate) fn has_makes(&self) -> bool {
        self.owes_answer || !self.todo.is_empty()
    }

    /// Whether a removal is held back.
    pub(crate) fn has_breaks(&self) -> bool {
        !self.breaks.is_empty()
    }

    /// Whether all content was sent and answered, one way or the other.
    pub(crate) fn is_answered(&self) -> bool {
        !self.has_makes() && self.in_flight.is_empty()
    }

    /// Whether all content was sent and accepted.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_answered() && self.refusal.is_none()
    }

    /// Whether the client refused what it was sent last.
    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// Generation of the last content that the client accepted.
    pub(crate) fn acked_generation(&self) -> Option<u64> {
        self.acked_generation
    }

    /// Generation of the newest content that the client was sent.
    pub(crate) fn sent_generation(&self) -> Option<u64> {
        let unanswered = self.in_flight.back().map(|sent| sent.generation);
        let refused = self.refusal.as_ref().map(|refusal| refusal.generation);
        unanswered.or(refused).max(self.acked_generation)
    }

    pub(crate) fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    pub(crate) fn pending_since(&self) -> Option<Duration> {
        self.pending_since
    }

    pub(crate) fn oldest_break(&self) -> Option<Duration> {
        self.breaks.values().map(|held| held.since).min()
    }

    /// When the next response may go, as far as this type alone is concerned: one unanswered
    /// response at a time, with an escape (R46a), and no wait for who asked.
    pub(crate) fn may_send_at(&self) -> Duration {
        let Some(newest) = self.in_flight.back() else {
            return Duration::ZERO;
        };
        let is_incremental = self.variant == Variant::Delta;
        let has_room = self.in_flight.len() < limits::IN_FLIGHT;
        if is_incremental && self.has_asked && has_room {
            return Duration::ZERO;
        }
        if has_room {
            newest.sent_at + limits::ANSWER_PATIENCE
        } else {
            Duration::MAX
        }
    }

    /// Lets removals go: those held since `before` or earlier.
    pub(crate) fn release_breaks(&mut self, before: Duration, now: Duration) {
        let due: Vec<Name> = self
            .breaks
            .iter()
            .filter(|(_, held)| held.since <= before)
            .map(|(name, _)| Name::clone(name))
            .collect();
        for name in due {
            let Some(held) = self.breaks.remove(&name) else {
                continue;
            };
            self.remove_from_client(name, held.held);
        }
        self.note_pending(now);
    }

    fn remove_from_client(&mut self, name: Name, held: Version) {
        match self.variant {
            Variant::Delta => {
                self.todo.insert(name, Held::Version(held));
            }
            // A set without it is the removal; for the other types there is none.
            Variant::Sotw => self.owes_answer |= self.rules.is_full_state,
        }
    }

    /// Takes the content of the next response, or `None` if there is nothing to say after all.
    pub(crate) fn take_content(&mut self) -> Option<Content> {
        self.has_asked = false;
        let is_due = std::mem::take(&mut self.owes_answer);
        let is_restated = self.variant == Variant::Sotw && self.rules.is_full_state;
        let content = match is_restated {
            true if is_due || !self.todo.is_empty() => self.whole_set(),
            true => Content::default(),
            false => self.take_changes(),
        };
        if !self.has_makes() {
            self.pending_since = None;
        }
        let is_empty = content.upserts.is_empty() && content.removed.is_empty();
        let restates = content.version.is_some();
        (is_due || restates || !is_empty).then_some(content)
    }

    /// Remembers that a response was sent.
    pub(crate) fn note_sent(&mut self, nonce: u64, now: Duration) {
        self.in_flight.push_back(InFlight {
            nonce,
            generation: self.base.generation(),
            sent_at: now,
        });
    }

    /// Hash of the set that responses are taken from.
    pub(crate) fn version(&self) -> Version {
        self.base.version()
    }

    fn take_changes(&mut self) -> Content {
        let mut content = Content::default();
        let mut size_bytes = 0;
        while let Some((name, held)) = self.todo.pop_first() {
            match self.base.resource(&name) {
                Some(resource) if held == Held::Version(resource.version()) => {}
                Some(resource) => {
                    let entry_bytes = resource.delta_entry().len();
                    // A single resource over the limit goes alone: splitting cannot help it.
                    if size_bytes > 0 && size_bytes + entry_bytes > limits::RESPONSE_BYTES {
                        self.todo.insert(name, held);
                        break;
                    }
                    size_bytes += entry_bytes;
                    content
                        .changed_endpoints
                        .extend(resource.endpoints().cloned());
                    content.upserts.push(Arc::clone(resource));
                }
                None if held == Held::Nothing || self.variant == Variant::Sotw => {}
                None => {
                    size_bytes += name.len();
                    content.removed.push(name);
                }
            }
        }
        content
    }

    fn whole_set(&mut self) -> Content {
        let changed = std::mem::take(&mut self.todo);
        let changed = changed.keys().filter_map(|name| self.base.resource(name));
        let changed_endpoints = changed.filter_map(|it| it.endpoints().cloned()).collect();
        for kept in self.breaks.values_mut() {
            kept.held = kept.resource.version();
        }
        let kept = self.breaks.values().map(|held| &held.resource);
        let upserts: Vec<Arc<Resource>> = if self.subscription.is_wildcard() {
            self.base.resources().chain(kept).cloned().collect()
        } else {
            let names = self.subscription.names().iter();
            let wanted = names.filter_map(|name| self.base.resource(name));
            wanted.chain(kept).cloned().collect()
        };
        let version = if self.breaks.is_empty() {
            self.base.version()
        } else {
            Version::of_set(upserts.iter())
        };
        Content {
            upserts,
            removed: Vec::new(),
            version: Some(version),
            changed_endpoints,
        }
    }

    fn ask(&mut self, change: &SubscriptionChange) {
        if change.is_wildcard_added {
            for resource in self.base.resources() {
                self.todo
                    .insert(Name::clone(resource.name()), Held::Unknown);
            }
        }
        for name in &change.added {
            self.breaks.remove(name);
            self.todo.insert(Name::clone(name), Held::Unknown);
        }
        self.has_asked |= change.is_wildcard_added || !change.added.is_empty();
    }

    // R38: what the client says it holds is not sent again, and what is gone is told.
    fn ask_beyond(&mut self, change: &SubscriptionChange, initial: &[(Name, Option<Version>)]) {
        let held: BTreeMap<&Name, Option<Version>> = initial
            .iter()
            .map(|(name, version)| (name, *version))
            .collect();
        let mut asked: BTreeSet<&Name> = change.added.iter().collect();
        let base = Arc::clone(&self.base);
        if change.is_wildcard_added {
            asked.extend(base.resources().map(|resource| resource.name()));
            asked.extend(held.keys());
        }
        for name in asked {
            let version = base.resource(name).map(|resource| resource.version());
            let is_equal = held
                .get(name)
                .is_some_and(|held| version.is_some() && *held == version);
            if !is_equal {
                self.todo.insert(Name::clone(name), Held::Unknown);
                self.has_asked = true;
            }
        }
    }

    fn forget_unwanted(&mut self, change: &SubscriptionChange) {
        if change.is_wildcard_dropped {
            let subscription = &self.subscription;
            self.todo.retain(|name, _| subscription.wants(name));
            self.breaks.retain(|name, _| subscription.wants(name));
        }
        for name in &change.dropped {
            if !self.subscription.wants(name) {
                self.todo.remove(name);
                self.breaks.remove(name);
            }
        }
    }

    fn note_pending(&mut self, now: Duration) {
        if !self.has_makes() {
            self.pending_since = None;
        } else if self.pending_since.is_none() {
            self.pending_since = Some(now);
        }
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(limits::ERROR_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
