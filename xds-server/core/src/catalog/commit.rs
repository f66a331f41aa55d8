//! A change to the catalog: what a source wants, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isthmus_api::envoy_resources::Selector;

use super::document::{Document, Draft, Source, StoredDocument};
use super::index::Givers;
use super::{Catalog, ScopeKey};
use crate::resource::{Name, Resource, TypeUrl};
use crate::view::{Change, View};

/// What one source changes at once: all of it, or nothing if one part cannot be.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Who changes its documents.
    pub source: Source,
    /// The generation that must be in force, if the change is one to that.
    pub if_generation: Option<u64>,
    /// In the order in which they apply.
    pub operations: Vec<Operation>,
}

/// One change of a [`Commit`].
#[derive(Clone, Debug)]
pub enum Operation {
    /// These are all documents of the source: others of it go.
    Replace(Vec<Document>),
    /// This is what a document is, whether there was one of its name or not.
    Set(Document),
    /// Some resources of a document change.
    Patch {
        /// The document, which must exist.
        document: Name,
        /// Resources that are put in, or in the place of others.
        upserts: Vec<Draft>,
        /// Resources that go. One that is not there is gone already.
        removals: Vec<(TypeUrl, Name)>,
    },
    /// A document goes. One that is not there is gone already.
    Delete(Name),
}

impl Commit {
    /// A commit that changes nothing yet.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            source,
            if_generation: None,
            operations: Vec::new(),
        }
    }

    /// Applies only on top of this generation.
    #[must_use]
    pub fn if_generation(mut self, generation: u64) -> Self {
        self.if_generation = Some(generation);
        self
    }

    /// Replaces all documents of the source.
    #[must_use]
    pub fn replace(self, documents: Vec<Document>) -> Self {
        self.with(Operation::Replace(documents))
    }

    /// Sets a whole document.
    #[must_use]
    pub fn set(self, document: Document) -> Self {
        self.with(Operation::Set(document))
    }

    /// Changes some resources of a document.
    #[must_use]
    pub fn patch(
        self,
        document: impl Into<Name>,
        upserts: Vec<Draft>,
        removals: Vec<(TypeUrl, Name)>,
    ) -> Self {
        let document = document.into();
        self.with(Operation::Patch {
            document,
            upserts,
            removals,
        })
    }

    /// Deletes a document.
    #[must_use]
    pub fn delete(self, document: impl Into<Name>) -> Self {
        self.with(Operation::Delete(document.into()))
    }

    fn with(mut self, operation: Operation) -> Self {
        self.operations.push(operation);
        self
    }
}

/// Why a commit cannot be. Nothing of it is in force then.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommitError {
    /// Somebody else was faster.
    #[error(
        "the commit is for generation {wanted}, and generation {found} is in force; read again what the change depends \
         on and commit it for {found}"
    )]
    Generation {
        /// What the commit asked for.
        wanted: u64,
        /// What is in force.
        found: u64,
    },
    /// A document of another source has the name.
    #[error(
        "document {document:?} belongs to the source {owner}; choose another name, or remove it there"
    )]
    DocumentTaken {
        /// The name.
        document: Name,
        /// Whose it is.
        owner: Source,
    },
    /// There is nothing to patch.
    #[error("there is no document {document:?} to patch; set it first")]
    UnknownDocument {
        /// The name.
        document: Name,
    },
    /// One client would get two resources of one type and name.
    #[error(
        "{type_url} {name:?} of document {document:?} is also in document {other:?} of the source {owner}, and a client may \
         match both selectors; rename one or make the selectors exclude each other"
    )]
    DuplicateResource {
        /// The document of the commit.
        document: Name,
        /// Type of the resource.
        type_url: TypeUrl,
        /// Its name, or an alias of it.
        name: Name,
        /// The document that has it too.
        other: Name,
        /// Whose that is.
        owner: Source,
    },
    /// Two resources of one document may be asked for under one name.
    #[error(
        "{type_url} {name:?} is a name or an alias of both {resource:?} and {other:?} in document {document:?}; take it from \
         one of the two"
    )]
    AmbiguousName {
        /// The document of the commit.
        document: Name,
        /// Type of the resources.
        type_url: TypeUrl,
        /// The name.
        name: Name,
        /// One of the resources.
        resource: Name,
        /// Another one.
        other: Name,
    },
}

