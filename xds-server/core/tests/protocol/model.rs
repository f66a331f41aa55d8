//! Any order of requests, answers, changes and waiting, against a client that believes only what
//! it is sent. At rest it holds exactly what it asked for, never got an unasked name, and a
//! quiet server stays quiet.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_xds_core::{Request, Variant};
use proptest::prelude::*;

use crate::support::*;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const TYPES: [&str; 4] = [CLUSTER, ENDPOINT, LISTENER, ROUTE];

#[derive(Clone, Debug)]
enum Step {
    // Contents of the next view, by type and name; 0 is absent.
    Publish([[u8; 4]; 4]),
    // Names of a type: those added or, for the state of the world, all of them.
    Subscribe {
        of: usize,
        names: BTreeSet<usize>,
        is_wildcard: bool,
    },
    Unsubscribe {
        of: usize,
        names: BTreeSet<usize>,
        is_wildcard: bool,
    },
    Answer {
        oldest: bool,
        is_ack: bool,
    },
    // Repeats an answer that was given before.
    AnswerAgain,
    Wait(u64),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let contents = prop::array::uniform4(prop::array::uniform4(0_u8..3));
    let subset = || prop::collection::btree_set(0..NAMES.len(), 0..3);
    prop_oneof![
        4 => contents.prop_map(Step::Publish),
        3 => (0..TYPES.len(), subset(), any::<bool>())
            .prop_map(|(of, names, is_wildcard)| Step::Subscribe { of, names, is_wildcard }),
        2 => (0..TYPES.len(), subset(), any::<bool>())
            .prop_map(|(of, names, is_wildcard)| Step::Unsubscribe { of, names, is_wildcard }),
        6 => (any::<bool>(), prop::bool::weighted(0.8))
            .prop_map(|(oldest, is_ack)| Step::Answer { oldest, is_ack }),
        1 => Just(Step::AnswerAgain),
        2 => (0_u64..4000).prop_map(Step::Wait),
        1 => Just(Step::Reconnect),
    ]
}

// What one client believes of one type.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is one thing the protocol depends on"
)]
#[derive(Clone, Debug, Default)]
struct Belief {
    is_started: bool,
    is_wildcard: bool,
    has_named: bool,
    names: BTreeSet<String>,
    held: BTreeMap<String, String>,
    // Refused what it was sent last, and so keeps what it had before.
    is_refusing: bool,
}

impl Belief {
    fn wants(&self, name: &str) -> bool {
        self.is_wildcard || self.names.contains(name)
    }

    fn drop_unwanted(&mut self) {
        let (is_wildcard, names) = (self.is_wildcard, &self.names);
        self.held
            .retain(|name, _| is_wildcard || names.contains(name));
    }
}

struct World {
    variant: Variant,
    plane: Plane,
    client: Client,
    desired: BTreeMap<(usize, String), String>,
    beliefs: Vec<Belief>,
    unanswered: Vec<Reply>,
    answered: Vec<Reply>,
}

impl World {
    fn new(variant: Variant) -> Self {
        let mut plane = Plane::default();
        let view = plane.publish(&[]);
        Self {
            variant,
            client: connect(variant, view),
            plane,
            desired: BTreeMap::new(),
            beliefs: vec![Belief::default(); TYPES.len()],
            unanswered: Vec::new(),
            answered: Vec::new(),
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Publish(contents) => self.publish(contents),
            Step::Subscribe {
                of,
                names,
                is_wildcard,
            } => self.subscribe(*of, names, *is_wildcard),
            Step::Unsubscribe {
                of,
                names,
                is_wildcard,
            } => {
                self.unsubscribe(*of, names, *is_wildcard);
            }
            Step::Answer { oldest, is_ack } => self.answer(*oldest, *is_ack),
            Step::AnswerAgain => {
                if let Some(reply) = self.answered.last().cloned() {
                    self.client.send(&self.request_for(&reply, None));
                }
            }
            Step::Wait(millis) => self.client.wait(*millis),
            Step::Reconnect => self.reconnect(),
        }
        self.receive();
    }

