//! What the clients of one scope should have: immutable, shared, and able to say what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use rpds::RedBlackTreeMapSync;

use crate::limits;
use crate::resource::{Name, Resource, TypeUrl, Version};
use crate::type_rules::{KNOWN_TYPES, TypeRules, rules_of};

/// Everything that the clients of one scope should have, at one generation.
#[derive(Clone, Debug, Default)]
pub struct View {
    generation: u64,
    types: BTreeMap<TypeUrl, Arc<TypeSet>>,
    // The same sets by number, for streams, which look up each of their types at each change.
    known: [Option<Arc<TypeSet>>; KNOWN_TYPES],
}

/// What becomes of one name: another resource, or none.
#[derive(Clone, Debug)]
pub struct Change {
    /// Type of the resource.
    pub type_url: TypeUrl,
    /// Its name.
    pub name: Name,
    /// What it is from here on; `None` if it is gone.
    pub resource: Option<Arc<Resource>>,
}

impl View {
    /// The view that follows after some names changed. Costs what changed, whatever the view has.
    /// A type whose content did not change keeps its very set, so that it costs a pointer
    /// comparison downstream.
    #[must_use]
    pub fn after(&self, generation: u64, changes: &[Change]) -> Self {
        let mut types = self.types.clone();
        let mut by_type: BTreeMap<&TypeUrl, Vec<&Change>> = BTreeMap::new();
        for change in changes {
            by_type.entry(&change.type_url).or_default().push(change);
        }
        for (type_url, changes) in by_type {
            let before = types
                .get(type_url)
                .map_or_else(|| Arc::new(TypeSet::first(generation)), Arc::clone);
            let after = TypeSet::after(&before, generation, &changes);
            types.insert(TypeUrl::clone(type_url), after);
        }
        Self::of(generation, types)
    }

    /// The same commit with some names changed, for clients that get something else. What is
    /// changed follows nothing: moving to it or from it compares whole sets.
    #[must_use]
    pub fn apart(&self, changes: &[Change]) -> Self {
        let mut types = self.types.clone();
        let mut by_type: BTreeMap<&TypeUrl, Vec<&Change>> = BTreeMap::new();
        for change in changes {
            by_type.entry(&change.type_url).or_default().push(change);
        }
        for (type_url, changes) in by_type {
            let mut set = match types.get(type_url) {
                Some(set) => TypeSet::clone(set),
                None => TypeSet::first(self.generation),
            };
            set.lineage = Arc::default();
            set.log = Vec::new();
            set.log_floor = set.generation;
            let generation = set.generation;
            let apart = TypeSet::after(&Arc::new(set), generation, &changes);
            types.insert(TypeUrl::clone(type_url), apart);
        }
        Self::of(self.generation, types)
    }

    /// The same commit with the sets of `other` for all types that `is_theirs` picks.
    #[must_use]
    pub fn with_types_of(&self, other: &View, is_theirs: impl Fn(&str) -> bool) -> Self {
        let mine = self.types.iter().filter(|(url, _)| !is_theirs(url));
        let theirs = other.types.iter().filter(|(url, _)| is_theirs(url));
        let sets = mine.chain(theirs);
        let types = sets.map(|(url, set)| (TypeUrl::clone(url), Arc::clone(set)));
        Self::of(self.generation, types.collect())
    }

    fn of(generation: u64, types: BTreeMap<TypeUrl, Arc<TypeSet>>) -> Self {
        let mut known = [const { None }; KNOWN_TYPES];
        for (type_url, set) in &types {
            if let Some(index) = rules_of(type_url).id.index() {
                known[index] = Some(Arc::clone(set));
            }
        }
        Self {
            generation,
            types,
            known,
        }
    }

    /// Number of the commit that this view belongs to.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The set of one type, or `None` if no generation of this view ever had the type.
    pub fn type_set(&self, type_url: &str) -> Option<&Arc<TypeSet>> {
        self.types.get(type_url)
    }

    /// One resource, if the view has it.
    pub fn resource(&self, type_url: &str, name: &Name) -> Option<&Arc<Resource>> {
        self.type_set(type_url)?.resource(name)
    }

    /// The set of one type; the empty one if the view never had the type.
    pub(crate) fn set_or_empty(&self, rules: &TypeRules, type_url: &str) -> Arc<TypeSet> {
        let set = match rules.id.index() {
            Some(index) => self.known[index].as_ref(),
            None => self.type_set(type_url),
        };
        set.map_or_else(TypeSet::empty, Arc::clone)
    }

    /// All types with their sets, in the order of their URLs.
    pub fn types(&self) -> impl Iterator<Item = (&TypeUrl, &Arc<TypeSet>)> {
        self.types.iter()
    }

    /// Whether both hold the very same sets, so that nothing has to be sent.
    pub fn is_same_content(&self, other: &View) -> bool {
        self.types.len() == other.types.len()
            && self
                .types
                .values()
                .zip(other.types.values())
                .all(|(mine, theirs)| Arc::ptr_eq(mine, theirs))
    }
}

