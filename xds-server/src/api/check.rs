//! What only all documents together show, as for a configuration directory: listeners that want one address, which
//! Envoy refuses, and names that nothing answers to, which it accepts.

use std::collections::BTreeMap;

use isthmus_api::envoy_resources::Selector;
use isthmus_xds_core::catalog::{Brought, Staged, StoredDocument};
use isthmus_xds_core::{Catalog, Name, TypeUrl, type_rules};

use super::errors::Refusal;
use super::limits::{MAX_DOCUMENTS, MAX_MISTAKES, MAX_RESOURCES, MAX_WARNINGS};
use super::request::ResourceKey;
use crate::config_dir::{self, Concern};
use crate::resources::{Mistake, render};
use crate::validate::references::{bindings, references};

/// Checks what will be in force; returns what is probably wrong. `places` says where the request has a resource.
///
/// Costs the resources that the commit brings and, if there are listeners among them, all listeners that their
/// clients may have.
pub(super) fn check(
    catalog: &Catalog,
    staged: &Staged,
    places: &BTreeMap<ResourceKey, String>,
) -> Result<Vec<String>, Refusal> {
    let mut found = Found::default();
    check_sizes(catalog, staged, &mut found);
    check_addresses(catalog, staged, places, &mut found);
    if !found.mistakes.is_empty() {
        return Err(Refusal::Invalid(found.mistakes));
    }
    check_names(catalog, staged, places, &mut found);
    Ok(found.warnings)
}

#[derive(Debug, Default)]
struct Found {
    mistakes: Vec<Mistake>,
    warnings: Vec<String>,
}

impl Found {
    fn warn(&mut self, warning: String) {
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(warning);
        }
    }

    fn fail(&mut self, path: &str, problem: String) {
        if self.mistakes.len() < MAX_MISTAKES {
            self.mistakes.push(Mistake::new(path, problem));
        }
    }
}

fn check_sizes(catalog: &Catalog, staged: &Staged, found: &mut Found) {
    let new = staged
        .documents()
        .filter(|(name, after)| after.is_some() && catalog.document(name).is_none());
    if catalog.documents_len() + new.count() > MAX_DOCUMENTS {
        let problem = format!("there would be more than {MAX_DOCUMENTS} documents; merge some");
        found.fail("", problem);
    }
    for (name, after) in staged.documents() {
        if after.is_some_and(|it| it.len() > MAX_RESOURCES) {
            let problem = format!(
                "document {name:?} would have more than {MAX_RESOURCES} resources; split it"
            );
            found.fail("", problem);
        }
    }
}

struct Bound<'a> {
    document: &'a str,
    selector: &'a Selector,
    listener: &'a str,
}

/// By address, and then by the `node.id` that a document is for.
type Addresses<'a> = BTreeMap<String, BTreeMap<Option<&'a str>, Vec<Bound<'a>>>>;

fn check_addresses(
    catalog: &Catalog,
    staged: &Staged,
    places: &BTreeMap<ResourceKey, String>,
    found: &mut Found,
) {
    let is_listener = |it: &Brought<'_>| **it.type_url == *type_rules::LISTENER;
    let brought: Vec<Brought<'_>> = staged.brought().filter(is_listener).collect();
    if brought.is_empty() {
        return;
    }
    let addresses = addresses_of(catalog, staged);
    for listener in brought {
        let selector = listener.document.selector();
        for binding in bindings(&listener.resource.value()) {
            let Some(by_id) = addresses.get(&binding.address) else {
                continue;
            };
            let is_itself = |other: &Bound<'_>| {
                *other.document == **listener.name && *other.listener == **listener.resource.name()
            };
            let rival = rivals(by_id, selector.id.as_deref())
                .find(|it| !is_itself(it) && it.selector.may_overlap(selector));
            let Some(rival) = rival else { continue };
            let address = &binding.address;
            let other = format!(
                "listener {:?} of document {:?}",
                rival.listener, rival.document
            );
            let place = place_of(&listener, places, &render(&binding.path));
            let is_certain = config_dir::includes(rival.selector, selector)
                || config_dir::includes(selector, rival.selector);
            if is_certain {
                let problem = format!(
                    "the address {address} is also that of {other}, and one client gets both; change one of the two"
                );
                found.fail(&place, problem);
            } else {
                found.warn(format!(
                    "{place}: the address {address} is also that of {other}; a client that matches both selectors \
                     refuses one of the two listeners"
                ));
            }
        }
    }
}

fn addresses_of<'a>(catalog: &'a Catalog, staged: &'a Staged) -> Addresses<'a> {
    let coming: BTreeMap<&Name, Option<&StoredDocument>> = staged.documents().collect();
    let staying = catalog
        .documents()
        .filter(|(name, _)| !coming.contains_key(name))
        .map(|(name, it)| (name, &**it));
    let coming = coming.iter().filter_map(|(name, it)| Some((*name, (*it)?)));
    let mut addresses = Addresses::new();
    for (name, document) in staying.chain(coming) {
        let selector = document.selector();
        let is_near = staged
            .documents()
            .any(|(_, it)| it.is_some_and(|it| it.selector().may_overlap(selector)));
        if !is_near {
            continue;
        }
        for (listener, resource) in document.resources_of(type_rules::LISTENER) {
            for binding in bindings(&resource.value()) {
                let by_id = addresses.entry(binding.address).or_default();
                by_id
                    .entry(selector.id.as_deref())
                    .or_default()
                    .push(Bound {
                        document: name,
                        selector,
                        listener,
                    });
            }
        }
    }
    addresses
}

fn rivals<'a>(
    by_id: &'a BTreeMap<Option<&'a str>, Vec<Bound<'a>>>,
    id: Option<&'a str>,
) -> Box<dyn Iterator<Item = &'a Bound<'a>> + 'a> {
    match id {
        Some(_) => {
            let own = by_id.get(&id).into_iter();
            Box::new(own.chain(by_id.get(&None)).flatten())
        }
        None => Box::new(by_id.values().flatten()),
    }
}

fn check_names(
    catalog: &Catalog,
    staged: &Staged,
    places: &BTreeMap<ResourceKey, String>,
    found: &mut Found,
) {
    for brought in staged.brought() {
        if found.warnings.len() >= MAX_WARNINGS {
            return;
        }
        let full_name = brought.type_url.rsplit('/').next().unwrap_or_default();
        for reference in references(full_name, &brought.resource.value()) {
            let target = (reference.target.type_url(), &*reference.name);
            if staged.gives(catalog, brought.document.selector(), target) {
                continue;
            }
            let place = place_of(&brought, places, &render(&reference.path));
            let concern = Concern::Missing {
                name: reference.name,
                target: reference.target,
            };
            found.warn(format!("{place}: {concern}"));
        }
    }
}

fn place_of(brought: &Brought<'_>, places: &BTreeMap<ResourceKey, String>, field: &str) -> String {
    let name = brought.resource.name();
    let key = (
        Name::clone(brought.name),
        TypeUrl::clone(brought.type_url),
        Name::clone(name),
    );
    match places.get(&key) {
        Some(place) => format!("{place}.{field}"),
        None => format!(
            "{} {name:?} of document {:?}: {field}",
            brought.type_url, brought.name
        ),
    }
}
