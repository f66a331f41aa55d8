//! A refusal concerns a response; these find the resource that it is about, and have the others
//! sent (build item 7 of the issue, R10, R42, R64).

use isthmus_xds_core::stream::Event;
use isthmus_xds_core::{Request, Variant, limits};

use crate::support::*;

// Answers as a client does that refuses what `is_bad`, taking nothing of such a response, until
// all is quiet. `says` gets the names of those. Returns all responses.
fn answer_all(
    client: &mut Client,
    asked: &[&str],
    is_bad: impl Fn(&str) -> bool,
    says: impl Fn(&[&str]) -> String,
) -> Vec<Reply> {
    let mut all = Vec::new();
    loop {
        let replies = client.receive();
        if replies.is_empty() {
            return all;
        }
        for reply in replies {
            let bad = reply.resources.iter().filter(|it| is_bad(it));
            let bad: Vec<&str> = bad.filter_map(|it| it.split('=').next()).collect();
            let error = (!bad.is_empty()).then(|| says(&bad));
            client.send(&Request {
                names: names(asked),
                ..answer(&reply, error.as_deref())
            });
            all.push(reply);
        }
        assert!(all.len() < 10_000, "it does not come to an end");
    }
}

fn silent(_: &[&str]) -> String {
    "refused".to_owned()
}

fn isolated(client: &mut Client) -> Vec<String> {
    let events = client.events().into_iter();
    let names = events.filter_map(|event| match event {
        Event::Isolated { name, .. } => Some(name.to_string()),
        Event::Acked { .. }
        | Event::Nacked { .. }
        | Event::StaleNonce { .. }
        | Event::Oversized { .. } => None,
    });
    names.collect()
}

#[test]
fn r10_n12_a_refused_resource_is_not_sent_again_until_it_differs() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &[]);
    client.settle();
    let bad = [(CLUSTER, "a", "bad"), (CLUSTER, "b", "1")];
    client.publish(plane.publish(&bad));
    let reply = only(client.receive());
    client.nack(&reply, "Error adding/updating cluster(s) a: is bad");
    let events = client.events();
    let [
        ..,
        Event::Nacked { refusal, .. },
        Event::Isolated { name, version, .. },
    ] = &events[..]
    else {
        panic!("the refusal is an event, and whom it is about: {events:?}");
    };
    assert_eq!(
        refusal.message,
        "Error adding/updating cluster(s) a: is bad"
    );
    assert_eq!(
        (&**name, version.to_string()),
        ("a", self::version(CLUSTER, "a", "bad"))
    );

    assert_eq!(only(client.settle()).resources, ["b=1"], "the others flow");
    client.wait(60_000);
    assert!(client.receive().is_empty(), "nothing in a minute");
    assert!(!client.is_settled(CLUSTER));
    assert_eq!(client.config_status(), ["a=Error", "b=Synced"]);

    // Other content goes on, and a commit that leaves it as it is does not bring it back.
    client.publish(plane.publish(&[(CLUSTER, "a", "bad"), (CLUSTER, "b", "2")]));
    assert_eq!(only(client.settle()).resources, ["b=2"]);
    // Nor do two that this client never saw apart: there and back.
    plane.publish(&[(CLUSTER, "a", "2"), (CLUSTER, "b", "2")]);
    client.publish(plane.publish(&[(CLUSTER, "a", "bad"), (CLUSTER, "b", "2")]));
    assert!(client.receive().is_empty(), "it is what was refused");
    // Going back to what was accepted clears the refusal.
    client.publish(plane.publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "2")]));
    assert_eq!(only(client.settle()).resources, ["a=1"]);
    assert!(client.is_settled(CLUSTER));
}

#[test]
fn r10_a_refused_resource_alone_is_the_culprit_without_a_word() {
    for variant in [Variant::Delta, Variant::Sotw] {
        let view = Plane::default().publish(&[(ENDPOINT, "a", "bad")]);
        let mut client = Client::featured(variant, &[], view);
        client.ask(ENDPOINT, &["a"]);
        let sent = answer_all(&mut client, &["a"], |it| it == "a=bad", silent);
        assert_eq!(sent.len(), 1, "{variant:?}");
        assert_eq!(isolated(&mut client), ["a"], "{variant:?}");
        client.wait(3_600_000);
        assert!(client.receive().is_empty(), "{variant:?}");
    }
}