/// All resources of one type in a view, and how they came to be.
#[derive(Clone, Debug)]
pub struct TypeSet {
    version: Version,
    resources: RedBlackTreeMapSync<Name, Arc<Resource>>,
    // From an alias to the name of the resource that has it.
    aliases: RedBlackTreeMapSync<Name, Name>,
    // Generation in which this set came to be.
    generation: u64,
    // Sets that follow each other share this very allocation; only among them does the log mean
    // something.
    lineage: Arc<()>,
    // What changed, oldest first; complete for sets of this lineage since `log_floor`.
    log: Vec<Arc<Logged>>,
    log_floor: u64,
}

#[derive(Debug)]
struct Logged {
    generation: u64,
    names: Vec<Name>,
}

impl TypeSet {
    /// The set that has nothing and follows nothing: one for all, so that a type that a view does
    /// not have costs a pointer comparison, as an unchanged one does.
    pub fn empty() -> Arc<Self> {
        static EMPTY: LazyLock<Arc<TypeSet>> = LazyLock::new(|| {
            Arc::new(TypeSet {
                log_floor: u64::MAX,
                ..TypeSet::first(0)
            })
        });
        Arc::clone(&EMPTY)
    }

    fn first(generation: u64) -> Self {
        Self {
            version: Version::OF_NOTHING,
            resources: RedBlackTreeMapSync::new_sync(),
            aliases: RedBlackTreeMapSync::new_sync(),
            generation,
            lineage: Arc::default(),
            log: Vec::new(),
            log_floor: generation,
        }
    }

    fn after(before: &Arc<Self>, generation: u64, changes: &[&Change]) -> Arc<Self> {
        let mut resources = before.resources.clone();
        let mut aliases = before.aliases.clone();
        let mut version = before.version;
        let mut names = Vec::new();
        for change in changes {
            let old = resources.get(&change.name).cloned();
            if old == change.resource {
                continue;
            }
            if let Some(old) = &old {
                version = version.without(old.version());
                for alias in old.aliases() {
                    // It may have moved to another resource by an earlier of these changes.
                    if aliases.get(alias) == Some(&change.name) {
                        aliases.remove_mut(alias);
                    }
                }
            }
            if let Some(new) = &change.resource {
                version = version.with(new.version());
                resources.insert_mut(Name::clone(&change.name), Arc::clone(new));
                for alias in new.aliases() {
                    aliases.insert_mut(Name::clone(alias), Name::clone(&change.name));
                }
            } else {
                resources.remove_mut(&change.name);
            }
            names.push(Name::clone(&change.name));
        }
        if names.is_empty() {
            return Arc::clone(before);
        }
        let mut log = before.log.clone();
        log.push(Arc::new(Logged { generation, names }));
        let mut log_floor = before.log_floor;
        while log.len() > limits::CHANGE_LOG_ENTRIES || names_in(&log) > limits::CHANGE_LOG_NAMES {
            log_floor = log.remove(0).generation;
        }
        Arc::new(Self {
            version,
            resources,
            aliases,
            generation,
            lineage: Arc::clone(&before.lineage),
            log,
            log_floor,
        })
    }

    /// Hash of all content.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Generation in which this content came to be.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Finds one resource.
    pub fn resource(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name)
    }

    /// Finds the resource that has an alias.
    pub fn by_alias(&self, alias: &str) -> Option<&Arc<Resource>> {
        self.resource(self.aliases.get(alias)?)
    }

    /// The resources whose names begin so, in order. Costs those, not the set.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<Resource>> {
        let from = self.resources.range(Name::from(prefix)..);
        from.take_while(move |(name, _)| name.starts_with(prefix))
            .map(|(_, resource)| resource)
    }

    /// All resources, in the order of their names.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// Number of resources.
    pub fn len(&self) -> usize {
        self.resources.size()
    }

    /// Whether there is no resource.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// Names that differ in version, or exist on one side only. Costs the changes if `older` is
    /// a recent ancestor, else both sets. A name that changed there and back may be among them.
    pub fn changed_since(&self, older: &Self) -> Vec<Name> {
        if Arc::ptr_eq(&self.lineage, &older.lineage) && older.generation >= self.log_floor {
            let start = self
                .log
                .partition_point(|change| change.generation <= older.generation);
            let entries = &self.log[start..];
            if let [only] = entries {
                return only.names.clone();
            }
            let names: BTreeSet<&Name> = entries.iter().flat_map(|change| &change.names).collect();
            return names.into_iter().cloned().collect();
        }
        let changed = self.resources.iter().filter(|(name, resource)| {
            older
                .resources
                .get(*name)
                .is_none_or(|old| !Arc::ptr_eq(old, resource) && old != *resource)
        });
        let gone = older
            .resources
            .iter()
            .filter(|(name, _)| !self.resources.contains_key(*name));
        changed
            .chain(gone)
            .map(|(name, _)| Name::clone(name))
            .collect()
    }
}

