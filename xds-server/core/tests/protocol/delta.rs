//! Incremental streams.

use isthmus_xds_core::stream::{Event, Peer};
use isthmus_xds_core::{Name, Request, RequestError, Variant, limits};

use crate::support::*;

const UNKNOWN: &str = "type.googleapis.com/example.Unknown";

#[test]
fn r01_first_wildcard_gets_everything_and_an_ack_gets_nothing() {
    let mut plane = Plane::default();
    let view = plane.publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]);
    let mut client = Client::delta(view);
    client.ask(CLUSTER, &[]);
    let reply = only(client.receive());
    assert_eq!(reply.resources, ["a=1", "b=1"]);
    client.ack(&reply);
    assert!(client.receive().is_empty(), "R13");
    assert!(client.is_settled(CLUSTER));
}

#[test]
fn r02_aggregated_request_without_type_is_refused() {
    let mut client = Client::delta(Plane::default().publish(&[]));
    let refused = client.try_send(&Request::default());
    assert_eq!(refused, Err(RequestError::NoTypeUrl));
}

#[test]
fn r02_stream_of_one_type_takes_no_other_and_needs_no_name_for_its_own() {
    let mut plane = Plane::default();
    let view = plane.publish(&[(CLUSTER, "a", "1")]);
    let mut client = Client::new(Variant::Delta, Peer::Envoy, Some(CLUSTER), view);
    let refused = client.try_send(&ask(Variant::Delta, LISTENER, &[]));
    assert!(matches!(refused, Err(RequestError::WrongType { .. })));
    client.ask("", &[]);
    assert_eq!(only(client.receive()).resources, ["a=1"]);
}

#[test]
fn r21_n03_asking_again_for_a_held_resource_sends_it_again() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &["a"]);
    client.settle();
    client.ask(CLUSTER, &["a"]);
    assert_eq!(only(client.settle()).resources, ["a=1"]);
}

#[test]
fn r22_n06_unsubscribing_a_name_under_the_wildcard_is_answered() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &["*", "a", "x"]);
    client.settle();
    client.unsubscribe(CLUSTER, &["a"]);
    assert_eq!(only(client.settle()).resources, ["a=1"]);
    client.unsubscribe(CLUSTER, &["x"]);
    assert_eq!(only(client.settle()).removed, ["x"]);
}

#[test]
fn r22_unsubscribing_what_was_not_subscribed_is_ignored() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(ENDPOINT, "a", "1")]));
    client.ask(ENDPOINT, &["a"]);
    client.settle();
    client.unsubscribe(ENDPOINT, &["b"]);
    assert!(client.receive().is_empty());
    client.unsubscribe(ENDPOINT, &["a"]);
    assert!(client.receive().is_empty());
    client.publish(plane.publish(&[(ENDPOINT, "a", "2")]));
    assert!(client.receive().is_empty(), "nobody wants it");
}

#[test]
fn r23_nothing_unasked_is_sent() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(ENDPOINT, "a", "1"), (ENDPOINT, "b", "1")]));
    client.ask(ENDPOINT, &["a"]);
    assert_eq!(only(client.settle()).resources, ["a=1"]);
    client.publish(plane.publish(&[(ENDPOINT, "a", "1"), (ENDPOINT, "b", "2")]));
    assert!(client.receive().is_empty());
}

#[test]
fn r25_on_demand_clusters_beside_the_wildcard() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &["*"]);
    client.settle();
    client.ask(CLUSTER, &["x"]);
    let reply = only(client.receive());
    assert_eq!(
        (reply.resources.len(), reply.removed),
        (0, vec!["x".to_owned()])
    );
}

#[test]
fn r25_who_asks_does_not_wait_for_an_unanswered_push() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &["*"]);
    only(client.receive());
    client.ask(CLUSTER, &["x"]);
    assert_eq!(only(client.receive()).removed, ["x"]);
}

#[test]
fn r28_r29_n04_a_name_that_does_not_exist_is_told_at_once_and_sent_when_it_does() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[]));
    client.ask(CLUSTER, &["x"]);
    assert_eq!(only(client.settle()).removed, ["x"]);
    client.publish(plane.publish(&[(CLUSTER, "x", "1")]));
    assert_eq!(only(client.settle()).resources, ["x=1"]);
}

