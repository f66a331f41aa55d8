//! Order across the types of an aggregated stream: make before break, gated on answers.

use isthmus_xds_core::{Request, Variant};

use crate::support::*;

const BOTH: [Variant; 2] = [Variant::Delta, Variant::Sotw];

// A sidecar that holds one cluster, its endpoints, a listener and a route.
fn sidecar(variant: Variant, plane: &mut Plane) -> Client {
    let view = plane.publish(&[
        (CLUSTER, "A", "1"),
        (ENDPOINT, "A", "1"),
        (LISTENER, "l", "1"),
        (ROUTE, "r", "to A"),
    ]);
    let mut client = match variant {
        Variant::Delta => Client::delta(view),
        Variant::Sotw => Client::sotw(view),
    };
    client.ask(CLUSTER, &[]);
    client.ask(ENDPOINT, &["A"]);
    client.ask(LISTENER, &[]);
    client.ask(ROUTE, &["r"]);
    settle_all(&mut client, &["A"], &["r"]);
    client
}

// Accepts everything, repeating names where the variant wants them repeated.
fn settle_all(client: &mut Client, endpoints: &[&str], routes: &[&str]) -> Vec<Reply> {
    let mut all = Vec::new();
    loop {
        let replies = client.receive();
        if replies.is_empty() {
            return all;
        }
        for reply in replies {
            accept(client, &reply, endpoints, routes);
            all.push(reply);
        }
    }
}

fn accept(client: &mut Client, reply: &Reply, endpoints: &[&str], routes: &[&str]) {
    match reply.type_url.as_str() {
        ENDPOINT => client.ack_with(reply, endpoints),
        ROUTE => client.ack_with(reply, routes),
        _ => client.ack(reply),
    }
}

#[test]
fn r43_types_are_made_in_order() {
    for variant in BOTH {
        let mut plane = Plane::default();
        let view = plane.publish(&[
            (ROUTE, "r", "1"),
            (LISTENER, "l", "1"),
            (SECRET, "s", "1"),
            (ENDPOINT, "A", "1"),
            (CLUSTER, "A", "1"),
        ]);
        let mut client = match variant {
            Variant::Delta => Client::delta(view),
            Variant::Sotw => Client::sotw(view),
        };
        client.ask(ROUTE, &["r"]);
        client.ask(LISTENER, &[]);
        client.ask(SECRET, &["s"]);
        client.ask(ENDPOINT, &["A"]);
        client.ask(CLUSTER, &[]);
        let made = settle_all(&mut client, &["A"], &["r"]);
        let mut order = types(&made);
        order.dedup();
        // EDS once more: the cluster that was just sent waits for it (R48).
        assert_eq!(order, ["cds", "eds", "sds", "lds", "rds"], "{variant:?}");
    }
}

#[test]
fn r44_n11_a_backend_switch_makes_before_it_breaks() {
    for variant in BOTH {
        let mut plane = Plane::default();
        let mut client = sidecar(variant, &mut plane);
        client.publish(plane.publish(&[
            (CLUSTER, "B", "1"),
            (ENDPOINT, "B", "1"),
            (LISTENER, "l", "1"),
            (ROUTE, "r", "to B"),
        ]));

        let clusters = only(client.receive());
        match variant {
            Variant::Delta => {
                assert_eq!(clusters.resources, ["B=1"]);
                assert!(clusters.removed.is_empty(), "A is still routed to");
            }
            Variant::Sotw => assert_eq!(clusters.resources, ["B=1", "A=1"]),
        }
        // The client warms the cluster: it asks for endpoints, and answers only then.
        client.ask(ENDPOINT, &["A", "B"]);
        let endpoints = client.receive();
        let sent: Vec<&String> = endpoints.iter().flat_map(|it| &it.resources).collect();
        assert!(
            sent.contains(&&"B=1".to_owned()),
            "{variant:?}: {endpoints:?}"
        );
        for reply in &endpoints {
            client.ack_with(reply, &["A", "B"]);
        }
        assert!(
            client.receive().is_empty(),
            "the route waits for the cluster"
        );

        client.ack(&clusters);
        let route = only(client.receive());
        assert_eq!(route.resources, ["r=to B"]);
        assert!(client.receive().is_empty(), "A waits for the route");
        client.ack_with(&route, &["r"]);

        let removal = only(client.receive());
        assert_eq!(types(std::slice::from_ref(&removal)), ["cds"]);
        match variant {
            Variant::Delta => assert_eq!(removal.removed, ["A"]),
            Variant::Sotw => assert_eq!(removal.resources, ["B=1"]),
        }
    }
}

