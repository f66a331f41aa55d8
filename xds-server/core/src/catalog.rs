//! Which documents a client gets, and the views that follow from them.
//!
//! A *scope* is a set of documents; clients that the same documents select share one view. Its
//! cost follows the number of distinct sets, not the number of clients.

mod commit;
mod document;
mod index;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isthmus_api::envoy_resources::NodeView;

use crate::resource::{Name, Resource, TypeUrl};
use crate::view::{Change, View};
use index::{Givers, Readers};

pub use commit::{
    Brought, ChangeKind, ChangedResource, Commit, CommitError, Operation, Published,
    ResourceChange, ScopeChange, Staged,
};
pub use document::{Document, Draft, Source, StoredDocument};

/// The names of the documents that a client gets, in order. Equal keys mean equal views.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ScopeKey(Arc<[Name]>);

impl ScopeKey {
    /// The documents of the scope, in order.
    pub fn documents(&self) -> &[Name] {
        &self.0
    }
}

/// All documents, and the views of the scopes in use. One writer owns it.
#[derive(Debug, Default)]
pub struct Catalog {
    generation: u64,
    documents: BTreeMap<Name, Arc<StoredDocument>>,
    givers: Givers,
    readers: Readers,
    scopes: BTreeMap<ScopeKey, Arc<View>>,
    // Scopes in use by the documents in them.
    scopes_by_document: BTreeMap<Name, BTreeSet<ScopeKey>>,
}

impl Catalog {
    /// A catalog that has nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of the last commit that changed something; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Changes documents of one source. A resource whose content is as before keeps its encoded
    /// bytes, and a scope whose content is as before keeps its view. A commit that changes nothing
    /// makes no generation. Costs what changes, in each scope that has it; replacing all documents
    /// or one costs a comparison of them.
    ///
    /// # Errors
    ///
    /// Returns [`CommitError`] if any part of it cannot be; nothing is changed then.
    pub fn commit(&mut self, commit: Commit) -> Result<Published, CommitError> {
        let staged = self.stage(commit)?;
        Ok(self.apply(staged))
    }