#[test]
fn r64_the_culprit_is_found_by_halves_and_the_others_flow() {
    let keys: Vec<String> = (0..64).map(|number| format!("c{number:02}")).collect();
    let asked: Vec<&str> = keys.iter().map(String::as_str).collect();
    for variant in [Variant::Delta, Variant::Sotw] {
        for type_url in [CLUSTER, ENDPOINT] {
            let content: Vec<(&str, &str, &str)> =
                asked.iter().map(|key| (type_url, *key, "1")).collect();
            let mut client = Client::featured(variant, &[], Plane::default().publish(&content));
            client.ask(type_url, &asked);
            let sent = answer_all(&mut client, &asked, |it| it == "c41=1", silent);
            assert!(
                sent.len() <= 2 + 2 * 6,
                "{variant:?}: {} responses",
                sent.len()
            );
            assert_eq!(isolated(&mut client), ["c41"]);
            let status = client.config_status();
            let wrong: Vec<_> = status.iter().filter(|it| !it.ends_with("Synced")).collect();
            assert_eq!(wrong, ["c41=Error"], "{variant:?}");
        }
    }
}

#[test]
fn r64_who_is_merely_mentioned_is_tried_apart_before_it_is_blamed() {
    let mut plane = Plane::default();
    let content = [
        (ROUTE, "a", "1"),
        (ROUTE, "b", "1"),
        (ROUTE, "cluster", "1"),
    ];
    let asked = ["a", "b", "cluster"];
    let mut client = Client::delta(plane.publish(&content));
    client.ask(ROUTE, &asked);
    let says = |_: &[&str]| "unknown cluster in a".to_owned();
    let sent = answer_all(&mut client, &asked, |it| it == "a=1", says);
    let sent: Vec<&[String]> = sent.iter().map(|it| it.resources.as_slice()).collect();
    let expected: [&[&str]; 5] = [
        &["a=1", "b=1", "cluster=1"],
        &["b=1"],
        &["a=1", "cluster=1"],
        &["a=1"],
        &["cluster=1"],
    ];
    assert_eq!(sent, expected);
    assert_eq!(isolated(&mut client), ["a"]);
}

#[test]
fn r26_a_restated_set_has_a_refused_resource_as_it_was_accepted() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]));
    client.ask(CLUSTER, &[]);
    client.settle();
    let bad = [
        (CLUSTER, "a", "bad"),
        (CLUSTER, "b", "2"),
        (CLUSTER, "new", "bad"),
    ];
    client.publish(plane.publish(&bad));
    let is_bad = |it: &str| it.ends_with("=bad");
    let sent = answer_all(&mut client, &[], is_bad, silent);
    let last = sent.last().expect("there was a response");
    assert!(
        sent.iter()
            .all(|it| it.resources.iter().any(|it| it.starts_with("a=")))
    );
    assert_eq!(isolated(&mut client), ["a", "new"]);

    // The next set has a as it was, and what was never accepted not at all.
    let mut content = Client::sotw(Plane::default().publish(&bad));
    content.ask(CLUSTER, &[]);
    let whole = only(content.receive());
    assert_eq!(whole.resources, ["a=bad", "b=2", "new=bad"]);
    assert_ne!(last.version, whole.version, "it is another set");
    client.publish(plane.publish(&[bad[0], (CLUSTER, "b", "3"), bad[2]]));
    let next = only(client.settle());
    assert_eq!(next.resources, ["a=1", "b=3"]);
    assert!(client.is_at_rest() && !client.is_settled(CLUSTER));
    client.publish(plane.publish(&[(CLUSTER, "a", "2"), (CLUSTER, "b", "3")]));
    assert_eq!(only(client.settle()).resources, ["a=2", "b=3"]);
    assert!(client.is_settled(CLUSTER));
}

#[test]
fn r15_r26_a_returning_client_loses_nothing_by_a_refusal() {
    let mut plane = Plane::default();
    let view = plane.publish(&[(CLUSTER, "a", "bad"), (CLUSTER, "b", "1")]);
    let mut client = Client::sotw(view);
    client.send(&Request {
        version: "of an earlier stream".to_owned(),
        ..ask(Variant::Sotw, CLUSTER, &[])
    });
    let mut sent = answer_all(&mut client, &[], |it| it == "a=bad", silent);
    client.publish(plane.publish(&[(CLUSTER, "a", "bad"), (CLUSTER, "b", "2")]));
    sent.extend(answer_all(&mut client, &[], |it| it == "a=bad", silent));
    assert!(
        sent.iter().all(|it| it.resources.len() == 2),
        "it may hold either, and a set without it would delete it: {sent:?}"
    );
    let last = sent.last().expect("there was a response");
    assert_eq!(last.resources, ["a=bad", "b=2"]);
}