/// What a commit did.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Published {
    /// Number of the generation in force: a new one, unless everything was as it should be already.
    pub generation: u64,
    /// Scopes in use whose content changed, with what changed in them.
    pub changed: Vec<ScopeChange>,
    /// Whether a client may belong to another scope than before.
    pub are_scopes_moved: bool,
    /// Documents that came, went, or are not as before.
    pub documents: Vec<Name>,
    /// Resources that came, changed or went, by document.
    pub resources: Vec<ChangedResource>,
}

impl Published {
    /// Whether there is a new generation.
    pub fn has_changes(&self) -> bool {
        self.are_scopes_moved || !self.resources.is_empty()
    }
}

/// What a commit changed in one scope.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ScopeChange {
    /// The scope.
    pub scope: ScopeKey,
    /// The resources that are not as before; a name may be there twice.
    pub resources: Vec<ResourceChange>,
}

/// A resource that is not as before: by all names under which it may have been asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResourceChange {
    /// Its type.
    pub type_url: TypeUrl,
    /// Its name.
    pub name: Name,
    /// Its aliases, those that it had and those that it has.
    pub aliases: Vec<Name>,
}

impl ResourceChange {
    // `None` if the change leaves the view as it is.
    pub(super) fn of(view: &View, change: &Change) -> Option<Self> {
        let before = view.resource(&change.type_url, &change.name);
        let after = change.resource.as_ref();
        let aliases = before.into_iter().chain(after).flat_map(|it| it.aliases());
        (before != after).then(|| Self {
            type_url: TypeUrl::clone(&change.type_url),
            name: Name::clone(&change.name),
            aliases: aliases.cloned().collect(),
        })
    }
}

/// A resource that a commit changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ChangedResource {
    /// The document it is in.
    pub document: Name,
    /// Its type.
    pub type_url: TypeUrl,
    /// Its name.
    pub name: Name,
    /// What became of it.
    pub kind: ChangeKind,
}

/// What became of a resource.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// Its content is another.
    Changed,
    /// It is there no more.
    Removed,
}

/// A document as a commit would leave it.
#[derive(Debug)]
struct Draught {
    after: Option<Arc<StoredDocument>>,
    // The names that may differ; `None` if any may.
    touched: Option<BTreeSet<(TypeUrl, Name)>>,
}

/// A commit that is known to be possible, before it is in force.
#[derive(Debug)]
pub struct Staged {
    // By name.
    pub(super) documents: Vec<StagedDocument>,
    // What they give to clients that did not have it.
    brought: Givers,
}

#[derive(Debug)]
pub(super) struct StagedDocument {
    pub(super) name: Name,
    pub(super) after: Option<Arc<StoredDocument>>,
    pub(super) is_moved: bool,
    pub(super) changes: Vec<(TypeUrl, Name, ChangeKind)>,
}

impl Staged {
    fn checked(catalog: &Catalog, documents: Vec<StagedDocument>) -> Result<Self, CommitError> {
        let mut staged = Self {
            documents,
            brought: Givers::default(),
        };
        staged.brought = check_unique(catalog, &staged)?;
        Ok(staged)
    }

    /// The documents that change, as they will be; `None` for one that goes.
    pub fn documents(&self) -> impl Iterator<Item = (&Name, Option<&StoredDocument>)> {
        let documents = self.documents.iter();
        documents.map(|it| (&it.name, it.after.as_deref()))
    }

