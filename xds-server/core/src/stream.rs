//! One stream, state of the world or incremental, aggregated or of one type, as a state machine.
//!
//! The caller feeds requests and views and then polls until there is nothing more to send:
//! requests first, so that who asks is served before who is told (7b of the design).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::features::Features;
use crate::limits;
use crate::order::{self, BreakGate};
use crate::resource::{Name, Resource, TypeUrl, Version};
use crate::status::ResourceStatus;
use crate::subscription::{LegacyWildcard, Subscription};
use crate::type_rules::{self, Types, rules_of};
use crate::type_state::{Answer, Content, FirstRequest, TypeState};

use crate::view::{TypeSet, View};
use crate::wire;
use crate::xdstp::canonical;

pub use crate::event::Event;
pub use crate::request::{Amended, Request, RequestError};
pub use crate::status::TypeStatus;
pub use crate::type_state::Refusal;

/// Which of the two protocols a stream speaks.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Variant {
    /// Incremental: `DeltaDiscoveryRequest`, `DeltaDiscoveryResponse`.
    Delta,
    /// State of the world: `DiscoveryRequest`, `DiscoveryResponse`.
    Sotw,
}

/// What kind of client is at the other end, as far as the protocol depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Peer {
    /// Envoy, and whatever follows its reading of the protocol.
    Envoy,
    /// A gRPC library: it never means everything by naming nothing (R20).
    Grpc,
}

/// A response, encoded: a few bytes of its own, then slices shared with all other streams.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its type.
    pub type_url: TypeUrl,
    /// Number of resources in it.
    pub resources: usize,
    /// Number of removals in it.
    pub removed: usize,
    /// The protobuf message, in pieces to be written one after the other.
    pub pieces: Vec<Bytes>,
}

impl Response {
    /// Length of the message.
    pub fn size_bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// How a stream is set up.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Which protocol it speaks.
    pub variant: Variant,
    /// The type that it serves, or `None` for an aggregated stream.
    pub only_type: Option<TypeUrl>,
    /// Who is at the other end.
    pub peer: Peer,
    /// What it can read.
    pub features: Features,
    /// Number that no other stream of this server has; part of every nonce (R8).
    pub id: u64,
    /// `control_plane.identifier` of every response (R5).
    pub identifier: Arc<str>,
}

/// A stream. One owner, no sharing.
#[derive(Debug)]
pub struct Stream {
    options: StreamOptions,
    view: Arc<View>,
    // In the order in which they are made; `urls` runs beside it.
    states: Vec<TypeState>,
    urls: Vec<TypeUrl>,
    last_nonce: u64,
    events: Vec<Event>,
}

impl Stream {
    /// Opens a stream to a client that should have `view`.
    pub fn new(options: StreamOptions, view: Arc<View>) -> Self {
        Self {
            options,
            view,
            states: Vec::new(),
            urls: Vec::new(),
            last_nonce: 0,
            events: Vec::new(),
        }
    }

    /// Applies one request: as an answer if its nonce is that of an unanswered response, and its
    /// names in any case (R12, R36, R37). `now` is a time on the caller's monotonic clock.
    ///
    /// # Errors
    ///
    /// Returns [`RequestError`] if the stream must end; nothing was applied then.
    pub fn handle_request(
        &mut self,
        request: &Request,
        now: Duration,
    ) -> Result<Amended, RequestError> {
        let type_url = self.type_of(request)?;
        self.check_names(request)?;
        let (index, is_first) = self.state_of(&type_url)?;
        let nonce = self.parse_nonce(&request.nonce);
        let state = &mut self.states[index];

        let amended = TypeUrl::clone(&type_url);
        // R8: a nonce on the first request is one of an earlier stream, and means nothing.
        if !is_first && !request.nonce.is_empty() {
            let answer = state.handle_answer(nonce, request.error.as_deref(), now);
            note_answer(&mut self.events, &type_url, answer, now);
        }
        let set = self.view.type_set(&amended);
        let change = match self.options.variant {
            Variant::Sotw => {
                // Every answer repeats the names; those of the first request stay.
                let set = set.filter(|_| is_first);
                let first = is_first.then_some(FirstRequest {
                    is_returning: !request.version.is_empty(),
                });
                state.handle_names(&spelled(&request.names, set), first, now)
            }
            Variant::Delta => {
                let initial = is_first.then(|| held_versions(request));
                let subscribe = spelled(&request.subscribe, set);
                let unsubscribe = spelled(&request.unsubscribe, None);
                state.handle_amendment(&subscribe, &unsubscribe, initial.as_deref(), now)
            }
        };
        Ok(Amended {
            type_url: amended,
            change,
        })
    }

