//! What only the documents of one client together show: names that nothing answers to, and listeners that
//! want one address.
//!
//! Which clients there are is not known here, so a scope is judged by selectors. A name is missing if no
//! document that *any* client of its document may also get has the resource: that is certain. A name that
//! only some of the clients can resolve is not reported, since selectors by zone or role look like that when
//! they are right. Missing names are warnings: Envoy accepts them, and its bootstrap, another control plane or
//! on-demand discovery may have the resource.
//!
//! Two listeners with one address are an error if every client of one of the documents gets the other too:
//! Envoy refuses the second of them. If clients only *may* match both selectors it is a warning.

use std::collections::BTreeMap;

use isthmus_api::envoy_resources::Selector;

use crate::validate::references::Target;

use super::LoadedDocument;
use super::error::{ConfigError, Origin, Place, Problem, ResourceLabel};
use super::limits::{MAX_ERRORS, MAX_WARNINGS};
use super::warning::{Concern, ConfigWarning};

/// What one document says about others, in the order of its text.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) bindings: Vec<Link<String>>,
    pub(super) names: Vec<Link<(Target, String)>>,
}

/// One such thing and where it is written.
#[derive(Debug)]
pub(super) struct Link<T> {
    pub(super) line: usize,
    pub(super) path: String,
    pub(super) resource: ResourceLabel,
    /// Position in the document's list.
    pub(super) index: usize,
    pub(super) what: T,
}

/// Documents by what they give, and for each by the id that their selector asks for: documents for one client
/// each, which may be thousands and all have a "listener", are never compared with each other.
type Givers<'a, K, V> = BTreeMap<K, BTreeMap<Option<&'a str>, Vec<V>>>;

/// Checks the documents, of which `links` has one each, against each other.
pub(super) fn check_links(
    documents: &[LoadedDocument],
    links: &[Links],
    errors: &mut Vec<ConfigError>,
) -> Vec<ConfigWarning> {
    let mut warnings = Vec::new();
    check_names(documents, links, &mut warnings);
    check_addresses(documents, links, errors, &mut warnings);
    warnings
}

fn check_names(documents: &[LoadedDocument], links: &[Links], warnings: &mut Vec<ConfigWarning>) {
    let mut givers: Givers<'_, (&str, &str), &Selector> = BTreeMap::new();
    for document in documents {
        let id = document.selector.id.as_deref();
        for resource in &document.resources {
            let by_id = givers
                .entry((&resource.type_url, &resource.name))
                .or_default();
            by_id.entry(id).or_default().push(&document.selector);
        }
    }
    for (document, links) in documents.iter().zip(links) {
        for link in &links.names {
            if warnings.len() >= MAX_WARNINGS {
                return;
            }
            let (target, name) = &link.what;
            let by_id = givers.get(&(target.type_url(), name));
            let is_given = by_id.is_some_and(|by_id| {
                rivals(by_id, document).any(|other| other.may_overlap(&document.selector))
            });
            if !is_given {
                warnings.push(ConfigWarning {
                    place: place_of(document, link),
                    concern: Concern::Missing {
                        name: name.clone(),
                        target: *target,
                    },
                });
            }
        }
    }
}

fn check_addresses(
    documents: &[LoadedDocument],
    links: &[Links],
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<ConfigWarning>,
) {
    let mut taken: Givers<'_, &str, (&LoadedDocument, &Link<String>)> = BTreeMap::new();
    for (document, links) in documents.iter().zip(links) {
        for link in &links.bindings {
            if errors.len() >= MAX_ERRORS || warnings.len() >= MAX_WARNINGS {
                return;
            }
            let by_id = taken.entry(&link.what).or_default();
            let rival = rivals(by_id, document)
                .find(|(other, _)| other.selector.may_overlap(&document.selector));
            let Some((other, first)) = rival else {
                let id = document.selector.id.as_deref();
                by_id.entry(id).or_default().push((document, link));
                continue;
            };
            let is_certain = includes(&other.selector, &document.selector)
                || includes(&document.selector, &other.selector);
            let place = place_of(document, link);
            let address = link.what.clone();
            let other = Origin {
                line: first.line,
                resource: Some(first.index),
                ..other.origin.clone()
            };
            if is_certain {
                let problem = Problem::SharedAddress { address, other };
                errors.push(ConfigError { place, problem });
            } else {
                let concern = Concern::MayShareAddress { address, other };
                warnings.push(ConfigWarning { place, concern });
            }
        }
    }
}

/// Those that a client of `document` may get, as far as ids tell.
fn rivals<'a, V: Copy>(
    by_id: &'a BTreeMap<Option<&'a str>, Vec<V>>,
    document: &'a LoadedDocument,
) -> impl Iterator<Item = V> + use<'a, V> {
    let id = document.selector.id.as_deref();
    let (own, all) = match id {
        Some(_) => (by_id.get(&id), None),
        None => (None, Some(by_id.values())),
    };
    let of_everybody = id.and_then(|_| by_id.get(&None));
    let all = all.into_iter().flatten();
    let lists = own.into_iter().chain(of_everybody).chain(all);
    lists.flatten().copied()
}

/// Whether every client that `narrow` matches is matched by `wide` too.
pub(crate) fn includes(wide: &Selector, narrow: &Selector) -> bool {
    let asks = |wide: &Option<String>, narrow: &Option<String>| wide.is_none() || wide == narrow;
    asks(&wide.id, &narrow.id)
        && asks(&wide.cluster, &narrow.cluster)
        && asks(&wide.locality.region, &narrow.locality.region)
        && asks(&wide.locality.zone, &narrow.locality.zone)
        && asks(&wide.locality.sub_zone, &narrow.locality.sub_zone)
        && wide
            .metadata
            .iter()
            .all(|(key, value)| narrow.metadata.get(key) == Some(value))
}

fn place_of<T>(document: &LoadedDocument, link: &Link<T>) -> Place {
    Place {
        file: document.origin.file.clone(),
        line: Some(link.line),
        column: None,
        document: Some(document.origin.document),
        document_name: Some(document.name.clone()),
        path: Some(link.path.clone()),
        resource: Some(link.resource.clone()),
    }
}
