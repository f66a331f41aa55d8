//! A client that keeps no rule: whatever it sends, the stream neither panics nor grows without
//! bound, and a request that is refused changes nothing.

use isthmus_xds_core::stream::Peer;
use isthmus_xds_core::{Name, Request, Variant, limits};
use proptest::prelude::*;

use crate::support::*;

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![
        prop::sample::select(vec![
            "",
            "*",
            "a",
            "b",
            "a/",
            "/",
            "?",
            "xdstp://",
            "xdstp:///*",
            "xdstp://a/t/*",
            "xdstp://a/t/*?",
            "xdstp://a/t/x?b&a=1&&",
            "rc/host",
            "rc/",
        ])
        .prop_map(Name::from),
        "\\PC{0,12}".prop_map(Name::from),
        Just(Name::from("x".repeat(limits::NAME_BYTES + 1))),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let url = prop::sample::select(vec![
        CLUSTER,
        ENDPOINT,
        LISTENER,
        ROUTE,
        VIRTUAL_HOST,
        RUNTIME,
        "",
        "t",
    ]);
    let nonce = prop_oneof![
        prop::sample::select(vec![
            "",
            "7-1",
            "7-2",
            "7-3",
            "7-ffffffffffffffff",
            "8-1",
            "-",
            "7-"
        ])
        .prop_map(ToOwned::to_owned),
        "\\PC{0,8}",
    ];
    let list = || prop::collection::vec(name(), 0..4);
    let initial = prop::collection::vec((name(), "[0-9a-f]{0,17}"), 0..3);
    (
        url,
        nonce,
        prop::option::of("\\PC{0,20}"),
        list(),
        list(),
        list(),
        initial,
    )
        .prop_map(
            |(url, nonce, error, names, subscribe, unsubscribe, initial_versions)| Request {
                type_url: url.to_owned(),
                version: String::new(),
                nonce,
                error,
                names,
                subscribe,
                unsubscribe,
                initial_versions,
            },
        )
}

#[derive(Clone, Debug)]
enum Step {
    Request(Request),
    Receive,
    Wait(u64),
    Publish(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => request().prop_map(Step::Request),
        3 => Just(Step::Receive),
        1 => (0_u64..20_000).prop_map(Step::Wait),
        2 => any::<bool>().prop_map(Step::Publish),
    ]
}

const SOME: Content<'static> = &[
    (CLUSTER, "a", "1"),
    (ENDPOINT, "a", "1"),
    (ENDPOINT, "xdstp://a/t/x?a=1&b", "1"),
    (ROUTE, "rc", "1"),
    (VIRTUAL_HOST, "rc/shop", "1,rc/host"),
    (RUNTIME, "a", "1/3"),
];

fn run(variant: Variant, peer: Peer, steps: &[Step]) {
    let mut plane = Plane::default();
    let mut client = Client::new(variant, peer, None, plane.publish(SOME));
    // Nothing is ever answered right: the responses that come without being asked for are few.
    let mut unasked = 0;
    for step in steps {
        match step {
            Step::Request(request) => {
                unasked = 0;
                let _ = client.try_send(request);
            }
            Step::Receive => unasked += client.receive().len(),
            Step::Wait(millis) => client.wait(*millis),
            Step::Publish(is_some) => {
                let content = if *is_some { SOME } else { &[] };
                client.publish(plane.publish(content));
            }
        }
        assert!(
            unasked <= 7 * limits::IN_FLIGHT,
            "{unasked} unanswered responses"
        );
    }
    // However far the clock runs, a client that does not answer is not sent more and more.
    let mut more = 0;
    for _ in 0..200 {
        client.wait(2_000);
        more += client.receive().len();
    }
    assert!(
        more <= 7 * limits::IN_FLIGHT,
        "{more} responses into the void"
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 250,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn hostile_incremental_requests_are_survived(steps in prop::collection::vec(step(), 1..40)) {
        run(Variant::Delta, Peer::Envoy, &steps);
    }

    #[test]
    fn hostile_state_of_the_world_requests_are_survived(
        steps in prop::collection::vec(step(), 1..40),
        is_grpc: bool,
    ) {
        run(Variant::Sotw, if is_grpc { Peer::Grpc } else { Peer::Envoy }, &steps);
    }
}
