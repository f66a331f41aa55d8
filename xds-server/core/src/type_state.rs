//! One type on one stream: what the client wants, what it was sent, and what it still lacks.
//!
//! The client's holdings are never listed. The client holds `base` as far as it wants it, except
//! for the names in `todo`, `breaks` and `isolation`; a stream that has converged costs one
//! pointer per type.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::features::Features;
use crate::resource::{Name, Resource, Version};
use crate::stream::Variant;
use crate::subscription::{LegacyWildcard, Subscription, SubscriptionChange};
use crate::type_rules::TypeRules;
use crate::view::TypeSet;
use crate::xdstp;

mod accused;
mod answers;
mod breaks;
mod compose;
mod heartbeats;
mod isolation;
mod status;

pub(crate) use answers::Answer;
pub use answers::Refusal;
pub(crate) use compose::Content;

use answers::InFlight;
use breaks::Break;
use isolation::Isolation;

/// State of one type on one stream.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is one thing that is owed, or known of the client"
)]
#[derive(Debug)]
pub(crate) struct TypeState {
    pub(crate) rules: &'static TypeRules,
    variant: Variant,
    features: Features,
    subscription: Subscription,
    base: Arc<TypeSet>,
    // Names to look at for the next response, with what the client holds of each.
    todo: BTreeMap<Name, Held>,
    // Resources that are gone from `base` but that the client may still refer to (R44).
    breaks: BTreeMap<Name, Break>,
    // What was refused, and what of it is still looked into.
    isolation: Option<Box<Isolation>>,
    // When the client must hear again of a resource that would die otherwise (R54).
    heartbeats: BTreeMap<Name, Duration>,
    // A response is due even if it carries nothing (R34), or the whole set must be restated.
    owes_answer: bool,
    // The next set lacks what the client holds.
    is_smaller: bool,
    // The whole set is asked for.
    asks_everything: bool,
    // What the client does not hold of this stream it may hold of an earlier one; state of the
    // world only.
    is_returning: bool,
    // The client asked for something in `todo`: it is not made to wait for an earlier answer.
    has_asked: bool,
    // When the oldest unsent content came to be known.
    pending_since: Option<Duration>,
    // Oldest first.
    in_flight: Vec<InFlight>,
    acked_generation: Option<u64>,
    // Generation of the newest accepted response that left nothing to be sent.
    whole_generation: u64,
    // `version_info` of the last response that was accepted.
    acked_version: Option<Version>,
    refusal: Option<Box<Refusal>>,
    // It refused something that is replaced by now, and goes on with what it had until it accepts.
    keeps_old: bool,
}

/// What the client holds of a name.
#[derive(Clone, Debug)]
enum Held {
    Nothing,
    Exactly(Arc<Resource>),
    // It asked, so it gets an answer whatever it holds (R21, R28); or it held something on an
    // earlier stream, and does not say what.
    Unknown,
    // It refused something newer and may have taken it all the same (R64); this is what it
    // accepted last.
    Doubtful(Option<Arc<Resource>>),
}

/// The first state-of-the-world request of a type on a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstRequest {
    /// The client accepted something on an earlier stream, and may hold it.
    pub(crate) is_returning: bool,
}

impl Held {
    fn is(&self, version: Version) -> bool {
        matches!(self, Self::Exactly(held) if held.version() == version)
    }

    /// What it is known to have accepted last.
    fn accepted(&self) -> Option<&Arc<Resource>> {
        match self {
            Self::Exactly(held) | Self::Doubtful(Some(held)) => Some(held),
            Self::Nothing | Self::Unknown | Self::Doubtful(None) => None,
        }
    }

    fn doubted(self) -> Self {
        match self {
            Self::Exactly(held) => Self::Doubtful(Some(held)),
            Self::Nothing => Self::Doubtful(None),
            Self::Unknown | Self::Doubtful(_) => self,
        }
    }
}

impl TypeState {
    pub(crate) fn new(
        rules: &'static TypeRules,
        variant: Variant,
        features: Features,
        legacy: LegacyWildcard,
        base: Arc<TypeSet>,
    ) -> Self {
        Self {
            rules,
            variant,
            features,
            subscription: Subscription::new(legacy),
            base,
            todo: BTreeMap::new(),
            breaks: BTreeMap::new(),
            isolation: None,
            heartbeats: BTreeMap::new(),
            owes_answer: false,
            is_smaller: false,
            asks_everything: false,
            is_returning: false,
            has_asked: false,
            pending_since: None,
            in_flight: Vec::new(),
            acked_generation: None,
            whole_generation: 0,
            acked_version: None,
            refusal: None,
            keeps_old: false,
        }
    }

