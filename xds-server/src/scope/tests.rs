//! Streams without sockets: who is woken by what, and that nobody is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use isthmus_api::envoy_resources::{NodeView, Selector};
use isthmus_proto::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use isthmus_xds_core::Features;
use isthmus_xds_core::catalog::Draft;
use isthmus_xds_core::stream::{Peer, StreamOptions};
use isthmus_xds_core::type_rules::{CLUSTER, ENDPOINT, VIRTUAL_HOST};
use isthmus_xds_core::{
    Commit, Document, Extras, Name, Request, Response, Source, TypeUrl, Variant,
};
use prost::Message;

use super::*;
use crate::clients::{Introduction, Membership};
use crate::convergence::Outcome;
use crate::plane::Plane;
use crate::transport::ConnectedPeer;

const PATIENCE: Duration = Duration::from_mins(1);

fn draft(type_url: &str, name: &str, value: &str) -> Draft {
    Draft {
        type_url: TypeUrl::from(type_url),
        name: Name::from(name),
        value: Bytes::copy_from_slice(value.as_bytes()),
        extras: Extras::default(),
    }
}

fn document(name: &str, node: Option<&str>, resources: Vec<Draft>) -> Document {
    Document {
        name: Name::from(name),
        selector: Selector {
            id: node.map(ToOwned::to_owned),
            ..Selector::default()
        },
        resources,
    }
}

fn patch(plane: &Plane, drafts: Vec<Draft>) -> u64 {
    let commit = Commit::new(Source::CONFIG_DIR).patch("d", drafts, Vec::new());
    plane.commit(commit).expect("it can be").generation
}

fn publish(plane: &Plane, documents: Vec<Document>) -> u64 {
    plane.publish(documents).expect("it can be")
}

fn with_node<T>(id: &str, act: impl FnOnce(&NodeView<'_>) -> T) -> T {
    let metadata = BTreeMap::new();
    act(&NodeView {
        id,
        cluster: "",
        identity: None,
        region: "",
        zone: "",
        sub_zone: "",
        metadata: &metadata,
    })
}

#[derive(Debug)]
struct Ear {
    rings: AtomicUsize,
    has_rung: AtomicBool,
    sleeper: Thread,
}

impl Wake for Ear {
    fn wake(self: Arc<Self>) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        self.has_rung.store(true, Ordering::SeqCst);
        self.sleeper.unpark();
    }
}

// A session without a socket: an incremental stream, and what its client holds.
#[derive(Debug)]
struct Session {
    plane: Arc<Plane>,
    node: String,
    membership: Membership,
    ear: Arc<Ear>,
    opened: Instant,
    held: BTreeMap<(String, String), Vec<u8>>,
}

impl Session {
    fn open(plane: &Arc<Plane>, node: &str) -> Self {
        let scope = with_node(node, |node| plane.scope_of(node));
        let id = plane.next_stream_id();
        let options = StreamOptions {
            variant: Variant::Delta,
            only_type: None,
            peer: Peer::Envoy,
            features: Features::default(),
            id,
            identifier: "test".into(),
        };
        let introduction = Introduction {
            node_id: node.into(),
            node_cluster: String::new(),
            node: Bytes::new(),
            user_agent: String::new(),
            peer: ConnectedPeer::default(),
            variant: Variant::Delta,
            stream: Stream::new(options, scope.view()),
            scope,
        };
        Self {
            membership: Membership::new(Arc::clone(plane), id, introduction),
            plane: Arc::clone(plane),
            node: node.to_owned(),
            ear: Arc::new(Ear {
                rings: AtomicUsize::new(0),
                has_rung: AtomicBool::new(false),
                sleeper: thread::current(),
            }),
            opened: Instant::now(),
            held: BTreeMap::new(),
        }
    }

    fn subscribed(plane: &Arc<Plane>, node: &str, type_url: &str, names: &[&str]) -> Self {
        let mut session = Self::open(plane, node);
        session.subscribe(type_url, names);
        session.run();
        session
    }

