//! Documents: as a source gives them, and as the catalog holds them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use isthmus_api::envoy_resources::Selector;
use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::resource::{Extras, Name, Resource, TypeUrl, Version};

/// Where documents come from. Each document belongs to one source, and no source touches those of another.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Source(&'static str);

impl Source {
    /// A directory of files.
    pub const CONFIG_DIR: Self = Self("config_dir");

    /// The programmatic API over gRPC.
    pub const API: Self = Self("api");

    /// A source of a program that has the control plane built in.
    pub const fn named(name: &'static str) -> Self {
        Self(name)
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0)
    }
}

/// A document as it comes from a source: messages serialized, nothing encoded for the wire.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Document {
    /// Unique among all documents of all sources.
    pub name: Name,
    /// The clients that get it.
    pub selector: Selector,
    /// What they get. Of two resources with one type and name, the later counts.
    pub resources: Vec<Draft>,
}

/// A resource of a [`Document`].
#[derive(Clone, Debug, Eq, PartialEq)]
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

/// A document in force. Immutable; the next one shares with it what did not change.
#[derive(Clone, Debug)]
pub struct StoredDocument {
    source: Source,
    selector: Selector,
    id: Option<Name>,
    resources: BTreeMap<TypeUrl, RedBlackTreeMapSync<Name, Arc<Resource>>>,
    // An alias and the name of the resource that has it. Where two have one, the commit cannot be.
    aliases: BTreeMap<TypeUrl, RedBlackTreeSetSync<(Name, Name)>>,
}

impl StoredDocument {
    /// The source that it belongs to.
    pub fn source(&self) -> Source {
        self.source
    }

    /// The clients that get it.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// A resource of it.
    pub fn resource(&self, type_url: &str, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(type_url)?.get(name)
    }

    /// Names of the resources that may be asked for under a name: the one of that name, and those that
    /// have it as an alias.
    pub(super) fn answering<'a>(
        &'a self,
        type_url: &str,
        name: &'a Name,
    ) -> impl Iterator<Item = &'a Name> {
        let of_name = self.resource(type_url, name).map(|it| it.name());
        let aliases = self.aliases.get(type_url).into_iter();
        let from = move |set: &'a RedBlackTreeSetSync<(Name, Name)>| {
            let pairs = set.range((Name::clone(name), Name::from(""))..);
            pairs.take_while(move |(alias, _)| alias == name)
        };
        of_name
            .into_iter()
            .chain(aliases.flat_map(from).map(|(_, owner)| owner))
    }

    /// All that is in it, by type and name.
    pub fn resources(&self) -> impl Iterator<Item = (&TypeUrl, &Name, &Arc<Resource>)> {
        let types = self.resources.iter();
        types.flat_map(|(url, set)| set.iter().map(move |(name, it)| (url, name, it)))
    }

    /// The resources of one type, by name.
    pub fn resources_of(&self, type_url: &str) -> impl Iterator<Item = (&Name, &Arc<Resource>)> {
        self.resources
            .get(type_url)
            .into_iter()
            .flat_map(RedBlackTreeMapSync::iter)
    }

    /// How many resources it has.
    pub fn len(&self) -> usize {
        self.resources.values().map(RedBlackTreeMapSync::size).sum()
    }

    /// Whether it has no resource.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `node.id` that it is for, if it is for one.
    pub(super) fn id(&self) -> Option<&Name> {
        self.id.as_ref()
    }

    /// Encodes a document. What `before` has with the same content is taken from there.
    pub(super) fn new(source: Source, document: Document, before: Option<&Self>) -> Self {
        let mut stored = Self {
            source,
            id: document.selector.id.as_deref().map(Name::from),
            selector: document.selector,
            resources: BTreeMap::new(),
            aliases: BTreeMap::new(),
        };
        for draft in document.resources {
            stored.upsert(draft, before);
        }
        stored
    }

    /// Puts a resource in; tells whether that changed anything. `before` may have it already.
    pub(super) fn upsert(&mut self, draft: Draft, before: Option<&Self>) -> bool {
        let version =
            Version::of_resource(&draft.type_url, &draft.name, &draft.value, &draft.extras);
        let is_equal = |it: &&Arc<Resource>| it.version() == version;
        if let Some(_same) = self.resource(&draft.type_url, &draft.name).filter(is_equal) {
            return false;
        }
        let kept = before
            .and_then(|it| it.resource(&draft.type_url, &draft.name))
            .filter(is_equal);
        let name = Name::clone(&draft.name);
        let resource = kept.map_or_else(
            || {
                Arc::new(Resource::new(
                    &draft.type_url,
                    draft.name,
                    &draft.value,
                    draft.extras,
                ))
            },
            Arc::clone,
        );
        self.forget_aliases(&draft.type_url, &name);
        if !resource.aliases().is_empty() {
            let aliases = self.aliases.entry(TypeUrl::clone(&draft.type_url));
            let aliases = aliases.or_default();
            for alias in resource.aliases() {
                aliases.insert_mut((Name::clone(alias), Name::clone(&name)));
            }
        }
        self.resources
            .entry(draft.type_url)
            .or_default()
            .insert_mut(name, resource);
        true
    }

    /// Takes a resource out; tells whether it was there.
    pub(super) fn remove(&mut self, type_url: &str, name: &str) -> bool {
        self.forget_aliases(type_url, name);
        let set = self.resources.get_mut(type_url);
        set.is_some_and(|set| set.remove_mut(name))
    }

    fn forget_aliases(&mut self, type_url: &str, name: &str) {
        let Some(aliases) = self.aliases.get_mut(type_url) else {
            return;
        };
        let resource = self.resources.get(type_url).and_then(|set| set.get(name));
        for alias in resource.into_iter().flat_map(|it| it.aliases()) {
            aliases.remove_mut(&(Name::clone(alias), Name::from(name)));
        }
    }
}
