//! What a rollback displaces, and what of it comes back.

use bytes::Bytes;
use isthmus_api::envoy_resources::Selector;
use isthmus_xds_core::catalog::Draft;
use isthmus_xds_core::{Document, Extras, TypeUrl};

use super::*;

const TYPE: &str = "t";

fn document(name: &str, value: &str) -> Document {
    Document {
        name: Name::from(name),
        selector: Selector::default(),
        resources: vec![Draft {
            type_url: TypeUrl::from(TYPE),
            name: Name::from(name),
            value: Bytes::copy_from_slice(value.as_bytes()),
            extras: Extras::default(),
        }],
    }
}

fn set(plane: &Plane, documents: &[(&str, &str)]) -> u64 {
    let commit = documents
        .iter()
        .fold(Commit::new(Source::API), |commit, (name, value)| {
            commit.set(document(name, value))
        });
    plane.commit(commit).unwrap().generation
}

fn publish(plane: &Plane, value: &str) -> u64 {
    plane.publish(vec![document("files", value)]).unwrap()
}

// By name: the first byte of what the document has.
fn in_force(plane: &Plane) -> String {
    let (_, documents) = plane.documents();
    let words = documents.iter().map(|(name, it)| {
        let resource = it.resource(TYPE, name).unwrap();
        format!("{name}={}", String::from_utf8_lossy(&resource.value()))
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_document_that_changed_since_stays_and_the_others_come_back() {
    let plane = Plane::new();
    let first = set(&plane, &[("a", "1"), ("b", "1"), ("c", "1")]);
    set(&plane, &[("a", "2"), ("b", "2"), ("c", "2")]);
    plane.rollback(first).unwrap();
    set(&plane, &[("a", "3")]);
    plane.commit(Commit::new(Source::API).delete("c")).unwrap();
    plane.release().unwrap();
    assert_eq!(in_force(&plane), "a=3 b=2");
}

#[test]
fn what_other_sources_had_is_given_back_after_the_directory_changed() {
    let plane = Plane::new();
    publish(&plane, "1");
    let first = set(&plane, &[("a", "1")]);
    publish(&plane, "2");
    set(&plane, &[("a", "2")]);
    plane.rollback(first).unwrap();
    assert!(plane.pin().unwrap().is_directory_held);

    publish(&plane, "3");
    assert!(!plane.pin().unwrap().is_directory_held);
    assert_eq!(in_force(&plane), "a=1 files=3");
    // Another rollback displaces what the directory says now.
    plane.rollback(first).unwrap();
    assert_eq!(in_force(&plane), "a=1 files=1");
    plane.release().unwrap();
    assert_eq!(in_force(&plane), "a=2 files=3");
    assert_eq!(plane.release(), Err(RollbackError::NotPinned));
}

#[test]
fn a_rollback_of_files_ends_when_they_change() {
    let plane = Plane::new();
    set(&plane, &[("a", "1")]);
    let first = publish(&plane, "1");
    publish(&plane, "2");
    plane.rollback(first).unwrap();
    set(&plane, &[("a", "2")]);
    assert!(plane.pin().is_some());
    publish(&plane, "3");
    assert!(plane.pin().is_none());
    assert_eq!(in_force(&plane), "a=2 files=3");
}

#[test]
fn the_directory_is_not_followed_while_a_rollback_holds_it() {
    let plane = Plane::new();
    let first = publish(&plane, "1");
    publish(&plane, "2");
    let again = || {
        let commit = Commit::new(Source::CONFIG_DIR).replace(vec![document("files", "2")]);
        plane.commit_unless_held(commit, &Origins::Unknown)
    };
    again().unwrap();
    let pinned = plane.rollback(first).unwrap();
    match again() {
        Err(UnfollowedError::Held(pin)) => assert_eq!(pin.generation, pinned),
        other => panic!("{other:?}"),
    }
    assert_eq!(in_force(&plane), "files=1");
}