    /// The view that the client is being brought to.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// What the client wants, type by type.
    pub fn subscriptions(&self) -> impl Iterator<Item = (&TypeUrl, &Subscription)> {
        let subscriptions = self.states.iter().map(TypeState::subscription);
        self.urls.iter().zip(subscriptions)
    }

    /// Moves on to another view. What changes meanwhile coalesces: only the newest counts.
    pub fn handle_view(&mut self, view: Arc<View>, now: Duration) {
        for (state, type_url) in self.states.iter_mut().zip(&self.urls) {
            state.advance(&view.set_or_empty(state.rules, type_url), now);
        }
        self.view = view;
    }

    /// Moves on to a view that differs from the present one in nothing that the client wants: the
    /// caller knows, and is believed. Costs a pointer per type, however far apart the views are.
    pub fn skip_to(&mut self, view: Arc<View>) {
        for (state, type_url) in self.states.iter_mut().zip(&self.urls) {
            state.skip_to(view.set_or_empty(state.rules, type_url));
        }
        self.view = view;
    }

    /// Returns the next response to send at `now`, or `None` until something happens or
    /// [`Stream::next_wake`] has come.
    pub fn poll(&mut self, now: Duration) -> Option<Response> {
        loop {
            let has_released = self.release_breaks(now);
            let due = self
                .states
                .iter()
                .position(|state| order::make_at(state, &self.states).is_some_and(|at| at <= now));
            match due {
                Some(due) => {
                    if let Some(response) = self.send(due, now) {
                        return Some(response);
                    }
                }
                // What went without a word may have held up another removal.
                None if has_released => {}
                None => return None,
            }
        }
    }

    /// When `poll` may have something although nothing happened; `None` if only an event can.
    pub fn next_wake(&self) -> Option<Duration> {
        let makes = self
            .states
            .iter()
            .filter_map(|state| order::make_at(state, &self.states));
        let breaks = self.states.iter().filter_map(|state| {
            let since = state.oldest_break()?;
            match order::break_gate(state, &self.states) {
                BreakGate::Open => Some(since),
                BreakGate::AfterPatience => Some(since + limits::BREAK_PATIENCE),
                BreakGate::Shut => None,
            }
        });
        makes.chain(breaks).min()
    }

    /// Takes what happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Where the client stands, type by type.
    pub fn status(&self) -> Vec<TypeStatus> {
        let rows = self.states.iter().zip(&self.urls);
        rows.map(|(state, type_url)| TypeStatus {
            type_url: TypeUrl::clone(type_url),
            is_wildcard: state.subscription().is_wildcard(),
            names: state.subscription().names().len(),
            sent_generation: state.sent_generation(),
            acked_generation: state.acked_generation(),
            is_settled: state.is_settled() && !state.has_breaks(),
            refusal: state.refusal(),
        })
        .collect()
    }

    /// Where the client stands with each resource that it asked for, and with each that it may
    /// still hold although it is gone. Costs all of them: for CSDS, not for the push path.
    pub fn config_status(&self) -> Vec<ResourceStatus> {
        let rows = self.states.iter().zip(&self.urls);
        rows.flat_map(|(state, type_url)| state.config_status(type_url))
            .collect()
    }

    /// Whether the client wants a resource, and was sent this version and accepted it, or said that
    /// it holds it. Costs a look at one name.
    pub fn has_accepted(&self, type_url: &str, name: &Name, version: Version) -> bool {
        let at = self.urls.iter().position(|url| **url == *type_url);
        at.is_some_and(|at| self.states[at].has_accepted(name, version))
    }

    /// Whether nothing is to be sent, nothing is unanswered and no removal is held back. A stream
    /// at rest may still owe heartbeats later: [`Stream::next_wake`] says so. Costs a look at each
    /// type and allocates nothing.
    pub fn is_at_rest(&self) -> bool {
        self.states
            .iter()
            .all(|state| state.is_answered() && !state.has_breaks())
    }

    /// Generation up to which the client has all that it wants of a type and has answered it, type
    /// by type: that of the view, unless something is unsent, unanswered or held back. What it
    /// refused counts as answered; [`Event::Nacked`] told of it.
    pub fn answered_through(&self) -> impl Iterator<Item = (&TypeUrl, u64)> {
        let newest = self.view.generation();
        let through = move |state: &TypeState| state.answered_through(newest);
        self.urls.iter().zip(self.states.iter().map(through))
    }

