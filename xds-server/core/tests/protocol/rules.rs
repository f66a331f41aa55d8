//! Rules that need little to be shown, each under its number.

use isthmus_xds_core::stream::{Event, Peer};
use isthmus_xds_core::{Name, Request, Variant};
use proptest::prelude::*;

use crate::support::*;

const BOTH: [Variant; 2] = [Variant::Delta, Variant::Sotw];

#[test]
fn r03_r40_a_stream_knows_nothing_of_an_earlier_one() {
    let view = Plane::default().publish(&[(ENDPOINT, "a", "1")]);
    for _ in 0..2 {
        let mut client = Client::delta(view.clone());
        client.ask(ENDPOINT, &["a"]);
        assert_eq!(only(client.settle()).resources, ["a=1"]);
    }
}

#[test]
fn r09_a_refusal_is_one_by_its_error_and_not_by_its_version() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &[]);
    let reply = only(client.receive());
    client.send(&Request {
        version: reply.version.clone(),
        ..answer(&reply, Some("no"))
    });
    assert!(matches!(client.events()[0], Event::Nacked { .. }));
    let mut client = Client::sotw(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &[]);
    let reply = only(client.receive());
    client.send(&Request {
        version: "of long ago".to_owned(),
        ..answer(&reply, None)
    });
    assert!(matches!(client.events()[0], Event::Acked { .. }));
}

#[test]
fn r18_n05_an_incremental_name_keeps_the_wildcard_until_it_is_dropped() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]));
    client.ask(CLUSTER, &[]);
    client.settle();
    client.ask(CLUSTER, &["a"]);
    client.settle();
    client.publish(plane.publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "2")]));
    assert_eq!(only(client.settle()).resources, ["b=2"]);
    client.unsubscribe(CLUSTER, &["*"]);
    client.publish(plane.publish(&[(CLUSTER, "a", "2"), (CLUSTER, "b", "3")]));
    assert_eq!(only(client.settle()).resources, ["a=2"]);
    client.unsubscribe(CLUSTER, &["a"]);
    client.publish(plane.publish(&[(CLUSTER, "a", "3"), (CLUSTER, "b", "4")]));
    assert!(client.receive().is_empty());
}

#[test]
fn r19_the_wildcard_and_names_come_together_on_reconnect() {
    for variant in BOTH {
        let view = Plane::default().publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]);
        let mut client = Client::featured(variant, &[], view);
        client.ask(CLUSTER, &["*", "a"]);
        assert_eq!(
            only(client.receive()).resources,
            ["a=1", "b=1"],
            "{variant:?}"
        );
    }
}

#[test]
fn r31_r65_names_are_the_resources_own_whatever_they_look_like() {
    let name = "grpc/server?xds.resource.listening_address=[::]:50051";
    for variant in BOTH {
        let view = Plane::default().publish(&[(LISTENER, name, "1")]);
        let mut client = Client::featured(variant, &[], view);
        client.ask(LISTENER, &[name]);
        assert_eq!(only(client.receive()).resources, [format!("{name}=1")]);
    }
}

#[test]
fn r33_r49_an_empty_load_assignment_is_sent_and_not_left_out() {
    for variant in BOTH {
        let view = Plane::default().publish(&[(ENDPOINT, "a", "")]);
        let mut client = Client::featured(variant, &[], view);
        client.ask(ENDPOINT, &["a"]);
        assert_eq!(only(client.receive()).resources, ["a="], "{variant:?}");
    }
}

#[test]
fn r41_every_response_has_a_nonce_of_its_own() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &[]);
    let first = only(client.settle());
    client.publish(plane.publish(&[(CLUSTER, "a", "2")]));
    let second = only(client.settle());
    assert!(!first.nonce.is_empty() && !second.nonce.is_empty());
    assert_ne!(first.nonce, second.nonce);
}

#[test]
fn r50_a_route_that_a_changed_listener_still_names_is_not_sent_again() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(LISTENER, "l", "1"), (ROUTE, "r", "1")]));
    client.ask(LISTENER, &[]);
    client.ask(ROUTE, &["r"]);
    client.settle();
    client.publish(plane.publish(&[(LISTENER, "l", "2"), (ROUTE, "r", "1")]));
    assert_eq!(types(&client.settle()), ["lds"]);
}

#[test]
fn r52_what_is_missing_holds_up_nothing_else() {
    for variant in BOTH {
        let view = Plane::default().publish(&[(ENDPOINT, "a", "1"), (ROUTE, "r", "1")]);
        let mut client = Client::featured(variant, &[], view);
        client.ask(ENDPOINT, &["a", "never"]);
        client.ask(ROUTE, &["r", "never"]);
        let sent: Vec<String> = client
            .settle()
            .into_iter()
            .flat_map(|it| it.resources)
            .collect();
        assert_eq!(sent, ["a=1", "r=1"], "{variant:?}");
    }
}