fn names_in(log: &[Arc<Logged>]) -> usize {
    log.iter().map(|logged| logged.names.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Extras;

    // The set that has just this content, after `previous`.
    fn set(
        previous: Option<&Arc<TypeSet>>,
        generation: u64,
        content: &[(&str, &str)],
    ) -> Arc<TypeSet> {
        let first = Arc::new(TypeSet::first(generation));
        let before = previous.unwrap_or(&first);
        let change = |name: &str, resource| Change {
            type_url: TypeUrl::from("t"),
            name: Name::from(name),
            resource,
        };
        let is_kept = |name: &Name| content.iter().any(|(other, _)| **other == **name);
        let gone = before
            .resources()
            .map(|it| it.name())
            .filter(|name| !is_kept(name));
        let mut changes: Vec<Change> = gone.map(|name| change(name, None)).collect();
        changes.extend(content.iter().map(|(name, value)| {
            let resource =
                Resource::new("t", Name::from(*name), value.as_bytes(), Extras::default());
            change(name, Some(Arc::new(resource)))
        }));
        TypeSet::after(before, generation, &changes.iter().collect::<Vec<_>>())
    }

    fn changed(after: &TypeSet, before: &TypeSet) -> Vec<String> {
        let names = after.changed_since(before);
        let mut names: Vec<String> = names.iter().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn unchanged_content_is_the_same_set() {
        let first = set(None, 1, &[("a", "1")]);
        assert!(Arc::ptr_eq(&first, &set(Some(&first), 2, &[("a", "1")])));
    }

    #[test]
    fn log_and_full_comparison_agree() {
        let first = set(None, 1, &[("a", "1"), ("b", "1"), ("c", "1")]);
        let second = set(Some(&first), 2, &[("a", "2"), ("b", "1"), ("c", "1")]);
        let third = set(Some(&second), 5, &[("a", "2"), ("d", "1"), ("c", "1")]);
        let unrelated = set(None, 4, &[("a", "2"), ("b", "1"), ("c", "1")]);

        assert_eq!(changed(&third, &first), ["a", "b", "d"]);
        assert_eq!(changed(&third, &second), ["b", "d"]);
        assert_eq!(changed(&third, &unrelated), ["b", "d"]);
        assert!(third.changed_since(&third).is_empty());
        assert_eq!(changed(&third, &TypeSet::empty()), ["a", "c", "d"]);
    }

    #[test]
    fn a_set_older_than_the_log_is_compared_whole() {
        let first = set(None, 1, &[("a", "0"), ("b", "0")]);
        let mut last = Arc::clone(&first);
        for generation in 2..2 + limits::CHANGE_LOG_ENTRIES as u64 + 5 {
            let value = generation.to_string();
            last = set(Some(&last), generation, &[("a", &value), ("b", "0")]);
        }
        assert_eq!(last.log.len(), limits::CHANGE_LOG_ENTRIES);
        assert!(first.generation < last.log_floor);
        assert_eq!(changed(&last, &first), ["a"]);
    }

    #[test]
    fn a_type_that_vanished_keeps_its_lineage() {
        let change = |resource| Change {
            type_url: TypeUrl::from("t"),
            name: Name::from("a"),
            resource,
        };
        let resource = Arc::new(Resource::new("t", Name::from("a"), b"1", Extras::default()));
        let first = View::default().after(1, &[change(Some(resource))]);
        let second = first.after(2, &[change(None)]);
        let gone = second.type_set("t").expect("the type is remembered");
        assert_eq!(changed(gone, first.type_set("t").unwrap()), ["a"]);
        assert_eq!(gone.version(), Version::OF_NOTHING);
    }

    #[test]
    fn an_alias_that_moves_is_found_where_it_is_now() {
        let with_alias = |name: &str, alias: Option<&str>| {
            let extras = Extras {
                aliases: alias.into_iter().map(Name::from).collect(),
                ..Extras::default()
            };
            let name = Name::from(name);
            Change {
                type_url: TypeUrl::from("t"),
                name: Name::clone(&name),
                resource: Some(Arc::new(Resource::new("t", name, b"1", extras))),
            }
        };
        let gone = Change {
            resource: None,
            ..with_alias("b", None)
        };
        let first = View::default().after(1, &[with_alias("b", Some("x"))]);
        for left in [with_alias("b", None), gone] {
            let moved = [with_alias("a", Some("x")), left];
            let reversed: Vec<Change> = moved.iter().rev().cloned().collect();
            for changes in [&moved[..], &reversed] {
                let after = first.after(2, changes);
                let found = after.type_set("t").unwrap().by_alias("x");
                assert_eq!(found.map(|it| &**it.name()), Some("a"), "{changes:?}");
            }
        }
        let last = first.after(2, &[with_alias("b", None)]);
        assert!(last.type_set("t").unwrap().by_alias("x").is_none());
    }

    #[test]
    fn the_version_of_a_set_is_that_of_its_content_however_it_came_to_be() {
        let first = set(None, 1, &[("a", "1"), ("b", "1")]);
        let there = set(Some(&first), 2, &[("b", "2"), ("c", "1")]);
        let back = set(Some(&there), 3, &[("a", "1"), ("b", "1")]);
        assert_ne!(there.version(), first.version());
        assert_eq!(back.version(), first.version());
        assert_eq!(back.version(), Version::of_set(back.resources()));
    }
}
