use std::time::Duration;

use bytes::Bytes;
use isthmus_api::envoy_resources::Selector;
use isthmus_xds_core::catalog::{Commit, Draft};
use isthmus_xds_core::{Document, Extras};

use super::*;

const TYPE: &str = "t";

/// A resource's name, its value and its line.
type Written<'a> = (&'a str, &'a str, usize);

#[derive(Default)]
struct Ledger {
    catalog: Catalog,
    history: History,
}

impl Ledger {
    fn publish(&mut self, documents: &[(&str, &[Written<'_>])]) -> u64 {
        let mut origins = Provenance::default();
        let documents = documents.iter().map(|(document, resources)| {
            let drafts = resources.iter().map(|(name, value, line)| {
                origins.note(&Name::from(*document), key(name), file(*line));
                draft(name, value)
            });
            Document {
                name: Name::from(*document),
                selector: Selector::default(),
                resources: drafts.collect(),
            }
        });
        let commit = Commit::new(Source::CONFIG_DIR).replace(documents.collect());
        let published = self.catalog.commit(commit).expect("it can be");
        self.record(&published, &Origins::Each(&origins))
    }

    fn patch(&mut self, document: &str, name: &str, value: &str) -> u64 {
        let upserts = vec![draft(name, value)];
        let commit = Commit::new(Source::CONFIG_DIR).patch(document, upserts, Vec::new());
        let published = self.catalog.commit(commit).expect("it can be");
        self.record(&published, &Origins::Unknown)
    }

    fn record(&mut self, published: &Published, origins: &Origins<'_>) -> u64 {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(published.generation);
        self.history
            .record(&self.catalog, published, Cause::Release, origins, at);
        published.generation
    }

    fn find(&self, generation: u64) -> &Generation {
        self.history.find(generation).expect("it is kept")
    }

    fn resource(&self, generation: u64, name: &str) -> Arc<Resource> {
        let traced = self
            .find(generation)
            .resource(&[Name::from("d")], &key(name));
        traced.expect("it has the resource").resource
    }
}

fn key(name: &str) -> ResourceKey {
    ResourceKey {
        type_url: TypeUrl::from(TYPE),
        name: Name::from(name),
    }
}

fn draft(name: &str, value: &str) -> Draft {
    Draft {
        type_url: TypeUrl::from(TYPE),
        name: Name::from(name),
        value: Bytes::copy_from_slice(value.as_bytes()),
        extras: Extras::default(),
    }
}

fn file(line: usize) -> Arc<Origin> {
    Arc::new(Origin::File {
        file: Arc::from("a.yaml"),
        document: 1,
        line,
        index: 0,
    })
}

#[test]
fn only_the_newest_generations_are_kept() {
    let mut ledger = Ledger::default();
    for round in 0..GENERATIONS + 10 {
        ledger.publish(&[("d", &[("a", &round.to_string(), 1)])]);
    }
    assert_eq!(ledger.history.generations().count(), GENERATIONS);
    assert!(ledger.history.find(10).is_none());
    assert!(ledger.history.find(11).is_some());
    let newest = ledger.history.newest().expect("there are some");
    assert_eq!(newest.number, GENERATIONS as u64 + 10);
}

#[test]
fn generations_share_what_did_not_change() {
    let mut ledger = Ledger::default();
    ledger.publish(&[("d", &[("a", "1", 1), ("b", "1", 2)])]);
    ledger.publish(&[("d", &[("a", "1", 1), ("b", "2", 2)])]);
    ledger.patch("d", "b", "3");
    let same = |one: u64, other: u64, name: &str| {
        Arc::ptr_eq(&ledger.resource(one, name), &ledger.resource(other, name))
    };
    assert!(same(1, 2, "a") && same(2, 3, "a"));
    assert!(!same(1, 2, "b") && !same(2, 3, "b"));
    let counts = |generation: u64| ledger.find(generation).counts.get(TYPE).copied();
    let of = |added, changed, removed| {
        Some(Counts {
            added,
            changed,
            removed,
        })
    };
    assert_eq!(
        [counts(1), counts(2), counts(3)],
        [of(2, 0, 0), of(0, 1, 0), of(0, 1, 0)]
    );
}

#[test]
fn a_difference_is_what_leads_from_one_to_the_other() {
    let mut ledger = Ledger::default();
    ledger.publish(&[
        ("d", &[("a", "1", 1), ("b", "1", 2)]),
        ("gone", &[("x", "1", 1)]),
    ]);
    ledger.publish(&[("d", &[("a", "1", 1), ("b", "22", 2), ("c", "333", 3)])]);
    let rows = |from: u64, to: u64| {
        let difference = ledger.find(from).difference(ledger.find(to));
        let rows = difference.rows.iter();
        rows.map(|row| {
            format!(
                "{:?} {} {} {}",
                row.turn, row.document, row.key.name, row.size_bytes
            )
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(
        rows(1, 2),
        ["Changed d b 2", "Added d c 3", "Removed gone x 0"]
    );
    assert_eq!(
        rows(2, 1),
        ["Changed d b 1", "Removed d c 0", "Added gone x 1"]
    );
    assert!(rows(1, 1).is_empty());
}

#[test]
fn a_restored_generation_is_what_it_was() {
    let mut ledger = Ledger::default();
    ledger.publish(&[("d", &[("a", "1", 7), ("b", "1", 8)])]);
    ledger.publish(&[("e", &[("c", "1", 1)])]);
    let first = Arc::clone(ledger.history.find(1).expect("it is kept"));
    let published = ledger.catalog.restore(first.documents()).expect("it was");
    let third = ledger.record(&published, &Origins::Each(&first.provenance()));
    assert!(
        ledger
            .find(1)
            .difference(ledger.find(third))
            .rows
            .is_empty()
    );
    let version = ledger.resource(1, "a").version();
    let traced = ledger.history.trace(&[Name::from("d")], &key("a"), version);
    let traced = traced.expect("it is in force");
    assert_eq!((traced.generation, traced.origin), (third, file(7)));
    let same = Arc::ptr_eq(&ledger.resource(1, "a"), &ledger.resource(third, "a"));
    assert!(same, "nothing is encoded again");
}

#[test]
fn a_version_is_traced_to_where_it_was_written_though_it_is_gone() {
    let mut ledger = Ledger::default();
    let scope = [Name::from("d"), Name::from("e")];
    ledger.publish(&[("d", &[("a", "1", 1)])]);
    let first = ledger.resource(1, "a").version();
    ledger.publish(&[("d", &[("a", "1", 5)])]);
    ledger.publish(&[("d", &[("a", "2", 6)])]);
    let trace = |version: Version| {
        let traced = ledger.history.trace(&scope, &key("a"), version)?;
        Some((traced.generation, traced.origin))
    };
    assert_eq!(trace(first), Some((1, file(5))), "its line moved");
    assert_eq!(trace(Version::OF_NOTHING), None);
    let second = ledger.resource(2, "a").version();
    assert_eq!(trace(second), Some((2, file(6))));
    assert!(!ledger.history.is_in_force(&key("a"), first));
    assert!(ledger.history.is_in_force(&key("a"), second));
}
