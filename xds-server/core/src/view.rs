//! What the clients of one scope should have: immutable, shared, and able to say what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::limits;
use crate::resource::{Name, Resource, TypeUrl, Version};

/// Everything that the clients of one scope should have, at one generation.
#[derive(Debug, Default)]
pub struct View {
    generation: u64,
    types: BTreeMap<TypeUrl, Arc<TypeSet>>,
}

impl View {
    /// Builds the view that follows `previous`. A type whose content did not change keeps its
    /// very set, so an unchanged type costs a pointer comparison downstream.
    pub fn build(
        previous: Option<&View>,
        generation: u64,
        resources: BTreeMap<TypeUrl, BTreeMap<Name, Arc<Resource>>>,
    ) -> Self {
        let mut types: BTreeMap<TypeUrl, Arc<TypeSet>> = BTreeMap::new();
        let vanished = previous
            .iter()
            .flat_map(|view| view.types.keys())
            .filter(|type_url| !resources.contains_key(*type_url))
            .map(|type_url| (Arc::clone(type_url), BTreeMap::new()))
            .collect::<Vec<_>>();
        for (type_url, set) in resources.into_iter().chain(vanished) {
            let before = previous.and_then(|view| view.types.get(&type_url));
            types.insert(type_url, TypeSet::build(before, generation, set));
        }
        Self { generation, types }
    }

    /// Number of the commit that this view belongs to.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The set of one type, or `None` if no generation of this view ever had the type.
    pub fn type_set(&self, type_url: &str) -> Option<&Arc<TypeSet>> {
        self.types.get(type_url)
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
#[derive(Debug)]
pub struct TypeSet {
    version: Version,
    resources: BTreeMap<Name, Arc<Resource>>,
    // Generation in which this set came to be.
    generation: u64,
    // Sets that follow each other share this very allocation; only among them does the log mean
    // something.
    lineage: Arc<()>,
    // What changed, oldest first; complete for sets of this lineage since `log_floor`.
    log: Vec<Arc<Change>>,
    log_floor: u64,
}

#[derive(Debug)]
struct Change {
    generation: u64,
    names: Vec<Name>,
}

impl TypeSet {
    /// The set that has nothing and follows nothing.
    pub fn empty() -> Arc<Self> {
        Arc::new(Self {
            version: Version::of_set(std::iter::empty()),
            resources: BTreeMap::new(),
            generation: 0,
            lineage: Arc::default(),
            log: Vec::new(),
            log_floor: u64::MAX,
        })
    }

    fn build(
        previous: Option<&Arc<Self>>,
        generation: u64,
        resources: BTreeMap<Name, Arc<Resource>>,
    ) -> Arc<Self> {
        let version = Version::of_set(resources.values());
        let Some(previous) = previous else {
            return Arc::new(Self {
                version,
                resources,
                generation,
                lineage: Arc::default(),
                log: Vec::new(),
                log_floor: generation,
            });
        };

        let names = changed_names(&previous.resources, &resources);
        if names.is_empty() {
            return Arc::clone(previous);
        }
        let mut log = previous.log.clone();
        log.push(Arc::new(Change { generation, names }));
        let mut log_floor = previous.log_floor;
        while log.len() > limits::CHANGE_LOG_ENTRIES
            || log.iter().map(|change| change.names.len()).sum::<usize>() > limits::CHANGE_LOG_NAMES
        {
            log_floor = log.remove(0).generation;
        }
        Arc::new(Self {
            version,
            resources,
            generation,
            lineage: Arc::clone(&previous.lineage),
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

    /// All resources, in the order of their names.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// Number of resources.
    pub fn len(&self) -> usize {
        self.resources.len()
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
        changed_names(&older.resources, &self.resources)
    }
}

fn changed_names(
    before: &BTreeMap<Name, Arc<Resource>>,
    after: &BTreeMap<Name, Arc<Resource>>,
) -> Vec<Name> {
    let changed = after.iter().filter(|(name, resource)| {
        before
            .get(*name)
            .is_none_or(|old| old.version() != resource.version())
    });
    let removed = before.keys().filter(|name| !after.contains_key(*name));
    changed
        .map(|(name, _)| name)
        .chain(removed)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(
        previous: Option<&Arc<TypeSet>>,
        generation: u64,
        content: &[(&str, &str)],
    ) -> Arc<TypeSet> {
        let resources = content
            .iter()
            .map(|(name, value)| {
                let name = Name::from(*name);
                (
                    Arc::clone(&name),
                    Arc::new(Resource::new("t", name, value.as_bytes())),
                )
            })
            .collect();
        TypeSet::build(previous, generation, resources)
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
        let type_url = TypeUrl::from("t");
        let resource = Arc::new(Resource::new("t", Name::from("a"), b"1"));
        let content = BTreeMap::from([(
            Arc::clone(&type_url),
            BTreeMap::from([(Name::from("a"), resource)]),
        )]);
        let first = View::build(None, 1, content);
        let second = View::build(Some(&first), 2, BTreeMap::new());
        let gone = second.type_set("t").expect("the type is remembered");
        assert_eq!(changed(gone, first.type_set("t").unwrap()), ["a"]);
    }
}
