//! The last generations of the configuration: what each held, where it came from, what it changed.
//!
//! Invariant: no clock and no I/O. A generation shares everything that it has in common with the one
//! before, resources by their encoded bytes and maps by their nodes, so that it costs what changed.
//! What is kept includes secrets; what is told of it is names, versions and sizes.

mod compare;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use isthmus_xds_core::catalog::{ChangeKind, ChangedResource, Published, Source, StoredDocument};
use isthmus_xds_core::{Catalog, Name, Resource, TypeUrl, Version};
use rpds::RedBlackTreeMapSync;

use crate::provenance::{Origin, Origins, Provenance, ResourceKey};

pub use self::compare::{Difference, Row, Turn};

/// Generations that are kept: a day of a commit every five minutes.
pub const GENERATIONS: usize = 256;

/// What made a generation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Cause {
    /// A source changed its documents.
    Commit {
        /// Which source.
        source: Source,
        /// Who asked it to, if that is known.
        caller: Option<Arc<str>>,
    },
    /// The end of a rollback.
    Release,
    /// An operator who wants an earlier generation back.
    Rollback {
        /// That generation.
        to: u64,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit {
                source,
                caller: Some(caller),
            } => write!(out, "{source} ({caller})"),
            Self::Commit {
                source,
                caller: None,
            } => source.fmt(out),
            Self::Release => out.write_str("release of a rollback"),
            Self::Rollback { to } => write!(out, "rollback to {to}"),
        }
    }
}

/// Numbers of resources.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Not there before.
    pub added: usize,
    /// There before with other content.
    pub changed: usize,
    /// Not there any more.
    pub removed: usize,
}

/// One generation.
#[derive(Debug)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// When it came in force.
    pub at: SystemTime,
    /// What made it.
    pub cause: Cause,
    /// What it changed, by type.
    pub counts: BTreeMap<TypeUrl, Counts>,
    documents: Documents,
}

type Documents = RedBlackTreeMapSync<Name, Sheet>;

#[derive(Clone, Debug)]
struct Sheet {
    stored: Arc<StoredDocument>,
    origins: RedBlackTreeMapSync<ResourceKey, Arc<Origin>>,
}

/// A resource in the history, and where it stands there.
#[derive(Clone, Debug)]
pub struct Traced {
    /// The newest generation that has it.
    pub generation: u64,
    /// The document that has it.
    pub document: Name,
    /// Where it was written.
    pub origin: Arc<Origin>,
    /// The resource.
    pub resource: Arc<Resource>,
}

/// The newest [`GENERATIONS`] generations. Cloning costs a pointer each.
#[derive(Clone, Debug, Default)]
pub struct History {
    // Oldest first.
    generations: VecDeque<Arc<Generation>>,
}

impl History {
    /// Adds what `catalog` has after `published`, if that is a generation that the history does not
    /// have. Costs what the commit changed, and for each origin that is given a look at the one
    /// that is known.
    pub fn record(
        &mut self,
        catalog: &Catalog,
        published: &Published,
        cause: Cause,
        origins: &Origins<'_>,
        at: SystemTime,
    ) {
        let newest = self.generations.back();
        let is_new = newest.is_none_or(|it| it.number < published.generation);
        let mut documents = newest.map_or_else(Documents::new_sync, |it| it.documents.clone());
        for name in &published.documents {
            let Some(stored) = catalog.document(name).map(Arc::clone) else {
                documents.remove_mut(name);
                continue;
            };
            let before = documents.get(name);
            let origins =
                before.map_or_else(RedBlackTreeMapSync::new_sync, |it| it.origins.clone());
            documents.insert_mut(Name::clone(name), Sheet { stored, origins });
        }
        let are_moved = follow(&mut documents, published, origins);
        if is_new {
            if self.generations.len() == GENERATIONS {
                self.generations.pop_front();
            }
            self.generations.push_back(Arc::new(Generation {
                number: published.generation,
                at,
                cause,
                counts: count(&published.resources),
                documents,
            }));
        } else if are_moved && let Some(newest) = self.generations.back_mut() {
            // Nothing changed but the lines on which it is written.
            *newest = Arc::new(Generation {
                number: newest.number,
                at: newest.at,
                cause: newest.cause.clone(),
                counts: newest.counts.clone(),
                documents,
            });
        }
    }

    /// The generations that are kept, newest first.
    pub fn generations(&self) -> impl Iterator<Item = &Arc<Generation>> {
        self.generations.iter().rev()
    }

    /// The generation in force; `None` before the first.
    pub fn newest(&self) -> Option<&Arc<Generation>> {
        self.generations.back()
    }

    /// Finds a generation that is kept.
    pub fn find(&self, number: u64) -> Option<&Arc<Generation>> {
        let at = self
            .generations
            .binary_search_by_key(&number, |it| it.number);
        at.ok().and_then(|at| self.generations.get(at))
    }

    /// Finds where a resource of this version was written, for a client that gets `documents`.
    pub fn trace(&self, documents: &[Name], key: &ResourceKey, version: Version) -> Option<Traced> {
        self.generations().find_map(|generation| {
            let traced = generation.resource(documents, key)?;
            (traced.resource.version() == version).then_some(traced)
        })
    }