    fn subscribe(&self, type_url: &str, names: &[&str]) {
        self.request(&Request {
            type_url: type_url.to_owned(),
            subscribe: names.iter().map(|name| Name::from(*name)).collect(),
            ..Request::default()
        });
    }

    fn request(&self, request: &Request) {
        let client = self.membership.client();
        let handled =
            client.handle_request(request, &self.plane.convergence, self.opened.elapsed());
        handled.expect("the request is a valid one");
    }

    fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        self.request(&Request {
            type_url: response.type_url.clone(),
            nonce: response.nonce.clone(),
            error: error.map(ToOwned::to_owned),
            ..Request::default()
        });
    }

    // What a session's poll does: takes all there is, and answers it. Returns what came, as
    // "type name" or "type -name".
    fn run(&mut self) -> Vec<String> {
        let waker = Waker::from(Arc::clone(&self.ear));
        let client = Arc::clone(self.membership.client());
        client.bell.listen(&Context::from_waker(&waker));
        if client.bell.take_moved() {
            let now = self.opened.elapsed();
            with_node(&self.node, |node| self.plane.place(&client, node, now));
        }
        let mut came = Vec::new();
        while let Some(response) = self.take() {
            let response = decode(&response);
            let type_url = response.type_url.clone();
            for resource in response.resources.clone() {
                came.push(format!("{} {}", short(&type_url), resource.name));
                let value = resource.resource.unwrap_or_default().value;
                self.held.insert((type_url.clone(), resource.name), value);
            }
            for name in response.removed_resources.clone() {
                came.push(format!("{} -{name}", short(&type_url)));
                self.held.remove(&(type_url.clone(), name));
            }
            self.answer(&response, None);
        }
        came
    }

    fn take(&self) -> Option<Response> {
        let (client, convergence) = (self.membership.client(), &self.plane.convergence);
        client
            .take_turn(convergence, self.opened.elapsed())
            .response
    }

    fn rings(&self) -> usize {
        self.ear.rings.load(Ordering::SeqCst)
    }
}

fn decode(response: &Response) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse::decode(&*response.pieces.concat()).unwrap()
}

fn short(type_url: &str) -> &'static str {
    crate::metrics::short_name(type_url)
}

fn wakes(plane: &Plane) -> usize {
    let text = plane.metrics.render().unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("isthmus_xds_wakes_total "));
    line.unwrap().parse().unwrap()
}

#[test]
fn of_clients_that_are_gone_only_types_that_are_served_are_remembered() {
    let plane = Arc::new(Plane::new());
    let generation = publish(
        &plane,
        vec![document("d", None, vec![draft(CLUSTER, "a", "1")])],
    );
    let scope = with_node("n", |node| plane.scope_of(node));
    for number in 0..3 {
        let mut session = Session::subscribed(&plane, "n", CLUSTER, &["a"]);
        session.subscribe(&format!("chosen.by/client{number}"), &["a"]);
        session.run();
        let types = session.membership.client().types();
        assert!(types.iter().all(|it| it.acked_generation.is_some()));
    }
    let expected = BTreeMap::from([(TypeUrl::from(CLUSTER), generation)]);
    assert_eq!(scope.accepted(), expected);
}

