//! Who is connected: each client's stream, its place in a scope, and where it stands.
//!
//! A session shares its state machine with this list, under a lock that nobody else wants but who
//! prints the list: a push costs no bookkeeping here.
//!
//! Whenever that lock is free, the index of the scope says exactly what the stream wants, and a
//! stream whose bell was not rung lacks nothing that it wants.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_xds_core::stream::TypeStatus;
use isthmus_xds_core::{
    Event, Name, Request, RequestError, ResourceStatus, Response, ScopeKey, Stream, TypeUrl,
    Variant, Version, View,
};
use prost::Message;

use crate::canary::flows;
use crate::convergence::{Answerer, Convergence, Rest};
use crate::interest::Slot;
use crate::plane::Plane;
use crate::scope::{Bell, Scope, Standing};
use crate::transport::ConnectedPeer;

/// One open stream.
#[derive(Debug)]
pub struct Client {
    /// `node.id`.
    pub node_id: Arc<str>,
    /// `node.cluster`.
    pub node_cluster: String,
    /// Client program and version, as far as it says.
    pub user_agent: String,
    /// The other end of its connection.
    pub peer: ConnectedPeer,
    /// Which protocol the stream speaks.
    pub variant: Variant,
    pub(crate) id: u64,
    pub(crate) slot: Slot,
    pub(crate) bell: Bell,
    node: Bytes,
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    scope: Arc<Scope>,
    stream: Stream,
    // Of the view that the stream has.
    standing: Standing,
    // The commit that the scope had when the client came to it.
    placed_at: u64,
    // The last response that it was sent before that.
    placed_after: u64,
    // By type: the commits that its last refusal concerned, as long as it is sought what is to
    // blame.
    refused: Vec<(TypeUrl, RangeInclusive<u64>)>,
    // The newest commit of all that were owed and are answered.
    answered: u64,
}

/// What a stream does when it is polled.
#[derive(Debug)]
pub(crate) struct Turn {
    /// What to send.
    pub(crate) response: Option<Response>,
    /// What is worth telling of it.
    pub(crate) events: Vec<Event>,
    /// When to poll it again although nothing happened; beside a response it is not known.
    pub(crate) wake: Option<Duration>,
}

impl Client {
    /// The documents it gets.
    pub fn scope(&self) -> ScopeKey {
        self.lock().scope.key().clone()
    }

    /// Where it stands, type by type.
    pub fn types(&self) -> Vec<TypeStatus> {
        self.lock().stream.status()
    }

    /// What it said of itself, without its list of extensions.
    pub fn node(&self) -> Node {
        Node::decode(self.node.clone()).unwrap_or_default()
    }

    /// Where it stands, resource by resource, and what its scope has. Costs all that it asked for.
    pub fn resources(&self) -> (Vec<ResourceStatus>, Arc<View>) {
        let live = self.lock();
        (live.stream.config_status(), live.scope.view_for(self.id).0)
    }

    /// Whether it accepted a version of a resource.
    pub(crate) fn has_accepted(&self, type_url: &TypeUrl, name: &Name, version: Version) -> bool {
        self.lock().stream.has_accepted(type_url, name, version)
    }

    /// Whether it is to have something older than the newest, since that is tried or was refused.
    pub(crate) fn is_held_back(&self) -> bool {
        let (_, standing) = self.lock().scope.view_for(self.id);
        matches!(standing, Standing::Held(_))
    }

    /// If a change is tried on it: its scope, and the commit up to which it has accepted all that may
    /// be on trial.
    pub(crate) fn accepted_as_canary(&self) -> Option<(ScopeKey, u64)> {
        let live = self.lock();
        if self.bell.has_change() || !live.scope.is_canary(self.id) {
            return None;
        }
        let tried = live
            .stream
            .answered_through()
            .filter(|(url, _)| !flows(url));
        let through = tried.map(|(_, through)| through).min()?;
        Some((live.scope.key().clone(), through))
    }

    /// Applies a request to the newest view. The index knows what it asked for when this returns.
    pub(crate) fn handle_request(
        &self,
        request: &Request,
        convergence: &Convergence,
        now: Duration,
    ) -> Result<Vec<Event>, RequestError> {
        let mut live = self.lock();
        live.catch_up(self.id, &self.bell, now);
        live.move_on(self.id, now);
        let amended = live.stream.handle_request(request, now)?;
        if !amended.change.is_nothing() {
            live.scope.amend(self.slot, &amended);
            live.move_on(self.id, now);
        }
        let events = live.stream.take_events();
        if !events.is_empty() {
            self.report(&mut live, &events, &request.nonce, convergence);
        }
        Ok(events)
    }