#[test]
fn r56_what_does_not_exist_is_told_once_as_an_error_to_who_reads_it() {
    for type_url in [LISTENER, ROUTE] {
        let mut plane = Plane::default();
        let view = plane.publish(&[(type_url, "a", "1")]);
        let mut client = Client::new(Variant::Sotw, Peer::Grpc, None, view.clone());
        client.ask(type_url, &["a", "x"]);
        let first = only(client.receive());
        assert_eq!(
            (&first.resources[..], &first.missing[..]),
            (&["a=1".to_owned()][..], &["x".to_owned()][..])
        );
        client.ack_with(&first, &["a", "x"]);
        client.publish(plane.publish(&[(type_url, "a", "2")]));
        let next = only(client.receive());
        assert_eq!(
            (&next.resources[..], next.missing.len()),
            (&["a=2".to_owned()][..], 0),
            "once"
        );
        let mut other = Client::sotw(view);
        other.ask(type_url, &["a", "x"]);
        assert!(
            only(other.receive()).missing.is_empty(),
            "Envoy does not read it"
        );
    }
}

#[test]
fn r56_incremental_errors_are_removals_too_and_not_for_the_wildcard() {
    let view = Plane::default().publish(&[]);
    let feature = isthmus_xds_core::features::READS_ERRORS;
    let mut client = Client::featured(Variant::Delta, &[feature], view.clone());
    client.ask(CLUSTER, &["x"]);
    let reply = only(client.settle());
    assert_eq!(
        (reply.removed, reply.missing),
        (vec!["x".to_owned()], vec!["x".to_owned()])
    );
    let mut client = Client::featured(Variant::Delta, &[feature], view);
    client.ask(CLUSTER, &["*", "x"]);
    let reply = only(client.settle());
    assert_eq!((reply.removed.len(), reply.missing.len()), (1, 0));
}

#[test]
fn r60_content_is_never_rewritten_for_a_client() {
    let view = Plane::default().publish(&[(ENDPOINT, "a", "1")]);
    let features = [
        "envoy.lb.does_not_support_overprovisioning",
        "envoy.config.require-any-fields-contain-struct",
    ];
    for variant in BOTH {
        let replies = [&features[..], &[]].map(|features| {
            let mut client = Client::featured(variant, features, view.clone());
            client.ask(ENDPOINT, &["a"]);
            let reply = only(client.receive());
            (reply.resources, reply.version, reply.size_bytes)
        });
        assert_eq!(replies[0], replies[1], "{variant:?}");
    }
}

#[test]
fn r63_an_incremental_client_need_not_wait_for_its_timer() {
    let mut client = Client::delta(Plane::default().publish(&[]));
    client.ask(ROUTE, &["x"]);
    assert_eq!(only(client.receive()).removed, ["x"], "at once");
}

#[test]
fn r66_a_response_over_what_grpc_takes_is_told() {
    let body = "x".repeat(5 * 1024 * 1024);
    for (peer, expected) in [(Peer::Grpc, 1), (Peer::Envoy, 0)] {
        let view = Plane::default().publish(&[(CLUSTER, "a", &body)]);
        let mut client = Client::new(Variant::Sotw, peer, None, view);
        client.ask(CLUSTER, &["a"]);
        only(client.receive());
        let events = client.events().into_iter();
        let told = events.filter(|it| matches!(it, Event::Oversized { .. }));
        assert_eq!(told.count(), expected, "{peer:?}");
    }
}

#[test]
fn r38_n20_five_thousand_streams_come_back_for_no_byte() {
    let view = Plane::default().publish(&[(CLUSTER, "a", "1"), (ENDPOINT, "a", "1")]);
    let held = |url| vec![(Name::from("a"), version(url, "a", "1"))];
    for _ in 0..5000 {
        let mut client = Client::delta(view.clone());
        for (url, name) in [(CLUSTER, "*"), (ENDPOINT, "a")] {
            client.send(&Request {
                initial_versions: held(url),
                ..ask(Variant::Delta, url, &[name])
            });
        }
        assert!(client.receive().is_empty() && client.is_at_rest());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    // The decoder of these tests refuses a response that breaks the rule.
    #[test]
    fn r30_n17_names_are_unique_and_disjoint_from_what_is_removed(
        sets in prop::collection::vec(prop::collection::btree_set("[a-e]", 0..5), 1..6),
        asked in prop::collection::vec("[a-f]", 0..6),
        is_grpc: bool,
    ) {
        for variant in BOTH {
            let peer = if is_grpc { Peer::Grpc } else { Peer::Envoy };
            let mut plane = Plane::default();
            let mut client = Client::new(variant, peer, None, plane.publish(&[]));
            let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
            client.ask(CLUSTER, &asked);
            for (number, set) in sets.iter().enumerate() {
                let value = number.to_string();
                let content: Vec<_> = set.iter().map(|name| (CLUSTER, &**name, &*value)).collect();
                client.publish(plane.publish(&content));
                for reply in client.receive() {
                    client.ack_with(&reply, &asked);
                }
            }
        }
    }
}