#[test]
fn a_change_wakes_exactly_the_streams_that_want_it() {
    struct Case {
        name: &'static str,
        draft: Draft,
        woken: &'static [usize],
    }
    let glob = "xdstp://a/t/f/*";
    let host = |alias: &str| {
        let mut draft = draft(VIRTUAL_HOST, "main/h", "1");
        draft.extras.aliases = vec![Name::from(alias)];
        draft
    };
    let plane = Arc::new(Plane::new());
    publish(
        &plane,
        vec![
            document("d", None, vec![draft(ENDPOINT, "a", "1"), host("main/old")]),
            document("other", Some("elsewhere"), Vec::new()),
        ],
    );
    let mut sessions = [
        Session::subscribed(&plane, "n", ENDPOINT, &["a"]),
        Session::subscribed(&plane, "n", ENDPOINT, &["b", "c"]),
        Session::subscribed(&plane, "n", ENDPOINT, &["*"]),
        Session::subscribed(&plane, "n", ENDPOINT, &[glob]),
        Session::subscribed(&plane, "n", CLUSTER, &["*"]),
        Session::subscribed(&plane, "n", VIRTUAL_HOST, &["main/old"]),
        Session::subscribed(&plane, "n", VIRTUAL_HOST, &["main/new"]),
        Session::subscribed(&plane, "elsewhere", ENDPOINT, &["a"]),
    ];
    let cases = [
        Case {
            name: "a name",
            draft: draft(ENDPOINT, "a", "2"),
            woken: &[0, 2, 7],
        },
        Case {
            name: "a name that was absent",
            draft: draft(ENDPOINT, "b", "1"),
            woken: &[1, 2],
        },
        Case {
            name: "the same again",
            draft: draft(ENDPOINT, "b", "1"),
            woken: &[],
        },
        Case {
            name: "of another type",
            draft: draft(CLUSTER, "a", "1"),
            woken: &[4],
        },
        Case {
            name: "below a glob",
            draft: draft(ENDPOINT, "xdstp://a/t/f/1", "1"),
            woken: &[2, 3],
        },
        Case {
            name: "beside a glob",
            draft: draft(ENDPOINT, "xdstp://a/t/g/1", "1"),
            woken: &[2],
        },
        Case {
            name: "an alias lost, another won",
            draft: host("main/new"),
            woken: &[5, 6],
        },
    ];
    for Case { name, draft, woken } in cases {
        let before: Vec<usize> = sessions.iter().map(Session::rings).collect();
        let wakes_before = wakes(&plane);
        patch(&plane, vec![draft]);
        let rung: Vec<usize> = (0..sessions.len())
            .filter(|at| sessions[*at].rings() != before[*at])
            .collect();
        assert_eq!(rung, woken, "{name}");
        assert_eq!(wakes(&plane) - wakes_before, woken.len(), "{name}");
        for session in &mut sessions {
            session.run();
        }
    }
    assert_eq!(sessions[0].held.len(), 1);
    assert_eq!(sessions[2].held.len(), 4);
}

#[test]
fn of_a_thousand_streams_the_one_that_wants_it_is_woken() {
    let plane = Arc::new(Plane::new());
    publish(&plane, vec![document("d", None, Vec::new())]);
    let mut sessions: Vec<Session> = (0..1000)
        .map(|at| Session::subscribed(&plane, "n", ENDPOINT, &[&format!("ep-{at}")]))
        .collect();
    assert_eq!(plane.interest_entries(), 1000);
    for value in 0..5 {
        patch(&plane, vec![draft(ENDPOINT, "ep-700", &value.to_string())]);
        assert_eq!(sessions[700].run(), ["eds ep-700"]);
    }
    let rung = sessions.iter().map(Session::rings);
    assert_eq!(rung.sum::<usize>(), 5);
    assert_eq!(sessions[700].rings(), 5);
    assert_eq!(wakes(&plane), 5);
}

#[test]
fn a_stream_that_sleeps_is_rung_once_and_finds_all_that_changed() {
    let plane = Arc::new(Plane::new());
    publish(&plane, vec![document("d", None, Vec::new())]);
    let mut session = Session::subscribed(&plane, "n", ENDPOINT, &["a", "b"]);
    session.run();
    // Far more than the change log has, before, between and after.
    for value in 0..200 {
        patch(&plane, vec![draft(ENDPOINT, "noise", &value.to_string())]);
    }
    patch(&plane, vec![draft(ENDPOINT, "a", "1")]);
    for value in 0..200 {
        patch(&plane, vec![draft(ENDPOINT, "noise", &format!("x{value}"))]);
    }
    patch(&plane, vec![draft(ENDPOINT, "b", "1")]);
    assert_eq!(session.rings(), 1);
    assert_eq!(session.run(), ["eds a", "eds b"]);
    assert!(session.run().is_empty());
}