    /// Moves on if the bell was rung, then takes the next response.
    pub(crate) fn take_turn(&self, convergence: &Convergence, now: Duration) -> Turn {
        let mut live = self.lock();
        live.catch_up(self.id, &self.bell, now);
        let response = live.stream.poll(now);
        if let Some(response) = response {
            if self.bell.owed() > live.answered {
                convergence.sent(self.slot, response.size_bytes());
            }
            return Turn {
                response: Some(response),
                events: live.stream.take_events(),
                wake: None,
            };
        }
        // What it was rung for may come to nothing.
        if live.stream.is_at_rest() {
            self.report(&mut live, &[], "", convergence);
        }
        Turn {
            response: None,
            events: Vec::new(),
            wake: live.stream.next_wake(),
        }
    }

    // Tells whoever waits for this client what it has answered, with which nonce.
    fn report(&self, live: &mut Live, events: &[Event], nonce: &str, convergence: &Convergence) {
        let (who, now, owed) = (self.answerer(), Instant::now(), self.bell.owed());
        let is_waited_for = owed > live.answered;
        for event in events {
            if let Event::Nacked { type_url, refusal } = event
                && is_waited_for
            {
                let message = refusal.message.as_str().into();
                let through = live.refused_through(nonce, refusal.generation);
                let concerned = convergence.refused(who, type_url, through, &message, now);
                if let Some(concerned) = concerned {
                    live.refused.retain(|(url, _)| url != type_url);
                    live.refused.push((TypeUrl::clone(type_url), concerned));
                }
            }
            // Found with the refusal or long after, when nothing else may be waited for.
            if let Event::Isolated { type_url, name, .. } = event
                && let Some((_, commits)) = live.refused.iter().find(|(url, _)| url == type_url)
            {
                convergence.blamed(who, type_url, commits, name);
            }
        }
        if !live.refused.is_empty() && live.stream.is_at_rest() {
            live.refused = Vec::new();
        }
        if !is_waited_for {
            return;
        }
        let newest = live.stream.view().generation();
        // A scope that a client came to may have had its last change long before that.
        let known = newest.max(live.placed_at);
        let standing = live.standing;
        let through = live.stream.answered_through();
        let through = through.map(|(url, through)| {
            let through = if through == newest { known } else { through };
            match standing {
                Standing::Held(passed) if !flows(url) => (url, through.min(passed)),
                Standing::Held(_) | Standing::Apart | Standing::Newest => (url, through),
            }
        });
        if convergence.answered(who, through, live.rest(), now) == Rest::Quiet {
            live.answered = owed;
        }
    }