#[test]
fn a_client_that_refuses_everything_is_not_asked_for_ever() {
    let keys: Vec<String> = (0..2000).map(|number| number.to_string()).collect();
    let asked: Vec<&str> = keys.iter().map(String::as_str).collect();
    let content: Vec<_> = asked.iter().map(|key| (ENDPOINT, *key, "1")).collect();
    for variant in [Variant::Delta, Variant::Sotw] {
        let mut plane = Plane::default();
        let mut client = Client::featured(variant, &[], plane.publish(&content));
        client.ask(ENDPOINT, &asked);
        let sent = answer_all(&mut client, &asked, |_| true, silent);
        assert!(
            sent.len() <= limits::ISOLATION_REFUSALS as usize + 1,
            "{}",
            sent.len()
        );
        client.wait(3_600_000);
        assert!(client.receive().is_empty());
        assert!(client.is_at_rest());
        let mut fixed = content.clone();
        fixed[7].2 = "2";
        client.publish(plane.publish(&fixed));
        assert_eq!(only(client.receive()).resources, ["7=2"]);
    }
}

#[test]
fn the_search_goes_on_under_changes_and_changes_go_on_under_the_search() {
    let mut plane = Plane::default();
    let content = |churn: u32| -> Vec<(&'static str, String, String)> {
        let fixed = ["a", "b", "bad", "d"].map(|name| (ENDPOINT, name.to_owned(), "1".to_owned()));
        let mut all = fixed.to_vec();
        all.push((ENDPOINT, "churn".to_owned(), churn.to_string()));
        all
    };
    let mut publish = |churn| {
        let all = content(churn);
        let all: Vec<_> = all
            .iter()
            .map(|(url, name, it)| (*url, &**name, &**it))
            .collect();
        plane.publish(&all)
    };
    let asked = ["a", "b", "bad", "churn", "d"];
    let mut client = Client::delta(publish(0));
    client.ask(ENDPOINT, &asked);
    let mut newest_churn_sent = 0;
    let (mut waited, mut longest_wait) = (0, 0);
    for churn in 1..40 {
        for reply in client.receive() {
            let is_bad = reply.resources.iter().any(|it| it.starts_with("bad="));
            let has_churn = reply.resources.iter().any(|it| it.starts_with("churn="));
            newest_churn_sent += usize::from(has_churn);
            waited = if has_churn { 0 } else { waited + 1 };
            longest_wait = longest_wait.max(waited);
            client.send(&answer(&reply, is_bad.then_some("no")));
        }
        client.publish(publish(churn));
    }
    assert_eq!(
        isolated(&mut client),
        ["bad"],
        "though each round brings something new"
    );
    assert!(newest_churn_sent > 30, "{newest_churn_sent}");
    assert_eq!(longest_wait, 1, "they take turns");
}

#[test]
fn r44_a_refused_route_keeps_its_cluster_though_other_routes_were_accepted_since() {
    for variant in [Variant::Delta, Variant::Sotw] {
        let mut plane = Plane::default();
        let view = plane.publish(&[(CLUSTER, "A", "1"), (ROUTE, "r", "to A"), (ROUTE, "s", "1")]);
        let mut client = Client::featured(variant, &[], view);
        client.ask(CLUSTER, &[]);
        client.ask(ROUTE, &["r", "s"]);
        let asked = ["r", "s"];
        let is_bad = |it: &str| it == "r=bad";
        // Names of routes on answers about clusters would be names of clusters.
        let run = |client: &mut Client| {
            let mut all = Vec::new();
            loop {
                let replies = client.receive();
                if replies.is_empty() {
                    return all;
                }
                for reply in replies {
                    let is_route = reply.type_url == ROUTE;
                    let error = reply.resources.iter().any(|it| is_bad(it)).then_some("no");
                    client.send(&Request {
                        names: if is_route { names(&asked) } else { Vec::new() },
                        ..answer(&reply, error)
                    });
                    all.push(reply);
                }
            }
        };
        run(&mut client);
        client.publish(plane.publish(&[(ROUTE, "r", "bad"), (ROUTE, "s", "2")]));
        let sent = run(&mut client);
        assert_eq!(isolated(&mut client), ["r"], "{variant:?}");
        assert!(
            sent.iter().all(|it| it.type_url == ROUTE),
            "{variant:?}: {sent:?}"
        );
        assert_eq!(sent.last().expect("s came").type_url, ROUTE);
        client.wait(3_600_000);
        assert!(
            client.receive().is_empty(),
            "{variant:?}: r as it was still refers to A"
        );
        client.publish(plane.publish(&[(ROUTE, "r", "to nothing"), (ROUTE, "s", "2")]));
        let sent = run(&mut client);
        assert_eq!(
            sent.last().expect("A goes").type_url,
            CLUSTER,
            "{variant:?}"
        );
    }
}