    /// The resources that come or change, each with its document.
    pub fn brought(&self) -> impl Iterator<Item = Brought<'_>> {
        self.documents.iter().flat_map(|document| {
            let after = document.after.as_deref();
            let changes = document.changes.iter();
            changes.filter_map(move |(type_url, name, kind)| {
                let after = after.filter(|_| *kind != ChangeKind::Removed)?;
                Some(Brought {
                    name: &document.name,
                    document: after,
                    type_url,
                    resource: after.resource(type_url, name)?,
                })
            })
        })
    }

    /// Whether some client of `selector` will be given a resource.
    pub fn gives(&self, catalog: &Catalog, selector: &Selector, target: (&str, &str)) -> bool {
        let key = (TypeUrl::from(target.0), Name::from(target.1));
        let id = selector.id.as_deref().map(Name::from);
        let held = catalog.givers.rivals(&key, id.as_ref());
        let mut givers = held.chain(self.brought.rivals(&key, id.as_ref()));
        givers.any(|giver| {
            let document = match self.document(giver) {
                Some(staged) => staged.after.as_deref(),
                None => catalog.document(giver).map(|it| &**it),
            };
            document.is_some_and(|it| {
                it.resource(&key.0, &key.1).is_some() && it.selector().may_overlap(selector)
            })
        })
    }

    fn document(&self, name: &Name) -> Option<&StagedDocument> {
        let found = self.documents.binary_search_by(|it| it.name.cmp(name));
        found.ok().map(|index| &self.documents[index])
    }
}

/// A resource that comes or changes with a commit.
#[derive(Clone, Copy, Debug)]
pub struct Brought<'a> {
    /// Name of its document.
    pub name: &'a Name,
    /// The document as it will be.
    pub document: &'a StoredDocument,
    /// Its type.
    pub type_url: &'a TypeUrl,
    /// What it will be.
    pub resource: &'a Arc<Resource>,
}

/// Finds what a commit would change, or why it cannot be.
pub(super) fn stage(catalog: &Catalog, commit: Commit) -> Result<Staged, CommitError> {
    let found = catalog.generation();
    if let Some(wanted) = commit.if_generation.filter(|wanted| *wanted != found) {
        return Err(CommitError::Generation { wanted, found });
    }
    let mut stage = Stage {
        catalog,
        source: commit.source,
        draughts: BTreeMap::new(),
    };
    for operation in commit.operations {
        stage.apply(operation)?;
    }
    let documents: Vec<StagedDocument> = stage
        .draughts
        .into_iter()
        .map(|(name, draught)| compare(catalog, name, draught))
        .filter(|document| document.is_moved || !document.changes.is_empty())
        .collect();
    Staged::checked(catalog, documents)
}

/// Finds what a whole set of documents would change, or why it cannot be.
pub(super) fn stage_whole<'a>(
    catalog: &Catalog,
    documents: impl IntoIterator<Item = (&'a Name, &'a Arc<StoredDocument>)>,
) -> Result<Staged, CommitError> {
    let gone = catalog.documents().map(|(name, _)| (name, None));
    let after = documents.into_iter().map(|(name, it)| (name, Some(it)));
    let whole: BTreeMap<&Name, Option<&Arc<StoredDocument>>> = gone.chain(after).collect();
    let documents: Vec<StagedDocument> = whole
        .into_iter()
        .filter(|(name, after)| {
            let before = catalog.document(name);
            !matches!((before, after), (Some(before), Some(after)) if Arc::ptr_eq(before, after))
        })
        .map(|(name, after)| {
            let draught = Draught {
                after: after.cloned(),
                touched: None,
            };
            compare(catalog, Name::clone(name), draught)
        })
        .filter(|document| document.is_moved || !document.changes.is_empty())
        .collect();
    Staged::checked(catalog, documents)
}

struct Stage<'a> {
    catalog: &'a Catalog,
    source: Source,
    draughts: BTreeMap<Name, Draught>,
}