    /// Applies the names of a state-of-the-world request.
    pub(crate) fn handle_names(
        &mut self,
        names: &[Name],
        first: Option<FirstRequest>,
        now: Duration,
    ) -> SubscriptionChange {
        self.is_returning |= first.is_some_and(|first| first.is_returning);
        let change = self.subscription.replace(names, &self.base);
        self.forget_unwanted(&change);
        if self.rules.is_full_state {
            self.ask_whole_set(&change);
        } else {
            // R34: the first wildcard is answered even if there is nothing.
            self.owes_answer |= first.is_some() && change.is_wildcard_added;
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
        let change = self.subscription.amend(subscribe, unsubscribe, &self.base);
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
                    self.isolation_forget(name);
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
        // Nothing of it was sent.
        if self.asks_everything {
            self.base = Arc::clone(set);
            return;
        }
        for name in set.changed_since(&self.base) {
            if !self.is_concerned(&name, set) {
                continue;
            }
            let (old, new) = (self.base.resource(&name).cloned(), set.resource(&name));
            match (old, new) {
                (Some(old), None) => self.take_away(name, old, now),
                // There and back: a version that was refused stays refused (R10).
                (Some(old), Some(new)) if old.version() == new.version() => {}
                (old, Some(new)) => self.bring(name, old, new),
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
            Some(held) => self.keep_or_remove(name, held, now),
            None => {
                let refused = self.isolation_forget(&name);
                let held = refused.unwrap_or(Held::Exactly(old));
                self.keep_or_remove(name, held, now);
            }
        }
    }

    fn bring(&mut self, name: Name, old: Option<Arc<Resource>>, new: &Arc<Resource>) {
        if old.is_none() {
            self.subscription.share(new.name());
        }
        let refused = self.isolation_forget(&name);
        let held = match (self.breaks.remove(&name), self.todo.remove(&name)) {
            (Some(kept), _) => kept.held,
            (None, Some(held)) => held,
            (None, None) => refused.unwrap_or(old.map_or(Held::Nothing, Held::Exactly)),
        };
        if !held.is(new.version()) {
            self.todo.insert(name, held);
        }
    }

    /// Has a resource sent again if the client wants and holds it, since something that the
    /// client was sent makes it wait for this one (R48).
    pub(crate) fn restate(&mut self, name: &Name, now: Duration) {
        let resource = self.base.resource(name);
        let is_wanted = resource.is_some_and(|it| self.subscription.wants_resource(it));
        // What was refused is refused, whoever waits for it (R10).
        if is_wanted && !self.is_isolated(name) {
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
        self.owes_answer || !self.todo.is_empty() || self.has_suspects()
    }

    /// Whether all content was sent and answered, one way or the other.
    pub(crate) fn is_answered(&self) -> bool {
        !self.has_makes() && self.in_flight.is_empty()
    }

    /// Whether all content was sent and accepted.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_answered() && self.refusal.is_none() && self.isolation.is_none()
    }

    pub(crate) fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    pub(crate) fn pending_since(&self) -> Option<Duration> {
        self.pending_since
    }

    /// Hash of the set that responses are taken from.
    pub(crate) fn version(&self) -> Version {
        self.base.version()
    }

    // In a set that is restated whole, only what is new to the client is looked at later.
    fn ask_whole_set(&mut self, change: &SubscriptionChange) {
        let is_first = self.sent_generation().is_none();
        if change.is_wildcard_added && is_first && !self.has_makes() {
            self.asks_everything = true;
        } else if change.is_wildcard_added {
            let names = self.base.resources().map(|it| it.name());
            let is_new = |name: &&Name| {
                let is_named = self.subscription.has_named(name) || change.dropped.contains(name);
                !is_named || change.added.contains(name)
            };
            let new: Vec<Name> = names.filter(is_new).cloned().collect();
            for name in new {
                let held = self.unheld();
                self.todo.entry(name).or_insert(held);
            }
        }
        self.owes_answer |= change.is_wildcard_added || !change.added.is_empty();
        // What the wildcard brought is held, by whatever name it is asked for then.
        let was_wildcard = change.is_wildcard_dropped
            || (self.subscription.is_wildcard() && !change.is_wildcard_added);
        for name in &change.added {
            if was_wildcard && !self.is_isolated(name) {
                continue;
            }
            self.isolation_forget(name);
            let is_missing = self.base.resource(name).is_none();
            if is_missing && self.features.reads_errors {
                self.todo.insert(Name::clone(name), Held::Unknown);
            } else if !is_missing {
                let held = self.unheld();
                self.todo.entry(Name::clone(name)).or_insert(held);
            }
        }
    }

    // What the client holds of something that it was not sent on this stream.
    fn unheld(&self) -> Held {
        if self.is_returning {
            Held::Unknown
        } else {
            Held::Nothing
        }
    }

    fn ask(&mut self, change: &SubscriptionChange) {
        if change.is_wildcard_added {
            self.isolation = None;
            for resource in self.base.resources() {
                self.todo
                    .insert(Name::clone(resource.name()), Held::Unknown);
            }
        }
        let added = change.added.iter();
        let meant: Vec<Name> = added.flat_map(|name| self.meant_by(name)).collect();
        for name in meant {
            self.breaks.remove(&name);
            self.isolation_forget(&name);
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
                // Nothing has to be told of what only the wildcard means and the client lacks.
                let is_new = !held.contains_key(&name) && !self.subscription.has_named(&name);
                let held = if is_new { Held::Nothing } else { Held::Unknown };
                self.todo.insert(name, held);
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
        if let Some(isolation) = &mut self.isolation {
            isolation.retain(is_wanted);
            self.isolation.take_if(|isolation| isolation.is_over());
        }
        self.doubt_no_more();
    }

    fn note_pending(&mut self, now: Duration) {
        if !self.has_makes() {
            self.pending_since = None;
        } else if self.pending_since.is_none() {
            self.pending_since = Some(now);
        }
    }
}
