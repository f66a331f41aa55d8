//! One type on one stream: what the client wants, what it was sent, and what it still lacks.
//!
//! The client's holdings are never listed. The client holds `base` as far as it wants it, except
//! for the names in `todo` and `breaks`; a stream that has converged costs one pointer per type.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::limits;
use crate::resource::{Name, Resource, TypeUrl, Version};
use crate::status::{ConfigStatus, ResourceStatus};
use crate::stream::Variant;
use crate::subscription::{LegacyWildcard, Subscription, SubscriptionChange};
use crate::type_rules::{self, TypeRules};
use crate::view::TypeSet;
use crate::xdstp;

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
    // When the client must hear again of a resource that would die otherwise (R54).
    heartbeats: BTreeMap<Name, Duration>,
    // A response is due even if it carries nothing (R34), or the whole set must be restated.
    owes_answer: bool,
    // The client asked for something in `todo`: it is not made to wait for an earlier answer.
    has_asked: bool,
    // When the oldest unsent content came to be known.
    pending_since: Option<Duration>,
    in_flight: VecDeque<InFlight>,
    acked_generation: Option<u64>,
    // Generation of the newest accepted response that left nothing to be sent.
    whole_generation: u64,
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
    // Nothing was left to be sent after it.
    is_whole: bool,
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
    // Asked for, and absent in the way of R57.
    pub(crate) absent: Vec<Name>,
    // Unchanged, and alive (R54).
    pub(crate) alive: Vec<Arc<Resource>>,
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
            heartbeats: BTreeMap::new(),
            owes_answer: false,
            has_asked: false,
            pending_since: None,
            in_flight: VecDeque::new(),
            acked_generation: None,
            whole_generation: 0,
            refusal: None,
        }
    }

    /// Settles the response that `nonce` names and all before it (R47).
    pub(crate) fn handle_answer(&mut self, nonce: Option<u64>, error: Option<&str>) -> Answer {
        let mut sent = self.in_flight.iter();
        let position = sent.position(|sent| Some(sent.nonce) == nonce);
        let settled = position.and_then(|at| self.in_flight.drain(..=at).next_back());
        let Some(sent) = settled else {
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
        if sent.is_whole {
            self.whole_generation = generation;
        }
        self.refusal = None;
        Answer::Ack {
            generation,
            sent_at: sent.sent_at,
        }
    }

    /// Applies the names of a state-of-the-world request.
    pub(crate) fn handle_names(
        &mut self,
        names: &[Name],
        is_first: bool,
        now: Duration,
    ) -> SubscriptionChange {
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
        change
    }

    /// Applies the names of an incremental request. `initial` counts only on the first request of
    /// the type (R38).
    pub(crate) fn handle_amendment(
        &mut self,
        subscribe: &[Name],
        unsubscribe: &[Name],
        initial: Option<&[(Name, Option<Version>)]>,
        now: Duration,
    ) -> SubscriptionChange {
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
                // What is about to be removed is told of then.
                if !self.breaks.contains_key(name) {
                    self.todo.insert(Name::clone(name), Held::Unknown);
                    self.has_asked = true;
                }
            }
        }
        self.note_pending(now);
        change
    }

    /// Moves on to the set that follows. Costs what changed, and nothing is sent yet.
    pub(crate) fn advance(&mut self, set: &Arc<TypeSet>, now: Duration) {
        if Arc::ptr_eq(&self.base, set) {
            return;
        }
        for name in set.changed_since(&self.base) {
            if !self.is_concerned(&name, set) {
                continue;
            }
            let (old, new) = (self.base.resource(&name).cloned(), set.resource(&name));
            match (old, new) {
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

    /// Moves on to a set that has all that is wanted just as the present one has it.
    pub(crate) fn skip_to(&mut self, set: Arc<TypeSet>) {
        debug_assert!(
            Arc::ptr_eq(&self.base, &set)
                || set.changed_since(&self.base).iter().all(|name| {
                    !self.is_concerned(name, &set) || set.resource(name) == self.base.resource(name)
                }),
            "nothing that the client wants changed on the way"
        );
        self.base = set;
    }

    // Whether the client wants what `set` or the present one has under a name.
    fn is_concerned(&self, name: &Name, set: &TypeSet) -> bool {
        let resources = [self.base.resource(name), set.resource(name)];
        let mut present = resources.into_iter().flatten();
        present.any(|it| self.subscription.wants_resource(it))
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
        let resource = self.base.resource(name);
        if resource.is_some_and(|it| self.subscription.wants_resource(it)) {
            self.todo.insert(Name::clone(name), Held::Unknown);
            self.note_pending(now);
        }
    }

    /// Has all wanted resources below a name sent again: whoever holds it forgot them (R57).
    pub(crate) fn restate_below(&mut self, name: &str, now: Duration) {
        let prefix = format!("{name}/");
        let base = Arc::clone(&self.base);
        for resource in base.with_prefix(&prefix) {
            self.restate(resource.name(), now);
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

    /// Generation up to which the client answered all that it wants, if the view is of `newest`.
    pub(crate) fn answered_through(&self, newest: u64) -> u64 {
        if self.is_answered() && !self.has_breaks() {
            newest
        } else {
            self.whole_generation
        }
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

    /// Where the client stands with each resource that it asked for, or may still hold.
    pub(crate) fn config_status(&self, type_url: &TypeUrl) -> Vec<ResourceStatus> {
        let row = |name: &Name, version, status| ResourceStatus {
            type_url: TypeUrl::clone(type_url),
            name: Name::clone(name),
            version,
            status,
            error: None,
        };
        let mut wanted: BTreeMap<&Name, Option<&Arc<Resource>>> = BTreeMap::new();
        if self.subscription.is_wildcard() {
            wanted.extend(self.base.resources().map(|it| (it.name(), Some(it))));
        }
        let names = self.subscription.names().iter();
        let meant: Vec<Name> = names.flat_map(|name| self.meant_by(name)).collect();
        wanted.extend(meant.iter().map(|name| (name, self.base.resource(name))));
        let error = self.refusal.as_ref().map(|it| Arc::from(&*it.message));
        let mut rows: Vec<ResourceStatus> = wanted
            .into_iter()
            .map(|(name, resource)| {
                let status = if self.todo.contains_key(name) {
                    ConfigStatus::NotSent
                } else if !self.in_flight.is_empty() {
                    ConfigStatus::Stale
                } else if error.is_some() {
                    ConfigStatus::Error
                } else {
                    ConfigStatus::Synced
                };
                let version = resource.map(|it| it.version());
                let error = error.clone().filter(|_| status == ConfigStatus::Error);
                ResourceStatus {
                    error,
                    ..row(name, version, status)
                }
            })
            .collect();
        let gone = self.breaks.keys();
        rows.extend(gone.map(|name| row(name, None, ConfigStatus::NotSent)));
        rows
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
    pub(crate) fn take_content(&mut self, now: Duration) -> Option<Content> {
        self.has_asked = false;
        let is_due = std::mem::take(&mut self.owes_answer);
        let is_restated = self.variant == Variant::Sotw && self.rules.is_full_state;
        let mut content = match is_restated {
            true if is_due || !self.todo.is_empty() => self.whole_set(),
            true => Content::default(),
            false => self.take_changes(),
        };
        if !self.has_makes() {
            self.pending_since = None;
        }
        if self.variant == Variant::Delta {
            self.beat(&mut content, now);
        }
        let is_empty = content.upserts.is_empty()
            && content.removed.is_empty()
            && content.absent.is_empty()
            && content.alive.is_empty();
        let restates = content.version.is_some();
        (is_due || restates || !is_empty).then_some(content)
    }

    /// Remembers that a response was sent.
    pub(crate) fn note_sent(&mut self, nonce: u64, now: Duration) {
        self.in_flight.push_back(InFlight {
            nonce,
            generation: self.base.generation(),
            sent_at: now,
            is_whole: !self.has_makes() && !self.has_breaks(),
        });
    }

    /// Hash of the set that responses are taken from.
    pub(crate) fn version(&self) -> Version {
        self.base.version()
    }

    /// When the next heartbeat is due, if the client holds anything that needs one.
    pub(crate) fn next_beat(&self) -> Option<Duration> {
        self.heartbeats.values().min().copied()
    }

    // Twice in its time to live, so that one that is lost or late does not kill the resource.
    fn beat(&mut self, content: &mut Content, now: Duration) {
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
        let (base, todo) = (&self.base, &self.todo);
        self.heartbeats.retain(|name, due| {
            let Some(resource) = base.resource(name) else {
                return false;
            };
            if let Some(ttl) = resource
                .ttl()
                .filter(|_| *due <= now && !todo.contains_key(name))
            {
                content.alive.push(Arc::clone(resource));
                *due = now + ttl / 2;
            }
            resource.ttl().is_some()
        });
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
                    let was_held = matches!(held, Held::Version(_));
                    if self.rules.type_url == type_rules::VIRTUAL_HOST && !was_held {
                        content.absent.push(name);
                    } else {
                        content.removed.push(name);
                    }
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
            version: Some(version),
            changed_endpoints,
            ..Content::default()
        }
    }

    fn ask(&mut self, change: &SubscriptionChange) {
        if change.is_wildcard_added {
            for resource in self.base.resources() {
                self.todo
                    .insert(Name::clone(resource.name()), Held::Unknown);
            }
        }
        let added = change.added.iter();
        let meant: Vec<Name> = added.flat_map(|name| self.meant_by(name)).collect();
        for name in meant {
            self.breaks.remove(&name);
            self.todo.insert(name, Held::Unknown);
        }
        self.has_asked |= change.is_wildcard_added || !change.added.is_empty();
    }

    // R38: what the client says it holds is not sent again, and what is gone is told.
    fn ask_beyond(&mut self, change: &SubscriptionChange, initial: &[(Name, Option<Version>)]) {
        let held: BTreeMap<&Name, Option<Version>> = initial
            .iter()
            .map(|(name, version)| (name, *version))
            .collect();
        let added = change.added.iter();
        let mut asked: BTreeSet<Name> = added.flat_map(|name| self.meant_by(name)).collect();
        let base = Arc::clone(&self.base);
        if change.is_wildcard_added {
            asked.extend(
                base.resources()
                    .map(|resource| Name::clone(resource.name())),
            );
            asked.extend(held.keys().map(|name| Name::clone(name)));
        } else {
            // Of what it holds, a glob may mean some that are gone.
            let meant = held.keys().filter(|name| self.subscription.wants(name));
            asked.extend(meant.map(|name| Name::clone(name)));
        }
        for name in asked {
            let version = base.resource(&name).map(|resource| resource.version());
            let is_equal = held
                .get(&name)
                .is_some_and(|held| version.is_some() && *held == version);
            if !is_equal {
                self.todo.insert(name, Held::Unknown);
                self.has_asked = true;
            }
        }
    }

    // The resources that a subscribed name stands for: those in a glob's folder (R55), or the one
    // that has the alias (R57). The name itself if there is none, as that has to be told.
    fn meant_by(&self, name: &Name) -> Vec<Name> {
        if let Some(folder) = xdstp::folder_of(name) {
            let inside = self.base.with_prefix(folder).map(|it| it.name());
            let meant = inside.filter(|it| xdstp::glob_of(it).as_deref() == Some(name));
            let meant: Vec<Name> = meant.cloned().collect();
            if !meant.is_empty() {
                return meant;
            }
        } else if self.base.resource(name).is_none()
            && let Some(resource) = self.base.by_alias(name)
        {
            return vec![Name::clone(resource.name())];
        }
        vec![Name::clone(name)]
    }

    fn forget_unwanted(&mut self, change: &SubscriptionChange) {
        if !change.is_wildcard_dropped && change.dropped.is_empty() {
            return;
        }
        let (subscription, base) = (&self.subscription, &self.base);
        let is_wanted = |name: &Name| match base.resource(name) {
            Some(resource) => subscription.wants_resource(resource),
            None => subscription.wants(name),
        };
        self.todo.retain(|name, _| is_wanted(name));
        self.breaks.retain(|name, _| is_wanted(name));
        self.heartbeats.retain(|name, _| is_wanted(name));
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