#[test]
fn who_asks_is_answered_from_the_newest_view() {
    let plane = Arc::new(Plane::new());
    publish(
        &plane,
        vec![document(
            "d",
            None,
            vec![draft(ENDPOINT, "a", "1"), draft(ENDPOINT, "b", "1")],
        )],
    );
    let mut session = Session::subscribed(&plane, "n", ENDPOINT, &["a"]);
    // It does not want this, and is not told; then it does.
    patch(&plane, vec![draft(ENDPOINT, "b", "2")]);
    assert_eq!(session.rings(), 0);
    session.subscribe(ENDPOINT, &["b"]);
    assert_eq!(session.run(), ["eds b"]);
    assert_eq!(session.held[&(ENDPOINT.to_owned(), "b".to_owned())], b"2");
}

#[test]
fn a_ring_that_a_request_overtook_leads_nowhere() {
    let plane = Arc::new(Plane::new());
    publish(
        &plane,
        vec![document("d", None, vec![draft(ENDPOINT, "a", "1")])],
    );
    let mut session = Session::subscribed(&plane, "n", ENDPOINT, &["a"]);
    let overtaken = with_node("n", |node| plane.scope_of(node)).view();
    patch(&plane, vec![draft(ENDPOINT, "a", "2")]);
    assert_eq!(session.run(), ["eds a"]);
    session.membership.client().bell.ring_change(&overtaken);
    assert!(session.run().is_empty());
}

#[test]
fn r48_a_cluster_that_changes_brings_its_endpoints_along() {
    let plane = Arc::new(Plane::new());
    let cluster = |value| {
        let mut draft = draft(CLUSTER, "c", value);
        draft.extras.endpoints = Some(Name::from("e"));
        draft
    };
    publish(
        &plane,
        vec![document(
            "d",
            None,
            vec![cluster("1"), draft(ENDPOINT, "e", "1")],
        )],
    );
    let mut session = Session::subscribed(&plane, "n", CLUSTER, &["*"]);
    session.subscribe(ENDPOINT, &["e"]);
    session.run();
    patch(&plane, vec![cluster("2")]);
    assert_eq!(session.run(), ["cds c", "eds e"]);
}

#[test]
fn a_stream_that_moves_or_ends_leaves_nothing_behind() {
    let plane = Arc::new(Plane::new());
    let documents = |id: &str| {
        let everybody = document("all", None, vec![draft(ENDPOINT, "a", "1")]);
        vec![
            everybody,
            document("d", Some(id), vec![draft(ENDPOINT, "b", "1")]),
        ]
    };
    publish(&plane, documents("nobody"));
    let mut session = Session::subscribed(&plane, "n", ENDPOINT, &["*", "x"]);
    assert_eq!(plane.interest_entries(), 2);

    publish(&plane, documents("n"));
    assert_eq!(session.rings(), 1, "its scope is another");
    assert_eq!(session.run(), ["eds b"]);
    assert_eq!(plane.interest_entries(), 2);
    patch(&plane, vec![draft(ENDPOINT, "b", "2")]);
    assert_eq!(session.run(), ["eds b"]);

    publish(&plane, documents("nobody"));
    assert_eq!(session.run(), ["eds -b"]);
    drop(session);
    assert_eq!(plane.interest_entries(), 0);
    publish(&plane, documents("nobody"));
    assert!(plane.snapshot().1.is_empty(), "no scope is in use");
    let next = Session::open(&plane, "n");
    assert_eq!(next.membership.client().slot, 0, "numbers are used again");
}

