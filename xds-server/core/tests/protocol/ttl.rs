//! Time to live, in both variants, for clients that can read it (R54).

use std::sync::Arc;

use isthmus_xds_core::{Variant, View};

use crate::support::*;

const TTL: &str = "xds.config.supports-resource-ttl";
const WRAPPED: &str = "xds.config.resource-in-sotw";

fn delta(view: Arc<View>) -> Client {
    Client::featured(Variant::Delta, &[TTL], view)
}

fn sotw(view: Arc<View>) -> Client {
    Client::featured(Variant::Sotw, &[TTL, WRAPPED], view)
}

#[test]
fn r54_what_has_a_time_to_live_is_heard_of_twice_in_it() {
    let mut plane = Plane::default();
    let mut client = delta(plane.publish(&[(RUNTIME, "r", "1/10"), (RUNTIME, "s", "1")]));
    client.ask(RUNTIME, &["r", "s"]);
    client.settle();
    client.wait(4_999);
    assert!(client.receive().is_empty());
    assert_eq!(client.next_wake(), Some(std::time::Duration::from_secs(5)));
    for _ in 0..3 {
        client.now = client.next_wake().expect("there is a heartbeat to come");
        let beat = only(client.settle());
        assert_eq!(
            (beat.resources.len(), beat.bodyless),
            (0, vec!["r!10".to_owned()])
        );
    }

    // A change is a sign of life, and without a time to live there is nothing to hear.
    client.wait(4_000);
    client.publish(plane.publish(&[(RUNTIME, "r", "2/10"), (RUNTIME, "s", "1")]));
    assert_eq!(only(client.settle()).resources, ["r=2/10"]);
    client.wait(4_000);
    assert!(client.receive().is_empty());
    client.publish(plane.publish(&[(RUNTIME, "r", "2"), (RUNTIME, "s", "1")]));
    assert_eq!(only(client.settle()).resources, ["r=2"]);
    assert_eq!(client.next_wake(), None);
}

#[test]
fn r54_what_is_not_wanted_any_more_dies() {
    let mut plane = Plane::default();
    let mut client = delta(plane.publish(&[(RUNTIME, "r", "1/10"), (RUNTIME, "s", "1/10")]));
    client.ask(RUNTIME, &["r", "s"]);
    client.settle();
    client.unsubscribe(RUNTIME, &["r"]);
    client.publish(plane.publish(&[(RUNTIME, "r", "1/10")]));
    assert_eq!(only(client.settle()).removed, ["s"]);
    assert_eq!(client.next_wake(), None);
}

#[test]
fn r54_without_the_feature_there_is_no_time_to_live() {
    let some: [(Variant, &[&str]); 4] = [
        (Variant::Delta, &[]),
        (Variant::Delta, &[WRAPPED]),
        (Variant::Sotw, &[TTL]),
        (Variant::Sotw, &[WRAPPED]),
    ];
    for (variant, features) in some {
        let view = Plane::default().publish(&[(RUNTIME, "r", "1/10")]);
        let mut client = Client::featured(variant, features, view);
        client.ask(RUNTIME, &["r"]);
        let reply = only(client.receive());
        assert_eq!(reply.resources, ["r=1/10"], "{variant:?} {features:?}");
        assert!(
            reply.wrapped.is_empty() && !reply.has_ttl,
            "{variant:?} {features:?}"
        );
        client.ack_with(&reply, &["r"]);
        assert_eq!(client.next_wake(), None, "{variant:?} {features:?}");
    }
}

#[test]
fn r54_state_of_the_world_clients_hear_of_what_lives_in_a_wrapper() {
    let mut plane = Plane::default();
    let view = plane.publish(&[(RUNTIME, "r", "1/10"), (RUNTIME, "s", "1")]);
    let mut client = sotw(view);
    client.ask(RUNTIME, &["r", "s"]);
    let first = only(client.receive());
    assert_eq!(first.resources, ["r=1/10", "s=1"]);
    assert_eq!(
        first.wrapped,
        ["r!10"],
        "what has no time to live comes as it is"
    );
    client.wait(60_000);
    assert!(
        client.receive().is_empty(),
        "no version is accepted yet to compare with"
    );
    client.ack_with(&first, &["r", "s"]);
    let beat = only(client.receive());
    assert_eq!(
        (beat.resources.len(), beat.bodyless.clone()),
        (0, vec!["r!10".to_owned()])
    );
    assert_eq!(beat.version, first.version);
    client.ack_with(&beat, &["r", "s"]);

    // Envoy knows it by the version that it accepted, whatever became of the set meanwhile.
    client.publish(plane.publish(&[
        (RUNTIME, "r", "1/10"),
        (RUNTIME, "s", "1"),
        (RUNTIME, "unwanted", "1"),
    ]));
    client.now = client.next_wake().expect("there is a heartbeat to come");
    let beat = only(client.receive());
    assert_eq!(
        (beat.version.as_str(), beat.bodyless.len()),
        (first.version.as_str(), 1)
    );
    client.ack_with(&beat, &["r", "s"]);

    client.publish(plane.publish(&[(RUNTIME, "r", "2"), (RUNTIME, "s", "1")]));
    let last = only(client.receive());
    assert_eq!(
        (last.resources, last.wrapped.len()),
        (vec!["r=2".to_owned()], 0)
    );
    assert_eq!(
        client.next_wake(),
        None,
        "sent again without, it does not end"
    );
}

#[test]
fn r54_a_set_that_is_restated_is_its_own_heartbeat() {
    let mut plane = Plane::default();
    let mut client = sotw(plane.publish(&[(LISTENER, "l", "1/10"), (LISTENER, "m", "1")]));
    client.ask(LISTENER, &[]);
    let first = only(client.settle());
    assert_eq!(first.wrapped, ["l!10"]);
    client.now = client.next_wake().expect("there is a heartbeat to come");
    let beat = only(client.settle());
    assert_eq!(
        beat.resources,
        ["l=1/10", "m=1"],
        "a part of the set would delete the rest"
    );
    assert!(beat.bodyless.is_empty());
}

#[test]
fn r54_what_was_refused_is_not_kept_alive() {
    let mut plane = Plane::default();
    let mut client = delta(plane.publish(&[(RUNTIME, "r", "1/10")]));
    client.ask(RUNTIME, &["r"]);
    let reply = only(client.receive());
    client.nack(&reply, "no");
    client.wait(60_000);
    assert!(client.receive().is_empty());
    assert_eq!(client.next_wake(), None);
}
