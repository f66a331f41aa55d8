//! State-of-the-world streams.

use isthmus_xds_core::stream::Peer;
use isthmus_xds_core::{Request, Variant};

use crate::support::*;

#[test]
fn r12_n02_names_on_the_nonce_before_a_refusal_are_answered() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(ENDPOINT, "a", "1"), (ENDPOINT, "b", "1")]));
    client.ask(ENDPOINT, &["a"]);
    let first = only(client.receive());
    client.ack_with(&first, &["a"]);
    client.publish(plane.publish(&[(ENDPOINT, "a", "2"), (ENDPOINT, "b", "1")]));
    let second = only(client.receive());
    client.send(&Request {
        names: names(&["a"]),
        ..answer(&second, Some("bad"))
    });
    client.ack_with(&first, &["a", "b"]);
    assert_eq!(only(client.receive()).resources, ["b=1"]);
}

#[test]
fn r14_names_added_by_an_ack_are_sent_under_the_same_version() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(ENDPOINT, "a", "1"), (ENDPOINT, "b", "1")]));
    client.ask(ENDPOINT, &["a"]);
    let first = only(client.receive());
    client.ack_with(&first, &["a", "b"]);
    let second = only(client.receive());
    assert_eq!(second.resources, ["b=1"]);
    assert_eq!(second.version, first.version);
}

#[test]
fn r13_an_ack_without_new_names_gets_nothing() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(ENDPOINT, "a", "1")]));
    client.ask(ENDPOINT, &["a"]);
    let reply = only(client.receive());
    client.ack_with(&reply, &["a"]);
    assert!(client.receive().is_empty());
}

#[test]
fn r16_r17_n05_nothing_then_a_name_then_nothing() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]));
    client.ask(CLUSTER, &[]);
    let reply = only(client.receive());
    assert_eq!(reply.resources, ["a=1", "b=1"]);
    client.ack_with(&reply, &["a"]);
    let reply = only(client.receive());
    assert_eq!(reply.resources, ["a=1"]);
    client.ack_with(&reply, &[]);
    client.publish(plane.publish(&[(CLUSTER, "a", "2")]));
    assert!(client.receive().is_empty(), "nothing means nothing by now");
}

#[test]
fn r24_n14_a_partial_request_is_answered_with_that_part() {
    let mut plane = Plane::default();
    let view = plane.publish(&[
        (ENDPOINT, "a", "1"),
        (ENDPOINT, "b", "1"),
        (ENDPOINT, "c", "1"),
    ]);
    let mut client = Client::sotw(view);
    client.ask(ENDPOINT, &["a", "missing"]);
    assert_eq!(only(client.receive()).resources, ["a=1"]);
}

#[test]
fn r26_n14_one_changed_endpoint_is_sent_alone() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(ENDPOINT, "a", "1"), (ENDPOINT, "b", "1")]));
    client.ask(ENDPOINT, &["a", "b"]);
    let reply = only(client.receive());
    client.ack_with(&reply, &["a", "b"]);
    client.publish(plane.publish(&[(ENDPOINT, "a", "2"), (ENDPOINT, "b", "1")]));
    assert_eq!(only(client.receive()).resources, ["a=2"]);
}

#[test]
fn r26_clusters_and_listeners_are_restated_whole() {
    for type_url in [CLUSTER, LISTENER] {
        let mut plane = Plane::default();
        let mut client = Client::sotw(plane.publish(&[(type_url, "a", "1"), (type_url, "b", "1")]));
        client.ask(type_url, &[]);
        client.settle();
        client.publish(plane.publish(&[(type_url, "a", "2"), (type_url, "b", "1")]));
        assert_eq!(only(client.settle()).resources, ["a=2", "b=1"]);
        client.publish(plane.publish(&[(type_url, "b", "1")]));
        assert_eq!(only(client.settle()).resources, ["b=1"]);
        client.publish(plane.publish(&[]));
        assert!(
            only(client.settle()).resources.is_empty(),
            "empty deletes all"
        );
    }
}

#[test]
fn r26_a_named_full_state_subscription_gets_what_is_requested() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(LISTENER, "a", "1"), (LISTENER, "b", "1")]));
    client.ask(LISTENER, &["a"]);
    let reply = only(client.receive());
    assert_eq!(reply.resources, ["a=1"]);
    client.ack_with(&reply, &["a"]);
    client.publish(plane.publish(&[(LISTENER, "a", "1"), (LISTENER, "b", "2")]));
    assert!(client.receive().is_empty());
    client.publish(plane.publish(&[(LISTENER, "b", "2")]));
    assert!(only(client.receive()).resources.is_empty());
}

#[test]
fn r29_a_name_that_appears_later_is_sent_unasked() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[]));
    client.ask(ROUTE, &["r"]);
    assert!(client.receive().is_empty());
    client.publish(plane.publish(&[(ROUTE, "r", "1")]));
    assert_eq!(only(client.receive()).resources, ["r=1"]);
}

#[test]
fn r34_n15_first_wildcard_on_an_empty_view_is_answered() {
    for type_url in [CLUSTER, "type.example/of.nobody"] {
        let mut client = Client::sotw(Plane::default().publish(&[]));
        client.ask(type_url, &[]);
        assert!(only(client.settle()).resources.is_empty(), "{type_url}");
    }
}

#[test]
fn r08_r15_n16_a_reconnecting_client_is_treated_as_new() {
    let mut plane = Plane::default();
    let view = plane.publish(&[(CLUSTER, "a", "1")]);
    let mut earlier = Client::sotw(view.clone());
    earlier.ask(CLUSTER, &[]);
    let held = only(earlier.settle());
    let mut client = Client::sotw(view);
    client.send(&Request {
        nonce: "3-9".to_owned(),
        version: held.version,
        ..ask(Variant::Sotw, CLUSTER, &[])
    });
    assert_eq!(only(client.receive()).resources, ["a=1"]);
    assert!(
        client.events().is_empty(),
        "it is no answer, not a stale one"
    );
}

#[test]
fn r09_r10_a_refusal_is_quiet_until_content_differs() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(LISTENER, "a", "bad")]));
    client.ask(LISTENER, &[]);
    let reply = only(client.receive());
    client.nack(&reply, "bad");
    client.wait(60_000);
    assert!(client.receive().is_empty());
    client.publish(plane.publish(&[(LISTENER, "a", "good")]));
    assert_eq!(only(client.settle()).resources, ["a=good"]);
    assert!(client.is_settled(LISTENER));
}

#[test]
fn r11_a_stale_nonce_gets_no_answer_of_its_own() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &[]);
    let first = only(client.settle());
    client.ack(&first);
    client.ack(&first);
    assert!(client.receive().is_empty());
}

#[test]
fn r20_r62_n23_a_grpc_client_means_nothing_by_nothing() {
    let mut plane = Plane::default();
    let view = plane.publish(&[(LISTENER, "a", "1"), (LISTENER, "b", "1")]);
    let mut client = Client::new(Variant::Sotw, Peer::Grpc, None, view);
    client.ask(LISTENER, &[]);
    assert!(client.receive().is_empty());
    client.ask(LISTENER, &["a"]);
    assert_eq!(only(client.settle()).resources, ["a=1"]);
}

#[test]
fn r47_a_newer_answer_settles_the_older_response() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &[]);
    let first = only(client.receive());
    client.publish(plane.publish(&[(CLUSTER, "a", "2")]));
    client.wait(1_600);
    let second = only(client.receive());
    client.ack(&second);
    assert!(client.is_settled(CLUSTER));
    client.ack(&first);
    assert!(client.receive().is_empty());
    assert!(client.is_settled(CLUSTER));
}
