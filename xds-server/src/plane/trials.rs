//! Changes that some clients of a scope are given before the rest: which view each of them has
//! meanwhile, and what becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use isthmus_xds_core::catalog::ResourceChange;
use isthmus_xds_core::stream::Refusal;
use isthmus_xds_core::view::Change;
use isthmus_xds_core::{Name, Resource, ScopeKey, TypeUrl, View};
use tracing::{info, warn};

use super::aside::apart_of;
use super::{Plane, State};
use crate::canary::{Outcome, Rollout, Settings, flows};
use crate::clients::Client;
use crate::provenance::ResourceKey;
use crate::scope::{Held, Scope};

/// The trials of all scopes.
#[derive(Debug, Default)]
pub(super) struct Trials {
    // `None`: a change goes to all at once.
    settings: Option<Settings>,
    // Scopes in which not all have the newest.
    holds: BTreeMap<ScopeKey, Hold>,
}

#[derive(Debug)]
struct Hold {
    rollout: Rollout,
    // The last commit whose content all have.
    passed: u64,
    // What all but the canaries have.
    rest: Arc<View>,
    // Names that may differ between the two, with their aliases.
    held: BTreeMap<ResourceKey, BTreeSet<Name>>,
    // Of types that are not held: what is gone, but what the rest has may still refer to it.
    kept: BTreeMap<ResourceKey, Arc<Resource>>,
}

impl Trials {
    /// What the clients of a scope have after a commit, if it is not the newest for all of them.
    pub(super) fn commit(
        &mut self,
        scope: &Scope,
        newest: &View,
        changes: &[ResourceChange],
        now: Instant,
    ) -> Option<Held> {
        let settings = self.settings?;
        let is_to_try = changes.iter().any(|it| !flows(&it.type_url));
        let hold = self.holds.remove(scope.key());
        if hold.is_none() && !is_to_try {
            return None;
        }
        let mut hold = hold.unwrap_or_else(|| Hold::after(scope.view()));
        hold.take_in(newest, changes);
        if is_to_try {
            let candidates = scope.wanting(&hold.tried());
            let generation = newest.generation();
            hold.rollout.commit(generation, &candidates, settings, now);
        }
        if hold.rollout == Rollout::Idle {
            return None;
        }
        let offer = hold.offer();
        self.holds.insert(scope.key().clone(), hold);
        Some(offer)
    }

    /// Forgets scopes that nobody uses.
    pub(super) fn retain(&mut self, mut is_used: impl FnMut(&ScopeKey) -> bool) {
        self.holds.retain(|key, _| is_used(key));
    }

    pub(super) fn is_any_open(&self) -> bool {
        self.deadline().is_some()
    }

    fn deadline(&self) -> Option<Instant> {
        let settings = self.settings?;
        let holds = self.holds.values();
        holds.filter_map(|it| it.rollout.deadline(settings)).min()
    }
}