    fn answerer(&self) -> Answerer<'_> {
        Answerer {
            slot: self.slot,
            stream: self.id,
            node_id: &self.node_id,
        }
    }

    /// Takes a place in a scope that has all up to a commit, and leaves the last one. The stream
    /// follows to its view.
    pub(crate) fn move_to(
        self: &Arc<Self>,
        scope: &Arc<Scope>,
        generation: u64,
        convergence: &Convergence,
        now: Duration,
    ) {
        let mut live = self.lock();
        let mut rest = Rest::Quiet;
        if !Arc::ptr_eq(&live.scope, scope) {
            live.scope.leave(self.slot, &live.stream);
            live.scope = Arc::clone(scope);
            // Of the last scope; nobody rings for that any more.
            self.bell.take_change();
            scope.join(self, &live.stream);
            live.move_on(self.id, now);
            live.placed_at = generation;
            live.placed_after = live.stream.last_response();
            rest = live.rest();
        }
        if self.bell.owed() > live.answered {
            convergence.placed(self.slot, generation, rest, Instant::now());
        }
    }

    /// Moves a stream that was not rung on to `newest`, unless its session is busy with it. The
    /// caller holds the lock under which the scope's streams are rung.
    pub(crate) fn skip_to(&self, newest: &Arc<View>) {
        let mut live = match self.live.try_lock() {
            Ok(live) => live,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !self.bell.has_change() && live.standing == Standing::Newest {
            live.stream.skip_to(Arc::clone(newest));
        }
    }

    fn join(self: &Arc<Self>) {
        let mut live = self.lock();
        live.scope.join(self, &live.stream);
        live.move_on(self.id, Duration::ZERO);
    }

    fn leave(&self, convergence: &Convergence) {
        let live = self.lock();
        live.scope.leave(self.slot, &live.stream);
        // Nobody rings it from here on, so nothing is owed after this.
        if self.bell.owed() > live.answered {
            convergence.left(self.answerer(), Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    // Up to which commit the client refuses what it was sent: with what came by a move, all that
    // the scope had then, though the type may have had its last change long before.
    fn refused_through(&self, nonce: &str, generation: u64) -> u64 {
        let response = self.stream.response_of(nonce);
        if response.is_some_and(|it| it > self.placed_after) {
            generation.max(self.placed_at)
        } else {
            generation
        }
    }

    fn rest(&self) -> Rest {
        if self.stream.is_at_rest() {
            Rest::Quiet
        } else {
            Rest::Busy
        }
    }

    // Costs the changes since the first one that it was rung for: up to there, it only lets go of
    // what it had.
    fn catch_up(&mut self, id: u64, bell: &Bell, now: Duration) {
        let Some(unconcerned) = bell.take_change() else {
            return;
        };
        // A stream that subscribed meanwhile is at a newer view already, and one that is apart, or from
        // which something is held, never had what is in the newest.
        let is_newest = self.standing == Standing::Newest;
        if is_newest && unconcerned.generation() > self.stream.view().generation() {
            self.stream.skip_to(unconcerned);
        }
        self.move_on(id, now);
    }

    fn move_on(&mut self, id: u64, now: Duration) {
        let (view, standing) = self.scope.view_for(id);
        self.standing = standing;
        if !Arc::ptr_eq(self.stream.view(), &view) {
            self.stream.handle_view(view, now);
        }
    }
}

/// All open streams, by stream number.
#[derive(Debug, Default)]
pub struct Clients(Mutex<Roll>);

#[derive(Debug, Default)]
struct Roll {
    by_id: BTreeMap<u64, Arc<Client>>,
    vacant: Vec<Slot>,
    slots: Slot,
}

impl Clients {
    /// All streams, by number.
    pub fn list(&self) -> Vec<(u64, Arc<Client>)> {
        let roll = self.lock();
        roll.by_id
            .iter()
            .map(|(id, client)| (*id, Arc::clone(client)))
            .collect()
    }

    fn take_slot(&self) -> Slot {
        let mut roll = self.lock();
        roll.vacant.pop().unwrap_or_else(|| {
            roll.slots += 1;
            roll.slots - 1
        })
    }

    fn lock(&self) -> MutexGuard<'_, Roll> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client says of itself, before it is known by a number.
#[derive(Debug)]
pub(crate) struct Introduction {
    pub(crate) node_id: Arc<str>,
    pub(crate) node_cluster: String,
    pub(crate) node: Bytes,
    pub(crate) user_agent: String,
    pub(crate) peer: ConnectedPeer,
    pub(crate) variant: Variant,
    pub(crate) scope: Arc<Scope>,
    pub(crate) stream: Stream,
}

/// A place in the list of [`Clients`] and in a scope that ends with the value.
#[derive(Debug)]
pub(crate) struct Membership {
    plane: Arc<Plane>,
    client: Arc<Client>,
}

impl Membership {
    /// Adds a client to the plane's list, and to its scope.
    pub(crate) fn new(plane: Arc<Plane>, id: u64, who: Introduction) -> Self {
        let client = Arc::new(Client {
            node_id: who.node_id,
            node_cluster: who.node_cluster,
            user_agent: who.user_agent,
            peer: who.peer,
            variant: who.variant,
            id,
            slot: plane.clients.take_slot(),
            bell: Bell::default(),
            node: who.node,
            live: Mutex::new(Live {
                scope: who.scope,
                stream: who.stream,
                standing: Standing::Newest,
                placed_at: 0,
                placed_after: 0,
                refused: Vec::new(),
                answered: 0,
            }),
        });
        plane.metrics.open_stream(client.variant);
        plane.clients.lock().by_id.insert(id, Arc::clone(&client));
        client.join();
        Self { plane, client }
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.client.leave(&self.plane.convergence);
        self.plane.note_canary_left(self.client.id, None);
        let mut roll = self.plane.clients.lock();
        roll.by_id.remove(&self.client.id);
        roll.vacant.push(self.client.slot);
        drop(roll);
        self.plane.metrics.close_stream(self.client.variant);
    }
}
