//! Which streams of a scope want a resource: from a name to its watchers.
//!
//! A change looks up the names under which its resource can have been asked for, and finds those
//! that asked. Streams that did not are not so much as looked at, however many there are.

use std::collections::{BTreeMap, HashMap};

use isthmus_xds_core::catalog::ResourceChange;
use isthmus_xds_core::subscription::{Subscription, SubscriptionChange};
use isthmus_xds_core::{Name, TypeUrl, xdstp};
use roaring::RoaringBitmap;

/// Number of a stream: small, and used again once the stream is gone.
pub(crate) type Slot = u32;

/// What the streams of one scope want.
#[derive(Debug, Default)]
pub(crate) struct InterestIndex {
    types: BTreeMap<TypeUrl, TypeInterest>,
    entries: usize,
}

#[derive(Debug, Default)]
struct TypeInterest {
    wildcard: RoaringBitmap,
    // Names as they were asked for: of resources, of folders (globs), and aliases.
    names: HashMap<Name, Watchers>,
}

// Most names of sidecars are watched by one stream or by many.
#[derive(Debug)]
enum Watchers {
    One(Slot),
    Many(RoaringBitmap),
}

impl InterestIndex {
    /// Takes note of what a request of a stream changed.
    pub(crate) fn amend(&mut self, slot: Slot, type_url: &TypeUrl, change: &SubscriptionChange) {
        if change.is_nothing() {
            return;
        }
        let interest = self.types.entry(TypeUrl::clone(type_url)).or_default();
        // Gone first: a name may be in both lists, and is wanted then.
        for name in &change.dropped {
            self.entries -= usize::from(interest.remove(slot, name));
        }
        for name in &change.added {
            self.entries += usize::from(interest.insert(slot, name));
        }
        if change.is_wildcard_dropped {
            self.entries -= usize::from(interest.wildcard.remove(slot));
        }
        if change.is_wildcard_added {
            self.entries += usize::from(interest.wildcard.insert(slot));
        }
        if interest.is_empty() {
            self.types.remove(type_url);
        }
    }

    /// Takes note of all that a stream wants of a type.
    pub(crate) fn insert(&mut self, slot: Slot, type_url: &TypeUrl, wanted: &Subscription) {
        let change = SubscriptionChange {
            added: wanted.names().to_vec(),
            is_wildcard_added: wanted.is_wildcard(),
            ..SubscriptionChange::default()
        };
        self.amend(slot, type_url, &change);
    }

    /// Forgets all that a stream wants of a type.
    pub(crate) fn remove(&mut self, slot: Slot, type_url: &TypeUrl, wanted: &Subscription) {
        let change = SubscriptionChange {
            dropped: wanted.names().to_vec(),
            is_wildcard_dropped: wanted.is_wildcard(),
            ..SubscriptionChange::default()
        };
        self.amend(slot, type_url, &change);
    }

    /// The streams that want any of some resources, by type.
    pub(crate) fn wanting<'a>(
        &self,
        changes: &'a [ResourceChange],
    ) -> BTreeMap<&'a TypeUrl, RoaringBitmap> {
        let mut wanting: BTreeMap<&TypeUrl, RoaringBitmap> = BTreeMap::new();
        for change in changes {
            let Some(interest) = self.types.get(&change.type_url) else {
                continue;
            };
            let found = wanting
                .entry(&change.type_url)
                .or_insert_with(|| interest.wildcard.clone());
            interest.add_named(&change.name, found);
            // R55: its folder.
            if let Some(glob) = xdstp::glob_of(&change.name) {
                interest.add_named(&glob, found);
            }
            for alias in &change.aliases {
                interest.add_named(alias, found);
            }
        }
        wanting.retain(|_, found| !found.is_empty());
        wanting
    }

    /// Names and wildcards in the index, each once for every stream that asked for it.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }
}

impl TypeInterest {
    fn insert(&mut self, slot: Slot, name: &Name) -> bool {
        let Some(watchers) = self.names.get_mut(name) else {
            self.names.insert(Name::clone(name), Watchers::One(slot));
            return true;
        };
        match watchers {
            Watchers::One(only) if *only == slot => false,
            Watchers::One(only) => {
                *watchers = Watchers::Many(RoaringBitmap::from_iter([*only, slot]));
                true
            }
            Watchers::Many(many) => many.insert(slot),
        }
    }

    fn remove(&mut self, slot: Slot, name: &Name) -> bool {
        let (was_there, is_last) = match self.names.get_mut(name) {
            None => (false, false),
            Some(Watchers::One(only)) => (*only == slot, *only == slot),
            Some(Watchers::Many(many)) => (many.remove(slot), many.is_empty()),
        };
        if is_last {
            self.names.remove(name);
        }
        was_there
    }