    fn publish(&mut self, contents: &[[u8; 4]; 4]) {
        self.desired.clear();
        for (of, row) in contents.iter().enumerate() {
            for (name, value) in NAMES.iter().zip(row).filter(|(_, value)| **value > 0) {
                self.desired
                    .insert((of, (*name).to_owned()), value.to_string());
            }
        }
        let content: Vec<(&str, &str, &str)> = self
            .desired
            .iter()
            .map(|((of, name), value)| (TYPES[*of], name.as_str(), value.as_str()))
            .collect();
        let view = self.plane.publish(&content);
        self.client.publish(view);
    }

    fn subscribe(&mut self, of: usize, names: &BTreeSet<usize>, is_wildcard: bool) {
        let mut asked: Vec<&str> = names.iter().map(|index| NAMES[*index]).collect();
        if is_wildcard {
            asked.push("*");
        }
        self.note_asked(of, &asked);
        self.client.ask(TYPES[of], &asked);
    }

    // R16 to R18, written down once more.
    fn note_asked(&mut self, of: usize, asked: &[&str]) {
        let variant = self.variant;
        let belief = &mut self.beliefs[of];
        let has_star = asked.contains(&"*");
        let names = asked
            .iter()
            .filter(|name| **name != "*")
            .map(|name| (*name).to_owned());
        let names: BTreeSet<String> = names.collect();
        let has_legacy = matches!(TYPES[of], CLUSTER | LISTENER);
        if asked.is_empty() && !belief.has_named {
            belief.is_wildcard = has_legacy;
        } else if variant == Variant::Sotw {
            belief.is_wildcard = has_star;
            belief.names = names;
        } else {
            belief.is_wildcard |= has_star;
            belief.names.extend(names);
        }
        belief.has_named |= !asked.is_empty() || !has_legacy;
        belief.is_started = true;
        belief.drop_unwanted();
    }

    fn unsubscribe(&mut self, of: usize, names: &BTreeSet<usize>, is_wildcard: bool) {
        // State of the world has no such thing, and a first request asks for something.
        if self.variant == Variant::Sotw || !self.beliefs[of].is_started {
            return;
        }
        let mut dropped: Vec<&str> = names.iter().map(|index| NAMES[*index]).collect();
        let belief = &mut self.beliefs[of];
        if is_wildcard {
            dropped.push("*");
            if belief.has_named {
                belief.is_wildcard = false;
            }
        }
        belief
            .names
            .retain(|name| !dropped.contains(&name.as_str()));
        belief.drop_unwanted();
        self.client.unsubscribe(TYPES[of], &dropped);
    }

    fn answer(&mut self, oldest: bool, is_ack: bool) {
        if self.unanswered.is_empty() {
            return;
        }
        let last = self.unanswered.len() - 1;
        let reply = self.unanswered.remove(if oldest { 0 } else { last });
        if !oldest {
            // R47: older ones are settled along with it.
            self.unanswered
                .retain(|other| other.type_url != reply.type_url);
        }
        let error = (!is_ack).then_some("refused");
        self.beliefs[index_of(&reply.type_url)].is_refusing = !is_ack;
        self.client.send(&self.request_for(&reply, error));
        self.answered.push(reply);
    }

    fn request_for(&self, reply: &Reply, error: Option<&str>) -> Request {
        let mut request = answer(reply, error);
        if self.variant == Variant::Sotw {
            let belief = &self.beliefs[index_of(&reply.type_url)];
            let mut asked: Vec<&str> = belief.names.iter().map(String::as_str).collect();
            if belief.is_wildcard && belief.has_named {
                asked.push("*");
            }
            request.names = names(&asked);
        }
        request
    }

    // A new stream to the same plane; the client states what it wants, and holds, once more.
    fn reconnect(&mut self) {
        self.unanswered.clear();
        self.answered.clear();
        let content: Vec<(&str, &str, &str)> = self
            .desired
            .iter()
            .map(|((of, name), value)| (TYPES[*of], name.as_str(), value.as_str()))
            .collect();
        self.client = connect(self.variant, self.plane.publish(&content));
        for (of, type_url) in TYPES.into_iter().enumerate() {
            let belief = &mut self.beliefs[of];
            if !belief.is_started {
                continue;
            }
            let mut asked: Vec<&str> = belief.names.iter().map(String::as_str).collect();
            if belief.is_wildcard && belief.has_named {
                asked.push("*");
            }
            // A client that wants nothing of a type by now does not ask for it.
            if asked.is_empty() && !belief.is_wildcard {
                *belief = Belief::default();
                continue;
            }
            let mut request = ask(self.variant, type_url, &asked);
            if self.variant == Variant::Delta {
                let held = belief.held.iter();
                request.initial_versions = held
                    .map(|(name, value)| (name.as_str().into(), version(type_url, name, value)))
                    .collect();
            }
            belief.has_named = !asked.is_empty() || !matches!(type_url, CLUSTER | LISTENER);
            self.client.send(&request);
        }
    }