    /// Makes this the whole set of documents of all sources again, as it was held before. Nothing is
    /// encoded anew.
    ///
    /// # Errors
    ///
    /// Returns [`CommitError`] if one client would get a name twice, which no set that was in force
    /// at one time does.
    pub fn restore<'a>(
        &mut self,
        documents: impl IntoIterator<Item = (&'a Name, &'a Arc<StoredDocument>)>,
    ) -> Result<Published, CommitError> {
        let staged = commit::stage_whole(self, documents)?;
        Ok(self.apply(staged))
    }

    /// Whether [`Catalog::restore`] would change nothing.
    pub fn is_whole<'a>(
        &self,
        documents: impl IntoIterator<Item = (&'a Name, &'a Arc<StoredDocument>)>,
    ) -> bool {
        commit::stage_whole(self, documents).is_ok_and(|staged| staged.documents.is_empty())
    }

    /// Finds out what a commit will change. Nothing is in force until it is given to
    /// [`Catalog::apply`], with no other commit in between.
    ///
    /// # Errors
    ///
    /// Returns [`CommitError`] if any part of it cannot be.
    pub fn stage(&self, commit: Commit) -> Result<Staged, CommitError> {
        commit::stage(self, commit)
    }

    /// Puts a commit in force.
    pub fn apply(&mut self, staged: Staged) -> Published {
        if staged.documents.is_empty() {
            return Published {
                generation: self.generation,
                ..Published::default()
            };
        }
        self.generation += 1;
        let mut published = Published {
            generation: self.generation,
            ..Published::default()
        };
        let mut changed: BTreeMap<Name, Vec<(TypeUrl, Name)>> = BTreeMap::new();
        for document in staged.documents {
            published.are_scopes_moved |= document.is_moved;
            published.documents.push(Name::clone(&document.name));
            let resources = self.install(document, &mut changed);
            published.resources.extend(resources);
        }
        published.changed = self.refresh(&changed);
        published
    }

    // Puts a document in its place, and in the indexes.
    fn install(
        &mut self,
        staged: commit::StagedDocument,
        changed: &mut BTreeMap<Name, Vec<(TypeUrl, Name)>>,
    ) -> Vec<ChangedResource> {
        let name = staged.name;
        let after = staged.after;
        let before = match &after {
            Some(after) => self.documents.insert(Name::clone(&name), Arc::clone(after)),
            None => self.documents.remove(&name),
        };
        let [id_before, id] =
            [&before, &after].map(|it| it.as_ref().and_then(|it| it.id().cloned()));
        if id_before == id {
            self.amend_givers(&name, &staged.changes, before.as_deref(), after.as_deref());
        } else {
            self.move_givers(&name, before.as_deref(), after.as_deref());
        }
        if let Some(before) = &before {
            self.readers.remove(&name, before);
        }
        if let Some(after) = &after {
            self.readers.insert(&name, after);
        }
        let names = staged.changes.iter();
        let names = names.map(|(url, name, _)| (TypeUrl::clone(url), Name::clone(name)));
        changed.insert(Name::clone(&name), names.collect());
        let resources = staged.changes.into_iter();
        resources
            .map(|(type_url, resource, kind)| ChangedResource {
                document: Name::clone(&name),
                type_url,
                name: resource,
                kind,
            })
            .collect()
    }

    // The document has the `node.id` that it had.
    fn amend_givers(
        &mut self,
        name: &Name,
        changes: &[(TypeUrl, Name, ChangeKind)],
        before: Option<&StoredDocument>,
        after: Option<&StoredDocument>,
    ) {
        let pairs = changes.iter().map(|(url, resource, _)| {
            let in_one = |it: &StoredDocument| it.resource(url, resource).cloned();
            (url, before.and_then(in_one), after.and_then(in_one))
        });
        let pairs: Vec<_> = pairs.collect();
        let id = after.or(before).and_then(StoredDocument::id);
        // An alias may move from one resource to another: all that goes goes first.
        for (type_url, before, after) in &pairs {
            for gone in names_without(before.as_deref(), after.as_deref()) {
                let key = (TypeUrl::clone(type_url), Name::clone(gone));
                self.givers.remove(&key, id, name);
            }
        }
        for (type_url, before, after) in &pairs {
            for come in names_without(after.as_deref(), before.as_deref()) {
                let key = (TypeUrl::clone(type_url), Name::clone(come));
                self.givers.insert(key, id, name);
            }
        }
    }

    // All that a document gives is found under its `node.id`: with another one all of it moves.
    fn move_givers(
        &mut self,
        name: &Name,
        before: Option<&StoredDocument>,
        after: Option<&StoredDocument>,
    ) {
        let key = |url: &TypeUrl, name: &Name| (TypeUrl::clone(url), Name::clone(name));
        if let Some(before) = before {
            for (type_url, _, resource) in before.resources() {
                for any in resource.names() {
                    self.givers.remove(&key(type_url, any), before.id(), name);
                }
            }
        }
        if let Some(after) = after {
            for (type_url, _, resource) in after.resources() {
                for any in resource.names() {
                    self.givers.insert(key(type_url, any), after.id(), name);
                }
            }
        }
    }

    // Brings the views in use up to date; returns what changed in which of them.
    fn refresh(&mut self, changed: &BTreeMap<Name, Vec<(TypeUrl, Name)>>) -> Vec<ScopeChange> {
        let users = changed
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .filter_map(|(document, _)| self.scopes_by_document.get(document));
        let users: BTreeSet<ScopeKey> = users.flatten().cloned().collect();
        let mut touched = Vec::new();
        for key in users {
            let documents = key.0.iter().filter_map(|name| changed.get(name));
            let next: Vec<Change> = documents
                .flatten()
                .map(|(type_url, name)| self.resolve(&key, type_url, name))
                .collect();
            let Some(view) = self.scopes.get_mut(&key) else {
                continue;
            };
            let resources: Vec<ResourceChange> = next
                .iter()
                .filter_map(|change| ResourceChange::of(view, change))
                .collect();
            if !resources.is_empty() {
                *view = Arc::new(view.after(self.generation, &next));
                let scope = key;
                touched.push(ScopeChange { scope, resources });
            }
        }
        touched
    }

    // What a scope has under a name. The selectors of a scope's documents overlap, so one of them at most gives it, but
    // in a scope that its clients are about to leave.
    fn resolve(&self, key: &ScopeKey, type_url: &TypeUrl, name: &Name) -> Change {
        let mut documents = key
            .0
            .iter()
            .rev()
            .filter_map(|name| self.documents.get(name));
        let resource = documents.find_map(|held| held.resource(type_url, name));
        Change {
            type_url: TypeUrl::clone(type_url),
            name: Name::clone(name),
            resource: resource.cloned(),
        }
    }

    /// Finds the scope of a client. Costs the documents for its `node.id` and those for any.
    pub fn scope_of(&self, node: &NodeView<'_>) -> ScopeKey {
        let names = self.readers.of(node.id).into_iter().filter(|name| {
            let document = self.documents.get(*name);
            document.is_some_and(|it| it.selector().matches(node))
        });
        ScopeKey(names.cloned().collect())
    }

    /// The view of a scope, built on first use.
    pub fn view(&mut self, key: &ScopeKey) -> Arc<View> {
        if let Some(view) = self.scopes.get(key) {
            return Arc::clone(view);
        }
        let view = Arc::new(self.build(key));
        self.scopes.insert(key.clone(), Arc::clone(&view));
        for document in key.0.iter() {
            let users = self.scopes_by_document.entry(Name::clone(document));
            users.or_default().insert(key.clone());
        }
        view
    }

    /// Drops the views of scopes that nobody uses.
    pub fn retain_scopes(&mut self, mut is_used: impl FnMut(&ScopeKey) -> bool) {
        let Self {
            scopes,
            scopes_by_document,
            ..
        } = self;
        scopes.retain(|key, _| {
            if is_used(key) {
                return true;
            }
            for document in key.0.iter() {
                if let Some(users) = scopes_by_document.get_mut(document) {
                    users.remove(key);
                    if users.is_empty() {
                        scopes_by_document.remove(document);
                    }
                }
            }
            false
        });
    }

    /// Scopes in use with their views.
    pub fn scopes(&self) -> impl Iterator<Item = (&ScopeKey, &Arc<View>)> {
        self.scopes.iter()
    }

    /// A document in force.
    pub fn document(&self, name: &str) -> Option<&Arc<StoredDocument>> {
        self.documents.get(name)
    }

    /// All documents in force, by name.
    pub fn documents(&self) -> impl Iterator<Item = (&Name, &Arc<StoredDocument>)> {
        self.documents.iter()
    }

    /// Number of documents.
    pub fn documents_len(&self) -> usize {
        self.documents.len()
    }

    fn build(&self, key: &ScopeKey) -> View {
        let documents = key.0.iter().filter_map(|name| self.documents.get(name));
        let changes: Vec<Change> = documents
            .flat_map(|document| document.resources())
            .map(|(type_url, name, resource)| Change {
                type_url: TypeUrl::clone(type_url),
                name: Name::clone(name),
                resource: Some(Arc::clone(resource)),
            })
            .collect();
        View::default().after(self.generation, &changes)
    }
}