#[test]
fn r27_removal_is_told_by_name() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]));
    client.ask(CLUSTER, &[]);
    client.settle();
    client.publish(plane.publish(&[(CLUSTER, "a", "1")]));
    let reply = only(client.settle());
    assert_eq!(
        (reply.resources.len(), reply.removed),
        (0, vec!["b".to_owned()])
    );
}

#[test]
fn r34_n15_first_wildcard_on_an_empty_view_is_answered_once() {
    let mut client = Client::delta(Plane::default().publish(&[]));
    client.ask(LISTENER, &[]);
    let reply = only(client.settle());
    assert!(reply.resources.is_empty() && reply.removed.is_empty());
    client.ask(LISTENER, &[]);
    assert!(client.receive().is_empty());
}

#[test]
fn r36_n01_subscription_with_a_stale_nonce_is_honoured() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(ENDPOINT, "a", "1"), (ENDPOINT, "b", "1")]));
    client.ask(ENDPOINT, &["a"]);
    let first = only(client.settle());
    client.publish(plane.publish(&[(ENDPOINT, "a", "2"), (ENDPOINT, "b", "1")]));
    let second = only(client.receive());
    client.send(&Request {
        subscribe: names(&["b"]),
        ..answer(&first, None)
    });
    let third = only(client.receive());
    assert_eq!(third.resources, ["b=1"]);
    assert!(
        client
            .events()
            .iter()
            .any(|it| matches!(it, Event::StaleNonce { .. }))
    );
    client.ack(&second);
    client.ack(&third);
    assert!(client.is_settled(ENDPOINT));
}

#[test]
fn r35_r37_n13_answers_that_change_the_subscription_change_it() {
    for error in [None, Some("no")] {
        let mut plane = Plane::default();
        let view = plane.publish(&[(ENDPOINT, "a", "1"), (ENDPOINT, "b", "1")]);
        let mut client = Client::delta(view);
        client.ask(ENDPOINT, &["a"]);
        let reply = only(client.receive());
        client.send(&Request {
            subscribe: names(&["b"]),
            unsubscribe: names(&["a"]),
            ..answer(&reply, error)
        });
        assert_eq!(only(client.settle()).resources, ["b=1"], "{error:?}");
        client.publish(plane.publish(&[(ENDPOINT, "a", "2"), (ENDPOINT, "b", "1")]));
        assert!(
            client.receive().is_empty(),
            "{error:?}: a is not wanted any more"
        );
    }
}

#[test]
fn r38_r39_n07_reconnecting_costs_what_changed() {
    // Another replica: another history of views.
    let mut plane = Plane::default();
    plane.publish(&[(CLUSTER, "z", "1")]);
    let view = plane.publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "2")]);
    let held = |name: &str, value: &str| (Name::from(name), version(CLUSTER, name, value));
    for subscribe in [names(&[]), names(&["*"]), names(&["a", "b", "c"])] {
        let mut client = Client::delta(view.clone());
        client.send(&Request {
            subscribe: subscribe.clone(),
            initial_versions: vec![held("a", "1"), held("b", "1"), held("c", "1")],
            ..ask(Variant::Delta, CLUSTER, &[])
        });
        let reply = only(client.settle());
        assert_eq!(reply.resources, ["b=2"], "{subscribe:?}");
        assert_eq!(reply.removed, ["c"], "{subscribe:?}");
    }
}

#[test]
fn r38_n20_reconnecting_with_equal_versions_costs_nothing() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.send(&Request {
        initial_versions: vec![(Name::from("a"), version(CLUSTER, "a", "1"))],
        ..ask(Variant::Delta, CLUSTER, &["*"])
    });
    assert!(client.receive().is_empty());
    assert!(client.is_settled(CLUSTER));
}

#[test]
fn r38_versions_that_are_not_ours_match_nothing() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.send(&Request {
        initial_versions: vec![(Name::from("a"), "0".to_owned())],
        ..ask(Variant::Delta, CLUSTER, &["*"])
    });
    assert_eq!(only(client.settle()).resources, ["a=1"]);
}

