//! Versions that clients refuse are set aside for newcomers, until somebody accepts them or they
//! are mended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use isthmus_xds_core::{ScopeKey, TypeUrl, Version, View};
use tracing::{info, warn};

use super::{Plane, State};
use crate::clients::Client;
use crate::history::History;
use crate::nacks::Culprit;
use crate::provenance::ResourceKey;
use crate::quarantine::Quarantine;
use crate::scope::{Apart, Scope};

/// Newest generation of each type that a client of a scope accepted, by scope.
pub(super) type Accepted = BTreeMap<ScopeKey, BTreeMap<TypeUrl, u64>>;

impl Plane {
    /// Sets aside what a client of a scope refused, unless a client of any scope has accepted it.
    /// Without a version that was accepted before there is nothing to give instead, and each
    /// client's own stream deals with it.
    pub(crate) fn set_aside(
        &self,
        stream: u64,
        scope: &ScopeKey,
        type_url: &TypeUrl,
        culprit: &Culprit,
    ) {
        let (key, version) = (ResourceKey::new(type_url, &culprit.name), culprit.version);
        {
            let state = self.lock();
            let is_in_force = state.history.is_in_force(&key, version);
            if !is_in_force || state.quarantine.has(&key, version) {
                return;
            }
        }
        let clients = self.clients.list();
        let is_accepted = || {
            let mut others = clients.iter().filter(|(id, _)| *id != stream);
            others.any(|(_, client)| client.has_accepted(type_url, &culprit.name, version))
        };
        if is_accepted() {
            return;
        }
        let mut accepted = Accepted::new();
        for (_, client) in &clients {
            let mut types = client.types().into_iter();
            if let Some(status) = types.find(|it| it.type_url == *type_url) {
                let of_scope = accepted.entry(client.scope()).or_default();
                raise(of_scope, status.type_url, status.acked_generation);
            }
        }
        let last_stream = self.last_stream.load(Ordering::Relaxed);
        let mut state = self.lock();
        for (scope, types) in accepted {
            let known = state.accepted.entry(scope).or_default();
            for (type_url, generation) in types {
                raise(known, type_url, Some(generation));
            }
        }
        let is_new = state
            .quarantine
            .refuse(key.clone(), version, stream, last_stream);
        if !is_new {
            return;
        }
        self.part(&mut state);
        drop(state);
        warn!(
            r#type = &**type_url,
            name = &*culprit.name,
            %version,
            documents = scope.documents().len(),
            "no client accepted this version: clients that connect get the last one that was accepted"
        );
        // Who accepted it since the first look did not know that it matters.
        if is_accepted() {
            self.let_go(&key, version, u64::MAX);
        }
    }

    /// Lets go of what a client was found to have accepted. Costs a look at each version that is set
    /// aside, and nothing if none is.
    pub(crate) fn note_acceptance(&self, stream: u64, client: &Client, type_url: &TypeUrl) {
        if !self.has_quarantine.load(Ordering::Acquire) {
            return;
        }
        let of_type: Vec<(ResourceKey, Version)> = {
            let state = self.lock();
            let all = state.quarantine.versions();
            all.filter(|(key, _)| key.type_url == *type_url)
                .map(|(key, version)| (key.clone(), version))
                .collect()
        };
        for (key, version) in of_type {
            if client.has_accepted(type_url, &key.name, version) {
                self.let_go(&key, version, stream);
            }
        }
    }

    fn let_go(&self, key: &ResourceKey, version: Version, stream: u64) {
        let mut state = self.lock();
        if state.quarantine.accept(key, version, stream) {
            self.part(&mut state);
            drop(state);
            info!(
                r#type = &*key.type_url,
                name = &*key.name,
                %version,
                "a client accepted this version: it goes to all again"
            );
        }
    }

    /// Whether a version is kept from newcomers.
    pub fn is_set_aside(&self, key: &ResourceKey, version: Version) -> bool {
        self.lock().quarantine.has(key, version)
    }

    // Has each scope offer newcomers what they should get.
    fn part(&self, state: &mut State) {
        let has_quarantine = !state.quarantine.is_empty();
        self.has_quarantine.store(has_quarantine, Ordering::Release);
        for scope in state.scopes.values() {
            let view = scope.view_of_most();
            let apart = apart_of(
                &state.quarantine,
                &state.history,
                &state.accepted,
                scope,
                &view,
            );
            self.metrics.count_wakes(scope.set_apart(apart));
        }
    }
}

/// What newcomers of a scope should have, if that is not what the others have.
pub(super) fn apart_of(
    quarantine: &Quarantine,
    history: &History,
    accepted: &Accepted,
    scope: &Scope,
    view: &Arc<View>,
) -> Option<Apart> {
    if quarantine.is_empty() {
        return None;
    }
    let mut of_scope = accepted.get(scope.key()).cloned().unwrap_or_default();
    for (type_url, generation) in scope.accepted() {
        raise(&mut of_scope, type_url, Some(generation));
    }
    let documents = scope.key().documents();
    let substitutes = quarantine.substitutes(documents, view, history, &of_scope);
    (!substitutes.changes.is_empty()).then(|| Apart {
        after_stream: substitutes.after_stream,
        view: Arc::new(view.apart(&substitutes.changes)),
        changes: substitutes.resource_changes(),
    })
}

pub(super) fn raise(
    of_scope: &mut BTreeMap<TypeUrl, u64>,
    type_url: TypeUrl,
    generation: Option<u64>,
) {
    let known = of_scope.entry(type_url).or_default();
    *known = generation.unwrap_or(0).max(*known);
}