impl Hold {
    fn after(passed: Arc<View>) -> Self {
        Self {
            rollout: Rollout::Idle,
            passed: passed.generation(),
            rest: passed,
            held: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    // Types that are held stay the very sets that they are, so that the rest compares nothing.
    fn take_in(&mut self, newest: &View, changes: &[ResourceChange]) {
        for change in changes {
            let key = ResourceKey::new(&change.type_url, &change.name);
            if !flows(&key.type_url) {
                let aliases = change.aliases.iter().cloned();
                self.held.entry(key).or_default().extend(aliases);
            } else if key.in_view(newest).is_some() {
                self.kept.remove(&key);
            } else if let Some(resource) = key.in_view(&self.rest) {
                let resource = Arc::clone(resource);
                self.kept.insert(key, resource);
            }
        }
        let rest = newest.with_types_of(&self.rest, |type_url| !flows(type_url));
        self.rest = Arc::new(if self.kept.is_empty() {
            rest
        } else {
            rest.apart(&self.kept().collect::<Vec<_>>())
        });
    }

    // Canaries go from the newest to what it came from: sets of their own, since the log of a set
    // tells only the way forward.
    fn go_back(&mut self, newest: &View) {
        let held = self.held.keys();
        let held = held.map(|key| key.becomes(key.in_view(&self.rest)));
        let changes: Vec<Change> = held.chain(self.kept()).collect();
        self.rest = Arc::new(newest.apart(&changes));
    }

    fn kept(&self) -> impl Iterator<Item = Change> {
        let kept = self.kept.iter();
        kept.map(|(key, resource)| key.becomes(Some(resource)))
    }

    fn tried(&self) -> Vec<ResourceChange> {
        let held = self.held.iter();
        held.map(|(key, aliases)| named(key, aliases.iter()))
            .collect()
    }

    fn offer(&self) -> Held {
        let mut changes = self.tried();
        let kept = self.kept.iter();
        changes.extend(kept.map(|(key, resource)| named(key, resource.aliases().iter())));
        Held {
            view: Arc::clone(&self.rest),
            canaries: self.rollout.canaries(),
            passed: self.passed,
            changes,
        }
    }
}

impl Plane {
    /// From here on a change goes to so many clients of a scope first, and to the others when those
    /// accepted it or left it unanswered for so long; 0 clients: to all at once. To be said before
    /// anybody is served. Something must run [`Plane::watch_trials`], as [`crate::Server`] does.
    pub fn try_on_canaries(&self, clients: usize, patience: Duration) {
        let settings = |clients| Settings { clients, patience };
        self.lock().trials.settings = NonZeroUsize::new(clients).map(settings);
    }

    /// Ends trials whose time is up, for as long as it is polled.
    pub async fn watch_trials(&self) {
        loop {
            let begun = self.trials_begun.notified();
            let deadline = self.lock().trials.deadline();
            match deadline {
                None => begun.await,
                Some(at) => tokio::select! {
                    () = begun => {}
                    () = tokio::time::sleep_until(at.into()) => self.end_silent_trials(Instant::now()),
                },
            }
        }
    }

    /// Takes note of how far a client has accepted what is tried on it.
    pub(crate) fn note_canary(&self, stream: u64, client: &Client) {
        if !self.has_trials.load(Ordering::Acquire) {
            return;
        }
        let Some((scope, through)) = client.accepted_as_canary() else {
            return;
        };
        let mut state = self.lock();
        if let Some(hold) = state.trials.holds.get_mut(&scope)
            && let Some(outcome) = hold.rollout.accepted(stream, through)
        {
            self.conclude(&mut state, &scope, outcome);
        }
    }

    /// Ends the trial of what a client refused, if it is one of the canaries.
    pub(super) fn note_canary_refusal(
        &self,
        stream: u64,
        scope: &ScopeKey,
        type_url: &TypeUrl,
        refusal: &Refusal,
    ) {
        if !self.has_trials.load(Ordering::Acquire) || flows(type_url) {
            return;
        }
        let mut state = self.lock();
        if let Some(hold) = state.trials.holds.get_mut(scope)
            && let Some(outcome) = hold.rollout.refused(stream, refusal.generation)
        {
            self.conclude(&mut state, scope, outcome);
        }
    }

    /// A stream closed, or is in the scope `now_in` and in no other.
    pub(crate) fn note_canary_left(&self, stream: u64, now_in: Option<&ScopeKey>) {
        if !self.has_trials.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.lock();
        let state = &mut *state;
        let Some(settings) = state.trials.settings else {
            return;
        };
        let mut left = Vec::new();
        for (key, hold) in &mut state.trials.holds {
            let Some(scope) = state.scopes.get(key) else {
                continue;
            };
            if now_in == Some(key) || !hold.rollout.is_canary(stream) {
                continue;
            }
            let candidates = scope.wanting(&hold.tried());
            let outcome = hold.rollout.left(stream, &candidates, settings);
            left.push((key.clone(), outcome));
        }
        for (key, outcome) in left {
            match outcome {
                Some(outcome) => self.conclude(state, &key, outcome),
                None => self.offer(state, &key),
            }
        }
    }

    fn end_silent_trials(&self, now: Instant) {
        let mut state = self.lock();
        let Some(settings) = state.trials.settings else {
            return;
        };
        let holds = state.trials.holds.iter_mut();
        let over = holds.filter_map(|(key, hold)| {
            let outcome = hold.rollout.expire(now, settings)?;
            Some((key.clone(), outcome))
        });
        for (key, outcome) in over.collect::<Vec<_>>() {
            self.conclude(&mut state, &key, outcome);
        }
    }

    fn conclude(&self, state: &mut State, key: &ScopeKey, outcome: Outcome) {
        let generation = state.scopes.get(key).map(|it| it.view().generation());
        let documents = key.documents().join(", ");
        self.metrics.count_trial(outcome);
        match outcome {
            Outcome::Passed => {
                info!(
                    generation,
                    documents, "the canaries accepted the change: it goes to all"
                );
            }
            Outcome::Unanswered => warn!(
                generation,
                documents,
                "not all canaries answered the change, and none refused it: it goes to all"
            ),
            Outcome::Refused => warn!(
                generation,
                documents,
                "a canary refused the change: all get what they had, until the next change"
            ),
        }
        if outcome != Outcome::Refused {
            state.trials.holds.remove(key);
        } else if let Some(hold) = state.trials.holds.get_mut(key)
            && let Some(scope) = state.scopes.get(key)
        {
            hold.go_back(&scope.view());
        }
        self.offer(state, key);
    }

    fn offer(&self, state: &State, key: &ScopeKey) {
        let is_any_open = state.trials.is_any_open();
        self.has_trials.store(is_any_open, Ordering::Release);
        let Some(scope) = state.scopes.get(key) else {
            return;
        };
        let held = state.trials.holds.get(key).map(Hold::offer);
        let base = held
            .as_ref()
            .map_or_else(|| scope.view(), |it| Arc::clone(&it.view));
        let State {
            quarantine,
            history,
            accepted,
            ..
        } = state;
        let apart = apart_of(quarantine, history, accepted, scope, &base);
        self.metrics.count_wakes(scope.set_offer(apart, held));
    }
}

fn named<'a>(key: &ResourceKey, aliases: impl Iterator<Item = &'a Name>) -> ResourceChange {
    ResourceChange {
        type_url: TypeUrl::clone(&key.type_url),
        name: Name::clone(&key.name),
        aliases: aliases.cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use isthmus_xds_core::Extras;
    use isthmus_xds_core::type_rules::{CLUSTER, ENDPOINT};

    use super::*;

    // A commit of content by type and name; `None` removes.
    fn commit(
        before: &View,
        content: &[(&str, &str, Option<&str>)],
    ) -> (View, Vec<ResourceChange>) {
        let changes: Vec<Change> = content
            .iter()
            .map(|(type_url, name, value)| Change {
                type_url: TypeUrl::from(*type_url),
                name: Name::from(*name),
                resource: value.map(|value| {
                    let name = Name::from(*name);
                    let value = value.as_bytes();
                    Arc::new(Resource::new(type_url, name, value, Extras::default()))
                }),
            })
            .collect();
        let named = changes.iter().map(|it| ResourceChange {
            type_url: TypeUrl::clone(&it.type_url),
            name: Name::clone(&it.name),
            aliases: Vec::new(),
        });
        let named = named.collect();
        (before.after(before.generation() + 1, &changes), named)
    }

    fn content(view: &View) -> Vec<String> {
        let sets = view.types().flat_map(|(_, set)| set.resources());
        sets.map(|it| format!("{} {}", it.name(), String::from_utf8_lossy(&it.value())))
            .collect()
    }

    #[test]
    fn r53_endpoints_flow_to_the_rest_and_go_only_with_their_cluster() {
        let first = [
            (CLUSTER, "a", Some("old")),
            (CLUSTER, "b", Some("old")),
            (ENDPOINT, "a", Some("1")),
            (ENDPOINT, "b", Some("1")),
        ];
        let (passed, _) = commit(&View::default(), &first);
        let passed = Arc::new(passed);
        let mut hold = Hold::after(Arc::clone(&passed));

        let second = [
            (CLUSTER, "a", Some("new")),
            (CLUSTER, "c", Some("new")),
            (ENDPOINT, "a", Some("2")),
        ];
        let (newest, changes) = commit(&passed, &second);
        hold.take_in(&newest, &changes);
        assert_eq!(content(&hold.rest), ["a old", "b old", "a 2", "b 1"]);
        let same =
            |view: &View, type_url| Arc::clone(view.type_set(type_url).expect("it has some"));
        let is_same = Arc::ptr_eq(&same(&hold.rest, CLUSTER), &same(&passed, CLUSTER));
        assert!(is_same, "the rest has nothing to compare");

        // A cluster is removed with its endpoints, which are not older than they were.
        let (newest, changes) = commit(&newest, &[(ENDPOINT, "b", Some("2"))]);
        hold.take_in(&newest, &changes);
        let (newest, changes) = commit(&newest, &[(CLUSTER, "b", None), (ENDPOINT, "b", None)]);
        hold.take_in(&newest, &changes);
        assert_eq!(content(&hold.rest), ["a old", "b old", "a 2", "b 2"]);
        let differing = hold.offer().changes;
        let differing: Vec<&str> = differing.iter().map(|it| &*it.name).collect();
        assert_eq!(differing, ["a", "b", "c", "b"]);

        // Refused: who has the newest finds all that differs.
        hold.go_back(&newest);
        assert_eq!(content(&hold.rest), ["a old", "b old", "a 2", "b 2"]);
        let back = same(&hold.rest, CLUSTER).changed_since(&same(&newest, CLUSTER));
        let back: BTreeSet<&str> = back.iter().map(|name| &**name).collect();
        assert_eq!(back, BTreeSet::from(["a", "b", "c"]));

        // Endpoints flow on, and a cluster that comes back has them from there.
        let (newest, changes) = commit(
            &newest,
            &[(ENDPOINT, "a", Some("3")), (ENDPOINT, "b", Some("3"))],
        );
        hold.take_in(&newest, &changes);
        assert_eq!(content(&hold.rest), ["a old", "b old", "a 3", "b 3"]);
        assert_eq!(hold.offer().changes.len(), 3);
    }
}