#[test]
fn a_stream_that_wants_nothing_of_it_holds_no_old_view() {
    let plane = Arc::new(Plane::new());
    publish(
        &plane,
        vec![document("d", None, vec![draft(ENDPOINT, "a", "1")])],
    );
    let mut session = Session::subscribed(&plane, "n", ENDPOINT, &["a"]);
    let old: Weak<View> = Arc::downgrade(&with_node("n", |node| plane.scope_of(node)).view());
    for value in 0..=BRING_ALONG_AFTER {
        patch(&plane, vec![draft(ENDPOINT, "b", &value.to_string())]);
    }
    assert!(old.upgrade().is_none());
    assert_eq!(session.rings(), 0);
    patch(&plane, vec![draft(ENDPOINT, "a", "2")]);
    assert_eq!(session.run(), ["eds a"]);
}

fn endpoint(name: &str, value: &str) -> Vec<Draft> {
    vec![draft(ENDPOINT, name, value)]
}

fn numbers(plane: &Plane, generation: u64) -> (u64, u64, u64, u64) {
    let it = plane.convergence.progress(generation).unwrap();
    (it.needed, it.accepted, it.refusals, it.pending)
}

#[test]
fn a_change_is_needed_by_those_who_want_it_and_converges_when_they_accept_it() {
    let plane = Arc::new(Plane::new());
    publish(&plane, vec![document("d", None, endpoint("a", "1"))]);
    let mut first = Session::subscribed(&plane, "n", ENDPOINT, &["a"]);
    let mut second = Session::subscribed(&plane, "m", ENDPOINT, &["*"]);
    let _other = Session::subscribed(&plane, "o", ENDPOINT, &["b"]);
    let mut answers = plane.convergence.answers();
    let generation = patch(&plane, endpoint("a", "2"));
    let watched = plane.convergence.watch(generation).unwrap();
    assert_eq!(numbers(&plane, generation), (2, 0, 0, 2));

    first.run();
    assert_eq!(numbers(&plane, generation), (2, 1, 0, 1));
    assert!(!watched.borrow().is_converged);
    second.run();
    assert_eq!(numbers(&plane, generation), (2, 2, 0, 0));
    assert!(watched.borrow().is_converged);
    let nodes = std::iter::from_fn(|| answers.try_recv().ok()).map(|it| {
        (
            it.node_id.to_string(),
            it.type_url.as_deref() == Some(ENDPOINT),
            it.outcome,
        )
    });
    let accepted = |node: &str| (node.to_owned(), true, Outcome::Accepted);
    assert_eq!(nodes.collect::<Vec<_>>(), [accepted("n"), accepted("m")]);

    let text = plane.metrics.render().unwrap();
    for line in [
        r#"isthmus_xds_change_to_ack_seconds_count{type="eds"} 2"#,
        "isthmus_xds_change_converged_seconds_count 1",
        "isthmus_xds_change_bytes_count 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn changes_that_merge_are_answered_together_and_those_that_come_to_nothing_at_once() {
    let plane = Arc::new(Plane::new());
    publish(&plane, vec![document("d", None, endpoint("a", "1"))]);
    let mut session = Session::subscribed(&plane, "n", ENDPOINT, &["a"]);
    let patch = |value| patch(&plane, endpoint("a", value));
    let (there, further) = (patch("2"), patch("3"));
    assert_eq!(session.run(), ["eds a"]);
    assert_eq!(numbers(&plane, there), (1, 1, 0, 0));
    assert_eq!(numbers(&plane, further), (1, 1, 0, 0));

    let (there, back) = (patch("4"), patch("3"));
    assert!(session.run().is_empty());
    assert_eq!(numbers(&plane, there), (1, 1, 0, 0));
    assert_eq!(numbers(&plane, back), (1, 1, 0, 0));
    let nothing = patch("3");
    assert_eq!(nothing, back, "nothing is no commit");
    assert_eq!(numbers(&plane, nothing), (1, 1, 0, 0));
}

#[test]
fn a_client_that_is_never_done_still_answers_what_it_was_sent() {
    let plane = Arc::new(Plane::new());
    publish(&plane, vec![document("d", None, endpoint("a", "0"))]);
    let mut session = Session::subscribed(&plane, "n", ENDPOINT, &["a"]);
    session.run();
    let patch = |value: u64| patch(&plane, endpoint("a", &value.to_string()));
    // Each change comes before the answer to the last one.
    let mut last = patch(1);
    let mut sent = decode(&session.take().unwrap());
    for value in 2..10 {
        let next = patch(value);
        session.answer(&sent, None);
        assert_eq!(numbers(&plane, last), (1, 1, 0, 0));
        assert_eq!(numbers(&plane, next), (1, 0, 0, 1));
        sent = decode(&session.take().unwrap());
        last = next;
    }
}

#[test]
fn a_refusal_is_kept_in_the_clients_words_and_does_not_converge() {
    let plane = Arc::new(Plane::new());
    publish(&plane, vec![document("d", None, endpoint("a", "1"))]);
    let mut session = Session::subscribed(&plane, "n", ENDPOINT, &["a"]);
    session.run();
    let bad = patch(&plane, endpoint("a", "2"));
    let response = decode(&session.take().unwrap());
    session.answer(&response, Some("bad endpoint"));
    session.run();
    let progress = plane.convergence.progress(bad).unwrap();
    assert_eq!(numbers(&plane, bad), (1, 0, 1, 0));
    assert!(!progress.is_converged);
    let refused = &progress.refused[0];
    assert_eq!((&*refused.node_id, &*refused.type_url), ("n", ENDPOINT));
    assert_eq!(&*refused.message, "bad endpoint");
    // It came alone.
    assert_eq!(refused.resources, [Name::from("a")]);

    let good = patch(&plane, endpoint("a", "3"));
    session.run();
    assert_eq!(numbers(&plane, good), (1, 1, 0, 0));
    assert_eq!(numbers(&plane, bad), (1, 0, 1, 0));
}

#[test]
fn nobody_waits_for_a_client_that_left_and_its_number_owes_nothing() {
    let plane = Arc::new(Plane::new());
    publish(&plane, vec![document("d", None, endpoint("a", "1"))]);
    let mut stays = Session::subscribed(&plane, "n", ENDPOINT, &["a"]);
    let leaves = Session::subscribed(&plane, "n", ENDPOINT, &["a"]);
    let generation = patch(&plane, endpoint("a", "2"));
    drop(leaves);
    assert_eq!(numbers(&plane, generation), (1, 0, 0, 1));
    // It takes the number of the one that left.
    let mut next = Session::subscribed(&plane, "n", ENDPOINT, &["a"]);
    next.run();
    assert_eq!(numbers(&plane, generation), (1, 0, 0, 1));
    stays.run();
    assert_eq!(numbers(&plane, generation), (1, 1, 0, 0));
}

#[test]
fn a_client_that_moves_to_other_documents_needs_the_commit_that_moved_it() {
    let plane = Arc::new(Plane::new());
    let documents = |id: &str, value: &str| {
        vec![
            document("all", None, endpoint("a", value)),
            document("some", Some(id), endpoint("b", "1")),
        ]
    };
    publish(&plane, documents("nobody", "1"));
    let mut goer = Session::subscribed(&plane, "n", ENDPOINT, &["*"]);
    let mut stayer = Session::subscribed(&plane, "m", ENDPOINT, &["*"]);
    let moved = publish(&plane, documents("n", "1"));
    assert_eq!(
        numbers(&plane, moved),
        (2, 0, 0, 2),
        "until they have looked"
    );
    stayer.run();
    assert_eq!(numbers(&plane, moved), (1, 0, 0, 1), "it gets what it got");
    goer.run();
    assert_eq!(numbers(&plane, moved), (1, 1, 0, 0));

    let both = publish(&plane, documents("nobody", "2"));
    stayer.run();
    goer.run();
    assert_eq!(numbers(&plane, both), (2, 2, 0, 0));
    assert!(plane.convergence.progress(both).unwrap().is_converged);
}

#[test]
fn a_client_that_moves_and_refuses_has_not_converged() {
    let plane = Arc::new(Plane::new());
    let documents = |id| {
        vec![
            document("all", None, endpoint("a", "1")),
            document("some", id, endpoint("b", "1")),
        ]
    };
    publish(&plane, documents(Some("m")));
    let mut settled = Session::subscribed(&plane, "m", ENDPOINT, &["*"]);
    let mut goer = Session::subscribed(&plane, "n", ENDPOINT, &["*"]);
    // It comes to a scope in which nothing changed since the first commit.
    let moved = publish(&plane, documents(None));
    settled.run();
    let client = Arc::clone(goer.membership.client());
    assert!(client.bell.take_moved());
    with_node("n", |node| plane.place(&client, node, Duration::ZERO));
    let response = decode(&goer.take().expect("it gets what it has not"));
    goer.answer(&response, Some("no such endpoint"));
    assert!(goer.run().is_empty());
    assert_eq!(numbers(&plane, moved), (1, 0, 1, 0));
    let progress = plane.convergence.progress(moved).unwrap();
    assert!(!progress.is_converged);
    assert_eq!(progress.refused[0].resources, [Name::from("b")]);
}

#[test]
fn a_refusal_of_what_came_before_a_move_does_not_count_for_the_move() {
    let plane = Arc::new(Plane::new());
    let documents = |id, value| {
        vec![
            document("all", None, endpoint("a", value)),
            document("some", id, endpoint("b", "1")),
        ]
    };
    publish(&plane, documents(Some("m"), "1"));
    let _settled = Session::subscribed(&plane, "m", ENDPOINT, &["*"]);
    let mut goer = Session::subscribed(&plane, "n", ENDPOINT, &["*"]);
    let changed = publish(&plane, documents(Some("m"), "2"));
    let before = decode(&goer.take().expect("it is told of the change"));
    let moved = publish(&plane, documents(None, "2"));
    let client = Arc::clone(goer.membership.client());
    assert!(client.bell.take_moved());
    with_node("n", |node| plane.place(&client, node, Duration::ZERO));
    goer.answer(&before, Some("no such endpoint"));
    goer.run();
    let refusals = |generation| numbers(&plane, generation).2;
    assert_eq!((refusals(changed), refusals(moved)), (1, 0));
}

#[test]
fn a_look_at_ones_place_does_not_answer_the_commits_that_came_after_it() {
    let plane = Arc::new(Plane::new());
    let documents = |id: &str| {
        vec![
            document("all", None, endpoint("a", "1")),
            document("some", Some(id), endpoint("b", "1")),
        ]
    };
    publish(&plane, documents("nobody"));
    let mut session = Session::subscribed(&plane, "n", ENDPOINT, &["*"]);
    let there = publish(&plane, documents("n"));
    let looked_up = with_node("n", |node| plane.scope_of(node));
    let back = publish(&plane, documents("nobody"));
    let client = Arc::clone(session.membership.client());
    client.move_to(&looked_up, there, &plane.convergence, Duration::ZERO);
    let response = decode(&session.take().expect("it gets what it has not"));
    session.answer(&response, None);
    assert_eq!(numbers(&plane, there), (1, 1, 0, 0));
    assert_eq!(numbers(&plane, back).1, 0, "it has not looked");

    assert_eq!(session.run(), ["eds -b"]);
    assert_eq!(numbers(&plane, back), (1, 1, 0, 0));
}

#[test]
fn a_culprit_is_named_in_the_commits_that_its_refusal_concerned() {
    let plane = Arc::new(Plane::new());
    let clusters = |a, b| vec![draft(CLUSTER, "a", a), draft(CLUSTER, "b", b)];
    publish(&plane, vec![document("d", None, clusters("1", "1"))]);
    let mut session = Session::subscribed(&plane, "n", CLUSTER, &["*"]);
    let mut refuse = |drafts, words| {
        let generation = patch(&plane, drafts);
        let response = decode(&session.take().unwrap());
        session.answer(&response, Some(words));
        session.run();
        generation
    };
    let first = refuse(clusters("2", "1"), "bad");
    let second = refuse(
        clusters("3", "2"),
        "Error adding/updating cluster(s) b: worse",
    );
    let blamed = |generation| {
        let progress = plane.convergence.progress(generation).unwrap();
        progress.refused[0].resources.clone()
    };
    assert_eq!(blamed(first), [Name::from("a")]);
    assert_eq!(blamed(second), [Name::from("b")]);
}

// Clients change what they want while what they want changes, and then sleep until they are
// rung: one ring too few, and one of them never holds what it should.
#[test]
fn no_ring_is_lost_between_those_who_ask_and_those_who_publish() {
    const NAMES: usize = 8;
    const CHANGES: usize = 4000;
    let plane = Arc::new(Plane::new());
    publish(&plane, vec![document("d", None, Vec::new())]);
    let is_published = AtomicBool::new(false);
    let deadline = Instant::now() + PATIENCE;
    thread::scope(|threads| {
        let sessions: Vec<_> = (1..4_u64)
            .map(|seed| {
                let (plane, is_published) = (&plane, &is_published);
                threads.spawn(move || sleepy_client(plane, seed, is_published, deadline))
            })
            .collect();
        let mut random = 7;
        for value in 0..CHANGES {
            let name = format!("e{}", next(&mut random) % NAMES);
            patch(&plane, vec![draft(ENDPOINT, &name, &value.to_string())]);
        }
        is_published.store(true, Ordering::SeqCst);
        for session in sessions {
            session.join().expect("the client got what it wanted");
        }
    });
    assert_eq!(plane.interest_entries(), 0);
    // Nobody is waited for, and who was had all of it or left.
    let (newest, _) = plane.snapshot();
    for generation in newest - 100..=newest {
        let (needed, accepted, refusals, pending) = numbers(&plane, generation);
        assert_eq!(
            (accepted, refusals, pending),
            (needed, 0, 0),
            "{generation}"
        );
    }
}

fn sleepy_client(plane: &Arc<Plane>, seed: u64, is_published: &AtomicBool, deadline: Instant) {
    let mut random = seed;
    let mut wanted = BTreeSet::new();
    let mut session = Session::subscribed(plane, "n", ENDPOINT, &["never"]);
    while !is_published.load(Ordering::SeqCst) {
        let name = format!("e{}", next(&mut random) % 8);
        let names = vec![Name::from(name.as_str())];
        let type_url = ENDPOINT.to_owned();
        let request = if wanted.remove(&name) {
            session.held.remove(&(type_url.clone(), name));
            Request {
                type_url,
                unsubscribe: names,
                ..Request::default()
            }
        } else {
            wanted.insert(name);
            Request {
                type_url,
                subscribe: names,
                ..Request::default()
            }
        };
        session.request(&request);
        // Now and then it does not look at what it gets, and is rung meanwhile.
        if !next(&mut random).is_multiple_of(4) {
            session.run();
        }
    }
    session.run();
    loop {
        let newest = with_node("n", |node| plane.scope_of(node)).view();
        let set = newest.type_set(ENDPOINT).expect("endpoints were published");
        let value = |name: &String| Some((name.clone(), set.resource(name)?.value().to_vec()));
        let desired: BTreeMap<String, Vec<u8>> = wanted.iter().filter_map(value).collect();
        let held = session
            .held
            .iter()
            .map(|((_, name), value)| (name.clone(), value.clone()));
        if held.collect::<BTreeMap<_, _>>() == desired {
            return;
        }
        while !session.ear.has_rung.swap(false, Ordering::SeqCst) {
            assert!(
                Instant::now() < deadline,
                "never rung: {wanted:?} {:?}",
                session.held
            );
            thread::park_timeout(Duration::from_millis(50));
        }
        session.run();
    }
}

// A linear congruential generator: the test needs variety, not chance.
fn next(random: &mut u64) -> usize {
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*random >> 33).unwrap_or_default()
}