#[test]
fn r38_initial_versions_count_on_the_first_request_of_a_type_only() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(ENDPOINT, "a", "1"), (ENDPOINT, "b", "1")]));
    client.ask(ENDPOINT, &["a"]);
    client.settle();
    client.send(&Request {
        initial_versions: vec![(Name::from("b"), version(ENDPOINT, "b", "1"))],
        ..ask(Variant::Delta, ENDPOINT, &["b"])
    });
    assert_eq!(only(client.settle()).resources, ["b=1"]);
}

#[test]
fn r08_n16_a_nonce_of_another_stream_means_nothing() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.send(&Request {
        nonce: "7-1".to_owned(),
        ..ask(Variant::Delta, CLUSTER, &[])
    });
    assert!(
        client.events().is_empty(),
        "it is no answer, not a stale one"
    );
    let reply = only(client.receive());
    assert_eq!(reply.resources, ["a=1"]);
    for nonce in ["8-1", "7-2", "7", "nonsense", "7--1"] {
        client.send(&Request {
            nonce: nonce.to_owned(),
            ..ask(Variant::Delta, CLUSTER, &[])
        });
        assert!(!client.is_settled(CLUSTER), "{nonce} is no answer");
    }
    client.ack(&reply);
    assert!(client.is_settled(CLUSTER));
}

#[test]
fn an_unknown_type_stays_idle_and_is_answered() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(UNKNOWN, &["x"]);
    assert_eq!(only(client.settle()).removed, ["x"]);
    client.ask(CLUSTER, &[]);
    assert_eq!(only(client.settle()).resources, ["a=1"]);
    // A type by any other URL works with no code.
    client.publish(plane.publish(&[(CLUSTER, "a", "1"), (UNKNOWN, "x", "1")]));
    assert_eq!(only(client.settle()).resources, ["x=1"]);
}

#[test]
fn changes_while_a_response_is_unanswered_coalesce() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "0"), (CLUSTER, "b", "0")]));
    client.ask(CLUSTER, &[]);
    let first = only(client.receive());
    for value in ["1", "2", "3"] {
        client.publish(plane.publish(&[(CLUSTER, "a", value), (CLUSTER, "b", "0")]));
        assert!(client.receive().is_empty());
    }
    client.ack(&first);
    assert_eq!(only(client.settle()).resources, ["a=3"]);
}

#[test]
fn a_change_there_and_back_sends_nothing() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "0")]));
    client.ask(CLUSTER, &[]);
    let first = only(client.receive());
    client.publish(plane.publish(&[(CLUSTER, "a", "1")]));
    client.publish(plane.publish(&[(CLUSTER, "a", "0")]));
    client.publish(plane.publish(&[(CLUSTER, "a", "0"), (CLUSTER, "b", "0")]));
    client.publish(plane.publish(&[(CLUSTER, "a", "0")]));
    client.ack(&first);
    assert!(client.settle().is_empty());
    assert!(client.is_settled(CLUSTER));
}

#[test]
fn n18_ten_thousand_resources_go_in_several_responses_each_below_four_megabytes() {
    let body = "x".repeat(1000);
    let keys: Vec<String> = (0..10_000).map(|number| format!("c{number:05}")).collect();
    let content: Vec<(&str, &str, &str)> = keys
        .iter()
        .map(|key| (ENDPOINT, key.as_str(), body.as_str()))
        .collect();
    let mut client = Client::delta(Plane::default().publish(&content));
    client.ask(
        ENDPOINT,
        &keys.iter().map(String::as_str).collect::<Vec<_>>(),
    );

    let first = only(client.receive());
    client.ack(&first);
    let mut replies = vec![first];
    replies.extend(client.settle());
    assert!(replies.len() > 2, "{} responses", replies.len());
    assert!(
        replies
            .iter()
            .all(|reply| reply.size_bytes < 4 * 1024 * 1024)
    );
    assert_eq!(
        replies
            .iter()
            .map(|reply| reply.resources.len())
            .sum::<usize>(),
        keys.len()
    );
}

