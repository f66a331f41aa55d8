//! Versions of resources that a client refused and none accepted: who connects from then on gets
//! what was accepted last instead.
//!
//! Invariant: no clock, no I/O, no lock. A version leaves when some client accepts it, or when the
//! history has forgotten it. Clients that were connected before are left to their own streams, and so
//! is everybody where no earlier version was accepted: to give none would take away what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isthmus_xds_core::catalog::ResourceChange;
use isthmus_xds_core::view::Change;
use isthmus_xds_core::{Name, Resource, TypeUrl, Version, View};

use crate::history::{Generation, History};
use crate::provenance::ResourceKey;
use crate::validate::references::references;

/// Versions in quarantine at once: beyond it a bad push is so bad that the rest is served as it is.
pub const QUARANTINED: usize = 1024;

/// Resources that one scope gets from the past, with what they refer to.
const SUBSTITUTES: usize = 4096;

/// Streams that are remembered to have refused a version; the others' word is taken as it comes.
const REFUSERS: usize = 64;

/// What is set aside.
#[derive(Debug, Default)]
pub struct Quarantine {
    entries: BTreeMap<(ResourceKey, Version), Entry>,
}

#[derive(Debug)]
struct Entry {
    // The last stream that was open when the version was refused.
    since_stream: u64,
    // The last generation that had it. Until the history forgets it, it is no version to go back to.
    in_force_at: u64,
    refused_by: BTreeSet<u64>,
}

struct Past<'a> {
    type_url: TypeUrl,
    resource: Arc<Resource>,
    generation: &'a Generation,
}

/// What the newcomers of a scope get in the place of what is in quarantine.
#[derive(Debug, Default)]
pub struct Substitutes {
    /// Streams with numbers above this are newcomers.
    pub after_stream: u64,
    /// Resources from the past.
    pub changes: Vec<Change>,
}

impl Quarantine {
    /// Sets a version aside, or notes that one more stream refused it. Returns whether it was not
    /// there before.
    pub fn refuse(
        &mut self,
        key: ResourceKey,
        version: Version,
        stream: u64,
        last_stream: u64,
    ) -> bool {
        let is_full = self.entries.len() >= QUARANTINED;
        let id = (key, version);
        let is_new = !self.entries.contains_key(&id);
        if is_new && is_full {
            return false;
        }
        let entry = self.entries.entry(id).or_insert_with(|| Entry {
            since_stream: last_stream,
            in_force_at: u64::MAX,
            refused_by: BTreeSet::new(),
        });
        if entry.refused_by.len() < REFUSERS {
            entry.refused_by.insert(stream);
        }
        is_new
    }

    /// Lets a version go that a stream accepted, unless the same stream refused it. Returns whether
    /// it was there.
    pub fn accept(&mut self, key: &ResourceKey, version: Version, stream: u64) -> bool {
        let id = (key.clone(), version);
        let entry = self.entries.get(&id);
        if entry.is_none_or(|entry| entry.refused_by.contains(&stream)) {
            return false;
        }
        self.entries.remove(&id).is_some()
    }

    /// Lets versions go that the history has forgotten.
    pub fn retain_known(&mut self, history: &History) {
        let mut numbers = history.generations().map(|it| it.number);
        let newest = numbers.next().unwrap_or(0);
        let oldest = numbers.last().unwrap_or(newest);
        self.entries.retain(|(key, version), entry| {
            if history.is_in_force(key, *version) {
                entry.in_force_at = newest;
            }
            entry.in_force_at >= oldest
        });
    }

    /// Whether a version is set aside.
    pub fn has(&self, key: &ResourceKey, version: Version) -> bool {
        self.entries.contains_key(&(key.clone(), version))
    }

    /// Whether nothing is set aside.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is set aside, with its versions.
    pub fn versions(&self) -> impl Iterator<Item = (&ResourceKey, Version)> {
        self.entries.keys().map(|(key, version)| (key, *version))
    }

    /// What newcomers get instead, in a scope of `documents` whose newest view is `view`.
    /// `accepted` is the newest generation of a type that a client of the scope accepted. What a
    /// resource from the past refers to and the view lacks comes from the same past.
    pub fn substitutes(
        &self,
        documents: &[Name],
        view: &View,
        history: &History,
        accepted: &BTreeMap<TypeUrl, u64>,
    ) -> Substitutes {
        let mut found = Substitutes {
            after_stream: u64::MAX,
            changes: Vec::new(),
        };
        let mut wanted = Vec::new();
        for ((key, version), entry) in &self.entries {
            let has = key.in_view(view).is_some_and(|it| it.version() == *version);
            if !has || found.changes.len() >= SUBSTITUTES {
                continue;
            }
            let until = accepted.get(&key.type_url).copied().unwrap_or(0);
            let past = self.accepted_before(documents, key, history, until);
            let Some((resource, generation)) = past else {
                continue;
            };
            found.after_stream = found.after_stream.min(entry.since_stream);
            found.changes.push(key.becomes(Some(&resource)));
            wanted.push(Past {
                type_url: TypeUrl::clone(&key.type_url),
                resource,
                generation,
            });
        }
        self.complete(&mut found, wanted, documents, view);
        found
    }

    // The newest version that is not set aside, among the generations that were accepted.
    fn accepted_before<'a>(
        &self,
        documents: &[Name],
        key: &ResourceKey,
        history: &'a History,
        until: u64,
    ) -> Option<(Arc<Resource>, &'a Generation)> {
        // A type that has not changed for longer than the history reaches was accepted as it was.
        let oldest = history.generations().last().map_or(0, |it| it.number);
        let until = if until > 0 { until.max(oldest) } else { 0 };
        let past = history.generations().filter(|it| it.number <= until);
        for generation in past {
            // It was removed in what was accepted last: there is nothing to go back to.
            let resource = generation.resource(documents, key)?.resource;
            if !self.has(key, resource.version()) {
                return Some((resource, generation));
            }
        }
        None
    }

    fn complete(
        &self,
        found: &mut Substitutes,
        mut wanted: Vec<Past<'_>>,
        documents: &[Name],
        view: &View,
    ) {
        let mut seen: BTreeSet<ResourceKey> = found
            .changes
            .iter()
            .map(|it| ResourceKey::new(&it.type_url, &it.name))
            .collect();
        while let Some(past) = wanted.pop() {
            let message = past.type_url.rsplit('/').next().unwrap_or_default();
            for reference in references(message, &past.resource.value()) {
                let key = ResourceKey {
                    type_url: TypeUrl::from(reference.target.type_url()),
                    name: Name::from(reference.name),
                };
                if found.changes.len() >= SUBSTITUTES
                    || key.in_view(view).is_some()
                    || !seen.insert(key.clone())
                {
                    continue;
                }
                if let Some(traced) = past.generation.resource(documents, &key)
                    && !self.has(&key, traced.resource.version())
                {
                    found.changes.push(key.becomes(Some(&traced.resource)));
                    wanted.push(Past {
                        type_url: key.type_url,
                        resource: traced.resource,
                        generation: past.generation,
                    });
                }
            }
        }
    }
}

impl Substitutes {
    /// The names that they are about, for whoever wants one of them.
    pub fn resource_changes(&self) -> Vec<ResourceChange> {
        let changes = self.changes.iter();
        changes
            .map(|it| ResourceChange {
                type_url: TypeUrl::clone(&it.type_url),
                name: Name::clone(&it.name),
                aliases: it
                    .resource
                    .iter()
                    .flat_map(|it| it.aliases())
                    .cloned()
                    .collect(),
            })
            .collect()
    }
}
