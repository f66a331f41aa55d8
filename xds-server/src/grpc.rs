//! The gRPC services: aggregated and per type, state of the world and incremental.
//!
//! One tower service answers all of them from a table of paths, since they differ in two values
//! only: the variant and the type.

mod codec;
mod node;
mod session;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use isthmus_xds_core::{TypeUrl, Variant, type_rules};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService};

use crate::plane::Plane;
use codec::{DeltaCodec, Inbound, SotwCodec};

/// Bytes of one request. A reconnecting client lists every name and version that it holds: 32 MiB
/// are about 300,000 of them.
const REQUEST_BYTES: usize = 32 * 1024 * 1024;

// Path of each method, without the leading `/envoy.service.`; `None` is the aggregated service.
const METHODS: [(&str, Variant, Option<&str>); 20] = {
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

    async fn serve(self, request: http::Request<Body>) -> http::Response<Body> {
        let path = request.uri().path().strip_prefix("/envoy.service.");
        let method = METHODS.iter().find(|(method, ..)| path == Some(method));
        let Some((_, variant, only_type)) = method else {
            let message = format!("no such method: {}", request.uri().path());
            return Status::unimplemented(message).into_http();
        };
        let variant = *variant;
        let opening = Opening {
            service: self,
            variant,
            only_type: only_type.map(TypeUrl::from),
        };
        match variant {
            Variant::Sotw => {
                let grpc = Grpc::new(SotwCodec::default());
                let mut grpc = grpc.max_decoding_message_size(REQUEST_BYTES);
                grpc.streaming(opening, request).await
            }
            Variant::Delta => {
                let grpc = Grpc::new(DeltaCodec::default());
                let mut grpc = grpc.max_decoding_message_size(REQUEST_BYTES);
                grpc.streaming(opening, request).await
            }
        }
    }
}

impl tower_service::Service<http::Request<Body>> for DiscoveryService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.serve(request).await) })
    }
}

// One call of one method.
#[derive(Debug)]
struct Opening {
    service: DiscoveryService,
    variant: Variant,
    only_type: Option<TypeUrl>,
}

impl StreamingService<Inbound> for Opening {
    type Response = isthmus_xds_core::Response;
    type ResponseStream = ReceiverStream<Result<Self::Response, Status>>;
    type Future =
        Pin<Box<dyn Future<Output = Result<tonic::Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<tonic::Streaming<Inbound>>) -> Self::Future {
        let DiscoveryService {
            plane,
            identifier,
            shutdown,
        } = self.service.clone();
        let settings = session::Settings {
            variant: self.variant,
            only_type: self.only_type.clone(),
            identifier,
        };
        Box::pin(async move {
            // R6: an empty answer would delete all that the client has.
            if !plane.is_ready() {
                plane.metrics.refuse_stream("not_ready");
                let message = "no configuration was loaded yet; see /readyz of the admin endpoint";
                return Err(Status::unavailable(message));
            }
            let outbound = session::spawn(plane, settings, request, shutdown);
            Ok(tonic::Response::new(ReceiverStream::new(outbound)))
        })
    }
}
