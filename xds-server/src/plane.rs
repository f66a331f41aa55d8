//! The running control plane: one catalog, one writer, and the scopes in use.
//!
//! The lock is taken to publish, to open a stream and to print state; never on the push path. A
//! change wakes the streams that want it and no other: see `scope.rs`.

mod aside;
mod refusals;
mod rollback;
mod trials;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use isthmus_api::envoy_resources::NodeView;
use isthmus_heap::Counts;
use isthmus_xds_core::catalog::{Operation, Published, Staged, StoredDocument};
use isthmus_xds_core::{Catalog, Commit, CommitError, Document, Name, ScopeKey, Source, View};
use tokio::sync::{Notify, watch};

use crate::admission::Admission;
use crate::clients::{Client, Clients};
use crate::convergence::Convergence;
use crate::history::{Cause, History};
use crate::loads::{LoadCollector, Loads};
use crate::metrics::Metrics;
use crate::nacks::Nacks;
use crate::provenance::Origins;
use crate::quarantine::Quarantine;
use crate::scope::Scope;

use self::aside::{Accepted, apart_of};
use self::trials::Trials;

pub use self::rollback::{Pin, RollbackError, UnfollowedError};

/// Scopes without clients of which it is remembered what was accepted.
const SCOPES_REMEMBERED: usize = 4096;

/// The control plane, shared by the source, the services and the admin endpoint.
#[derive(Debug)]
pub struct Plane {
    state: Mutex<State>,
    // Rises when clients may belong to other scopes than before, and before they are rung.
    moves: AtomicU64,
    is_ready: watch::Sender<bool>,
    last_stream: AtomicU64,
    // Whether an acceptance may matter: read for each one.
    has_quarantine: AtomicBool,
    // Whether an answer may end a trial: read for each turn of a stream.
    has_trials: AtomicBool,
    trials_begun: Notify,
    /// The streams that are open.
    pub clients: Clients,
    pub(crate) admission: Admission,
    /// How far the last commits came.
    pub convergence: Convergence,
    /// What clients report of their load.
    pub loads: Arc<Loads>,
    /// What is counted.
    pub metrics: Metrics,
}

#[derive(Debug, Default)]
struct State {
    catalog: Catalog,
    // Sources that must have spoken before anything is served.
    awaited: BTreeSet<Source>,
    scopes: BTreeMap<ScopeKey, Arc<Scope>>,
    history: History,
    nacks: Nacks,
    quarantine: Quarantine,
    // Of scopes that have no clients: by type, the newest generation that one accepted.
    accepted: Accepted,
    trials: Trials,
    pin: Option<Pin>,
}

impl Default for Plane {
    fn default() -> Self {
        Self::new()
    }
}

impl Plane {
    /// A plane that is not ready: it has no configuration yet, and says so instead of serving
    /// an empty one (R6).
    pub fn new() -> Self {
        let loads = Arc::new(Loads::default());
        let mut metrics = Metrics::new();
        metrics.register(Box::new(LoadCollector(Arc::clone(&loads))));
        Self {
            state: Mutex::default(),
            moves: AtomicU64::new(0),
            is_ready: watch::Sender::new(false),
            last_stream: AtomicU64::new(0),
            has_quarantine: AtomicBool::new(false),
            has_trials: AtomicBool::new(false),
            trials_begun: Notify::new(),
            clients: Clients::default(),
            admission: Admission::default(),
            convergence: Convergence::new(metrics.changes.clone()),
            loads,
            metrics,
        }
    }

    /// A plane that is not ready until each of these sources has made its first commit: what only
    /// one of them has would look like the removal of what the others have (R6).
    pub fn awaiting(sources: impl IntoIterator<Item = Source>) -> Self {
        let plane = Self::new();
        plane.lock().awaited.extend(sources);
        plane
    }

    /// Makes this the whole set of documents of the configuration directory, and wakes the streams
    /// that it concerns. Returns the generation in force.
    ///
    /// # Errors
    ///
    /// Returns [`CommitError`] if a document of another source is in the way; nothing changes then.
    pub fn publish(&self, documents: Vec<Document>) -> Result<u64, CommitError> {
        let commit = Commit::new(Source::CONFIG_DIR).replace(documents);
        self.commit(commit).map(|published| published.generation)
    }

