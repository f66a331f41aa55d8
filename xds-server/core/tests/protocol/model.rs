//! Any order of requests, answers, changes and waiting, against a client that believes only what
//! it is sent. At rest it holds exactly what it asked for, never got an unasked name, and a
//! quiet server stays quiet.
//!
//! The client refuses some contents whenever it meets them, says which or does not, and takes the
//! rest of the response or does not (R64); and it refuses some responses for no reason. What it
//! has no reason to refuse it comes to hold all the same.

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
    // What it held before what it refused for no reason: the server may take it for bad.
    doubted: BTreeSet<(String, String)>,
    // Whether it refused anything, and whether that is its last word.
    has_refused: bool,
    is_refusing: bool,
    // `version_info` of what it accepted last, and whether it came back with it.
    accepted: String,
    is_returning: bool,
}

/// How a client refuses.
#[derive(Clone, Copy, Debug)]
struct Manners {
    // Contents that it refuses, by type and name; 0 for none.
    bad: [[u8; 4]; 4],
    // In the words of Envoy, in others, or not at all.
    names_culprit: u8,
    // R64: Envoy and gRPC take what is valid; a client may also take nothing.
    takes_valid: bool,
}

fn manners() -> impl Strategy<Value = Manners> {
    let some = prop_oneof![3 => Just(0_u8), 1 => Just(1_u8), 1 => Just(2_u8)];
    let bad = prop::array::uniform4(prop::array::uniform4(some));
    (bad, 0_u8..3, any::<bool>()).prop_map(|(bad, names_culprit, takes_valid)| Manners {
        bad,
        names_culprit,
        takes_valid,
    })
}

impl Manners {
    fn is_bad(&self, of: usize, name: &str, value: &str) -> bool {
        let place = NAMES.iter().position(|it| *it == name);
        place.is_some_and(|place| {
            self.bad[of][place] > 0 && self.bad[of][place].to_string() == value
        })
    }

    fn words(&self, of: usize, culprits: &[String]) -> String {
        let pairs: Vec<String> = culprits.iter().map(|name| format!("{name}: no")).collect();
        match (self.names_culprit, TYPES[of]) {
            (0, CLUSTER) => format!("Error adding/updating cluster(s) {}", pairs.join(", ")),
            (0, LISTENER) => format!("Error adding/updating listener(s) {}", pairs.join("\n")),
            (0 | 1, _) => format!("cannot take {}", culprits.join(" nor ")),
            _ => "refused".to_owned(),
        }
    }
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
    manners: Manners,
    plane: Plane,
    client: Client,
    desired: BTreeMap<(usize, String), String>,
    beliefs: Vec<Belief>,
    // With the client's words, if it refuses.
    unanswered: Vec<(Reply, Option<String>)>,
    answered: Vec<Reply>,
}

impl World {
    fn new(variant: Variant, manners: Manners) -> Self {
        let mut plane = Plane::default();
        let view = plane.publish(&[]);
        Self {
            variant,
            manners,
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
        // A client may answer the newest alone (R47), but it does not hide a refusal.
        let hidden = &self.unanswered[..last];
        let newest = &self.unanswered[last].0.type_url;
        let is_hidden = hidden
            .iter()
            .any(|(reply, error)| reply.type_url == *newest && error.is_some());
        let oldest = oldest || is_hidden;
        let (reply, error) = self.unanswered.remove(if oldest { 0 } else { last });
        let of = index_of(&reply.type_url);
        let mut error = error;
        if !oldest {
            // R47: older ones are settled along with it, and are as good or as bad.
            let skipped = self
                .unanswered
                .extract_if(.., |(other, _)| other.type_url == reply.type_url);
            for (other, _) in skipped.collect::<Vec<_>>() {
                self.doubt(of, &other);
            }
        }
        if !is_ack {
            error.get_or_insert_with(|| "for no reason".to_owned());
        }
        self.beliefs[of].is_refusing = error.is_some();
        if error.is_some() {
            self.beliefs[of].has_refused = true;
            if error.as_deref() == Some("for no reason") {
                self.doubt(of, &reply);
            }
        }
        self.client
            .send(&self.request_for(&reply, error.as_deref()));
        self.answered.push(reply);
    }

    // The server is told that it was refused, or not told that it was: it may not come again.
    fn doubt(&mut self, of: usize, reply: &Reply) {
        let pairs = reply.resources.iter().filter_map(|it| it.split_once('='));
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.beliefs[of].doubted.extend(pairs);
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
            if self.variant == Variant::Sotw {
                if !belief.held.is_empty() && belief.accepted.is_empty() {
                    "something".clone_into(&mut belief.accepted);
                }
                request.version.clone_from(&belief.accepted);
                belief.is_returning = !belief.accepted.is_empty();
            }
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
            let error = self.believe(&reply);
            self.unanswered.push((reply, error));
        }
        count
    }

