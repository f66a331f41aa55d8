//! Who may call the API: whoever the transport proved to be one of those that the command line names.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::{Request, Response};
use isthmus_api::envoy_resources::IdentityPattern;
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

use crate::metrics::RefusedConnections;
use crate::transport::{ConnectedPeer, Refusal, RefusalLog};

/// Who may call.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Access {
    /// Whether the TCP listener is plaintext, which it only is on loopback: whoever reaches it may call.
    pub is_loopback_open: bool,
    /// Who may call over TLS.
    pub allowed: Vec<IdentityPattern>,
    /// The user who may call over the Unix socket: the owner of its file.
    pub socket_owner: Option<u32>,
}

impl Access {
    /// Says why a peer may not call; `None` if it may.
    fn refusal(&self, peer: &ConnectedPeer) -> Option<String> {
        if let Some(uid) = peer.uid() {
            return (self.socket_owner != Some(uid)).then(|| {
                format!(
                    "uid {uid} does not own the socket; call as the user that the server runs as"
                )
            });
        }
        if self.is_loopback_open && peer.is_loopback() {
            return None;
        }
        match peer.identity() {
            None => {
                Some("the client certificate has no SPIFFE ID to know the caller by".to_owned())
            }
            Some(identity) if self.allowed.iter().any(|it| it.matches(identity)) => None,
            Some(identity) => Some(format!(
                "{identity} is not among the identities of --api-allow"
            )),
        }
    }
}

/// A service that only some may call.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    access: Arc<Access>,
    refusals: Arc<Mutex<RefusalLog>>,
}

impl<S> Guarded<S> {
    /// Puts `access` before a service; who is refused is counted in `refused`.
    pub fn new(inner: S, access: Access, refused: RefusedConnections) -> Self {
        Self {
            inner,
            access: Arc::new(access),
            refusals: Arc::new(Mutex::new(RefusalLog::new(refused))),
        }
    }
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = tonic::codegen::BoxFuture<Response<Body>, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<ConnectedPeer>();
        let peer = peer.cloned().unwrap_or_default();
        let Some(reason) = self.access.refusal(&peer) else {
            return Box::pin(self.inner.call(request));
        };
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.note(&peer, &Refusal::api_call(reason.clone()));
        let refused = Status::permission_denied(reason).into_http();
        Box::pin(std::future::ready(Ok(refused)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_nothing_is_known_of_may_not_call() {
        let open = Access {
            is_loopback_open: true,
            ..Access::default()
        };
        assert!(open.refusal(&ConnectedPeer::default()).is_some());
        assert!(
            Access::default()
                .refusal(&ConnectedPeer::default())
                .is_some()
        );
    }
}