    /// Changes documents of one source in one generation, and wakes the streams that it concerns.
    ///
    /// Encodes what is new on the calling thread: thousands of resources take milliseconds.
    ///
    /// # Errors
    ///
    /// Returns [`CommitError`] if any part of it cannot be; nothing changes then.
    pub fn commit(&self, commit: Commit) -> Result<Published, CommitError> {
        self.commit_from(commit, &Origins::Unknown)
    }

    /// Does what [`Plane::commit`] does, and takes note of where the resources come from. A commit of
    /// the configuration directory ends a rollback that holds it.
    ///
    /// # Errors
    ///
    /// Returns [`CommitError`] if any part of it cannot be; nothing changes then.
    pub fn commit_from(
        &self,
        commit: Commit,
        origins: &Origins<'_>,
    ) -> Result<Published, CommitError> {
        let unchecked = |_: &Catalog, _: &Staged| Ok(());
        self.commit_checked(commit, origins, unchecked)
            .map(|(published, ())| published)
    }

    /// Does what [`Plane::commit_from`] does, if `check` agrees with what will be in force. It runs
    /// under the plane's lock, so it must not call the plane.
    ///
    /// # Errors
    ///
    /// Returns [`CommitError`], or what `check` says; nothing changes then.
    pub fn commit_checked<T, E: From<CommitError>>(
        &self,
        commit: Commit,
        origins: &Origins<'_>,
        check: impl FnOnce(&Catalog, &Staged) -> Result<T, E>,
    ) -> Result<(Published, T), E> {
        self.commit_if(commit, origins, |_| Ok(()), check)
    }

    // Does that if `is_wanted` agrees with what is in force.
    fn commit_if<T, E: From<CommitError>>(
        &self,
        commit: Commit,
        origins: &Origins<'_>,
        is_wanted: impl FnOnce(&State) -> Result<(), E>,
        check: impl FnOnce(&Catalog, &Staged) -> Result<T, E>,
    ) -> Result<(Published, T), E> {
        let (at, before) = (Instant::now(), Counts::of_thread());
        let source = commit.source;
        let mut state = self.lock();
        is_wanted(&state)?;
        let State {
            catalog,
            scopes,
            accepted,
            trials,
            ..
        } = &mut *state;
        let is_patch = |it: &Operation| matches!(it, Operation::Patch { .. });
        if !commit.operations.iter().all(is_patch) {
            // A scope that only this map knows has no streams, and gets none but through it.
            scopes.retain(|key, scope| {
                let is_used = Arc::strong_count(scope) > 1;
                if !is_used {
                    for (type_url, generation) in scope.accepted() {
                        let known = accepted.entry(key.clone()).or_default();
                        aside::raise(known, type_url, Some(generation));
                    }
                }
                is_used
            });
            while accepted.len() > SCOPES_REMEMBERED {
                accepted.pop_first();
            }
            catalog.retain_scopes(|key| scopes.contains_key(key));
            trials.retain(|key| scopes.contains_key(key));
        }
        let staged = catalog.stage(commit)?;
        let checked = check(catalog, &staged)?;
        let published = catalog.apply(staged);
        state.awaited.remove(&source);
        let cause = Cause::Commit {
            source,
            caller: origins.caller(),
        };
        state.record(&published, cause, origins);
        state.follow(source, &published);
        self.announce(state, &published, at);
        self.metrics.change_cost.observe_since(before);
        Ok((published, checked))
    }

    /// A document in force.
    pub fn document(&self, name: &str) -> Option<Arc<StoredDocument>> {
        self.lock().catalog.document(name).cloned()
    }

    /// The documents in force by name, and the generation.
    pub fn documents(&self) -> (u64, Vec<(Name, Arc<StoredDocument>)>) {
        let state = self.lock();
        let documents = state.catalog.documents();
        let documents = documents.map(|(name, it)| (Name::clone(name), Arc::clone(it)));
        (state.catalog.generation(), documents.collect())
    }

