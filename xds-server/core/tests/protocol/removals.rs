//! Removals in responses that are refused: the client may go on with what it was to let go
//! (R42, R44).

use isthmus_xds_core::Variant;

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
