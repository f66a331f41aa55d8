//! Requests of a client that keeps no rule against the protocol core, between changes of its view.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use isthmus_xds::grpc::decode_request;
use isthmus_xds_core::stream::{Peer, StreamOptions};
use isthmus_xds_core::type_rules::{
    CLUSTER, ENDPOINT, LISTENER, ROUTE, RUNTIME, SECRET, VIRTUAL_HOST, rules_of,
};
use isthmus_xds_core::view::Change;
use isthmus_xds_core::{
    Extras, Features, Name, Request, Resource, Stream, TypeUrl, Variant, View, limits,
};
use prost::Message;

use crate::input::Input;

const TYPES: [&str; 9] = [
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    VIRTUAL_HOST,
    RUNTIME,
    SECRET,
    "t",
    "",
];

/// Names that requests and resources have in common, and some that no resource has.
const NAMES: [&str; 14] = [
    "a",
    "b",
    "c",
    "rc/shop",
    "rc/host",
    "xdstp://a/t/x?a=1&b=2",
    "xdstp://a/t/x?b=2&a=1",
    "xdstp://a/t/*",
    "xdstp:///*",
    "xdstp://",
    "*",
    "",
    "rc/",
    "/",
];

/// How many of [`NAMES`] a resource may have.
const SERVED_NAMES: usize = 6;

/// Responses that one call to poll until there are no more may bring.
const MAX_RESPONSES: usize = 10_000;

/// What a delta response may have over [`limits::RESPONSE_BYTES`]: header and removals.
const HEADER_BYTES: usize = 400_000;

/// Runs requests, answers, changes and waiting, as `data` says, on one stream.
///
/// # Panics
///
/// If an invariant is broken.
pub fn requests(data: &[u8]) {
    let mut input = Input(data);
    let setup = input.byte();
    let variant = if setup & 1 == 0 {
        Variant::Delta
    } else {
        Variant::Sotw
    };
    let peer = if setup & 2 == 0 {
        Peer::Envoy
    } else {
        Peer::Grpc
    };
    let only_type = (setup & 4 != 0).then(|| TYPES[usize::from(setup >> 4) % 7]);
    let mut client = Client::new(variant, peer, only_type);
    while let Some(step) = input.next() {
        match step % 8 {
            0..=2 => client.send(&structured(&mut input, &client)),
            3 => {
                if let Ok(request) = decode_request(variant, input.bytes()) {
                    client.send(&request);
                }
            }
            4 => client.answer(input.byte()),
            5 => client.publish(&mut input),
            6 => client.now += Duration::from_millis(u64::from(input.short())),
            _ => {
                client.receive();
            }
        }
        client.look();
    }
    client.fall_silent();
}

// A request of names that mean something, with a nonce that may.
fn structured(input: &mut Input<'_>, client: &Client) -> Request {
    let shape = input.byte();
    let type_url = (*input.pick(&TYPES)).to_owned();
    let list = |input: &mut Input<'_>| -> Vec<Name> {
        let count = input.byte() % 4;
        (0..count)
            .map(|_| Name::from(*input.pick(&NAMES)))
            .collect()
    };
    let nonce = match shape & 3 {
        0 => String::new(),
        1 => String::from_utf8_lossy(input.bytes()).into_owned(),
        _ => {
            let sent = client.nonces.get(&type_url).into_iter().flatten();
            let back = usize::from(shape >> 5);
            sent.rev().nth(back).cloned().unwrap_or_default()
        }
    };
    let mut request = Request {
        type_url,
        nonce,
        error: (shape & 4 != 0).then(|| String::from_utf8_lossy(input.bytes()).into_owned()),
        ..Request::default()
    };
    match client.variant {
        Variant::Sotw => request.names = list(input),
        Variant::Delta => {
            request.subscribe = list(input);
            request.unsubscribe = list(input);
            if shape & 8 != 0 {
                let names = list(input).into_iter();
                let version = String::from_utf8_lossy(input.bytes()).into_owned();
                request.initial_versions = names.map(|name| (name, version.clone())).collect();
            }
        }
    }
    if shape & 16 != 0 && shape & 32 != 0 {
        let long = "x".repeat(limits::NAME_BYTES + usize::from(input.byte()) % 2);
        request.names.push(Name::from(long));
    }
    request
}