    fn receive(&mut self) -> usize {
        let replies = self.client.receive();
        let count = replies.len();
        for reply in replies {
            self.believe(&reply);
            self.unanswered.push(reply);
        }
        count
    }

    fn believe(&mut self, reply: &Reply) {
        let of = index_of(&reply.type_url);
        let belief = &mut self.beliefs[of];
        let is_full = self.variant == Variant::Sotw && matches!(TYPES[of], CLUSTER | LISTENER);
        if is_full {
            belief.held.clear();
        }
        for resource in &reply.resources {
            let (name, value) = resource.split_once('=').expect("tests write name=content");
            assert!(
                belief.wants(name),
                "R23: {name} was not asked for: {reply:?}"
            );
            belief.held.insert(name.to_owned(), value.to_owned());
        }
        for name in &reply.removed {
            belief.held.remove(name);
        }
    }

    // Accepts everything until nothing comes any more, however long it takes.
    fn rest(&mut self) {
        for _ in 0..100 {
            while !self.unanswered.is_empty() {
                self.answer(true, true);
            }
            if self.receive() == 0 {
                let Some(wake) = self.client.next_wake() else {
                    return;
                };
                self.client.now = self.client.now.max(wake);
                self.receive();
            }
        }
        panic!("the server never comes to rest");
    }

    fn check(&self) {
        for (of, belief) in self.beliefs.iter().enumerate() {
            let desired = self
                .desired
                .iter()
                .filter(|((kind, name), _)| *kind == of && belief.is_started && belief.wants(name));
            let desired: BTreeMap<&String, &String> =
                desired.map(|((_, name), value)| (name, value)).collect();
            let mut held: BTreeMap<&String, &String> = belief.held.iter().collect();
            // Absence deletes nothing here: these go with what refers to them (R26).
            let goes_with_parent =
                self.variant == Variant::Sotw && matches!(TYPES[of], ENDPOINT | ROUTE);
            // R44: what a client may still refer to, because it refused to stop, stays.
            if goes_with_parent || self.may_refer(of) {
                held.retain(|name, _| desired.contains_key(name));
            }
            assert_eq!(held, desired, "{}", TYPES[of]);
        }
    }
}

impl World {
    fn may_refer(&self, of: usize) -> bool {
        let referrers: &[usize] = match TYPES[of] {
            CLUSTER => &[2, 3],
            ENDPOINT => &[0],
            ROUTE => &[2],
            _ => &[],
        };
        let refuses = |other: &usize| self.beliefs[*other].is_refusing || self.may_refer(*other);
        referrers.iter().any(refuses)
    }
}

fn connect(variant: Variant, view: std::sync::Arc<isthmus_xds_core::View>) -> Client {
    match variant {
        Variant::Delta => Client::delta(view),
        Variant::Sotw => Client::sotw(view),
    }
}

fn index_of(type_url: &str) -> usize {
    TYPES
        .iter()
        .position(|known| *known == type_url)
        .expect("the server answers only what was asked")
}

fn run(variant: Variant, steps: &[Step]) {
    let mut world = World::new(variant);
    for step in steps {
        world.apply(step);
    }
    world.rest();
    world.check();
    assert_eq!(world.receive(), 0, "R13: a quiet server stays quiet");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").map_or(2000, |it| it.parse().unwrap_or(2000)),
        // A case that fails goes into the tables, not into a file of seeds.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn incremental_clients_come_to_hold_what_they_want(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run(Variant::Delta, &steps);
    }

    #[test]
    fn state_of_the_world_clients_come_to_hold_what_they_want(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run(Variant::Sotw, &steps);
    }
}