    fn add_named(&self, name: &str, found: &mut RoaringBitmap) {
        match self.names.get(name) {
            None => {}
            Some(Watchers::One(only)) => {
                found.insert(*only);
            }
            Some(Watchers::Many(many)) => *found |= many,
        }
    }

    fn is_empty(&self) -> bool {
        self.wildcard.is_empty() && self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use isthmus_xds_core::subscription::LegacyWildcard;
    use isthmus_xds_core::{Extras, Resource, TypeSet};
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "t";

    fn names(names: &[&str]) -> Vec<Name> {
        names.iter().map(|name| Name::from(*name)).collect()
    }

    fn change(name: &str, aliases: &[&str]) -> ResourceChange {
        ResourceChange {
            type_url: TypeUrl::from(TYPE),
            name: Name::from(name),
            aliases: names(aliases),
        }
    }

    fn wanting(index: &InterestIndex, change: ResourceChange) -> Vec<Slot> {
        let changes = [change];
        let found = index.wanting(&changes);
        found.into_values().flatten().collect()
    }

    #[test]
    fn a_resource_is_wanted_by_name_glob_alias_and_wildcard() {
        let mut index = InterestIndex::default();
        let wanted = [
            &["a"][..],
            &["a", "b"],
            &["xdstp://x/t/f/*"],
            &["*"],
            &["xdstp://x/t/f/1"],
        ];
        for (slot, wanted) in (0..).zip(wanted) {
            let mut subscription = Subscription::new(LegacyWildcard::MeansNot);
            let change = subscription.amend(&names(wanted), &[], &TypeSet::empty());
            index.amend(slot, &TypeUrl::from(TYPE), &change);
        }
        assert_eq!(wanting(&index, change("a", &[])), [0, 1, 3]);
        assert_eq!(wanting(&index, change("c", &["b"])), [1, 3]);
        assert_eq!(wanting(&index, change("xdstp://x/t/f/1", &[])), [2, 3, 4]);
        assert_eq!(wanting(&index, change("xdstp://x/t/g/1", &[])), [3]);
        let other = ResourceChange {
            type_url: TypeUrl::from("u"),
            ..change("a", &[])
        };
        assert!(wanting(&index, other).is_empty());
        assert_eq!(index.len(), 6);
    }

    const POOL: [&str; 7] = [
        "*",
        "a",
        "b",
        "c",
        "xdstp://x/t/f/1",
        "xdstp://x/t/f/2",
        "xdstp://x/t/f/*",
    ];

    fn some_names() -> impl Strategy<Value = Vec<Name>> {
        let one = (0..POOL.len()).prop_map(|at| Name::from(POOL[at]));
        proptest::collection::vec(one, 0..4)
    }

    proptest! {
        // Any requests of any streams: the index finds those whose subscription wants the
        // resource, and holds nothing once they are gone.
        #[test]
        fn the_index_says_what_the_subscriptions_say(
            requests in proptest::collection::vec(
                (0..6_u32, any::<bool>(), some_names(), some_names()),
                0..40,
            ),
            alias in 0..POOL.len(),
        ) {
            let type_url = TypeUrl::from(TYPE);
            let mut index = InterestIndex::default();
            let mut streams: BTreeMap<Slot, Subscription> = (0..6)
                .map(|slot| {
                    let legacy = if slot % 2 == 0 { LegacyWildcard::Means } else { LegacyWildcard::MeansNot };
                    (slot, Subscription::new(legacy))
                })
                .collect();
            for (slot, is_incremental, some, others) in &requests {
                let stream = streams.get_mut(slot).expect("all slots have one");
                let change = if *is_incremental {
                    stream.amend(some, others, &TypeSet::empty())
                } else {
                    stream.replace(some, &TypeSet::empty())
                };
                index.amend(*slot, &type_url, &change);
            }
            let aliases = names(&POOL[alias..=alias]);
            for name in &POOL[1..6] {
                let extras = Extras { aliases: aliases.clone(), ..Extras::default() };
                let resource = Resource::new(TYPE, Name::from(*name), b"1", extras);
                let expected: Vec<Slot> = streams
                    .iter()
                    .filter(|(_, stream)| stream.wants_resource(&resource))
                    .map(|(slot, _)| *slot)
                    .collect();
                let found = wanting(&index, change(name, &POOL[alias..=alias]));
                prop_assert_eq!(found, expected, "{}", name);
            }
            for (slot, stream) in &streams {
                index.remove(*slot, &type_url, stream);
            }
            prop_assert_eq!(index.len(), 0);
            prop_assert!(index.types.is_empty());
        }
    }
}
