//! The running control plane: one catalog, one writer, and the scopes in use.
//!
//! The lock is taken to publish, to open a stream and to print state; never on the push path. A
//! change wakes the streams that want it and no other: see [`crate::scope`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_api::envoy_resources::NodeView;
use isthmus_heap::Counts;
use isthmus_xds_core::catalog::{Draft, Published};
use isthmus_xds_core::{Catalog, Document, Name, ScopeKey, TypeUrl, View};
use tokio::sync::watch;

use crate::clients::{Client, Clients};
use crate::loads::{LoadCollector, Loads};
use crate::metrics::Metrics;
use crate::scope::Scope;

/// The control plane, shared by the source, the services and the admin endpoint.
#[derive(Debug)]
pub struct Plane {
    state: Mutex<State>,
    // Rises when clients may belong to other scopes than before, and before they are rung.
    moves: AtomicU64,
    is_ready: watch::Sender<bool>,
    last_stream: AtomicU64,
    /// The streams that are open.
    pub clients: Clients,
    /// What clients report of their load.
    pub loads: Arc<Loads>,
    /// What is counted.
    pub metrics: Metrics,
}

#[derive(Debug, Default)]
struct State {
    catalog: Catalog,
    scopes: BTreeMap<ScopeKey, Arc<Scope>>,
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
            clients: Clients::default(),
            loads,
            metrics,
        }
    }

    /// Puts a whole new set of documents in force and wakes the streams that it concerns.
    pub fn publish(&self, documents: Vec<Document>) -> u64 {
        let before = Counts::of_thread();
        let mut state = self.lock();
        let State { catalog, scopes } = &mut *state;
        // A scope that only this map knows has no streams, and gets none but through it.
        scopes.retain(|_, scope| Arc::strong_count(scope) > 1);
        catalog.retain_scopes(|key| scopes.contains_key(key));
        let published = catalog.publish(documents);
        let generation = self.announce(state, &published);
        self.metrics.change_cost.observe_since(before);
        generation
    }

    /// Changes some resources of one document, or makes it, and wakes the streams that it concerns.
    pub fn patch(&self, document: &Name, upserts: Vec<Draft>, removals: &[(TypeUrl, Name)]) -> u64 {
        let before = Counts::of_thread();
        let mut state = self.lock();
        let published = state.catalog.patch(document, upserts, removals);
        let generation = self.announce(state, &published);
        self.metrics.change_cost.observe_since(before);
        generation
    }

    fn announce(&self, mut state: MutexGuard<'_, State>, published: &Published) -> u64 {
        let State { catalog, scopes } = &mut *state;
        for change in &published.changed {
            if let Some(scope) = scopes.get(&change.scope) {
                let view = catalog.view(&change.scope);
                let announced = scope.announce(view, &change.resources);
                self.metrics.count_wakes(announced.woken);
            }
        }
        if published.are_scopes_moved {
            self.moves.fetch_add(1, Ordering::SeqCst);
            let woken = scopes.values().map(|scope| scope.ring_moved()).sum();
            self.metrics.count_wakes(woken);
        }
        self.metrics
            .observe_publish(published.generation, catalog.documents_len(), scopes.len());
        drop(state);
        self.is_ready.send_replace(true);
        published.generation
    }

    /// Finds the scope of a client.
    pub(crate) fn scope_of(&self, node: &NodeView<'_>) -> Arc<Scope> {
        let mut state = self.lock();
        let State { catalog, scopes } = &mut *state;
        let key = catalog.scope_of(node);
        let view = catalog.view(&key);
        let scope = scopes
            .entry(key.clone())
            .or_insert_with(|| Arc::new(Scope::new(key, view)));
        Arc::clone(scope)
    }

    /// Brings a client to the scope that it belongs to.
    pub(crate) fn place(&self, client: &Arc<Client>, node: &NodeView<'_>, now: Duration) {
        loop {
            // Scopes that move from here on either ring the client, or are seen to have moved.
            let moves = self.moves.load(Ordering::SeqCst);
            client.move_to(&self.scope_of(node), now);
            if self.moves.load(Ordering::SeqCst) == moves {
                return;
            }
        }
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

    // A panic while the lock was held leaves a whole catalog: it is replaced at the end.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
