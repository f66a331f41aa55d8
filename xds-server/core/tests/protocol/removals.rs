//! Removals in responses that are refused: the client may go on with what it was to let go
//! (R42, R44), and for how long.

use isthmus_xds_core::{Request, Variant};

use crate::support::*;

#[test]
fn r42_a_removal_in_a_refused_response_is_told_again() {
    for variant in [Variant::Delta, Variant::Sotw] {
        let mut plane = Plane::default();
        let view = plane.publish(&[(LISTENER, "a", "1"), (LISTENER, "gone", "1")]);
        let mut client = Client::featured(variant, &[], view);
        client.ask(LISTENER, &[]);
        client.settle();
        client.publish(plane.publish(&[(LISTENER, "a", "bad")]));
        let reply = only(client.receive());
        client.nack(&reply, "no");
        let again = only(client.settle());
        match variant {
            Variant::Delta => assert_eq!(again.removed, ["gone"]),
            Variant::Sotw => assert_eq!(again.resources, ["a=1"]),
        }
        assert!(client.is_at_rest(), "{variant:?}");
    }
}

#[test]
fn r42_what_comes_back_before_its_removal_is_refused_is_removed_when_it_goes_again() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(LISTENER, "back", "1")]));
    client.ask(LISTENER, &[]);
    client.settle();
    client.publish(plane.publish(&[(LISTENER, "a", "bad")]));
    let reply = only(client.receive());
    assert_eq!(reply.removed, ["back"]);
    client.publish(plane.publish(&[(LISTENER, "a", "bad"), (LISTENER, "back", "2")]));
    client.nack(&reply, "no");
    // Nothing of it was sent meanwhile, but the client has it as it was.
    client.publish(plane.publish(&[(LISTENER, "a", "bad")]));
    assert_eq!(only(client.settle()).removed, ["back"]);
    assert!(client.is_at_rest());
}

#[test]
fn r44_what_comes_back_before_its_removal_is_refused_may_refer_to_what_it_did() {
    let words = "Error adding/updating listener(s) a: no\nback: no";
    for answers_each in [false, true] {
        let mut plane = Plane::default();
        let view = plane.publish(&[(CLUSTER, "A", "1"), (LISTENER, "back", "to A")]);
        let mut client = Client::delta(view);
        client.ask(CLUSTER, &[]);
        client.ask(LISTENER, &[]);
        client.settle();
        client.publish(plane.publish(&[(CLUSTER, "A", "1"), (LISTENER, "a", "bad")]));
        let first = only(client.receive());
        let bad = [(LISTENER, "a", "bad"), (LISTENER, "back", "bad")];
        client.publish(plane.publish(&[(CLUSTER, "A", "1"), bad[0], bad[1]]));
        client.wait(1_600);
        let second = only(client.receive());
        // Or the newer alone, which settles both (R47).
        if answers_each {
            client.nack(&first, words);
        }
        client.nack(&second, words);
        client.publish(plane.publish(&bad));
        client.wait(3_600_000);
        assert!(
            client.receive().is_empty(),
            "{answers_each}: it may go on as it was, and refer to A"
        );
        client.publish(plane.publish(&[bad[0]]));
        let sent = client.settle();
        let removed: Vec<_> = sent.iter().flat_map(|it| &it.removed).collect();
        assert_eq!(removed, ["back", "A"], "{answers_each}");
    }
}

#[test]
fn r42_a_set_without_something_that_was_refused_for_another_is_sent_again() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(LISTENER, "a", "1"), (LISTENER, "gone", "1")]));
    client.ask(LISTENER, &[]);
    client.settle();
    let bad = (LISTENER, "b", "bad");
    client.publish(plane.publish(&[(LISTENER, "a", "1"), bad, (LISTENER, "gone", "1")]));
    let first = only(client.receive());
    client.publish(plane.publish(&[(LISTENER, "a", "1"), bad]));
    client.wait(1_600);
    let second = only(client.receive());
    assert_eq!(second.resources, ["a=1", "b=bad"]);
    // Nothing is new in the second, which is refused for what came with the first.
    client.nack(&first, "no");
    client.nack(&second, "no");
    assert_eq!(only(client.settle()).resources, ["a=1"]);
    assert!(client.is_at_rest());
}

#[test]
fn r44_who_wants_nothing_of_a_type_any_more_keeps_nothing_by_it() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "A", "1"), (LISTENER, "l", "to A")]));
    client.ask(CLUSTER, &[]);
    client.ask(LISTENER, &["*"]);
    client.settle();
    client.publish(plane.publish(&[(CLUSTER, "A", "1")]));
    let removal = only(client.receive());
    client.nack(&removal, "no");
    client.publish(plane.publish(&[]));
    client.wait(3_600_000);
    assert!(client.receive().is_empty(), "l is in force and refers to A");
    client.unsubscribe(LISTENER, &["*"]);
    assert_eq!(only(client.settle()).removed, ["A"]);
}

#[test]
fn r44_what_was_refused_and_is_not_wanted_any_more_keeps_nothing() {
    let mut plane = Plane::default();
    let view = plane.publish(&[
        (CLUSTER, "A", "1"),
        (LISTENER, "l", "to A"),
        (LISTENER, "m", "1"),
    ]);
    let mut client = Client::delta(view);
    client.ask(CLUSTER, &[]);
    client.ask(LISTENER, &["l", "m"]);
    client.settle();
    let m = (LISTENER, "m", "2");
    client.publish(plane.publish(&[(CLUSTER, "A", "1"), (LISTENER, "l", "bad"), m]));
    let reply = only(client.receive());
    client.nack(&reply, "Error adding/updating listener(s) l: no");
    assert_eq!(only(client.settle()).resources, ["m=2"]);
    // What replaces it waits for a cluster when it is not wanted any more.
    client.publish(plane.publish(&[(CLUSTER, "A", "2"), (LISTENER, "l", "to A too"), m]));
    let cluster = only(client.receive());
    client.unsubscribe(LISTENER, &["l"]);
    client.ack(&cluster);
    client.publish(plane.publish(&[m]));
    assert_eq!(only(client.settle()).removed, ["A"]);
}

#[test]
fn r44_what_was_refused_and_goes_without_a_word_keeps_nothing() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(CLUSTER, "A", "1"), (ROUTE, "r", "bad")]));
    client.ask(CLUSTER, &[]);
    client.ask(ROUTE, &["r"]);
    let cluster = only(client.receive());
    client.ack(&cluster);
    let route = only(client.receive());
    client.send(&Request {
        names: names(&["r"]),
        ..answer(&route, Some("no"))
    });
    client.publish(plane.publish(&[(ROUTE, "r", "bad")]));
    client.wait(3_600_000);
    assert!(client.receive().is_empty(), "r may refer to A");
    client.publish(plane.publish(&[]));
    assert!(only(client.settle()).resources.is_empty());
    assert!(client.is_at_rest());
}
