//! Who gives a name, so that a change need not look at what it does not concern.

use std::collections::{BTreeMap, BTreeSet};

use super::document::StoredDocument;
use crate::resource::{Name, TypeUrl};

/// Documents by what they give, and for each by the `node.id` that they ask for: documents for one client each,
/// which may be thousands and all have a "listener", are never compared with each other.
#[derive(Debug, Default)]
pub(super) struct Givers(BTreeMap<(TypeUrl, Name), BTreeMap<Option<Name>, BTreeSet<Name>>>);

impl Givers {
    pub(super) fn insert(&mut self, key: (TypeUrl, Name), id: Option<&Name>, document: &Name) {
        let by_id = self.0.entry(key).or_default();
        by_id
            .entry(id.cloned())
            .or_default()
            .insert(Name::clone(document));
    }

    pub(super) fn remove(&mut self, key: &(TypeUrl, Name), id: Option<&Name>, document: &Name) {
        let Some(by_id) = self.0.get_mut(key) else {
            return;
        };
        let id = id.cloned();
        if let Some(documents) = by_id.get_mut(&id) {
            documents.remove(document);
            if documents.is_empty() {
                by_id.remove(&id);
            }
        }
        if by_id.is_empty() {
            self.0.remove(key);
        }
    }

    /// Documents that give `key` to a client that a document for `id` may also have.
    pub(super) fn rivals(
        &self,
        key: &(TypeUrl, Name),
        id: Option<&Name>,
    ) -> impl Iterator<Item = &Name> {
        let by_id = self.0.get(key);
        let (own, all) = match id {
            Some(_) => (by_id.and_then(|it| it.get(&id.cloned())), None),
            None => (None, by_id.map(BTreeMap::values)),
        };
        let of_everybody = by_id.filter(|_| id.is_some()).and_then(|it| it.get(&None));
        let lists = own.into_iter().chain(of_everybody);
        lists.chain(all.into_iter().flatten()).flatten()
    }
}

/// Documents by the `node.id` that they ask for.
#[derive(Debug, Default)]
pub(super) struct Readers(BTreeMap<Option<Name>, BTreeSet<Name>>);

impl Readers {
    pub(super) fn insert(&mut self, name: &Name, document: &StoredDocument) {
        let names = self.0.entry(document.id().cloned()).or_default();
        names.insert(Name::clone(name));
    }

    pub(super) fn remove(&mut self, name: &Name, document: &StoredDocument) {
        let id = document.id().cloned();
        if let Some(names) = self.0.get_mut(&id) {
            names.remove(name);
            if names.is_empty() {
                self.0.remove(&id);
            }
        }
    }

    /// Documents that a client of this `node.id` may get, in order.
    pub(super) fn of(&self, id: &str) -> BTreeSet<&Name> {
        let own = self.0.get(&Some(Name::from(id)));
        let lists = own.into_iter().chain(self.0.get(&None));
        lists.flatten().collect()
    }
}