    /// Whether a resource of this version is in force in any document.
    pub fn is_in_force(&self, key: &ResourceKey, version: Version) -> bool {
        let sheets = self
            .newest()
            .into_iter()
            .flat_map(|it| it.documents.values());
        sheets
            .filter_map(|sheet| sheet.stored.resource(&key.type_url, &key.name))
            .any(|resource| resource.version() == version)
    }
}

// Takes note of origins; tells whether any is another than before.
fn follow(documents: &mut Documents, published: &Published, origins: &Origins<'_>) -> bool {
    let mut are_moved = false;
    match origins {
        Origins::Each(provenance) => {
            for (name, of_document) in provenance.documents() {
                let all = of_document.iter();
                let all = all.map(|(key, origin)| (key.clone(), Some(Arc::clone(origin))));
                are_moved |= follow_in(documents, name, all);
            }
        }
        Origins::Caller(_) | Origins::Unknown => {
            let origin = origins
                .caller()
                .map(|caller| Arc::new(Origin::Api { caller }));
            for change in &published.resources {
                let news = std::iter::once((
                    ResourceKey::new(&change.type_url, &change.name),
                    origin.clone(),
                ));
                follow_in(documents, &change.document, news);
            }
        }
    }
    for change in &published.resources {
        if change.kind == ChangeKind::Removed {
            follow_in(
                documents,
                &change.document,
                std::iter::once((ResourceKey::new(&change.type_url, &change.name), None)),
            );
        }
    }
    are_moved
}

fn follow_in(
    documents: &mut Documents,
    name: &Name,
    origins: impl Iterator<Item = (ResourceKey, Option<Arc<Origin>>)>,
) -> bool {
    let Some(sheet) = documents.get(name) else {
        return false;
    };
    let moved: Vec<_> = origins
        .filter(|(key, origin)| sheet.origins.get(key) != origin.as_ref())
        .collect();
    if moved.is_empty() {
        return false;
    }
    let mut sheet = sheet.clone();
    for (key, origin) in moved {
        match origin {
            Some(origin) => sheet.origins.insert_mut(key, origin),
            None => {
                sheet.origins.remove_mut(&key);
            }
        }
    }
    documents.insert_mut(Name::clone(name), sheet);
    true
}

fn count(resources: &[ChangedResource]) -> BTreeMap<TypeUrl, Counts> {
    let mut counts: BTreeMap<TypeUrl, Counts> = BTreeMap::new();
    for change in resources {
        let of_type = counts.entry(TypeUrl::clone(&change.type_url)).or_default();
        match change.kind {
            ChangeKind::Added => of_type.added += 1,
            ChangeKind::Changed => of_type.changed += 1,
            ChangeKind::Removed => of_type.removed += 1,
        }
    }
    counts
}

impl Generation {
    /// Number of documents.
    pub fn documents_len(&self) -> usize {
        self.documents.size()
    }

    /// Its documents, by name.
    pub fn documents(&self) -> impl Iterator<Item = (&Name, &Arc<StoredDocument>)> {
        self.documents
            .iter()
            .map(|(name, sheet)| (name, &sheet.stored))
    }

    /// This generation with some documents as `newest` has them: those of these names, and all of a
    /// source, if one is given.
    pub(crate) fn following<'a>(
        &self,
        newest: &Self,
        source: Option<Source>,
        names: impl Iterator<Item = &'a Name>,
    ) -> Self {
        let mut documents = self.documents.clone();
        if source.is_some() {
            let is_of = |it: &Sheet| Some(it.stored.source()) == source;
            for (name, _) in self.documents.iter().filter(|(_, it)| is_of(it)) {
                documents.remove_mut(name);
            }
            for (name, sheet) in newest.documents.iter().filter(|(_, it)| is_of(it)) {
                documents.insert_mut(Name::clone(name), sheet.clone());
            }
        }
        for name in names {
            match newest.documents.get(name) {
                Some(sheet) => documents.insert_mut(Name::clone(name), sheet.clone()),
                None => {
                    documents.remove_mut(name);
                }
            }
        }
        Self {
            number: self.number,
            at: self.at,
            cause: self.cause.clone(),
            counts: self.counts.clone(),
            documents,
        }
    }

    /// Where all its resources come from.
    pub fn provenance(&self) -> Provenance {
        let mut provenance = Provenance::default();
        for (name, sheet) in &self.documents {
            for (key, origin) in &sheet.origins {
                provenance.note(name, key.clone(), Arc::clone(origin));
            }
        }
        provenance
    }

    /// What a client that gets `documents` has under a name.
    pub fn resource(&self, documents: &[Name], key: &ResourceKey) -> Option<Traced> {
        documents.iter().rev().find_map(|name| {
            let (document, sheet) = self.documents.get_key_value(name)?;
            let resource = sheet.stored.resource(&key.type_url, &key.name)?;
            Some(Traced {
                generation: self.number,
                document: Name::clone(document),
                origin: sheet.origin(key),
                resource: Arc::clone(resource),
            })
        })
    }
}

impl Sheet {
    fn origin(&self, key: &ResourceKey) -> Arc<Origin> {
        let known = self.origins.get(key);
        known.map_or_else(
            || Arc::new(Origin::Source(self.stored.source())),
            Arc::clone,
        )
    }
}

#[cfg(test)]
mod tests;