#[test]
fn r44_a_refused_route_keeps_the_cluster_that_it_would_leave() {
    for variant in BOTH {
        let mut plane = Plane::default();
        let mut client = sidecar(variant, &mut plane);
        client.publish(plane.publish(&[(LISTENER, "l", "1"), (ROUTE, "r", "bad")]));
        let route = only(client.receive());
        client.send(&Request {
            names: names(&["r"]),
            ..answer(&route, Some("no"))
        });
        client.wait(3_600_000);
        assert!(
            client.receive().is_empty(),
            "{variant:?}: the old route is in force"
        );

        client.publish(plane.publish(&[(LISTENER, "l", "1"), (ROUTE, "r", "to nothing")]));
        let replies = settle_all(&mut client, &[], &["r"]);
        assert_eq!(types(&replies)[..2], ["rds", "cds"], "{variant:?}");
    }
}

#[test]
fn r44_a_removal_does_not_wait_for_ever_for_a_silent_client() {
    let mut plane = Plane::default();
    let mut client = sidecar(Variant::Delta, &mut plane);
    client.publish(plane.publish(&[(LISTENER, "l", "1"), (ROUTE, "r", "to nothing")]));
    only(client.receive());
    client.wait(9_000);
    assert!(client.receive().is_empty());
    let wake = client.next_wake().expect("there is something to come");
    client.now = wake;
    let removal = client.receive();
    assert_eq!(types(&removal)[0], "cds");
    assert_eq!(removal[0].removed, ["A"]);
}

#[test]
fn r44_a_pure_removal_goes_at_once() {
    let mut plane = Plane::default();
    let mut client = sidecar(Variant::Delta, &mut plane);
    let kept = [
        (LISTENER, "l", "1"),
        (ROUTE, "r", "to A"),
        (CLUSTER, "A", "1"),
    ];
    let mut more = kept.to_vec();
    more.push((CLUSTER, "spare", "1"));
    client.publish(plane.publish(&more));
    settle_all(&mut client, &["A"], &["r"]);
    client.publish(plane.publish(&kept));
    assert_eq!(client.receive()[0].removed, ["spare"]);
}

#[test]
fn r44_a_cluster_that_comes_back_before_it_broke_is_not_sent() {
    let mut plane = Plane::default();
    let mut client = sidecar(Variant::Delta, &mut plane);
    let whole = [
        (CLUSTER, "A", "1"),
        (ENDPOINT, "A", "1"),
        (LISTENER, "l", "1"),
        (ROUTE, "r", "to A"),
    ];
    client.publish(plane.publish(&[(LISTENER, "l", "1"), (ROUTE, "r", "to nothing")]));
    let route = only(client.receive());
    client.publish(plane.publish(&whole));
    client.ack_with(&route, &["r"]);
    let replies = settle_all(&mut client, &["A"], &["r"]);
    assert_eq!(
        types(&replies),
        ["rds"],
        "only the route differs from what the client holds"
    );
}

#[test]
fn a_listener_is_replaced_in_one_response() {
    for variant in BOTH {
        let mut plane = Plane::default();
        let mut client = sidecar(variant, &mut plane);
        client.publish(plane.publish(&[
            (CLUSTER, "A", "1"),
            (ENDPOINT, "A", "1"),
            (LISTENER, "m", "same port"),
            (ROUTE, "r", "to A"),
        ]));
        let reply = only(client.receive());
        assert_eq!(
            reply.resources,
            ["m=same port"],
            "{variant:?}: l would hold the port"
        );
        if variant == Variant::Delta {
            assert_eq!(reply.removed, ["l"]);
        }
    }
}