// The names that one resource may be asked for under and another one may not.
fn names_without<'a>(
    resource: Option<&'a Resource>,
    other: Option<&'a Resource>,
) -> impl Iterator<Item = &'a Name> {
    let is_of_other = move |name: &Name| other.is_some_and(|it| it.names().any(|its| its == name));
    let names = resource.into_iter().flat_map(Resource::names);
    names.filter(move |name| !is_of_other(name))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use isthmus_api::envoy_resources::Selector;

    use super::*;
    use crate::resource::Extras;

    const TYPE: &str = "t";

    fn document(name: &str, id: Option<&str>, resources: &[(&str, &str)]) -> Document {
        Document {
            name: Name::from(name),
            selector: Selector {
                id: id.map(ToOwned::to_owned),
                ..Selector::default()
            },
            resources: resources
                .iter()
                .map(|(name, value)| Draft {
                    type_url: TypeUrl::from(TYPE),
                    name: Name::from(*name),
                    value: Bytes::copy_from_slice(value.as_bytes()),
                    extras: Extras::default(),
                })
                .collect(),
        }
    }

    fn names(changed: &ScopeChange) -> Vec<&str> {
        changed.resources.iter().map(|it| &*it.name).collect()
    }

    fn scope(catalog: &Catalog, id: &str) -> ScopeKey {
        let metadata = BTreeMap::new();
        catalog.scope_of(&NodeView {
            id,
            cluster: "",
            identity: None,
            region: "",
            zone: "",
            sub_zone: "",
            metadata: &metadata,
        })
    }

    #[test]
    fn a_client_gets_what_selects_it() {
        let mut catalog = Catalog::new();
        replace(
            &mut catalog,
            vec![
                document("all", None, &[("a", "1")]),
                document("one", Some("x"), &[("b", "1")]),
            ],
        );
        let names = |view: &View| {
            let set = view.type_set(TYPE).expect("the type has resources");
            set.resources()
                .map(|it| it.name().to_string())
                .collect::<Vec<_>>()
        };
        let (x, y) = (scope(&catalog, "x"), scope(&catalog, "y"));
        assert_eq!(names(&catalog.view(&x)), ["a", "b"]);
        assert_eq!(names(&catalog.view(&y)), ["a"]);
    }

    #[test]
    fn only_touched_scopes_change_and_equal_content_changes_none() {
        let mut catalog = Catalog::new();
        let documents = |b: &str| {
            vec![
                document("all", None, &[("a", "1")]),
                document("one", Some("x"), &[("b", b)]),
            ]
        };
        replace(&mut catalog, documents("1"));
        let (x, y) = (scope(&catalog, "x"), scope(&catalog, "y"));
        let before = (catalog.view(&x), catalog.view(&y));

        let published = replace(&mut catalog, documents("1"));
        assert!(published.changed.is_empty() && !published.are_scopes_moved);
        assert!(Arc::ptr_eq(&before.0, &catalog.view(&x)));

        let published = replace(&mut catalog, documents("2"));
        let [changed] = &published.changed[..] else {
            panic!("{published:?}");
        };
        assert_eq!(changed.scope, x);
        assert_eq!(names(changed), ["b"]);
        assert!(Arc::ptr_eq(&before.1, &catalog.view(&y)));
    }

    #[test]
    fn an_unchanged_resource_keeps_its_encoded_bytes() {
        let mut catalog = Catalog::new();
        replace(
            &mut catalog,
            vec![document("all", None, &[("a", "1"), ("b", "1")])],
        );
        let key = scope(&catalog, "x");
        let before = catalog.view(&key);
        replace(
            &mut catalog,
            vec![document("all", None, &[("a", "1"), ("b", "2")])],
        );
        let after = catalog.view(&key);
        let find = |view: &View, name: &str| {
            Arc::clone(view.type_set(TYPE).unwrap().resource(name).unwrap())
        };
        assert!(Arc::ptr_eq(&find(&before, "a"), &find(&after, "a")));
        assert!(!Arc::ptr_eq(&find(&before, "b"), &find(&after, "b")));
    }

    #[test]
    fn a_changed_resource_is_named_by_the_aliases_it_had_and_has() {
        let documents = |alias: &str| {
            let mut document = document("d", None, &[("a", "1")]);
            document.resources[0].extras.aliases = vec![Name::from(alias)];
            vec![document]
        };
        let mut catalog = Catalog::new();
        replace(&mut catalog, documents("old"));
        let key = scope(&catalog, "x");
        catalog.view(&key);
        let published = replace(&mut catalog, documents("new"));
        let aliases = &published.changed[0].resources[0].aliases;
        assert_eq!(aliases[..], [Name::from("old"), Name::from("new")]);

        let published = replace(&mut catalog, Vec::new());
        let aliases = &published.changed[0].resources[0].aliases;
        assert_eq!(aliases[..], [Name::from("new")]);
    }

    #[test]
    fn another_selector_moves_scopes() {
        let mut catalog = Catalog::new();
        replace(&mut catalog, vec![document("d", Some("x"), &[("a", "1")])]);
        assert!(
            replace(&mut catalog, vec![document("d", Some("y"), &[("a", "1")])]).are_scopes_moved
        );
        assert!(scope(&catalog, "x").documents().is_empty());
    }

    #[test]
    fn sources_keep_their_own_documents() {
        let mut catalog = Catalog::new();
        replace(&mut catalog, vec![document("files", None, &[("a", "1")])]);
        let set = Commit::new(Source::API).set(document("set", None, &[("b", "1")]));
        assert_eq!(catalog.commit(set).unwrap().generation, 2);
        replace(&mut catalog, vec![document("others", None, &[("a", "2")])]);
        let names = |catalog: &Catalog| -> Vec<String> {
            catalog
                .documents()
                .map(|(name, _)| name.to_string())
                .collect()
        };
        assert_eq!(names(&catalog), ["others", "set"]);

        let taken = |document: &str, owner| {
            Err(CommitError::DocumentTaken {
                document: Name::from(document),
                owner,
            })
        };
        let commit = Commit::new(Source::API).delete("set").delete("others");
        assert_eq!(
            catalog.commit(commit),
            taken("others", Source::CONFIG_DIR),
            "nothing of it applies"
        );
        let commit = Commit::new(Source::CONFIG_DIR).replace(vec![document("set", None, &[])]);
        assert_eq!(catalog.commit(commit), taken("set", Source::API));
        assert_eq!(names(&catalog), ["others", "set"]);
        assert_eq!(catalog.generation(), 3);
    }

    #[test]
    fn a_commit_is_whole_and_says_what_it_changed() {
        let mut catalog = Catalog::new();
        let api = || Commit::new(Source::API);
        let first = api()
            .set(document("one", Some("x"), &[("a", "1"), ("b", "1")]))
            .set(document("two", Some("y"), &[("a", "1")]));
        catalog.commit(first.clone()).unwrap();
        let (x, y) = (scope(&catalog, "x"), scope(&catalog, "y"));
        let before = (catalog.view(&x), catalog.view(&y));

        let again = catalog.commit(first).unwrap();
        assert_eq!((again.generation, again.resources.len()), (1, 0));

        let removal = (TypeUrl::from(TYPE), Name::from("b"));
        let gone = (TypeUrl::from(TYPE), Name::from("never there"));
        let upserts = document("", None, &[("a", "2"), ("c", "1")]).resources;
        let patch = api().patch("one", upserts, vec![removal, gone]);
        let unknown = patch.clone().patch("three", Vec::new(), Vec::new());
        let document_three = Name::from("three");
        assert_eq!(
            catalog.commit(unknown),
            Err(CommitError::UnknownDocument {
                document: document_three
            })
        );
        assert!(Arc::ptr_eq(&before.0, &catalog.view(&x)));

        let published = catalog.commit(patch.if_generation(1)).unwrap();
        let changes: Vec<(&str, ChangeKind)> = published
            .resources
            .iter()
            .map(|it| (&*it.name, it.kind))
            .collect();
        let expected = [
            ("a", ChangeKind::Changed),
            ("b", ChangeKind::Removed),
            ("c", ChangeKind::Added),
        ];
        assert_eq!(changes, expected);
        assert_eq!(
            published
                .changed
                .iter()
                .map(|it| &it.scope)
                .collect::<Vec<_>>(),
            [&x]
        );
        assert!(!published.are_scopes_moved);
        assert!(Arc::ptr_eq(&before.1, &catalog.view(&y)));

        let late = api().delete("one").if_generation(1);
        let (wanted, found) = (1, 2);
        assert_eq!(
            catalog.commit(late),
            Err(CommitError::Generation { wanted, found })
        );
    }

    #[test]
    fn no_client_gets_one_name_twice() {
        let mut catalog = Catalog::new();
        let set = |name: &str, id: Option<&str>, resource: &str| {
            Commit::new(Source::API).set(document(name, id, &[(resource, "1")]))
        };
        catalog.commit(set("one", Some("x"), "a")).unwrap();
        catalog.commit(set("two", Some("y"), "a")).unwrap();
        catalog.commit(set("all", None, "b")).unwrap();
        let clash = |commit: Commit, catalog: &mut Catalog| match catalog.commit(commit) {
            Err(CommitError::DuplicateResource { other, .. }) => other.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(clash(set("three", Some("x"), "a"), &mut catalog), "one");
        assert_eq!(clash(set("three", Some("x"), "b"), &mut catalog), "all");
        assert_eq!(clash(set("all", None, "a"), &mut catalog), "one");
        assert_eq!(clash(set("two", Some("x"), "a"), &mut catalog), "one");
        let pair = set("three", Some("z"), "c");
        let pair = pair.set(document("four", Some("z"), &[("c", "1")]));
        assert_eq!(clash(pair, &mut catalog), "four");
        let upserts = document("", None, &[("a", "1")]).resources;
        let patch = Commit::new(Source::API).patch("all", upserts, Vec::new());
        assert_eq!(clash(patch, &mut catalog), "one");

        // What goes in the same commit makes room, and so does another client.
        let swap = set("all", None, "a").delete("one").delete("two");
        catalog.commit(swap).unwrap();
        catalog.commit(set("all", Some("w"), "a")).unwrap();
        catalog.commit(set("one", Some("x"), "a")).unwrap();
        assert_eq!(clash(set("three", Some("w"), "a"), &mut catalog), "all");
    }

    #[test]
    fn no_client_gets_two_resources_for_one_alias() {
        let mut catalog = Catalog::new();
        let with_aliases = |name: &str, id: Option<&str>, resources: &[(&str, &[&str])]| {
            let plain: Vec<(&str, &str)> = resources.iter().map(|(name, _)| (*name, "1")).collect();
            let mut document = document(name, id, &plain);
            for (draft, (_, aliases)) in document.resources.iter_mut().zip(resources) {
                draft.extras.aliases = aliases.iter().map(|it| Name::from(*it)).collect();
            }
            document
        };
        let set = |name: &str, id: Option<&str>, resource: &str, aliases: &[&str]| {
            Commit::new(Source::API).set(with_aliases(name, id, &[(resource, aliases)]))
        };
        let clash = |commit: Commit, catalog: &mut Catalog| match catalog.commit(commit) {
            Err(CommitError::DuplicateResource { name, other, .. }) => format!("{name} in {other}"),
            Err(CommitError::AmbiguousName {
                name,
                resource,
                other,
                ..
            }) => format!("{name} of {resource}, {other}"),
            other => panic!("{other:?}"),
        };
        let x = Some("x");
        catalog.commit(set("one", x, "a", &["p"])).unwrap();
        catalog.commit(set("two", Some("y"), "b", &["p"])).unwrap();
        let cases = [
            (set("three", x, "c", &["p"]), "p in one"),
            (set("three", x, "c", &["a"]), "a in one"),
            (set("three", x, "p", &[]), "p in one"),
            (set("three", None, "p", &[]), "p in one"),
            (set("two", x, "b", &["p"]), "p in one"),
        ];
        for (commit, expected) in cases {
            assert_eq!(clash(commit, &mut catalog), expected);
        }

        // What changes counts as what comes does, and what goes makes room.
        catalog.commit(set("three", x, "c", &[])).unwrap();
        assert_eq!(
            clash(set("three", x, "c", &["p"]), &mut catalog),
            "p in one"
        );
        catalog.commit(set("one", x, "a", &[])).unwrap();
        catalog.commit(set("three", x, "c", &["p"])).unwrap();
        assert_eq!(
            clash(set("one", x, "a", &["p"]), &mut catalog),
            "p in three"
        );
        // Another selector, same id: what it gives is still known.
        catalog
            .commit(set("three", Some("z"), "c", &["p"]))
            .unwrap();
        catalog.commit(set("one", x, "a", &["p"])).unwrap();

        // Within a document an alias may move, and be of one at a time.
        let pair = |first: &[&str], second: &[&str]| {
            let document = with_aliases("pair", Some("w"), &[("f", first), ("s", second)]);
            Commit::new(Source::API).set(document)
        };
        catalog.commit(pair(&["q"], &[])).unwrap();
        catalog.commit(pair(&[], &["q"])).unwrap();
        catalog.commit(pair(&["q"], &[])).unwrap();
        assert_eq!(
            clash(set("five", Some("w"), "q", &[]), &mut catalog),
            "q in pair"
        );
        assert_eq!(clash(pair(&["q"], &["q"]), &mut catalog), "q of s, f");
        assert_eq!(clash(pair(&["s"], &[]), &mut catalog), "s of f, s");
        catalog.commit(pair(&[], &[])).unwrap();
        catalog.commit(set("five", Some("w"), "q", &[])).unwrap();
    }

    fn replace(catalog: &mut Catalog, documents: Vec<Document>) -> Published {
        let commit = Commit::new(Source::CONFIG_DIR).replace(documents);
        catalog.commit(commit).expect("nobody else has documents")
    }
}