    fn type_of(&self, request: &Request) -> Result<TypeUrl, RequestError> {
        let size_bytes = request.type_url.len();
        if size_bytes > limits::TYPE_URL_BYTES {
            return Err(RequestError::LongTypeUrl { size_bytes });
        }
        match &self.options.only_type {
            None if request.type_url.is_empty() => Err(RequestError::NoTypeUrl),
            None => Ok(self
                .urls
                .iter()
                .find(|url| ***url == *request.type_url)
                .map_or_else(|| TypeUrl::from(request.type_url.as_str()), TypeUrl::clone)),
            Some(served) if request.type_url.is_empty() || *request.type_url == **served => {
                Ok(TypeUrl::clone(served))
            }
            Some(served) => Err(RequestError::WrongType {
                asked: request.type_url.clone(),
                served: TypeUrl::clone(served),
            }),
        }
    }

    fn check_names(&self, request: &Request) -> Result<(), RequestError> {
        let named = || request.names.iter().chain(&request.subscribe);
        let initial = request.initial_versions.iter().map(|(name, _)| name);
        let longest = named().chain(initial).map(|name| name.len()).max();
        if let Some(size_bytes) = longest.filter(|len| *len > limits::NAME_BYTES) {
            return Err(RequestError::LongName { size_bytes });
        }
        let held: usize = self
            .states
            .iter()
            .map(|state| state.subscription().names().len())
            .sum();
        let count = held + named().count();
        // Names that a request repeats are counted twice here, so only look closer near the limit.
        if count > limits::SUBSCRIBED_NAMES {
            let type_url = self.type_of(request)?;
            let state = self.urls.iter().position(|url| *url == type_url);
            let known = |name: &&Name| {
                state.is_some_and(|index| self.states[index].subscription().has_named(name))
            };
            let count = held + named().filter(|name| !known(name)).count();
            if count > limits::SUBSCRIBED_NAMES {
                return Err(RequestError::TooManyNames { count });
            }
        }
        Ok(())
    }

    // Finds the state of a type, or starts it. Tells whether this is its first request.
    fn state_of(&mut self, type_url: &TypeUrl) -> Result<(usize, bool), RequestError> {
        if let Some(index) = self.urls.iter().position(|url| url == type_url) {
            return Ok((index, false));
        }
        if self.urls.len() == limits::TYPES_PER_STREAM {
            return Err(RequestError::TooManyTypes);
        }
        let rules = rules_of(type_url);
        let legacy = if rules.has_legacy_wildcard && self.options.peer == Peer::Envoy {
            LegacyWildcard::Means
        } else {
            LegacyWildcard::MeansNot
        };
        let base = self.view.set_or_empty(rules, type_url);
        let index = self
            .states
            .partition_point(|state| state.rules.rank <= rules.rank);
        let StreamOptions {
            variant, features, ..
        } = self.options;
        let state = TypeState::new(rules, variant, features, legacy, base);
        // A stream has few types and keeps them: room for more than it has is never used.
        self.states.reserve_exact(1);
        self.urls.reserve_exact(1);
        self.states.insert(index, state);
        self.urls.insert(index, TypeUrl::clone(type_url));
        Ok((index, true))
    }

    fn release_breaks(&mut self, now: Duration) -> bool {
        let mut has_released = false;
        for index in 0..self.states.len() {
            if !self.states[index].has_breaks() {
                continue;
            }
            let before = match order::break_gate(&self.states[index], &self.states) {
                BreakGate::Open => now,
                BreakGate::AfterPatience => match now.checked_sub(limits::BREAK_PATIENCE) {
                    Some(before) => before,
                    None => continue,
                },
                BreakGate::Shut => continue,
            };
            has_released |= self.states[index].release_breaks(before, now);
        }
        has_released
    }

    fn send(&mut self, index: usize, now: Duration) -> Option<Response> {
        let mut content = self.states[index].take_content(now)?;
        self.last_nonce += 1;
        self.states[index].note_sent(self.last_nonce, &mut content, now);
        self.restate_endpoints(&content.changed_endpoints, now);
        self.restate_hosts(index, &content.upserts, now);

        let response = self.encode(index, &content);
        let size_bytes = response.size_bytes();
        if self.options.peer == Peer::Grpc && size_bytes > limits::CLIENT_MESSAGE_BYTES {
            self.events.push(Event::Oversized {
                type_url: TypeUrl::clone(&response.type_url),
                size_bytes,
            });
        }
        Some(response)
    }

