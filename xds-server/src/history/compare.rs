//! Two generations against each other, in either order.

use std::sync::Arc;

use isthmus_xds_core::{Name, Resource, TypeUrl, Version};

use super::{Generation, Sheet};
use crate::provenance::{Origin, ResourceKey};

/// What happens to a resource between two generations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// It comes.
    Added,
    /// Its content is another.
    Changed,
    /// It goes.
    Removed,
}

/// One resource that differs.
#[derive(Clone, Debug)]
pub struct Row {
    /// The document that has it.
    pub document: Name,
    /// Which resource.
    pub key: ResourceKey,
    /// What happens to it.
    pub turn: Turn,
    /// Its version after, or before if it goes.
    pub version: Version,
    /// Bytes of its message after; 0 if it goes.
    pub size_bytes: usize,
    /// Where it is written after, or was before.
    pub origin: Arc<Origin>,
}

/// What differs between two generations.
#[derive(Clone, Debug, Default)]
pub struct Difference {
    /// By document, type and name.
    pub rows: Vec<Row>,
    /// Documents that other clients get than before.
    pub selectors: Vec<Name>,
}

impl Generation {
    /// What comes, changes and goes on the way from `self` to `after`. Costs both.
    #[must_use]
    pub fn difference(&self, after: &Self) -> Difference {
        let mut difference = Difference::default();
        for (document, sheet) in &after.documents {
            let before = self.documents.get(document);
            if before.is_some_and(|it| Arc::ptr_eq(&it.stored, &sheet.stored)) {
                continue;
            }
            if before.is_some_and(|it| it.stored.selector() != sheet.stored.selector()) {
                difference.selectors.push(Name::clone(document));
            }
            let rows = sheet
                .stored
                .resources()
                .filter_map(|(url, name, resource)| {
                    let old = before.and_then(|before| before.stored.resource(url, name));
                    let turn = match old {
                        None => Turn::Added,
                        Some(old) if Arc::ptr_eq(old, resource) || old == resource => return None,
                        Some(_) => Turn::Changed,
                    };
                    Some(row(document, sheet, (url, name, resource), turn))
                });
            difference.rows.extend(rows);
        }
        for (document, sheet) in &self.documents {
            let after = after.documents.get(document);
            let is_kept = |url: &str, name: &str| {
                after.is_some_and(|after| after.stored.resource(url, name).is_some())
            };
            let all = sheet.stored.resources();
            let gone = all.filter(|(url, name, _)| !is_kept(url, name));
            let rows = gone.map(|it| row(document, sheet, it, Turn::Removed));
            difference.rows.extend(rows);
        }
        let place = |row: &Row| (Name::clone(&row.document), row.key.clone());
        difference.rows.sort_by_cached_key(place);
        difference
    }
}

fn row(
    document: &Name,
    sheet: &Sheet,
    (type_url, name, resource): (&TypeUrl, &Name, &Arc<Resource>),
    turn: Turn,
) -> Row {
    let key = ResourceKey::new(type_url, name);
    Row {
        document: Name::clone(document),
        origin: sheet.origin(&key),
        key,
        turn,
        version: resource.version(),
        size_bytes: match turn {
            Turn::Added | Turn::Changed => resource.value().len(),
            Turn::Removed => 0,
        },
    }
}