    // Takes what it takes of a response; returns its words if it refuses it.
    fn believe(&mut self, reply: &Reply) -> Option<String> {
        let of = index_of(&reply.type_url);
        let manners = self.manners;
        let belief = &mut self.beliefs[of];
        let pairs = reply.resources.iter().map(|it| {
            let (name, value) = it.split_once('=').expect("tests write name=content");
            assert!(
                belief.wants(name),
                "R23: {name} was not asked for: {reply:?}"
            );
            (name.to_owned(), value.to_owned())
        });
        let (bad, good): (Vec<_>, Vec<_>) =
            pairs.partition(|(name, value)| manners.is_bad(of, name, value));
        if !bad.is_empty() && !manners.takes_valid {
            let culprits: Vec<String> = bad.into_iter().map(|(name, _)| name).collect();
            return Some(manners.words(of, &culprits));
        }
        let is_full = self.variant == Variant::Sotw && matches!(TYPES[of], CLUSTER | LISTENER);
        if is_full {
            let is_there = |name: &String| {
                reply
                    .resources
                    .iter()
                    .any(|it| it.starts_with(&format!("{name}=")))
            };
            belief.held.retain(|name, _| is_there(name));
        }
        belief.held.extend(good);
        for name in &reply.removed {
            belief.held.remove(name);
        }
        let culprits: Vec<String> = bad.into_iter().map(|(name, _)| name).collect();
        (!culprits.is_empty()).then(|| manners.words(of, &culprits))
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
            let desired: BTreeMap<&String, &String> = self.desired_of(of).collect();
            let mut held: BTreeMap<&String, &String> = belief.held.iter().collect();
            // Absence deletes nothing here: these go with what refers to them (R26).
            let goes_with_parent =
                self.variant == Variant::Sotw && matches!(TYPES[of], ENDPOINT | ROUTE);
            // R44: what a client may still refer to, because it refused to stop, stays.
            if goes_with_parent || self.may_refer(of) {
                held.retain(|name, _| desired.contains_key(name));
            }
            // What it refuses it has as it was before, or not at all.
            let is_refused = |name: &str, value: &str| self.is_refused(of, name, value);
            held.retain(|name, _| desired.get(name).is_none_or(|it| !is_refused(name, it)));
            // Who refuses it and holds it all the same may be left with it.
            held.retain(|name, value| desired.contains_key(name) || !is_refused(name, value));
            let desired: BTreeMap<_, _> = desired
                .into_iter()
                .filter(|(name, value)| !is_refused(name, value))
                .collect();
            // Who takes nothing of what it refuses, and holds what nobody knows, cannot be helped.
            let is_lost = !self.manners.takes_valid && belief.is_returning && belief.has_refused;
            assert!(
                held == desired || is_lost,
                "{}: {held:?} {desired:?}",
                TYPES[of]
            );
            let takes_bad = belief
                .held
                .iter()
                .any(|(name, it)| self.manners.is_bad(of, name, it));
            assert!(!takes_bad, "{}", TYPES[of]);
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
        let keeps_old = |other: &usize| {
            let belief = &self.beliefs[*other];
            let wants_anything = belief.is_wildcard || !belief.names.is_empty();
            let mut desired = self.desired_of(*other);
            (belief.is_refusing && wants_anything)
                || desired.any(|(name, value)| self.is_refused(*other, name, value))
                || self.may_refer(*other)
        };
        referrers.iter().any(keeps_old)
    }

    fn desired_of(&self, of: usize) -> impl Iterator<Item = (&String, &String)> {
        let belief = &self.beliefs[of];
        let is_of =
            move |kind: usize, name: &str| kind == of && belief.is_started && belief.wants(name);
        let desired = self.desired.iter();
        let desired = desired.filter(move |((kind, name), _)| is_of(*kind, name));
        desired.map(|((_, name), value)| (name, value))
    }

    fn is_refused(&self, of: usize, name: &str, value: &str) -> bool {
        let pair = (name.to_owned(), value.to_owned());
        self.manners.is_bad(of, name, value) || self.beliefs[of].doubted.contains(&pair)
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

fn run(variant: Variant, manners: Manners, steps: &[Step]) {
    let mut world = World::new(variant, manners);
    for step in steps {
        world.apply(step);
    }
    world.rest();
    world.check();
    assert_eq!(world.receive(), 0, "R13: a quiet server stays quiet");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").map_or(600, |it| it.parse().unwrap_or(600)),
        // A case that fails goes into the tables, not into a file of seeds.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn incremental_clients_come_to_hold_what_they_want(
        manners in manners(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run(Variant::Delta, manners, &steps);
    }

    #[test]
    fn state_of_the_world_clients_come_to_hold_what_they_want(
        manners in manners(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run(Variant::Sotw, manners, &steps);
    }
}
