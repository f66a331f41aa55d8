//! Which documents a client gets, and the views that follow from them.
//!
//! A *scope* is a set of documents; clients that the same documents select share one view. Its
//! cost follows the number of distinct sets, not the number of clients.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use isthmus_api::envoy_resources::{NodeView, Selector};

use crate::resource::{Extras, Name, Resource, TypeUrl, Version};
use crate::view::{Change, View};

/// A document as it comes from a source: messages serialized, nothing encoded for the wire.
#[derive(Clone, Debug)]
pub struct Document {
    /// Unique among all documents.
    pub name: Name,
    /// The clients that get it.
    pub selector: Selector,
    /// What they get.
    pub resources: Vec<Draft>,
}

/// A resource of a [`Document`].
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its type.
    pub type_url: TypeUrl,
    /// The name under which clients ask for it.
    pub name: Name,
    /// The serialized message, without `Any`.
    pub value: Bytes,
    /// What else there is to it.
    pub extras: Extras,
}

/// The names of the documents that a client gets, in order. Equal keys mean equal views.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ScopeKey(Arc<[Name]>);

impl ScopeKey {
    /// The documents of the scope, in order.
    pub fn documents(&self) -> &[Name] {
        &self.0
    }
}

/// What publishing a set of documents did.
#[derive(Debug, Eq, PartialEq)]
pub struct Published {
    /// Number of the commit.
    pub generation: u64,
    /// Scopes in use whose content changed, with what changed in them.
    pub changed: Vec<ScopeChange>,
    /// Whether a client may belong to another scope than before.
    pub are_scopes_moved: bool,
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
    fn of(view: &View, change: &Change) -> Option<Self> {
        let before = view
            .type_set(&change.type_url)
            .and_then(|set| set.resource(&change.name));
        let after = change.resource.as_ref();
        let aliases = before.into_iter().chain(after).flat_map(|it| it.aliases());
        (before != after).then(|| Self {
            type_url: TypeUrl::clone(&change.type_url),
            name: Name::clone(&change.name),
            aliases: aliases.cloned().collect(),
        })
    }
}

/// All documents, and the views of the scopes in use. One writer owns it.
#[derive(Debug, Default)]
pub struct Catalog {
    generation: u64,
    documents: BTreeMap<Name, Held>,
    scopes: BTreeMap<ScopeKey, Arc<View>>,
}

#[derive(Debug)]
struct Held {
    selector: Selector,
    resources: BTreeMap<TypeUrl, BTreeMap<Name, Arc<Resource>>>,
}

impl Held {
    fn resource(&self, type_url: &TypeUrl, name: &Name) -> Option<&Arc<Resource>> {
        self.resources.get(type_url)?.get(name)
    }

    fn all(&self) -> impl Iterator<Item = (&TypeUrl, &Name, &Arc<Resource>)> {
        let types = self.resources.iter();
        types.flat_map(|(url, set)| set.iter().map(move |(name, it)| (url, name, it)))
    }
}

impl Catalog {
    /// A catalog that has nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of the last commit; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Replaces all documents in one commit. A resource whose content is as before keeps its
    /// encoded bytes, and a scope whose content is as before keeps its view.
    pub fn publish(&mut self, documents: Vec<Document>) -> Published {
        self.generation += 1;
        let mut before = std::mem::take(&mut self.documents);
        let mut are_scopes_moved = false;
        let mut changed: BTreeMap<Name, Vec<(TypeUrl, Name)>> = BTreeMap::new();
        for document in documents {
            let old = before.remove(&document.name);
            are_scopes_moved |= old
                .as_ref()
                .is_none_or(|it| it.selector != document.selector);
            let new = hold(old.as_ref(), document.selector, document.resources);
            let names = differing(old.as_ref(), &new);
            if !names.is_empty() {
                changed.insert(Name::clone(&document.name), names);
            }
            self.documents.insert(document.name, new);
        }
        for (name, gone) in before {
            are_scopes_moved = true;
            let names = gone
                .all()
                .map(|(url, name, _)| (TypeUrl::clone(url), Name::clone(name)));
            changed.insert(name, names.collect());
        }
        Published {
            generation: self.generation,
            changed: self.refresh(&changed),
            are_scopes_moved,
        }
    }