/// What a client may be sent, at the most: generous where rules differ between clients.
#[derive(Debug, Default)]
struct Wanted {
    names: BTreeSet<String>,
    may_be_wildcard: bool,
    has_asked: bool,
}

impl Wanted {
    fn note(&mut self, variant: Variant, request: &Request) {
        let is_first = !std::mem::replace(&mut self.has_asked, true);
        match variant {
            Variant::Sotw => {
                let is_legacy = request.names.is_empty() && (is_first || self.may_be_wildcard);
                self.names = request.names.iter().map(ToString::to_string).collect();
                self.may_be_wildcard = is_legacy || self.names.contains("*");
            }
            Variant::Delta => {
                // R18: to unsubscribe and name nothing does not leave legacy mode.
                let is_legacy = self.names.is_empty() && request.subscribe.is_empty();
                for name in &request.unsubscribe {
                    self.names.remove(&**name);
                    self.may_be_wildcard &= &**name != "*" || is_legacy;
                }
                self.names
                    .extend(request.subscribe.iter().map(ToString::to_string));
                self.may_be_wildcard |= self.names.contains("*");
                self.may_be_wildcard |= is_first && request.subscribe.is_empty();
            }
        }
    }

    fn allows(&self, name: &str, aliases: &[&str]) -> bool {
        let is_xdstp = name.starts_with("xdstp:");
        self.may_be_wildcard
            || self.names.contains(name)
            || aliases.iter().any(|alias| self.names.contains(*alias))
            || (is_xdstp && self.names.iter().any(|it| it.starts_with("xdstp:")))
    }
}

struct Client {
    variant: Variant,
    only_type: Option<&'static str>,
    stream: Stream,
    view: View,
    generation: u64,
    now: Duration,
    wanted: BTreeMap<String, Wanted>,
    nonces: BTreeMap<String, Vec<String>>,
    // Type and nonce of the last response.
    last: Option<(String, String)>,
}

impl Client {
    fn new(variant: Variant, peer: Peer, only_type: Option<&'static str>) -> Self {
        let options = StreamOptions {
            variant,
            only_type: only_type.map(TypeUrl::from),
            peer,
            id: 7,
            features: Features::default(),
            identifier: "fuzz".into(),
        };
        let view = View::default();
        Self {
            variant,
            only_type,
            stream: Stream::new(options, Arc::new(view.clone())),
            view,
            generation: 0,
            now: Duration::ZERO,
            wanted: BTreeMap::new(),
            nonces: BTreeMap::new(),
            last: None,
        }
    }

    fn send(&mut self, request: &Request) {
        let before = self.subscribed();
        if self.stream.handle_request(request, self.now).is_err() {
            assert_eq!(
                before,
                self.subscribed(),
                "a refused request changes nothing"
            );
            return;
        }
        let type_url = self.only_type.unwrap_or(&request.type_url);
        let wanted = self.wanted.entry(type_url.to_owned()).or_default();
        wanted.note(self.variant, request);
        self.stream.take_events();
    }

    fn subscribed(&self) -> String {
        let all: Vec<_> = self.stream.subscriptions().collect();
        format!("{all:?}")
    }

    // Accepts or refuses the last response, repeating or not repeating what it asked for.
    fn answer(&mut self, how: u8) {
        let Some((type_url, nonce)) = self.last.clone() else {
            return;
        };
        let wanted = self.wanted.get(&type_url);
        let names = wanted.into_iter().flat_map(|it| &it.names);
        let request = Request {
            names: names.map(|name| Name::from(name.as_str())).collect(),
            error: (how & 1 != 0).then(|| format!("a: {how}")),
            type_url,
            nonce,
            ..Request::default()
        };
        self.send(&request);
    }

