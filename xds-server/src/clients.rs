//! Who is connected, and where each client stands: for people and dashboards, not for decisions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use isthmus_xds_core::stream::TypeStatus;
use isthmus_xds_core::{ScopeKey, Variant};

use crate::plane::Plane;

/// One open stream.
#[derive(Clone, Debug)]
pub struct Client {
    /// `node.id`.
    pub node_id: String,
    /// `node.cluster`.
    pub node_cluster: String,
    /// Client program and version, as far as it says.
    pub user_agent: String,
    /// Peer address.
    pub peer: String,
    /// Which protocol the stream speaks.
    pub variant: Variant,
    /// The documents it gets.
    pub scope: ScopeKey,
    /// Where it stands, type by type.
    pub types: Vec<TypeStatus>,
}

/// All open streams, by stream number.
#[derive(Debug, Default)]
pub struct Clients(Mutex<BTreeMap<u64, Client>>);

impl Clients {
    /// Adds a stream.
    pub fn join(&self, id: u64, client: Client) {
        self.with(|all| all.insert(id, client));
    }

    /// Removes a stream.
    pub fn leave(&self, id: u64) {
        self.with(|all| all.remove(&id));
    }

    /// Changes what is known of a stream.
    pub fn update(&self, id: u64, change: impl FnOnce(&mut Client)) {
        self.with(|all| all.get_mut(&id).map(change));
    }

    /// All streams, by number.
    pub fn list(&self) -> Vec<(u64, Client)> {
        self.with(|all| {
            all.iter()
                .map(|(id, client)| (*id, client.clone()))
                .collect()
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<u64, Client>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Membership of [`Clients`] that ends with the value.
#[derive(Debug)]
pub struct Membership {
    plane: Arc<Plane>,
    id: u64,
    variant: Variant,
}

impl Membership {
    /// Adds a client to the plane's list.
    pub fn new(plane: Arc<Plane>, id: u64, client: Client) -> Self {
        let variant = client.variant;
        plane.metrics.open_stream(variant);
        plane.clients.join(id, client);
        Self { plane, id, variant }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.plane.clients.leave(self.id);
        self.plane.metrics.close_stream(self.variant);
    }
}
