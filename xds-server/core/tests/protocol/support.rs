//! A client and a control plane for the tests: they speak through real, encoded responses.

use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::pb::envoy::service::discovery::v3::ResourceError;
use isthmus_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource as WireResource,
};
use isthmus_xds_core::stream::{Event, Peer, StreamOptions};
use isthmus_xds_core::view::Change;
use isthmus_xds_core::{Extras, Features, Name, Request, Resource, Stream, TypeUrl, Variant, View};
use prost::Message;

pub(crate) use isthmus_xds_core::type_rules::{
    CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE, RUNTIME, SECRET, VIRTUAL_HOST,
};

/// What a view has: `(type, name, content)`. A cluster's endpoints have the cluster's name.
pub(crate) type Content<'a> = &'a [(&'a str, &'a str, &'a str)];

/// A sequence of views, each following the one before.
#[derive(Default)]
pub(crate) struct Plane {
    view: View,
    generation: u64,
}

impl Plane {
    pub(crate) fn publish(&mut self, content: Content<'_>) -> Arc<View> {
        self.generation += 1;
        let is_kept = |url: &str, name: &str| {
            content
                .iter()
                .any(|(other, it, _)| *other == url && *it == name)
        };
        let held = self.view.types().flat_map(|(type_url, set)| {
            set.resources()
                .map(move |it| (TypeUrl::clone(type_url), Name::clone(it.name())))
        });
        let gone = held.filter(|(url, name)| !is_kept(url, name));
        let mut changes: Vec<Change> = gone
            .map(|(type_url, name)| Change {
                type_url,
                name,
                resource: None,
            })
            .collect();
        changes.extend(content.iter().map(|(type_url, name, value)| Change {
            type_url: TypeUrl::from(*type_url),
            name: Name::from(*name),
            resource: Some(Arc::new(resource(type_url, name, value))),
        }));
        self.view = self.view.after(self.generation, &changes);
        Arc::new(self.view.clone())
    }
}

/// The content carries the name, since a state-of-the-world response does not.
fn resource(type_url: &str, name: &str, value: &str) -> Resource {
    let extras = Extras {
        endpoints: (type_url == CLUSTER).then(|| Name::from(name)),
        // A virtual host is written `content,alias,alias`.
        aliases: if type_url == VIRTUAL_HOST {
            value.split(',').skip(1).map(Name::from).collect()
        } else {
            Vec::new()
        },
        // A runtime layer is written `content`, or `content/seconds`.
        ttl: value
            .split_once('/')
            .filter(|_| [RUNTIME, LISTENER].contains(&type_url))
            .map(|(_, seconds)| Duration::from_secs(seconds.parse().expect("tests write seconds"))),
    };
    let content = format!("{name}={value}");
    Resource::new(type_url, Name::from(name), content.as_bytes(), extras)
}

/// Version that a resource of this content has.
pub(crate) fn version(type_url: &str, name: &str, value: &str) -> String {
    resource(type_url, name, value).version().to_string()
}

/// A decoded response.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) type_url: String,
    pub(crate) nonce: String,
    pub(crate) version: String,
    /// `name=content`, in order.
    pub(crate) resources: Vec<String>,
    pub(crate) removed: Vec<String>,
    /// Resources without a body, as `name`, or `name!ttl` if they have a time to live.
    pub(crate) bodyless: Vec<String>,
    /// Names in `resource_errors`, each `NOT_FOUND`.
    pub(crate) missing: Vec<String>,
    /// Names of resources that came in a `Resource`, with their time to live; state of the world.
    pub(crate) wrapped: Vec<String>,
    /// Whether an incremental resource with a body has a time to live.
    pub(crate) has_ttl: bool,
    pub(crate) size_bytes: usize,
}

/// One stream, seen from its client.
pub(crate) struct Client {
    stream: Stream,
    variant: Variant,
    pub(crate) now: Duration,
}

impl Client {
    pub(crate) fn sotw(view: Arc<View>) -> Self {
        Self::new(Variant::Sotw, Peer::Envoy, None, view)
    }

    pub(crate) fn delta(view: Arc<View>) -> Self {
        Self::new(Variant::Delta, Peer::Envoy, None, view)
    }

    pub(crate) fn new(
        variant: Variant,
        peer: Peer,
        only_type: Option<&str>,
        view: Arc<View>,
    ) -> Self {
        let options = StreamOptions {
            only_type: only_type.map(TypeUrl::from),
            ..options(variant, peer, &[])
        };
        Self::with_options(options, view)
    }

    /// A client that says so much in `node.client_features`.
    pub(crate) fn featured(variant: Variant, features: &[&str], view: Arc<View>) -> Self {
        Self::with_options(options(variant, Peer::Envoy, features), view)
    }

    fn with_options(options: StreamOptions, view: Arc<View>) -> Self {
        Self {
            variant: options.variant,
            stream: Stream::new(options, view),
            now: Duration::ZERO,
        }
    }

    pub(crate) fn publish(&mut self, view: Arc<View>) {
        self.stream.handle_view(view, self.now);
    }

    pub(crate) fn wait(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    pub(crate) fn send(&mut self, request: &Request) {
        self.stream
            .handle_request(request, self.now)
            .expect("the request is a valid one");
    }

    pub(crate) fn try_send(
        &mut self,
        request: &Request,
    ) -> Result<(), isthmus_xds_core::RequestError> {
        self.stream.handle_request(request, self.now).map(|_| ())
    }

    /// Everything that the server has to say at this time.
    pub(crate) fn receive(&mut self) -> Vec<Reply> {
        std::iter::from_fn(|| self.stream.poll(self.now))
            .map(|response| decode(self.variant, &response))
            .collect()
    }

    /// Like [`Client::receive`], accepting each response as it comes, until all is quiet.
    pub(crate) fn settle(&mut self) -> Vec<Reply> {
        let mut all = Vec::new();
        loop {
            let replies = self.receive();
            if replies.is_empty() {
                return all;
            }
            for reply in replies {
                self.ack(&reply);
                all.push(reply);
            }
            assert!(all.len() < 10_000, "it does not come to an end");
        }
    }

    /// Asks for names: all of them, or in addition, as the variant has it.
    pub(crate) fn ask(&mut self, type_url: &str, names: &[&str]) {
        self.send(&ask(self.variant, type_url, names));
    }

    pub(crate) fn unsubscribe(&mut self, type_url: &str, names: &[&str]) {
        self.send(&Request {
            type_url: type_url.to_owned(),
            unsubscribe: self::names(names),
            ..Request::default()
        });
    }

    /// Accepts an incremental response, or a state-of-the-world one of a wildcard subscription.
    pub(crate) fn ack(&mut self, reply: &Reply) {
        self.send(&answer(reply, None));
    }

    pub(crate) fn nack(&mut self, reply: &Reply, error: &str) {
        self.send(&answer(reply, Some(error)));
    }

    /// Accepts a state-of-the-world response, repeating the names as clients do.
    pub(crate) fn ack_with(&mut self, reply: &Reply, names: &[&str]) {
        self.send(&Request {
            names: self::names(names),
            ..answer(reply, None)
        });
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        self.stream.take_events()
    }

    pub(crate) fn next_wake(&self) -> Option<Duration> {
        self.stream.next_wake()
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        self.stream.is_at_rest()
    }

    /// Generation up to which a type is answered.
    pub(crate) fn answered_through(&self, type_url: &str) -> Option<u64> {
        let mut types = self.stream.answered_through();
        types.find_map(|(url, through)| (**url == *type_url).then_some(through))
    }

    /// Each resource as `name=status`, with `-` before those that do not exist.
    pub(crate) fn config_status(&self) -> Vec<String> {
        let rows = self.stream.config_status();
        rows.iter()
            .map(|row| {
                let mark = if row.version.is_some() { "" } else { "-" };
                format!("{mark}{}={:?}", row.name, row.status)
            })
            .collect()
    }

    /// Generation of the last content of a type that was accepted.
    pub(crate) fn acked_generation(&self, type_url: &str) -> Option<u64> {
        let all = self.stream.status();
        let status = all.iter().find(|status| &*status.type_url == type_url);
        status.and_then(|status| status.acked_generation)
    }

    pub(crate) fn is_settled(&self, type_url: &str) -> bool {
        let all = self.stream.status();
        let status = all.iter().find(|status| &*status.type_url == type_url);
        status.is_some_and(|status| status.is_settled)
    }
}

fn options(variant: Variant, peer: Peer, features: &[&str]) -> StreamOptions {
    StreamOptions {
        variant,
        only_type: None,
        peer,
        features: Features::parse(peer, features.iter().copied()),
        id: 7,
        identifier: "test".into(),
    }
}

pub(crate) fn ask(variant: Variant, type_url: &str, names: &[&str]) -> Request {
    let names = self::names(names);
    let (names, subscribe) = match variant {
        Variant::Sotw => (names, Vec::new()),
        Variant::Delta => (Vec::new(), names),
    };
    Request {
        type_url: type_url.to_owned(),
        names,
        subscribe,
        ..Request::default()
    }
}

pub(crate) fn answer(reply: &Reply, error: Option<&str>) -> Request {
    Request {
        type_url: reply.type_url.clone(),
        nonce: reply.nonce.clone(),
        error: error.map(ToOwned::to_owned),
        ..Request::default()
    }
}

pub(crate) fn names(names: &[&str]) -> Vec<Name> {
    names.iter().map(|name| Name::from(*name)).collect()
}

/// Types of responses, in order, in short.
pub(crate) fn types(replies: &[Reply]) -> Vec<&str> {
    replies
        .iter()
        .map(|reply| match reply.type_url.as_str() {
            CLUSTER => "cds",
            ENDPOINT => "eds",
            LISTENER => "lds",
            ROUTE => "rds",
            SECRET => "sds",
            EXTENSION_CONFIG => "ecds",
            _ => "other",
        })
        .collect()
}

/// The one response there must be.
pub(crate) fn only(replies: Vec<Reply>) -> Reply {
    let [reply] = <[Reply; 1]>::try_from(replies).expect("there is exactly one response");
    reply
}

fn decode(variant: Variant, response: &isthmus_xds_core::Response) -> Reply {
    let bytes: Vec<u8> = response.pieces.iter().flatten().copied().collect();
    let size_bytes = bytes.len();
    assert_eq!(size_bytes, response.size_bytes());
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).expect("tests use text");
    match variant {
        Variant::Sotw => {
            let message = DiscoveryResponse::decode(&*bytes).expect("it is a DiscoveryResponse");
            assert_eq!(message.control_plane.expect("R5").identifier, "test");
            let mut resources = Vec::new();
            let (mut wrapped, mut bodyless) = (Vec::new(), Vec::new());
            for any in &message.resources {
                if any.type_url != WRAPPER {
                    assert_eq!(any.type_url, message.type_url, "R30");
                    resources.push(text(&any.value));
                    continue;
                }
                let inner = WireResource::decode(&*any.value).expect("it is a Resource");
                let seconds = inner.ttl.as_ref().map_or(0, |ttl| ttl.seconds);
                let name = format!("{}!{seconds}", inner.name);
                let Some(any) = inner.resource else {
                    assert_eq!(
                        inner.version, message.version_info,
                        "R54: as Envoy compares"
                    );
                    bodyless.push(name);
                    continue;
                };
                assert_eq!(any.type_url, message.type_url, "R30");
                resources.push(text(&any.value));
                wrapped.push(name);
            }
            let reply = Reply {
                resources,
                missing: missing(&message.resource_errors),
                wrapped,
                bodyless,
                type_url: message.type_url.clone(),
                nonce: message.nonce,
                version: message.version_info,
                removed: Vec::new(),
                has_ttl: false,
                size_bytes,
            };
            assert_unique(&reply);
            reply
        }
        Variant::Delta => {
            let message = DeltaDiscoveryResponse::decode(&*bytes).expect("it is a delta response");
            assert_eq!(message.control_plane.expect("R5").identifier, "test");
            let (whole, bodyless): (Vec<_>, Vec<_>) = message
                .resources
                .iter()
                .partition(|resource| resource.resource.is_some());
            let has_ttl = whole.iter().any(|resource| resource.ttl.is_some());
            let bodyless = bodyless.into_iter().map(|resource| {
                if let Some(ttl) = &resource.ttl {
                    return format!("{}!{}", resource.name, ttl.seconds);
                }
                assert_eq!(
                    resource.aliases,
                    std::slice::from_ref(&resource.name),
                    "R57"
                );
                resource.name.clone()
            });
            let resources = whole.into_iter().map(|resource| {
                let any = resource.resource.as_ref().expect("it has a body");
                assert_eq!(any.type_url, message.type_url, "R30");
                let value = text(&any.value);
                let (name, content) = value.rsplit_once('=').expect("tests write name=content");
                assert_eq!(name, resource.name, "R31");
                assert_eq!(
                    resource.version,
                    version(&any.type_url, name, content),
                    "R39"
                );
                value
            });
            let resources: Vec<String> = resources.collect();
            let reply = Reply {
                resources,
                missing: missing(&message.resource_errors),
                wrapped: Vec::new(),
                bodyless: bodyless.collect(),
                type_url: message.type_url.clone(),
                nonce: message.nonce,
                version: message.system_version_info,
                removed: message.removed_resources,
                has_ttl,
                size_bytes,
            };
            assert_unique(&reply);
            reply
        }
    }
}

const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

fn missing(errors: &[ResourceError]) -> Vec<String> {
    let name = |error: &ResourceError| {
        let status = error.error_detail.as_ref().expect("it says what is wrong");
        assert_eq!(status.code, 5, "NOT_FOUND");
        error.resource_name.clone().expect("it has a name").name
    };
    errors.iter().map(name).collect()
}

// R30: Envoy refuses a response that names something twice.
fn assert_unique(reply: &Reply) {
    let upserts = reply
        .resources
        .iter()
        .filter_map(|it| it.rsplit_once('=').map(|(name, _)| name));
    let mut all: Vec<&str> = upserts
        .chain(reply.removed.iter().map(String::as_str))
        .chain(reply.bodyless.iter().map(String::as_str))
        .collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "R30: {reply:?}");
    let is_valid = |name: &String| {
        reply
            .resources
            .iter()
            .any(|it| it.starts_with(&format!("{name}=")))
    };
    assert!(!reply.missing.iter().any(is_valid), "R56: {reply:?}");
}