    /// Changes some resources of one document in one commit, and makes the document if there is
    /// none; it is for every client then. Costs what changes, in each scope that has the document.
    pub fn patch(
        &mut self,
        document: &Name,
        upserts: Vec<Draft>,
        removals: &[(TypeUrl, Name)],
    ) -> Published {
        self.generation += 1;
        let are_scopes_moved = !self.documents.contains_key(document);
        let held = self
            .documents
            .entry(Name::clone(document))
            .or_insert_with(|| Held {
                selector: Selector::default(),
                resources: BTreeMap::new(),
            });
        let mut names = Vec::new();
        for (type_url, name) in removals {
            let set = held.resources.get_mut(type_url);
            if set.is_some_and(|set| set.remove(name).is_some()) {
                names.push((TypeUrl::clone(type_url), Name::clone(name)));
            }
        }
        for draft in upserts {
            let version = version_of(&draft);
            let old = held.resource(&draft.type_url, &draft.name);
            if old.is_some_and(|old| old.version() == version) {
                continue;
            }
            names.push((TypeUrl::clone(&draft.type_url), Name::clone(&draft.name)));
            let resource = Arc::new(encode(&draft));
            let set = held.resources.entry(draft.type_url).or_default();
            set.insert(draft.name, resource);
        }
        let changed = BTreeMap::from([(Name::clone(document), names)]);
        Published {
            generation: self.generation,
            changed: self.refresh(&changed),
            are_scopes_moved,
        }
    }

    // Brings the views in use up to date; returns what changed in which of them.
    fn refresh(&mut self, changed: &BTreeMap<Name, Vec<(TypeUrl, Name)>>) -> Vec<ScopeChange> {
        let mut scopes = std::mem::take(&mut self.scopes);
        let mut touched = Vec::new();
        for (key, view) in &mut scopes {
            let documents = key.0.iter().filter_map(|name| changed.get(name));
            let next: Vec<Change> = documents
                .flatten()
                .map(|(type_url, name)| self.resolve(key, type_url, name))
                .collect();
            let resources: Vec<ResourceChange> = next
                .iter()
                .filter_map(|change| ResourceChange::of(view, change))
                .collect();
            if !resources.is_empty() {
                *view = Arc::new(view.after(self.generation, &next));
                let scope = key.clone();
                touched.push(ScopeChange { scope, resources });
            }
        }
        self.scopes = scopes;
        touched
    }

    // What a scope has under a name: of two documents that give it, the later has its way.
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

    /// Finds the scope of a client.
    pub fn scope_of(&self, node: &NodeView<'_>) -> ScopeKey {
        let names = self
            .documents
            .iter()
            .filter(|(_, held)| held.selector.matches(node))
            .map(|(name, _)| Name::clone(name));
        ScopeKey(names.collect())
    }

    /// The view of a scope, built on first use.
    pub fn view(&mut self, key: &ScopeKey) -> Arc<View> {
        if let Some(view) = self.scopes.get(key) {
            return Arc::clone(view);
        }
        let view = Arc::new(self.build(key));
        self.scopes.insert(key.clone(), Arc::clone(&view));
        view
    }

    /// Drops the views of scopes that nobody uses.
    pub fn retain_scopes(&mut self, mut is_used: impl FnMut(&ScopeKey) -> bool) {
        self.scopes.retain(|key, _| is_used(key));
    }

    /// Scopes in use with their views.
    pub fn scopes(&self) -> impl Iterator<Item = (&ScopeKey, &Arc<View>)> {
        self.scopes.iter()
    }