    fn announce(&self, mut state: MutexGuard<'_, State>, published: &Published, at: Instant) {
        let State {
            history,
            quarantine,
            ..
        } = &mut *state;
        quarantine.retain_known(history);
        self.has_quarantine
            .store(!quarantine.is_empty(), Ordering::Release);
        let State {
            catalog,
            awaited,
            scopes,
            history,
            quarantine,
            accepted,
            trials,
            ..
        } = &mut *state;
        let generation = published.generation;
        // A commit that changed nothing is the one before, which is followed already.
        if published.has_changes() {
            self.convergence.begin(generation, at);
        }
        if published.are_scopes_moved {
            for scope in scopes.values() {
                scope.owe_move(generation, &self.convergence);
            }
        }
        for change in &published.changed {
            if let Some(scope) = scopes.get(&change.scope) {
                let view = catalog.view(&change.scope);
                let (resources, convergence) = (&change.resources, &self.convergence);
                let held = trials.commit(scope, &view, resources, at);
                let most = held.as_ref().map_or(&view, |it| &it.view);
                let apart = apart_of(quarantine, history, accepted, scope, most);
                // Before anybody can answer.
                if held.is_some() {
                    self.has_trials.store(true, Ordering::Release);
                }
                let announced = scope.announce(view, resources, apart, held, convergence);
                self.metrics.count_wakes(announced.woken);
            }
        }
        let is_any_open = trials.is_any_open();
        self.has_trials.store(is_any_open, Ordering::Release);
        if is_any_open {
            self.trials_begun.notify_one();
        }
        if published.are_scopes_moved {
            self.moves.fetch_add(1, Ordering::SeqCst);
            let woken = scopes.values().map(|scope| scope.ring_moved()).sum();
            self.metrics.count_wakes(woken);
        }
        if published.has_changes() {
            self.convergence.announced(generation, Instant::now());
        }
        self.metrics
            .observe_publish(generation, catalog.documents_len(), scopes.len());
        let is_ready = awaited.is_empty();
        drop(state);
        if is_ready {
            self.is_ready.send_replace(true);
        }
    }

    /// Finds the scope of a client.
    pub(crate) fn scope_of(&self, node: &NodeView<'_>) -> Arc<Scope> {
        self.scope_at(node).0
    }

    // Also the commit that all scopes have.
    fn scope_at(&self, node: &NodeView<'_>) -> (Arc<Scope>, u64) {
        let mut state = self.lock();
        let State {
            catalog,
            scopes,
            history,
            quarantine,
            accepted,
            ..
        } = &mut *state;
        let key = catalog.scope_of(node);
        let view = catalog.view(&key);
        let scope = scopes.entry(key.clone()).or_insert_with(|| {
            let scope = Scope::new(key, Arc::clone(&view));
            let apart = apart_of(quarantine, history, accepted, &scope, &view);
            scope.set_apart(apart);
            Arc::new(scope)
        });
        (Arc::clone(scope), catalog.generation())
    }

    /// Brings a client to the scope that it belongs to.
    pub(crate) fn place(&self, client: &Arc<Client>, node: &NodeView<'_>, now: Duration) {
        loop {
            // Scopes that move from here on either ring the client, or are seen to have moved.
            let moves = self.moves.load(Ordering::SeqCst);
            let (scope, generation) = self.scope_at(node);
            client.move_to(&scope, generation, &self.convergence, now);
            self.note_canary_left(client.id, Some(scope.key()));
            if self.moves.load(Ordering::SeqCst) == moves {
                return;
            }
        }
    }

    /// Lets so many streams open in a second, and the others wait; 0 lets all of them.
    pub fn limit_stream_openings(&self, per_second: u32) {
        self.admission.limit(per_second);
    }

    /// Whether there is a configuration to serve.
    pub fn is_ready(&self) -> bool {
        *self.is_ready.borrow()
    }

    /// Tells when that changes.
    pub fn readiness(&self) -> watch::Receiver<bool> {
        self.is_ready.subscribe()
    }

    /// Returns a number that no other stream of this process has.
    pub fn next_stream_id(&self) -> u64 {
        self.last_stream.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Entries in the indexes of who wants what.
    pub fn interest_entries(&self) -> usize {
        let state = self.lock();
        state.scopes.values().map(|it| it.interest_entries()).sum()
    }

    /// Number of the last commit, and the views in use by scope.
    pub fn snapshot(&self) -> (u64, Vec<(ScopeKey, Arc<View>)>) {
        let state = self.lock();
        let scopes = state.catalog.scopes();
        let views = scopes.map(|(key, view)| (key.clone(), Arc::clone(view)));
        (state.catalog.generation(), views.collect())
    }

    /// The generations that are kept.
    pub fn history(&self) -> History {
        self.lock().history.clone()
    }

    // A panic while the lock was held leaves a whole catalog: it is replaced at the end.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn record(&mut self, published: &Published, cause: Cause, origins: &Origins<'_>) {
        let at = SystemTime::now();
        self.history
            .record(&self.catalog, published, cause, origins, at);
    }
}