#[test]
fn a_name_over_the_limit_ends_the_stream_and_nothing_is_applied() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    let long = "x".repeat(limits::NAME_BYTES + 1);
    let refused = client.try_send(&ask(Variant::Delta, CLUSTER, &["a", &long]));
    assert_eq!(
        refused,
        Err(RequestError::LongName {
            size_bytes: long.len()
        })
    );
    assert!(client.receive().is_empty());
}

#[test]
fn a_type_url_over_the_limit_ends_any_stream() {
    let long = "t".repeat(limits::TYPE_URL_BYTES + 1);
    let refused = Err(RequestError::LongTypeUrl {
        size_bytes: long.len(),
    });
    for only_type in [None, Some(CLUSTER)] {
        let view = Plane::default().publish(&[]);
        let mut client = Client::new(Variant::Delta, Peer::Envoy, only_type, view);
        let request = ask(Variant::Delta, &long, &["a"]);
        assert_eq!(client.try_send(&request), refused, "{only_type:?}");
    }
    let mut client = Client::delta(Plane::default().publish(&[]));
    let request = ask(Variant::Delta, &long[1..], &["a"]);
    assert_eq!(client.try_send(&request), Ok(()));
}

#[test]
fn names_and_types_are_bounded() {
    let mut client = Client::delta(Plane::default().publish(&[]));
    let keys: Vec<Name> = (0..limits::SUBSCRIBED_NAMES)
        .map(|it| Name::from(it.to_string()))
        .collect();
    let request = |keys: &[Name]| Request {
        subscribe: keys.to_vec(),
        ..ask(Variant::Delta, ENDPOINT, &[])
    };
    client.send(&request(&keys));
    client.send(&request(&keys[..10]));
    let refused = client.try_send(&request(&[Name::from("one more")]));
    assert!(matches!(refused, Err(RequestError::TooManyNames { .. })));

    let mut client = Client::delta(Plane::default().publish(&[]));
    for number in 0..limits::TYPES_PER_STREAM {
        client.ask(&format!("t{number}"), &[]);
    }
    let refused = client.try_send(&ask(Variant::Delta, "one more", &[]));
    assert_eq!(refused, Err(RequestError::TooManyTypes));
}

#[test]
fn r32_n21_an_extension_stays_while_a_listener_may_refer_to_it() {
    let mut plane = Plane::default();
    let view = plane.publish(&[(LISTENER, "l", "uses e"), (EXTENSION_CONFIG, "e", "1")]);
    let mut client = Client::delta(view);
    client.ask(LISTENER, &[]);
    client.ask(EXTENSION_CONFIG, &["e"]);
    client.settle();
    client.publish(plane.publish(&[(LISTENER, "l", "uses nothing")]));
    let reply = only(client.receive());
    assert_eq!(types(std::slice::from_ref(&reply)), ["lds"]);
    client.wait(5_000);
    assert!(client.receive().is_empty(), "the listener is not answered");
    client.ack(&reply);
    assert_eq!(only(client.settle()).removed, ["e"]);
}

#[test]
fn r55_a_glob_is_a_folder_now_and_later() {
    let mut plane = Plane::default();
    let inside = "xdstp://a/t/f/x?k=v&z=1";
    let view = plane.publish(&[
        (ENDPOINT, inside, "1"),
        (ENDPOINT, "xdstp://a/t/f/g/y?k=v&z=1", "1"),
        (ENDPOINT, "xdstp://a/t/f/x?k=other", "1"),
        (ENDPOINT, "plain", "1"),
    ]);
    let mut client = Client::delta(view);
    client.ask(ENDPOINT, &["xdstp://a/t/f/*?z=1&k=v"]);
    assert_eq!(only(client.settle()).resources, [format!("{inside}=1")]);

    client.publish(plane.publish(&[
        (ENDPOINT, inside, "1"),
        (ENDPOINT, "xdstp://a/t/f/w?k=v&z=1", "1"),
    ]));
    assert_eq!(
        only(client.settle()).resources,
        ["xdstp://a/t/f/w?k=v&z=1=1"]
    );
    client.unsubscribe(ENDPOINT, &["xdstp://a/t/f/*?k=v&z=1"]);
    client.publish(plane.publish(&[(ENDPOINT, inside, "2")]));
    assert!(client.receive().is_empty());
}

