//! What is in force, as callers are told: without secrets, and within the size of an answer.

use isthmus_api::envoy_resources::Selector;
use isthmus_proto::control::{
    self, ChangedResource, CommitResponse, DocumentSummary, GetDocumentResponse,
    ListDocumentsResponse, StoredResource,
};
use isthmus_proto::pb::google::protobuf;
use isthmus_xds_core::catalog::{ChangeKind, Published, StoredDocument};
use isthmus_xds_core::{Name, Resource};

use super::limits::{MAX_JSON_BYTES, MAX_LISTED, MAX_LISTED_CHANGES};
use crate::plane::Plane;
use crate::redact;

pub(super) fn of_commit(published: &Published, warnings: Vec<String>) -> CommitResponse {
    let changes = published.resources.iter().take(MAX_LISTED_CHANGES);
    CommitResponse {
        generation: published.generation,
        changes: changes
            .map(|change| ChangedResource {
                document: change.document.to_string(),
                type_url: change.type_url.to_string(),
                name: change.name.to_string(),
                kind: kind(change.kind) as i32,
            })
            .collect(),
        changed_resources: published.resources.len() as u64,
        warnings,
    }
}

fn kind(kind: ChangeKind) -> control::changed_resource::Kind {
    match kind {
        ChangeKind::Added => control::changed_resource::Kind::Added,
        ChangeKind::Changed => control::changed_resource::Kind::Changed,
        ChangeKind::Removed => control::changed_resource::Kind::Removed,
    }
}

pub(super) fn of_document(name: &str, document: &StoredDocument) -> GetDocumentResponse {
    let mut room = MAX_JSON_BYTES;
    let resources = document.resources().take(MAX_LISTED);
    let resources = resources.map(|(type_url, _, resource)| {
        let json = redact::render(type_url, &resource.value()).to_string();
        let is_fitting = json.len() <= room;
        room = room.saturating_sub(json.len());
        stored(
            type_url,
            resource,
            if is_fitting { json } else { String::new() },
        )
    });
    GetDocumentResponse {
        resources: resources.collect(),
        summary: Some(summary(name, document)),
    }
}

fn stored(type_url: &str, resource: &Resource, redacted_json: String) -> StoredResource {
    StoredResource {
        type_url: type_url.to_owned(),
        name: resource.name().to_string(),
        version: resource.version().to_string(),
        redacted_json,
        aliases: resource.aliases().iter().map(ToString::to_string).collect(),
        ttl: resource.ttl().map(|ttl| protobuf::Duration {
            seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(ttl.subsec_nanos()).unwrap_or_default(),
        }),
    }
}

pub(super) fn of_page(plane: &Plane, page_size: u32, after: &str) -> ListDocumentsResponse {
    let (generation, documents) = plane.documents();
    let size = match page_size as usize {
        0 => MAX_LISTED,
        size => size.min(MAX_LISTED),
    };
    let first = documents.partition_point(|(name, _)| **name <= *after);
    let rest = &documents[first..];
    let page = &rest[..size.min(rest.len())];
    let last: Option<&Name> = page.last().map(|(name, _)| name);
    ListDocumentsResponse {
        documents: page.iter().map(|(name, it)| summary(name, it)).collect(),
        next_page_token: match last {
            Some(last) if page.len() < rest.len() => last.to_string(),
            Some(_) | None => String::new(),
        },
        generation,
    }
}

fn summary(name: &str, document: &StoredDocument) -> DocumentSummary {
    DocumentSummary {
        name: name.to_owned(),
        source: document.source().to_string(),
        selector: Some(selector(document.selector())),
        resources: document.len() as u64,
    }
}

fn selector(selector: &Selector) -> control::Selector {
    let locality = &selector.locality;
    control::Selector {
        id: selector.id.clone(),
        cluster: selector.cluster.clone(),
        identity: selector.identity.as_ref().map(ToString::to_string),
        locality: (!locality.is_empty()).then(|| control::LocalitySelector {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            sub_zone: locality.sub_zone.clone(),
        }),
        metadata: selector.metadata.clone().into_iter().collect(),
    }
}
