//! What only the whole directory shows: names that are given twice.

use std::collections::BTreeMap;
use std::iter;
use std::ptr;
use std::sync::Arc;

use super::encode::TYPE_URL_PREFIX;
use super::error::{ConfigError, Origin, Place, Problem, ResourceLabel};
use super::limits::MAX_ERRORS;
use super::{LoadedDocument, LoadedResource};

/// Finds documents of one name, and resources of one type and name that one client may get both of.
pub(super) fn check_names(documents: &[LoadedDocument], errors: &mut Vec<ConfigError>) {
    check_document_names(documents, errors);
    check_resource_names(documents, errors);
}

/// Finds documents that share a `metadata.name`.
fn check_document_names(documents: &[LoadedDocument], errors: &mut Vec<ConfigError>) {
    let mut first: BTreeMap<&str, &Origin> = BTreeMap::new();
    for document in documents {
        let Some(other) = first.get(&*document.name) else {
            first.insert(&document.name, &document.origin);
            continue;
        };
        let place = place_in(
            document,
            &document.origin,
            Some("metadata.name".to_owned()),
            None,
        );
        let problem = Problem::DuplicateDocument {
            other: (*other).clone(),
        };
        errors.push(ConfigError { place, problem });
    }
}

/// Finds resources of one type and name that one client may get both of.
fn check_resource_names(documents: &[LoadedDocument], errors: &mut Vec<ConfigError>) {
    // Of one type and name, by the selector's id: documents for one client each, which may be
    // thousands and all have a "listener", are never compared with each other.
    type ById<'a> = BTreeMap<Option<&'a str>, Vec<(&'a LoadedDocument, &'a LoadedResource)>>;
    let mut taken: BTreeMap<(&str, &str), ById<'_>> = BTreeMap::new();
    for document in documents {
        // By any of its names: a client that asks for one must know what it gets.
        let names = document.resources.iter().flat_map(|resource| {
            let names = iter::once(&resource.name).chain(&resource.aliases);
            names.map(move |name| (resource, name))
        });
        for (resource, name) in names {
            if errors.len() >= MAX_ERRORS {
                return;
            }
            let rivals = taken.entry((&resource.type_url, name)).or_default();
            let id = document.selector.id.as_deref();
            let overlaps = |(other, same): &&(&LoadedDocument, &LoadedResource)| {
                !ptr::eq(*same, resource) && other.selector.may_overlap(&document.selector)
            };
            let rival = match id {
                Some(_) => [id, None]
                    .iter()
                    .find_map(|id| rivals.get(id)?.iter().find(overlaps)),
                None => rivals
                    .values()
                    .find_map(|rivals| rivals.iter().find(overlaps)),
            };
            if let Some((_, other)) = rival {
                let path = resource
                    .origin
                    .resource
                    .map(|index| format!("spec.resources[{index}]"));
                let message = resource.type_url.trim_start_matches(TYPE_URL_PREFIX);
                let label = ResourceLabel {
                    message: message.into(),
                    name: Some(Arc::clone(&resource.name)),
                };
                let place = place_in(document, &resource.origin, path, Some(label));
                let problem = Problem::DuplicateResource {
                    other: other.origin.clone(),
                };
                errors.push(ConfigError { place, problem });
            } else {
                rivals.entry(id).or_default().push((document, resource));
            }
        }
    }
}

fn place_in(
    document: &LoadedDocument,
    origin: &Origin,
    path: Option<String>,
    resource: Option<ResourceLabel>,
) -> Place {
    Place {
        file: Arc::clone(&origin.file),
        line: Some(origin.line),
        column: None,
        document: Some(origin.document),
        document_name: Some(Arc::clone(&document.name)),
        path,
        resource,
    }
}