    fn encode(&self, index: usize, content: &Content) -> Response {
        let StreamOptions {
            variant,
            features,
            identifier,
            ..
        } = &self.options;
        let type_url = TypeUrl::clone(&self.urls[index]);
        let nonce = self.render_nonce(self.last_nonce);
        let version = content
            .version
            .unwrap_or_else(|| self.states[index].version());
        let removed = content.removed.iter().map(|name| &**name);
        let mut pieces = Vec::with_capacity(1 + content.upserts.len());
        pieces.push(match variant {
            Variant::Sotw => wire::encode_sotw_header(version, &type_url, &nonce, identifier),
            Variant::Delta => {
                wire::encode_delta_header(version, &type_url, &nonce, identifier, removed)
            }
        });
        let upserts = content.upserts.iter();
        pieces.extend(upserts.map(|it| it.entry(*variant, *features).clone()));
        pieces.extend(content.absent.iter().map(wire::encode_absence));
        let missing = content.missing.iter();
        pieces.extend(missing.map(|name| wire::encode_not_found(*variant, name)));
        pieces.extend(content.alive.iter().filter_map(|it| {
            // State of the world: Envoy compares with the version of the response.
            let version = match variant {
                Variant::Sotw => version,
                Variant::Delta => it.version(),
            };
            let ttl = it.ttl()?;
            Some(wire::encode_heartbeat(*variant, it.name(), version, ttl))
        }));
        Response {
            type_url,
            resources: content.upserts.len(),
            removed: content.removed.len(),
            pieces,
        }
    }

    // R48: a cluster that was sent again warms again, and waits for endpoints it may hold.
    fn restate_endpoints(&mut self, names: &[Name], now: Duration) {
        if !names.is_empty()
            && let Some(endpoints) = self.known_type(type_rules::EDS)
        {
            for name in names {
                endpoints.restate(name, now);
            }
        }
    }

    // R57: with a new route configuration Envoy forgets the virtual hosts that it had on demand.
    fn restate_hosts(&mut self, index: usize, sent: &[Arc<Resource>], now: Duration) {
        if self.states[index].rules.id == type_rules::RDS
            && let Some(hosts) = self.known_type(type_rules::VHDS)
        {
            for route in sent {
                hosts.restate_below(route.name(), now);
            }
        }
    }

    fn known_type(&mut self, id: Types) -> Option<&mut TypeState> {
        let mut states = self.states.iter_mut();
        states.find(|state| state.rules.id == id)
    }

    fn render_nonce(&self, number: u64) -> String {
        format!("{:x}-{number:x}", self.options.id)
    }

    /// Number of the last response that was made; 0 before the first.
    pub fn last_response(&self) -> u64 {
        self.last_nonce
    }

    /// Number of the response that has this nonce; `None` if none of this stream can.
    pub fn response_of(&self, nonce: &str) -> Option<u64> {
        self.parse_nonce(nonce)
    }

    fn parse_nonce(&self, text: &str) -> Option<u64> {
        let (id, number) = text.split_once('-')?;
        let id = u64::from_str_radix(id, 16).ok()?;
        let number = u64::from_str_radix(number, 16).ok()?;
        (id == self.options.id).then_some(number)
    }
}

fn note_answer(events: &mut Vec<Event>, type_url: &TypeUrl, answer: Answer, now: Duration) {
    let type_url = TypeUrl::clone(type_url);
    match answer {
        Answer::Ack {
            generation,
            sent_at,
        } => events.push(Event::Acked {
            type_url,
            generation,
            after: now.saturating_sub(sent_at),
        }),
        Answer::Nack { refusal, culprits } => {
            let (generation, message) = (refusal.generation, Arc::from(&*refusal.message));
            events.push(Event::Nacked {
                type_url: TypeUrl::clone(&type_url),
                refusal,
            });
            events.extend(culprits.into_iter().map(|culprit| Event::Isolated {
                type_url: TypeUrl::clone(&type_url),
                name: culprit.name,
                version: culprit.version,
                generation,
                message: Arc::clone(&message),
            }));
        }
        Answer::Stale => events.push(Event::StaleNonce { type_url }),
    }
}

fn held_versions(request: &Request) -> Vec<(Name, Option<Version>)> {
    let held = request.initial_versions.iter();
    held.map(|(name, version)| (canonical(name).into_owned(), Version::parse(version)))
        .collect()
}

// R55: names that differ only in the order of their context parameters are one name. Those of
// `set` are shared with it: else each stream would hold the text of all that it asks for.
fn spelled(names: &[Name], set: Option<&Arc<TypeSet>>) -> Vec<Name> {
    let shared = |name: &Name| {
        let resource = set?.resource(name)?;
        Some(Name::clone(resource.name()))
    };
    names
        .iter()
        .map(|name| shared(name).unwrap_or_else(|| canonical(name).into_owned()))
        .collect()
}
