//! Versions that clients refuse are set aside for newcomers, until somebody accepts them or they
//! are mended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use isthmus_xds_core::status::ConfigStatus;
use isthmus_xds_core::{Name, ScopeKey, TypeUrl, Version, View};
use tracing::{info, warn};

use super::{Plane, State};
use crate::clients::Client;
use crate::history::History;
use crate::nacks::Culprit;
use crate::provenance::ResourceKey;
use crate::quarantine::Quarantine;
use crate::scope::{Apart, Scope};

/// Clients that are asked whether they accepted a version before it is set aside. Those that
/// accepted something as new are asked first, so that one is found if there are any.
const WITNESSES: usize = 16;

/// Newest generation of each type that a client of a scope accepted, by scope.
pub(super) type Accepted = BTreeMap<ScopeKey, BTreeMap<TypeUrl, u64>>;

impl Plane {
    /// Sets aside what a client of a scope refused, unless another client has accepted it.
    pub(crate) fn set_aside(
        &self,
        stream: u64,
        scope: &ScopeKey,
        type_url: &TypeUrl,
        culprits: &[Culprit],
    ) {
        let keys = culprits
            .iter()
            .map(|it| (key_of(type_url, &it.name), it.version));
        let (news, history): (Vec<_>, History) = {
            let state = self.lock();
            let is_new = |(key, version): &(ResourceKey, Version)| {
                state.history.is_in_force(key, *version) && !state.quarantine.has(key, *version)
            };
            (keys.filter(is_new).collect(), state.history.clone())
        };
        if news.is_empty() {
            return;
        }
        let clients = self.clients.list();
        let mut accepted = Accepted::new();
        for (_, client) in &clients {
            let of_scope = accepted.entry(client.scope()).or_default();
            for status in client.types() {
                raise(of_scope, status.type_url, status.acked_generation);
            }
        }
        let others: Vec<&Arc<Client>> = clients
            .iter()
            .filter(|(id, client)| *id != stream && client.scope() == *scope)
            .map(|(_, client)| client)
            .collect();
        let news: Vec<_> = news
            .into_iter()
            .filter(|(key, version)| {
                let since = first_generation(&history, scope.documents(), key, *version);
                !is_accepted(&others, key, *version, since)
            })
            .collect();
        let last_stream = self.last_stream.load(Ordering::Relaxed);
        let mut state = self.lock();
        for (scope, types) in accepted {
            let known = state.accepted.entry(scope).or_default();
            for (type_url, generation) in types {
                raise(known, type_url, Some(generation));
            }
        }
        let mut is_changed = false;
        for (key, version) in news {
            warn!(
                r#type = &*key.type_url,
                name = &*key.name,
                %version,
                "no client accepted this version: clients that connect get the last one that was accepted"
            );
            is_changed |= state.quarantine.refuse(key, version, stream, last_stream);
        }
        if is_changed {
            self.part(&mut state);
        }
    }

    /// Lets go of what a client was found to have accepted.
    pub(crate) fn note_acceptance(&self, stream: u64, client: &Client, type_url: &TypeUrl) {
        if !self.has_quarantine.load(Ordering::Acquire) {
            return;
        }
        let (statuses, _) = client.resources();
        let held = statuses
            .into_iter()
            .filter(|it| it.type_url == *type_url && it.status == ConfigStatus::Synced);
        let held = held.filter_map(|it| Some((key_of(type_url, &it.name), it.version?)));
        let held: Vec<_> = held.collect();
        let mut state = self.lock();
        let mut is_changed = false;
        for (key, version) in held {
            if state.quarantine.accept(&key, version, stream) {
                info!(
                    r#type = &*key.type_url,
                    name = &*key.name,
                    %version,
                    "a client accepted this version: it goes to all again"
                );
                is_changed = true;
            }
        }
        if is_changed {
            self.part(&mut state);
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
            let view = scope.view();
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

fn raise(of_scope: &mut BTreeMap<TypeUrl, u64>, type_url: TypeUrl, generation: Option<u64>) {
    let known = of_scope.entry(type_url).or_default();
    *known = generation.unwrap_or(0).max(*known);
}

fn key_of(type_url: &TypeUrl, name: &Name) -> ResourceKey {
    ResourceKey {
        type_url: TypeUrl::clone(type_url),
        name: Name::clone(name),
    }
}

// The generation from which on a version is what it is.
fn first_generation(
    history: &History,
    documents: &[Name],
    key: &ResourceKey,
    version: Version,
) -> u64 {
    let same = history.generations().take_while(|generation| {
        let resource = generation.resource(documents, key);
        resource.is_some_and(|it| it.resource.version() == version)
    });
    same.last().map_or(u64::MAX, |it| it.number)
}

fn is_accepted(others: &[&Arc<Client>], key: &ResourceKey, version: Version, since: u64) -> bool {
    let may_know = others.iter().filter(|client| {
        let types = client.types();
        let mut of_type = types.iter().filter(|it| it.type_url == key.type_url);
        of_type.any(|it| it.acked_generation >= Some(since))
    });
    may_know.take(WITNESSES).any(|client| {
        let (statuses, _) = client.resources();
        statuses.iter().any(|it| {
            it.type_url == key.type_url
                && it.name == key.name
                && it.version == Some(version)
                && it.status == ConfigStatus::Synced
        })
    })
}