    fn publish(&mut self, input: &mut Input<'_>) {
        self.generation += 1;
        let count = 1 + input.byte() % 4;
        let changes: Vec<Change> = (0..count)
            .map(|_| {
                let type_url = *input.pick(&TYPES[..8]);
                let name = *input.pick(&NAMES[..SERVED_NAMES]);
                let content = input.byte();
                Change {
                    type_url: TypeUrl::from(type_url),
                    name: Name::from(name),
                    resource: (!content.is_multiple_of(4))
                        .then(|| Arc::new(resource(type_url, name, content))),
                }
            })
            .collect();
        self.view = self.view.after(self.generation, &changes);
        self.stream
            .handle_view(Arc::new(self.view.clone()), self.now);
    }

    // Takes all that there is; returns how many responses came.
    fn receive(&mut self) -> usize {
        for count in 0..MAX_RESPONSES {
            let Some(response) = self.stream.poll(self.now) else {
                let wake = self.stream.next_wake();
                assert!(
                    wake.is_none_or(|at| at > self.now),
                    "nothing is due, and yet the stream wants to be woken at {wake:?}"
                );
                return count;
            };
            let message = response.pieces.concat();
            assert!(
                self.variant == Variant::Sotw
                    || message.len() <= limits::RESPONSE_BYTES + HEADER_BYTES,
                "{} bytes in one response",
                message.len()
            );
            self.check(&message);
        }
        panic!("the stream never has nothing to say");
    }

    fn check(&mut self, message: &[u8]) {
        let (type_url, nonce, names) = match self.variant {
            Variant::Delta => {
                let response = DeltaDiscoveryResponse::decode(message).expect("a response");
                let resources = response.resources.into_iter();
                // Without a body it says that there is none, which is an answer as well.
                let with_body = resources.filter(|it| it.resource.is_some());
                let names: Vec<String> = with_body.map(|it| it.name).collect();
                (response.type_url, response.nonce, names)
            }
            Variant::Sotw => {
                let response = DiscoveryResponse::decode(message).expect("a response");
                let resources = response.resources.into_iter();
                let names = resources.map(|any| {
                    assert_eq!(any.type_url, response.type_url);
                    let content = String::from_utf8(any.value).expect("we wrote text");
                    let (name, _) = content.rsplit_once('|').expect("a name and a content");
                    name.to_owned()
                });
                let names = names.collect();
                (response.type_url, response.nonce, names)
            }
        };
        let wanted = self.wanted.get(&type_url);
        let wanted = wanted.expect("a type that was asked for");
        for name in names {
            let aliases: &[&str] = if name == "rc/shop" { &["rc/host"] } else { &[] };
            assert!(
                wanted.allows(&name, aliases),
                "{name} of {type_url} was not asked for: {wanted:?}"
            );
        }
        let nonces = self.nonces.entry(type_url.clone()).or_default();
        assert!(!nonce.is_empty() && !nonces.contains(&nonce), "{nonce}");
        nonces.push(nonce.clone());
        self.last = Some((type_url, nonce));
    }

    // What people look at, at any time.
    fn look(&self) {
        let names = self.stream.subscriptions();
        let names: usize = names.map(|(_, it)| it.names().len()).sum();
        assert!(names <= limits::SUBSCRIBED_NAMES);
        assert!(self.stream.status().len() <= limits::TYPES_PER_STREAM);
        self.stream.config_status();
        self.stream.is_at_rest();
    }

    // However far the clock runs, a client that does not answer is not sent more and more; but
    // what lives for a time is told to live on, for ever.
    fn fall_silent(&mut self) {
        let mut responses = 0;
        for _ in 0..60 {
            self.now += Duration::from_secs(2);
            responses += self.receive();
        }
        let most = self.wanted.len().max(1) * limits::IN_FLIGHT;
        assert!(responses <= most, "{responses} responses into the void");
    }
}

fn resource(type_url: &str, name: &str, content: u8) -> Resource {
    let is_runtime = rules_of(type_url).type_url == RUNTIME;
    let extras = Extras {
        endpoints: (type_url == CLUSTER).then(|| Name::from(name)),
        aliases: if type_url == VIRTUAL_HOST && name == "rc/shop" {
            vec![Name::from("rc/host")]
        } else {
            Vec::new()
        },
        ttl: (is_runtime && content & 8 != 0).then_some(Duration::from_secs(3)),
    };
    let value = format!("{name}|{content}");
    Resource::new(type_url, Name::from(name), value.as_bytes(), extras)
}
