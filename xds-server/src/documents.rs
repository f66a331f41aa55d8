//! From what a source loaded to what the catalog publishes.

use std::sync::Arc;

use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
use isthmus_proto::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use isthmus_xds_core::catalog::Draft;
use isthmus_xds_core::{Document, Extras, Name, type_rules};
use prost::Message;

use crate::config_dir::{LoadedConfig, LoadedDocument, LoadedResource};

/// Turns a loaded directory into documents for the catalog.
pub fn from_config_dir(config: &LoadedConfig) -> Vec<Document> {
    let documents = config.documents.iter();
    documents
        .map(|document: &LoadedDocument| Document {
            name: Name::clone(&document.name),
            selector: document.selector.clone(),
            resources: document.resources.iter().map(draft).collect(),
        })
        .collect()
}

fn draft(resource: &LoadedResource) -> Draft {
    Draft {
        type_url: Arc::clone(&resource.type_url),
        name: Name::clone(&resource.name),
        value: resource.value.clone(),
        extras: Extras {
            endpoints: endpoints_of(resource),
            ..Extras::default()
        },
    }
}

// The name under which a cluster's endpoints are asked for: that of its EDS service, or its own.
fn endpoints_of(resource: &LoadedResource) -> Option<Name> {
    if &*resource.type_url != type_rules::CLUSTER {
        return None;
    }
    let cluster = Cluster::decode(resource.value.clone()).ok()?;
    let ClusterDiscoveryType::Type(kind) = cluster.cluster_discovery_type? else {
        return None;
    };
    if kind != DiscoveryType::Eds as i32 {
        return None;
    }
    let service = cluster.eds_cluster_config.unwrap_or_default().service_name;
    Some(if service.is_empty() {
        Name::clone(&resource.name)
    } else {
        Name::from(service)
    })
}
