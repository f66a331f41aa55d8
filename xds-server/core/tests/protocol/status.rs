//! What people are told of a client: its resources one by one, and whether it is at rest.

use crate::support::*;

#[test]
fn r58_status_is_told_resource_by_resource() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]));
    assert!(client.config_status().is_empty(), "nothing is asked for");
    client.ask(CLUSTER, &["*", "missing"]);
    assert_eq!(
        client.config_status(),
        ["a=NotSent", "b=NotSent", "-missing=NotSent"]
    );
    let first = only(client.receive());
    assert_eq!(
        client.config_status(),
        ["a=Stale", "b=Stale", "-missing=Synced"]
    );
    client.ack(&first);
    assert_eq!(
        client.config_status(),
        ["a=Synced", "b=Synced", "-missing=Synced"]
    );
    client.publish(plane.publish(&[(CLUSTER, "a", "2"), (CLUSTER, "b", "1")]));
    assert_eq!(
        client.config_status(),
        ["a=NotSent", "b=Synced", "-missing=Synced"]
    );
    let second = only(client.receive());
    client.nack(&second, "no");
    assert_eq!(client.config_status()[0], "a=Error");
}

#[test]
fn r58_a_removal_that_is_held_back_is_shown() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1"), (ROUTE, "r", "to a")]));
    client.ask(CLUSTER, &[]);
    client.ask(ROUTE, &["r"]);
    client.settle();
    client.publish(plane.publish(&[(ROUTE, "r", "to nothing")]));
    assert_eq!(client.config_status(), ["-a=NotSent", "r=NotSent"]);
    client.settle();
    assert_eq!(client.config_status(), ["r=Synced"]);
}

#[test]
fn a_stream_is_at_rest_when_nothing_is_sent_unanswered_or_held_back() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1"), (ROUTE, "r", "to a")]));
    assert!(client.is_at_rest());
    client.ask(CLUSTER, &[]);
    client.ask(ROUTE, &["r"]);
    assert!(!client.is_at_rest(), "there is something to send");
    let clusters = only(client.receive());
    assert!(!client.is_at_rest(), "it is not answered");
    client.ack(&clusters);
    client.settle();
    assert!(client.is_at_rest());
    client.publish(plane.publish(&[(ROUTE, "r", "to nothing")]));
    let route = only(client.receive());
    assert!(!client.is_at_rest(), "the cluster waits to be removed");
    client.nack(&route, "no");
    assert!(!client.is_at_rest(), "and waits on");
}

#[test]
fn a_generation_is_answered_when_nothing_of_it_is_left_even_if_a_newer_one_is() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1"), (ENDPOINT, "e", "1")]));
    client.ask(CLUSTER, &["*"]);
    client.ask(ENDPOINT, &["e"]);
    client.settle();
    client.publish(plane.publish(&[(CLUSTER, "a", "2"), (ENDPOINT, "e", "1")]));
    assert_eq!(client.answered_through(CLUSTER), Some(1));
    assert_eq!(client.answered_through(ENDPOINT), Some(2), "nothing of it");
    let second = only(client.receive());
    client.publish(plane.publish(&[(CLUSTER, "a", "3"), (ENDPOINT, "e", "1")]));
    assert_eq!(client.answered_through(CLUSTER), Some(1), "not answered");
    client.ack(&second);
    assert_eq!(client.answered_through(CLUSTER), Some(2));
    client.settle();
    assert_eq!(client.answered_through(CLUSTER), Some(3));
}

#[test]
fn a_generation_that_was_split_is_answered_with_its_last_part() {
    let mut plane = Plane::default();
    let large = "x".repeat(2_000_000);
    let mut client = Client::delta(plane.publish(&[]));
    client.ask(ENDPOINT, &["*"]);
    client.settle();
    client.publish(plane.publish(&[(ENDPOINT, "a", &large), (ENDPOINT, "b", &large)]));
    let first = only(client.receive());
    client.publish(plane.publish(&[
        (ENDPOINT, "a", &large),
        (ENDPOINT, "b", &large),
        (ENDPOINT, "c", "1"),
    ]));
    client.ack(&first);
    assert!(client.answered_through(ENDPOINT) < Some(2), "b is not sent");
    client.settle();
    assert_eq!(client.answered_through(ENDPOINT), Some(3));
}