impl Stage<'_> {
    fn apply(&mut self, operation: Operation) -> Result<(), CommitError> {
        match operation {
            Operation::Replace(documents) => {
                let kept: BTreeSet<&Name> = documents.iter().map(|it| &it.name).collect();
                let own = self.catalog.documents();
                let own = own.filter(|(_, it)| it.source() == self.source);
                let staged = self.draughts.keys();
                let gone: Vec<Name> = own
                    .map(|(name, _)| name)
                    .chain(staged)
                    .filter(|name| !kept.contains(name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.delete(name)?;
                }
                documents.into_iter().try_for_each(|it| self.set(it))
            }
            Operation::Set(document) => self.set(document),
            Operation::Patch {
                document,
                upserts,
                removals,
            } => self.patch(document, upserts, removals),
            Operation::Delete(document) => self.delete(document),
        }
    }

    fn set(&mut self, document: Document) -> Result<(), CommitError> {
        let name = Name::clone(&document.name);
        let before = self.current(&name)?;
        let after = StoredDocument::new(self.source, document, before.as_deref());
        self.put(name, Some(Arc::new(after)), None);
        Ok(())
    }

    fn delete(&mut self, name: Name) -> Result<(), CommitError> {
        if self.current(&name)?.is_some() {
            self.put(name, None, None);
        }
        Ok(())
    }

    fn patch(
        &mut self,
        name: Name,
        upserts: Vec<Draft>,
        removals: Vec<(TypeUrl, Name)>,
    ) -> Result<(), CommitError> {
        let Some(before) = self.current(&name)? else {
            return Err(CommitError::UnknownDocument { document: name });
        };
        // Costs some pointers: what does not change is shared.
        let mut after = StoredDocument::clone(&before);
        let mut touched = BTreeSet::new();
        for (type_url, resource) in removals {
            if after.remove(&type_url, &resource) {
                touched.insert((type_url, resource));
            }
        }
        for draft in upserts {
            let key = (TypeUrl::clone(&draft.type_url), Name::clone(&draft.name));
            if after.upsert(draft, Some(&before)) {
                touched.insert(key);
            }
        }
        self.put(name, Some(Arc::new(after)), Some(touched));
        Ok(())
    }

    // The document as the operations so far leave it, if it is one of the source's.
    fn current(&self, name: &Name) -> Result<Option<Arc<StoredDocument>>, CommitError> {
        if let Some(draught) = self.draughts.get(name) {
            return Ok(draught.after.clone());
        }
        match self.catalog.document(name) {
            Some(found) if found.source() != self.source => Err(CommitError::DocumentTaken {
                document: Name::clone(name),
                owner: found.source(),
            }),
            found => Ok(found.cloned()),
        }
    }

    fn put(
        &mut self,
        name: Name,
        after: Option<Arc<StoredDocument>>,
        touched: Option<BTreeSet<(TypeUrl, Name)>>,
    ) {
        let touched = match (self.draughts.remove(&name), touched) {
            (None, touched) => touched,
            (
                Some(Draught {
                    touched: Some(mut earlier),
                    ..
                }),
                Some(touched),
            ) => {
                earlier.extend(touched);
                Some(earlier)
            }
            (Some(_), _) => None,
        };
        self.draughts.insert(name, Draught { after, touched });
    }
}

fn compare(catalog: &Catalog, name: Name, draught: Draught) -> StagedDocument {
    let before = catalog.document(&name);
    let after = draught.after;
    let changes = match draught.touched {
        Some(touched) => touched
            .into_iter()
            .filter_map(|(url, name)| {
                let kind = kind_of(before, after.as_ref(), &url, &name)?;
                Some((url, name, kind))
            })
            .collect(),
        None => differing(before, after.as_ref()),
    };
    let is_moved = before.map(|it| it.selector()) != after.as_ref().map(|it| it.selector());
    StagedDocument {
        name,
        after,
        is_moved,
        changes,
    }
}