#[test]
fn r44_what_was_refused_before_it_was_held_refers_to_nothing() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "A", "1")]));
    client.ask(CLUSTER, &[]);
    client.ask(ROUTE, &["r"]);
    client.settle();
    client.publish(plane.publish(&[(CLUSTER, "A", "1"), (ROUTE, "r", "bad")]));
    let route = only(client.receive());
    client.nack(&route, "no");
    client.publish(plane.publish(&[(ROUTE, "r", "bad")]));
    assert_eq!(only(client.settle()).removed, ["A"]);
}

#[test]
fn r42_what_was_refused_is_not_taken_for_held() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &[]);
    client.settle();
    client.publish(plane.publish(&[(CLUSTER, "a", "2")]));
    let second = only(client.receive());
    assert_eq!(client.acked_generation(CLUSTER), Some(1), "sent is not had");
    // It changes again before the answer to what was sent comes, and back to that very version.
    client.publish(plane.publish(&[(CLUSTER, "a", "3")]));
    client.nack(&second, "no");
    assert_eq!(client.acked_generation(CLUSTER), Some(1));
    client.publish(plane.publish(&[(CLUSTER, "a", "2")]));
    assert_eq!(
        only(client.settle()).resources,
        ["a=2"],
        "it was not accepted"
    );
    assert_eq!(client.acked_generation(CLUSTER), Some(4));
    assert!(client.is_settled(CLUSTER));
}

#[test]
fn r42_what_is_sent_before_a_refusal_comes_does_not_make_it_held() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(CLUSTER, "a", "1")]));
    client.ask(CLUSTER, &[]);
    client.settle();
    client.publish(plane.publish(&[(CLUSTER, "a", "bad")]));
    let first = only(client.receive());
    client.wait(1_600);
    client.publish(plane.publish(&[(CLUSTER, "a", "worse")]));
    let second = only(client.receive());
    client.nack(&first, "no");
    client.nack(&second, "no");
    let content = [(CLUSTER, "a", "worse"), (CLUSTER, "b", "1")];
    answer_all(&mut client, &[], |it| it == "a=worse", silent);
    client.publish(plane.publish(&content));
    assert_eq!(
        only(client.settle()).resources,
        ["a=1", "b=1"],
        "neither was accepted"
    );
}

#[test]
fn r21_who_asks_for_a_refused_resource_gets_it() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(ENDPOINT, "a", "1")]));
    client.ask(ENDPOINT, &["a"]);
    let reply = only(client.receive());
    client.nack(&reply, "not now");
    assert!(client.receive().is_empty());
    client.ask(ENDPOINT, &["a"]);
    assert_eq!(only(client.settle()).resources, ["a=1"]);
    assert!(client.is_settled(ENDPOINT));
}

#[test]
fn r10_what_was_refused_by_name_comes_with_the_wildcard_once_it_differs() {
    let mut plane = Plane::default();
    let mut client = Client::sotw(plane.publish(&[(CLUSTER, "a", "bad"), (CLUSTER, "b", "1")]));
    client.ask(CLUSTER, &["a"]);
    let reply = only(client.receive());
    client.send(&Request {
        names: names(&["a"]),
        ..answer(&reply, Some("no"))
    });
    client.ask(CLUSTER, &["*"]);
    // It differs before anything of the wildcard was sent.
    client.publish(plane.publish(&[(CLUSTER, "a", "1"), (CLUSTER, "b", "1")]));
    assert_eq!(only(client.receive()).resources, ["a=1", "b=1"]);
}

#[test]
fn r48_r10_endpoints_that_were_refused_are_not_brought_back_by_their_cluster() {
    let mut plane = Plane::default();
    let mut client = Client::delta(plane.publish(&[(CLUSTER, "a", "1"), (ENDPOINT, "a", "bad")]));
    client.ask(CLUSTER, &[]);
    client.ask(ENDPOINT, &["a"]);
    for reply in client.receive() {
        let error = (reply.type_url == ENDPOINT).then_some("no");
        client.send(&answer(&reply, error));
    }
    client.publish(plane.publish(&[(CLUSTER, "a", "2"), (ENDPOINT, "a", "bad")]));
    assert_eq!(only(client.settle()).type_url, CLUSTER);
}
