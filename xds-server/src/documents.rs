//! From what a source loaded to what the catalog publishes.

use std::sync::Arc;

use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
use isthmus_proto::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use isthmus_xds_core::catalog::Draft;
use isthmus_xds_core::{Document, Extras, Name, type_rules};
use prost::Message;

use crate::config_dir::{LoadedConfig, LoadedDocument, LoadedResource};
use crate::provenance::{Origin, Provenance, ResourceKey};

/// Turns a loaded directory into documents for the catalog.
pub fn from_config_dir(config: &LoadedConfig) -> Vec<Document> {
    config.documents.iter().map(document).collect()
}

fn document(document: &LoadedDocument) -> Document {
    Document {
        name: Name::clone(&document.name),
        selector: document.selector.clone(),
        resources: document.resources.iter().map(draft).collect(),
    }
}

/// Where the resources of a loaded directory are written.
pub fn origins_of(config: &LoadedConfig) -> Provenance {
    let mut origins = Provenance::default();
    for document in &config.documents {
        for resource in &document.resources {
            let key = ResourceKey::new(&resource.type_url, &resource.name);
            let origin = Origin::File {
                file: Arc::clone(&resource.origin.file),
                document: resource.origin.document,
                line: resource.origin.line,
                index: resource.origin.resource.unwrap_or_default(),
            };
            origins.note(&document.name, key, Arc::new(origin));
        }
    }
    origins
}

/// Whether two readings give the same clients the same resources, wherever they are written.
pub fn is_same_content(one: &LoadedConfig, other: &LoadedConfig) -> bool {
    let by_name = |config: &LoadedConfig| {
        let documents = config.documents.iter();
        let mut documents: Vec<Document> = documents.map(document).collect();
        documents.sort_by(|a, b| a.name.cmp(&b.name));
        for document in &mut documents {
            let place = |it: &Draft| (Arc::clone(&it.type_url), Name::clone(&it.name));
            document.resources.sort_by_cached_key(place);
        }
        documents
    };
    by_name(one) == by_name(other)
}

fn draft(resource: &LoadedResource) -> Draft {
    Draft {
        type_url: Arc::clone(&resource.type_url),
        name: Name::clone(&resource.name),
        value: resource.value.clone(),
        extras: Extras {
            endpoints: endpoints_of(&resource.type_url, &resource.name, &resource.value),
            aliases: resource.aliases.clone(),
            ttl: resource.ttl,
        },
    }
}

// The name under which a cluster's endpoints are asked for: that of its EDS service, or its own.
pub(crate) fn endpoints_of(type_url: &str, name: &Name, value: &[u8]) -> Option<Name> {
    if type_url != type_rules::CLUSTER {
        return None;
    }
    let cluster = Cluster::decode(value).ok()?;
    let ClusterDiscoveryType::Type(kind) = cluster.cluster_discovery_type? else {
        return None;
    };
    if kind != DiscoveryType::Eds as i32 {
        return None;
    }
    let service = cluster.eds_cluster_config.unwrap_or_default().service_name;
    Some(if service.is_empty() {
        Name::clone(name)
    } else {
        Name::from(service)
    })
}
