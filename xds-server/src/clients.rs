//! Who is connected, and where each client stands: for people and dashboards, not for decisions.
//!
//! A session shares its state machine with this list, under a lock that nobody else wants but who
//! prints the list: a push costs no bookkeeping here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_xds_core::stream::TypeStatus;
use isthmus_xds_core::{ScopeKey, Stream, Variant};

use crate::plane::Plane;
use crate::transport::ConnectedPeer;

/// One open stream.
#[derive(Debug)]
pub struct Client {
    /// `node.id`.
    pub node_id: String,
    /// `node.cluster`.
    pub node_cluster: String,
    /// Client program and version, as far as it says.
    pub user_agent: String,
    /// The other end of its connection.
    pub peer: ConnectedPeer,
    /// Which protocol the stream speaks.
    pub variant: Variant,
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    scope: ScopeKey,
    stream: Stream,
}

impl Client {
    /// The documents it gets.
    pub fn scope(&self) -> ScopeKey {
        self.lock().scope.clone()
    }

    /// Where it stands, type by type.
    pub fn types(&self) -> Vec<TypeStatus> {
        self.lock().stream.status()
    }

    pub(crate) fn move_to(&self, scope: &ScopeKey) {
        self.lock().scope.clone_from(scope);
    }

    pub(crate) fn with_stream<T>(&self, act: impl FnOnce(&mut Stream) -> T) -> T {
        act(&mut self.lock().stream)
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All open streams, by stream number.
#[derive(Debug, Default)]
pub struct Clients(Mutex<BTreeMap<u64, Arc<Client>>>);

impl Clients {
    /// All streams, by number.
    pub fn list(&self) -> Vec<(u64, Arc<Client>)> {
        let all = self.lock();
        all.iter()
            .map(|(id, client)| (*id, Arc::clone(client)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Client>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client says of itself, before it is known by a number.
#[derive(Debug)]
pub(crate) struct Introduction {
    pub(crate) node_id: String,
    pub(crate) node_cluster: String,
    pub(crate) user_agent: String,
    pub(crate) peer: ConnectedPeer,
    pub(crate) variant: Variant,
    pub(crate) scope: ScopeKey,
    pub(crate) stream: Stream,
}

/// A place in the list of [`Clients`] that ends with the value.
#[derive(Debug)]
pub(crate) struct Membership {
    plane: Arc<Plane>,
    client: Arc<Client>,
    id: u64,
}

impl Membership {
    /// Adds a client to the plane's list.
    pub(crate) fn new(plane: Arc<Plane>, id: u64, who: Introduction) -> Self {
        let client = Arc::new(Client {
            node_id: who.node_id,
            node_cluster: who.node_cluster,
            user_agent: who.user_agent,
            peer: who.peer,
            variant: who.variant,
            live: Mutex::new(Live {
                scope: who.scope,
                stream: who.stream,
            }),
        });
        plane.metrics.open_stream(client.variant);
        plane.clients.lock().insert(id, Arc::clone(&client));
        Self { plane, client, id }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.plane.clients.lock().remove(&self.id);
        self.plane.metrics.close_stream(self.client.variant);
    }
}