    /// Number of documents.
    pub fn documents_len(&self) -> usize {
        self.documents.len()
    }

    fn build(&self, key: &ScopeKey) -> View {
        let documents = key.0.iter().filter_map(|name| self.documents.get(name));
        let changes: Vec<Change> = documents
            .flat_map(Held::all)
            .map(|(type_url, name, resource)| Change {
                type_url: TypeUrl::clone(type_url),
                name: Name::clone(name),
                resource: Some(Arc::clone(resource)),
            })
            .collect();
        View::default().after(self.generation, &changes)
    }
}

// Names whose resource is another than before, or is gone.
fn differing(before: Option<&Held>, after: &Held) -> Vec<(TypeUrl, Name)> {
    let changed = after.all().filter(|(url, name, resource)| {
        before.and_then(|held| held.resource(url, name)) != Some(*resource)
    });
    let gone = before.into_iter().flat_map(Held::all);
    let gone = gone.filter(|(url, name, _)| after.resource(url, name).is_none());
    changed
        .chain(gone)
        .map(|(url, name, _)| (TypeUrl::clone(url), Name::clone(name)))
        .collect()
}

fn hold(before: Option<&Held>, selector: Selector, drafts: Vec<Draft>) -> Held {
    let mut resources: BTreeMap<TypeUrl, BTreeMap<Name, Arc<Resource>>> = BTreeMap::new();
    for draft in drafts {
        let old = before
            .and_then(|held| held.resource(&draft.type_url, &draft.name))
            .filter(|old| old.version() == version_of(&draft));
        let resource = old.map_or_else(|| Arc::new(encode(&draft)), Arc::clone);
        let name = Name::clone(resource.name());
        resources
            .entry(draft.type_url)
            .or_default()
            .insert(name, resource);
    }
    Held {
        selector,
        resources,
    }
}

fn version_of(draft: &Draft) -> Version {
    Version::of_resource(&draft.type_url, &draft.name, &draft.value, &draft.extras)
}

fn encode(draft: &Draft) -> Resource {
    let (name, extras) = (Name::clone(&draft.name), draft.extras.clone());
    Resource::new(&draft.type_url, name, &draft.value, extras)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        catalog.publish(vec![
            document("all", None, &[("a", "1")]),
            document("one", Some("x"), &[("b", "1")]),
        ]);
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
        catalog.publish(documents("1"));
        let (x, y) = (scope(&catalog, "x"), scope(&catalog, "y"));
        let before = (catalog.view(&x), catalog.view(&y));

        let published = catalog.publish(documents("1"));
        assert!(published.changed.is_empty() && !published.are_scopes_moved);
        assert!(Arc::ptr_eq(&before.0, &catalog.view(&x)));

        let published = catalog.publish(documents("2"));
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
        catalog.publish(vec![document("all", None, &[("a", "1"), ("b", "1")])]);
        let key = scope(&catalog, "x");
        let before = catalog.view(&key);
        catalog.publish(vec![document("all", None, &[("a", "1"), ("b", "2")])]);
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
        catalog.publish(documents("old"));
        let key = scope(&catalog, "x");
        catalog.view(&key);
        let published = catalog.publish(documents("new"));
        let aliases = &published.changed[0].resources[0].aliases;
        assert_eq!(aliases[..], [Name::from("old"), Name::from("new")]);

        let published = catalog.publish(Vec::new());
        let aliases = &published.changed[0].resources[0].aliases;
        assert_eq!(aliases[..], [Name::from("new")]);
    }

    #[test]
    fn another_selector_moves_scopes() {
        let mut catalog = Catalog::new();
        catalog.publish(vec![document("d", Some("x"), &[("a", "1")])]);
        assert!(
            catalog
                .publish(vec![document("d", Some("y"), &[("a", "1")])])
                .are_scopes_moved
        );
        assert!(scope(&catalog, "x").documents().is_empty());
    }
}
