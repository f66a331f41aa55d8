//! Where resources come from. Kept beside them and never in them: the bytes that a client gets, and
//! so the versions, are the same wherever the same content is written.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use isthmus_xds_core::catalog::Source;
use isthmus_xds_core::view::Change;
use isthmus_xds_core::{Name, Resource, TypeUrl, View};

/// One resource of a document.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ResourceKey {
    /// Its type.
    pub type_url: TypeUrl,
    /// Its name.
    pub name: Name,
}

impl ResourceKey {
    /// The key of a resource.
    pub fn new(type_url: &TypeUrl, name: &Name) -> Self {
        Self {
            type_url: TypeUrl::clone(type_url),
            name: Name::clone(name),
        }
    }

    /// What a view has under it.
    pub(crate) fn in_view<'a>(&self, view: &'a View) -> Option<&'a Arc<Resource>> {
        view.resource(&self.type_url, &self.name)
    }

    /// The change of a view that gives it another resource, or none.
    pub(crate) fn becomes(&self, resource: Option<&Arc<Resource>>) -> Change {
        Change {
            type_url: TypeUrl::clone(&self.type_url),
            name: Name::clone(&self.name),
            resource: resource.map(Arc::clone),
        }
    }
}

/// Where a resource was written down.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Whoever called the programmatic API.
    Api {
        /// Who that is, as far as it is proven.
        caller: Arc<str>,
    },
    /// A file of the configuration directory.
    File {
        /// The file's name in the directory.
        file: Arc<str>,
        /// 1-based position of the document in the file.
        document: usize,
        /// 1-based line in the file.
        line: usize,
        /// 0-based position in `spec.resources`.
        index: usize,
    },
    /// A source that tells no more.
    Source(Source),
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api { caller } => write!(out, "api ({caller})"),
            Self::File {
                file,
                document,
                line,
                index,
            } => write!(
                out,
                "{file}:{line} (document {document}, spec.resources[{index}])"
            ),
            Self::Source(source) => source.fmt(out),
        }
    }
}

/// What is known of where the resources of a commit come from.
#[derive(Debug)]
pub enum Origins<'a> {
    /// Who called the programmatic API: proven, or the peer's address.
    Caller(Arc<str>),
    /// Each has a place of its own.
    Each(&'a Provenance),
    /// Nothing.
    Unknown,
}

impl Origins<'_> {
    /// Who called the programmatic API, if that is known.
    pub fn caller(&self) -> Option<Arc<str>> {
        match self {
            Self::Caller(caller) => Some(Arc::clone(caller)),
            Self::Each(_) | Self::Unknown => None,
        }
    }
}

/// The origins of resources, by document.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Provenance(BTreeMap<Name, BTreeMap<ResourceKey, Arc<Origin>>>);

impl Provenance {
    /// Notes where a resource comes from.
    pub fn note(&mut self, document: &Name, key: ResourceKey, origin: Arc<Origin>) {
        let of_document = self.0.entry(Name::clone(document)).or_default();
        of_document.insert(key, origin);
    }

    /// Finds the origin of a resource.
    pub fn find(&self, document: &str, key: &ResourceKey) -> Option<&Arc<Origin>> {
        self.0.get(document)?.get(key)
    }

    /// All documents with the origins of their resources.
    pub fn documents(&self) -> impl Iterator<Item = (&Name, &BTreeMap<ResourceKey, Arc<Origin>>)> {
        self.0.iter()
    }
}