#[test]
fn r45_n10_a_route_never_overtakes_the_clusters_of_its_generation() {
    for variant in BOTH {
        let mut plane = Plane::default();
        let mut client = sidecar(variant, &mut plane);
        let generation = |cluster: &'static str, route: &'static str| {
            [
                (CLUSTER, "A", "1"),
                (CLUSTER, cluster, "1"),
                (ENDPOINT, "A", "1"),
                (LISTENER, "l", "1"),
                (ROUTE, "r", route),
            ]
        };
        client.publish(plane.publish(&generation("B", "to B")));
        let first = only(client.receive());
        client.publish(plane.publish(&generation("C", "to C")));
        assert!(
            client.receive().is_empty(),
            "clusters wait for their answer, and the route for them"
        );
        client.ack(&first);
        let second = only(client.receive());
        assert_eq!(types(std::slice::from_ref(&second)), ["cds"], "{variant:?}");
        client.ack(&second);
        assert_eq!(types(&client.receive())[0], "rds");
    }
}

#[test]
fn r45_a_route_never_overtakes_the_listeners_of_its_generation() {
    for variant in BOTH {
        let mut plane = Plane::default();
        let mut client = sidecar(variant, &mut plane);
        let generation = |listener: &'static str, route: &'static str| {
            [
                (CLUSTER, "A", "1"),
                (ENDPOINT, "A", "1"),
                (LISTENER, "l", listener),
                (ROUTE, "r", route),
            ]
        };
        client.publish(plane.publish(&generation("2", "to A")));
        let first = only(client.receive());
        client.publish(plane.publish(&generation("3", "as 3 has it")));
        assert!(client.receive().is_empty(), "{variant:?}: 3 is not sent");
        client.ack(&first);
        assert_eq!(types(&client.receive()), ["lds", "rds"], "{variant:?}");
    }
}

#[test]
fn r46_r51_n09_endpoints_and_secrets_flow_while_clusters_warm() {
    for variant in BOTH {
        let mut plane = Plane::default();
        let mut client = sidecar(variant, &mut plane);
        client.ask(SECRET, &["s"]);
        client.publish(plane.publish(&[
            (CLUSTER, "A", "2"),
            (ENDPOINT, "A", "2"),
            (SECRET, "s", "2"),
            (LISTENER, "l", "1"),
            (ROUTE, "r", "changed"),
        ]));
        let sent = client.receive();
        assert_eq!(types(&sent), ["cds", "eds", "sds"], "{variant:?}");
    }
}

#[test]
fn r46_n09_routes_wait_for_clusters_but_not_for_ever() {
    for variant in BOTH {
        let mut plane = Plane::default();
        let mut client = sidecar(variant, &mut plane);
        client.publish(plane.publish(&[
            (CLUSTER, "A", "never warms"),
            (ENDPOINT, "A", "1"),
            (LISTENER, "l", "1"),
            (ROUTE, "r", "changed"),
        ]));
        let sent = client.receive();
        assert_eq!(types(&sent), ["cds", "eds"], "{variant:?}");
        client.ack_with(&sent[1], &["A"]);
        client.wait(1_900);
        assert!(client.receive().is_empty());
        client.wait(200);
        assert_eq!(types(&client.receive()), ["rds"]);
    }
}

#[test]
fn r46a_n09_the_removal_of_a_stuck_cluster_still_arrives() {
    let mut plane = Plane::default();
    let mut client = sidecar(Variant::Delta, &mut plane);
    let healthy = [
        (CLUSTER, "A", "1"),
        (ENDPOINT, "A", "1"),
        (LISTENER, "l", "1"),
        (ROUTE, "r", "to A"),
    ];
    let mut stuck = healthy.to_vec();
    stuck.push((CLUSTER, "stuck", "1"));
    client.publish(plane.publish(&stuck));
    assert_eq!(only(client.receive()).resources, ["stuck=1"]);
    client.publish(plane.publish(&healthy));
    assert!(client.receive().is_empty());
    client.wait(10_000);
    assert_eq!(only(client.receive()).removed, ["stuck"]);
}

