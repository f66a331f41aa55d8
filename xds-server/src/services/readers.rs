//! Who may see what clients are configured with.
//!
//! A sidecar must not read the mesh. Who proved an identity sees the streams of that identity and no
//! other, unless `--status-reader` names it. Who proved none is let in from the loopback interface,
//! as everybody there is at the admin endpoint, and from nowhere else.

use isthmus_api::envoy_resources::{Identity, IdentityPattern};
use tonic::Status;

use crate::transport::ConnectedPeer;

/// The identities that see every client.
#[derive(Clone, Debug, Default)]
pub(super) struct Readers(Vec<IdentityPattern>);

/// What one caller may see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Sight {
    /// Every client.
    Everybody,
    /// The streams of one identity, which is the caller's.
    Only(Identity),
}

impl Readers {
    pub(super) fn new(identities: Vec<IdentityPattern>) -> Self {
        Self(identities)
    }

    /// What a caller at the other end of `peer`'s connection may see.
    pub(super) fn sight_of(&self, peer: &ConnectedPeer) -> Result<Sight, Status> {
        match peer.identity() {
            Some(identity) if self.0.iter().any(|it| it.matches(identity)) => Ok(Sight::Everybody),
            Some(identity) => Ok(Sight::Only(identity.clone())),
            None if peer.is_loopback() => Ok(Sight::Everybody),
            None => Err(Status::permission_denied(
                "the status of clients is shown to whom --status-reader names and to the server's own \
                 machine; call with a client certificate, or over loopback",
            )),
        }
    }
}

impl Sight {
    /// Whether a stream whose client proved `identity` is seen.
    pub(super) fn sees(&self, identity: Option<&Identity>) -> bool {
        match self {
            Self::Everybody => true,
            Self::Only(own) => identity == Some(own),
        }
    }
}