#[test]
fn r55_an_empty_glob_is_told_by_its_own_name() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[]));
    client.ask(ENDPOINT, &["xdstp://a/t/f/*"]);
    assert_eq!(only(client.settle()).removed, ["xdstp://a/t/f/*"]);
    client.publish(plane.publish(&[(ENDPOINT, "xdstp://a/t/f/x", "1")]));
    assert_eq!(only(client.settle()).resources, ["xdstp://a/t/f/x=1"]);
    client.publish(plane.publish(&[]));
    assert_eq!(only(client.settle()).removed, ["xdstp://a/t/f/x"]);
}

#[test]
fn r55_a_reconnecting_glob_learns_what_is_gone() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(ENDPOINT, "xdstp://a/t/f/x", "1")]));
    let held = |name: &str| (Name::from(name), version(ENDPOINT, name, "1"));
    client.send(&Request {
        initial_versions: vec![held("xdstp://a/t/f/x"), held("xdstp://a/t/f/gone")],
        ..ask(Variant::Delta, ENDPOINT, &["xdstp://a/t/f/*"])
    });
    let reply = only(client.settle());
    assert_eq!(
        (reply.resources.len(), reply.removed),
        (0, vec!["xdstp://a/t/f/gone".to_owned()])
    );
}

#[test]
fn r57_n22_virtual_hosts_are_found_by_alias_and_absence_has_a_name() {
    let mut plane = Plane::default();
    let hosts = [
        (ROUTE, "rc", "1"),
        (
            VIRTUAL_HOST,
            "rc/shop",
            "1,rc/shop.example,rc/www.shop.example",
        ),
    ];
    let view = plane.publish(&hosts);
    let mut client = Client::delta(view.clone());
    client.ask(ROUTE, &["rc"]);
    client.ask(VIRTUAL_HOST, &["rc/shop.example"]);
    let replies = client.settle();
    assert_eq!(replies[1].resources, [format!("rc/shop={}", hosts[1].2)]);
    assert!(replies[1].bodyless.is_empty(), "it exists, by another name");

    // Without a route configuration that brings them along.
    let mut alone = Client::delta(view);
    alone.ask(VIRTUAL_HOST, &["rc/www.shop.example"]);
    let reply = only(alone.settle());
    assert_eq!(reply.resources, replies[1].resources);
    assert!(reply.bodyless.is_empty());

    client.ask(VIRTUAL_HOST, &["rc/unknown.example"]);
    let reply = only(client.settle());
    assert_eq!(
        (reply.bodyless, reply.removed.len()),
        (vec!["rc/unknown.example".to_owned()], 0)
    );

    // A change of the virtual host comes under the alias that was asked for.
    let mut changed = hosts;
    changed[1].2 = "2,rc/shop.example";
    client.publish(plane.publish(&changed));
    assert_eq!(
        only(client.settle()).resources,
        ["rc/shop=2,rc/shop.example"]
    );

    // A route configuration that is sent again clears the hosts that Envoy had.
    changed[0].2 = "2";
    client.publish(plane.publish(&changed));
    let replies = client.settle();
    assert_eq!(replies[0].resources, ["rc=2"]);
    assert_eq!(replies[1].resources, ["rc/shop=2,rc/shop.example"]);

    client.unsubscribe(VIRTUAL_HOST, &["rc/shop.example", "rc/unknown.example"]);
    changed[1].2 = "3,rc/shop.example";
    client.publish(plane.publish(&changed));
    assert!(client.receive().is_empty());
}

#[test]
fn r16_r57_a_request_for_no_virtual_host_is_for_all_of_them() {
    let mut plane = Plane::default();
    let hosts = [(ROUTE, "rc", "1"), (VIRTUAL_HOST, "rc/shop", "1")];
    let mut client = Client::delta(plane.publish(&hosts));
    client.ask(ROUTE, &["rc"]);
    client.ask(VIRTUAL_HOST, &[]);
    let replies = client.settle();
    assert_eq!(replies[1].resources, ["rc/shop=1"]);
}