type Stored = Arc<StoredDocument>;

fn kind_of(
    before: Option<&Stored>,
    after: Option<&Stored>,
    type_url: &str,
    name: &str,
) -> Option<ChangeKind> {
    let of = |document: Option<&Stored>| document?.resource(type_url, name).cloned();
    match (of(before), of(after)) {
        (None, None) => None,
        (None, Some(_)) => Some(ChangeKind::Added),
        (Some(_), None) => Some(ChangeKind::Removed),
        (Some(before), Some(after)) => (before != after).then_some(ChangeKind::Changed),
    }
}

// Names whose resource is another than before, is new, or is gone.
fn differing(before: Option<&Stored>, after: Option<&Stored>) -> Vec<(TypeUrl, Name, ChangeKind)> {
    let all = |document: Option<&Stored>| -> Vec<(TypeUrl, Name)> {
        let resources = document.into_iter().flat_map(|it| it.resources());
        resources
            .map(|(url, name, _)| (TypeUrl::clone(url), Name::clone(name)))
            .collect()
    };
    let gone = all(before)
        .into_iter()
        .filter(|(url, name)| after.is_none_or(|it| it.resource(url, name).is_none()));
    all(after)
        .into_iter()
        .chain(gone)
        .filter_map(|(url, name)| {
            let kind = kind_of(before, after, &url, &name)?;
            Some((url, name, kind))
        })
        .collect()
}

// No client may get two resources of one type and name, nor two for one alias. Costs what is new,
// whatever else there is.
fn check_unique(catalog: &Catalog, staged: &Staged) -> Result<Givers, CommitError> {
    let mut brought = Givers::default();
    for document in &staged.documents {
        let Some(after) = &document.after else {
            continue;
        };
        for (type_url, resource, name) in new_names(document, after) {
            let key = (TypeUrl::clone(type_url), Name::clone(name));
            if let Some(other) = after.answering(type_url, name).find(|it| *it != resource) {
                return Err(CommitError::AmbiguousName {
                    document: Name::clone(&document.name),
                    type_url: key.0,
                    name: key.1,
                    resource: Name::clone(resource),
                    other: Name::clone(other),
                });
            }
            let held = catalog.givers.rivals(&key, after.id());
            let rivals = held.chain(brought.rivals(&key, after.id()));
            for other in rivals.filter(|other| **other != document.name) {
                let rival = match staged.document(other) {
                    Some(staged) => staged.after.as_ref(),
                    None => catalog.document(other),
                };
                let rival = rival.filter(|it| {
                    it.answering(type_url, name).next().is_some()
                        && it.selector().may_overlap(after.selector())
                });
                if let Some(rival) = rival {
                    return Err(CommitError::DuplicateResource {
                        document: Name::clone(&document.name),
                        other: Name::clone(other),
                        owner: rival.source(),
                        type_url: TypeUrl::clone(type_url),
                        name: Name::clone(name),
                    });
                }
            }
            brought.insert(key, after.id(), &document.name);
        }
    }
    Ok(brought)
}

// The names that a document gives to clients that could not ask for them before, and maybe some that
// they could: type, resource, and the name or an alias of it.
fn new_names<'a>(
    document: &'a StagedDocument,
    after: &'a StoredDocument,
) -> Vec<(&'a TypeUrl, &'a Name, &'a Name)> {
    if document.is_moved {
        let resources = after.resources();
        return resources
            .flat_map(|(url, name, it)| it.names().map(move |any| (url, name, any)))
            .collect();
    }
    let mut names = Vec::new();
    for (type_url, name, kind) in &document.changes {
        let Some(resource) = after.resource(type_url, name) else {
            continue;
        };
        if *kind == ChangeKind::Added {
            names.push((type_url, name, name));
        }
        let aliases = resource.aliases().iter();
        names.extend(aliases.map(|alias| (type_url, name, alias)));
    }
    names
}
