//! The running control plane: one catalog, one writer, and a channel per scope to its streams.
//!
//! The lock is taken to publish, to open a stream and to print state; never on the push path. A
//! stream waits on its scope's channel, so a change wakes only those whose view it touches.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_api::envoy_resources::NodeView;
use isthmus_heap::Counts;
use isthmus_xds_core::catalog::{Draft, Published};
use isthmus_xds_core::{Catalog, Document, Name, ScopeKey, TypeUrl, View};
use tokio::sync::watch;

use crate::clients::Clients;
use crate::metrics::Metrics;

/// The control plane, shared by the source, the services and the admin endpoint.
#[derive(Debug)]
pub struct Plane {
    state: Mutex<State>,
    // Rises when clients may belong to other scopes than before.
    scopes_moved: watch::Sender<u64>,
    is_ready: watch::Sender<bool>,
    last_stream: AtomicU64,
    /// The streams that are open.
    pub clients: Clients,
    /// What is counted.
    pub metrics: Metrics,
}

#[derive(Debug, Default)]
struct State {
    catalog: Catalog,
    channels: BTreeMap<ScopeKey, watch::Sender<Arc<View>>>,
}

/// A client's place in the plane: its scope, and the view of that scope as it changes.
#[derive(Debug)]
pub struct Subscriber {
    /// The scope the client belongs to.
    pub scope: ScopeKey,
    /// The view that the client should have.
    pub view: watch::Receiver<Arc<View>>,
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
        Self {
            state: Mutex::default(),
            scopes_moved: watch::Sender::new(0),
            is_ready: watch::Sender::new(false),
            last_stream: AtomicU64::new(0),
            clients: Clients::default(),
            metrics: Metrics::new(),
        }
    }

    /// Puts a whole new set of documents in force and wakes the streams that it concerns.
    pub fn publish(&self, documents: Vec<Document>) -> u64 {
        let before = Counts::of_thread();
        let mut state = self.lock();
        let State { catalog, channels } = &mut *state;
        channels.retain(|_, channel| channel.receiver_count() > 0);
        catalog.retain_scopes(|key| channels.contains_key(key));
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
        let State { catalog, channels } = &mut *state;
        for key in &published.changed {
            if let Some(channel) = channels.get(key) {
                channel.send_replace(catalog.view(key));
            }
        }
        self.metrics.observe_publish(
            published.generation,
            catalog.documents_len(),
            channels.len(),
        );
        if published.are_scopes_moved {
            self.scopes_moved.send_replace(published.generation);
        }
        drop(state);
        self.is_ready.send_replace(true);
        published.generation
    }

    /// Finds the scope of a client and joins it.
    pub fn subscribe(&self, node: &NodeView<'_>) -> Subscriber {
        let mut state = self.lock();
        let State { catalog, channels } = &mut *state;
        let scope = catalog.scope_of(node);
        let view = catalog.view(&scope);
        let channel = channels
            .entry(scope.clone())
            .or_insert_with(|| watch::Sender::new(view));
        let view = channel.subscribe();
        Subscriber { scope, view }
    }

    /// Tells when a client must look up its scope again.
    pub fn scopes_moved(&self) -> watch::Receiver<u64> {
        self.scopes_moved.subscribe()
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