#[test]
fn r46a_n09_the_fix_of_a_stuck_cluster_still_arrives() {
    let mut plane = Plane::default();
    let mut client = sidecar(Variant::Delta, &mut plane);
    let with = |value: &'static str| {
        [
            (CLUSTER, "A", value),
            (LISTENER, "l", "1"),
            (ROUTE, "r", "to A"),
        ]
    };
    client.publish(plane.publish(&with("stuck")));
    client.receive();
    client.publish(plane.publish(&with("fixed")));
    assert!(client.receive().is_empty());
    client.wait(1_600);
    assert_eq!(client.receive()[0].resources, ["A=fixed"]);
}

#[test]
fn r48_n08_a_changed_cluster_brings_its_endpoints_and_no_others() {
    for variant in BOTH {
        let mut plane = Plane::default();
        let mut client = sidecar(variant, &mut plane);
        let with = |a: &'static str| {
            [
                (CLUSTER, "A", a),
                (CLUSTER, "B", "1"),
                (ENDPOINT, "A", "1"),
                (ENDPOINT, "B", "1"),
                (LISTENER, "l", "1"),
                (ROUTE, "r", "to A"),
            ]
        };
        client.publish(plane.publish(&with("1")));
        client.ask(ENDPOINT, &["A", "B"]);
        settle_all(&mut client, &["A", "B"], &["r"]);
        client.publish(plane.publish(&with("2")));
        let sent = client.receive();
        assert_eq!(types(&sent), ["cds", "eds"], "{variant:?}");
        assert_eq!(sent[1].resources, ["A=1"], "{variant:?}");
    }
}

#[test]
fn r07_r53_n24_a_refusal_of_one_type_leaves_the_others_alone() {
    for variant in BOTH {
        let mut plane = Plane::default();
        let mut client = sidecar(variant, &mut plane);
        let with = |endpoints: &'static str, route: &'static str| {
            [
                (CLUSTER, "A", "1"),
                (ENDPOINT, "A", endpoints),
                (LISTENER, "l", "1"),
                (ROUTE, "r", route),
            ]
        };
        client.publish(plane.publish(&with("1", "bad")));
        let route = only(client.receive());
        client.send(&Request {
            names: names(&["r"]),
            ..answer(&route, Some("bad route"))
        });
        for value in ["2", "3", "4"] {
            client.publish(plane.publish(&with(value, "bad")));
            let reply = only(client.receive());
            assert_eq!(reply.resources, [format!("A={value}")], "{variant:?}");
            client.ack_with(&reply, &["A"]);
        }
    }
}

#[test]
fn a_refused_cluster_does_not_hold_up_routes() {
    let mut plane = Plane::default();
    let mut client = sidecar(Variant::Delta, &mut plane);
    let with = |cluster: &'static str, route: &'static str| {
        [
            (CLUSTER, "A", cluster),
            (LISTENER, "l", "1"),
            (ROUTE, "r", route),
        ]
    };
    client.publish(plane.publish(&with("bad", "1")));
    let sent = client.receive();
    client.nack(&sent[0], "bad cluster");
    for reply in &sent[1..] {
        client.ack(reply);
    }
    assert_eq!(types(&client.receive()), ["rds"]);
}

#[test]
fn n19_a_reader_that_stops_gets_one_merged_response() {
    let mut plane = Plane::default();
    let mut client = sidecar(Variant::Delta, &mut plane);
    for number in 0..1000 {
        let value = number.to_string();
        client.publish(plane.publish(&[
            (CLUSTER, "A", "1"),
            (ENDPOINT, "A", value.as_str()),
            (LISTENER, "l", "1"),
            (ROUTE, "r", "to A"),
        ]));
    }
    let replies = settle_all(&mut client, &["A"], &["r"]);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].resources, ["A=999"]);
}
