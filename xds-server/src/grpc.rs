//! The gRPC services: aggregated and per type, state of the world and incremental.
//!
//! One tower service answers all of them from a table of paths, since they differ in two values
//! only: the variant and the type. Messages are framed here and not by tonic's codec: it copies
//! each message once per stream, and keeps 16 KiB of buffers for a stream that is idle.

mod node;
mod requests;
mod responses;
mod session;

pub(crate) use node::ClientNode;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, header};
use isthmus_proto::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use isthmus_xds_core::{Request, TypeUrl, Variant, type_rules};
use prost::{DecodeError, Message};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;

use crate::plane::Plane;
use crate::transport::ConnectedPeer;
use requests::{Inbound, Requests};

/// Reads a serialized `DiscoveryRequest` or `DeltaDiscoveryRequest` as streams do, without the node.
///
/// # Errors
///
/// Returns the decoder's error if it is no such message.
pub fn decode_request(variant: Variant, bytes: &[u8]) -> Result<Request, DecodeError> {
    let inbound = match variant {
        Variant::Sotw => Inbound::from(DiscoveryRequest::decode(bytes)?),
        Variant::Delta => Inbound::from(DeltaDiscoveryRequest::decode(bytes)?),
    };
    Ok(inbound.request)
}

// Path of each method, without the leading `/envoy.service.`; `None` is the aggregated service.
const METHODS: [Method; 20] = {
    use Variant::{Delta, Sotw};
    use type_rules as t;
    [
        (
            "discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            Sotw,
            None,
        ),
        (
            "discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            Delta,
            None,
        ),
        (
            "cluster.v3.ClusterDiscoveryService/StreamClusters",
            Sotw,
            Some(t::CLUSTER),
        ),
        (
            "cluster.v3.ClusterDiscoveryService/DeltaClusters",
            Delta,
            Some(t::CLUSTER),
        ),
        (
            "endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
            Sotw,
            Some(t::ENDPOINT),
        ),
        (
            "endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
            Delta,
            Some(t::ENDPOINT),
        ),
        (
            "endpoint.v3.LocalityEndpointDiscoveryService/DeltaLocalityEndpoints",
            Delta,
            Some(t::LOCALITY_ENDPOINT),
        ),
        (
            "listener.v3.ListenerDiscoveryService/StreamListeners",
            Sotw,
            Some(t::LISTENER),
        ),
        (
            "listener.v3.ListenerDiscoveryService/DeltaListeners",
            Delta,
            Some(t::LISTENER),
        ),
        (
            "route.v3.RouteDiscoveryService/StreamRoutes",
            Sotw,
            Some(t::ROUTE),
        ),
        (
            "route.v3.RouteDiscoveryService/DeltaRoutes",
            Delta,
            Some(t::ROUTE),
        ),
        (
            "route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes",
            Sotw,
            Some(t::SCOPED_ROUTE),
        ),
        (
            "route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes",
            Delta,
            Some(t::SCOPED_ROUTE),
        ),
        (
            "route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts",
            Delta,
            Some(t::VIRTUAL_HOST),
        ),
        (
            "secret.v3.SecretDiscoveryService/StreamSecrets",
            Sotw,
            Some(t::SECRET),
        ),
        (
            "secret.v3.SecretDiscoveryService/DeltaSecrets",
            Delta,
            Some(t::SECRET),
        ),
        (
            "runtime.v3.RuntimeDiscoveryService/StreamRuntime",
            Sotw,
            Some(t::RUNTIME),
        ),
        (
            "runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
            Delta,
            Some(t::RUNTIME),
        ),
        (
            "extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
            Sotw,
            Some(t::EXTENSION_CONFIG),
        ),
        (
            "extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
            Delta,
            Some(t::EXTENSION_CONFIG),
        ),
    ]
};

type Method = (&'static str, Variant, Option<&'static str>);

fn method_of(path: &str) -> Option<&'static Method> {
    let path = path.strip_prefix("/envoy.service.")?;
    METHODS.iter().find(|(method, ..)| path == *method)
}

/// Whether [`DiscoveryService`] has the method at `path`.
pub(crate) fn is_discovery(path: &str) -> bool {
    method_of(path).is_some()
}

/// Full names of the discovery services; each once for every method.
pub(crate) fn service_names() -> impl Iterator<Item = String> {
    let services = METHODS
        .iter()
        .filter_map(|(method, ..)| method.split('/').next());
    services.map(|service| format!("envoy.service.{service}"))
}

/// All discovery services of one plane.
#[derive(Clone, Debug)]
pub struct DiscoveryService {
    plane: Arc<Plane>,
    identifier: Arc<str>,
    shutdown: watch::Receiver<bool>,
}

impl DiscoveryService {
    /// Serves `plane`. `identifier` goes into every response, so that a proxy's dump tells which
    /// server configured it (R5). Streams end when `shutdown` turns true.
    pub fn new(plane: Arc<Plane>, identifier: Arc<str>, shutdown: watch::Receiver<bool>) -> Self {
        Self {
            plane,
            identifier,
            shutdown,
        }
    }

    fn serve(self, request: http::Request<Body>) -> http::Response<Body> {
        let Some((_, variant, only_type)) = method_of(request.uri().path()) else {
            let message = format!("no such method: {}", request.uri().path());
            return Status::unimplemented(message).into_http();
        };
        // R6: an empty answer would delete all that the client has.
        if !self.plane.is_ready() {
            self.plane.metrics.refuse_stream("not_ready");
            let message = "no configuration was loaded yet; see /readyz of the admin endpoint";
            return Status::unavailable(message).into_http();
        }
        let opening = Opening {
            variant: *variant,
            only_type: only_type.map(TypeUrl::from),
            identifier: self.identifier,
            peer: peer_of(&request),
            id: self.plane.next_stream_id(),
            plane: self.plane,
            shutdown: self.shutdown,
        };
        let body = request.into_body();
        let body = match variant {
            Variant::Sotw => session::body(opening, Requests::<DiscoveryRequest>::new(body)),
            Variant::Delta => session::body(opening, Requests::<DeltaDiscoveryRequest>::new(body)),
        };
        let mut response = http::Response::new(Body::new(body));
        let content_type = HeaderValue::from_static("application/grpc");
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        response
    }
}

fn peer_of(request: &http::Request<Body>) -> ConnectedPeer {
    let peer = request.extensions().get::<ConnectedPeer>();
    peer.cloned().unwrap_or_default()
}

impl tower_service::Service<http::Request<Body>> for DiscoveryService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        std::future::ready(Ok(self.clone().serve(request)))
    }
}

/// One call of one method.
#[derive(Debug)]
struct Opening {
    variant: Variant,
    only_type: Option<TypeUrl>,
    identifier: Arc<str>,
    peer: ConnectedPeer,
    id: u64,
    plane: Arc<Plane>,
    shutdown: watch::Receiver<bool>,
}
