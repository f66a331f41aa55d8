//! All gRPC services of one plane, side by side on every listener: discovery, and what tools ask
//! beside it.
//!
//! Discovery has no task and no buffers of its own per stream (see [`crate::grpc`]), so it is asked
//! first; the rest are ordinary tonic services, whose streams end with the server.

mod health;
mod load;
mod outbound;
mod readers;
mod reflection;
mod status;

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, Ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use isthmus_api::envoy_resources::IdentityPattern;
use isthmus_proto::pb::envoy::service::load_stats::v3::load_reporting_service_server::LoadReportingServiceServer;
use isthmus_proto::pb::envoy::service::status::v3::client_status_discovery_service_server::ClientStatusDiscoveryServiceServer;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::v1::server_reflection_server::ServerReflectionServer;
use tonic_reflection::pb::v1alpha::server_reflection_server::ServerReflectionServer as ServerReflectionServerV1Alpha;
use tower_service::Service;

use crate::cli::Cli;
use crate::grpc::{self, DiscoveryService};
use crate::plane::Plane;
use health::HealthService;
use load::LoadService;
use readers::Readers;
use reflection::ReflectionService;
use status::StatusService;

type Health = HealthServer<HealthService>;
type Reflection = ServerReflectionServer<ReflectionService>;
type ReflectionV1Alpha = ServerReflectionServerV1Alpha<ReflectionService>;
type ClientStatus = ClientStatusDiscoveryServiceServer<StatusService>;
type LoadReports = LoadReportingServiceServer<LoadService>;

pub use load::{Granularity, LoadReporting};

/// What can be chosen of the services, beside the plane.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Identities that may see the status of every client; others see their own (R58).
    pub status_readers: Vec<IdentityPattern>,
    /// How clients report load (R59).
    pub load: LoadReporting,
    /// Whether the load of each cluster and locality is among the metrics.
    pub exports_load: bool,
}

impl From<&Cli> for Options {
    fn from(cli: &Cli) -> Self {
        Self {
            status_readers: cli.status_readers.clone(),
            load: LoadReporting {
                interval: Duration::from_secs(cli.load_report_interval.into()),
                granularity: if cli.load_report_endpoints {
                    Granularity::Endpoint
                } else {
                    Granularity::Locality
                },
            },
            exports_load: cli.load_metrics,
        }
    }
}

/// Everything that a gRPC client can call.
#[derive(Clone, Debug)]
pub struct Services {
    discovery: DiscoveryService,
    health: Health,
    reflection: Reflection,
    reflection_v1alpha: ReflectionV1Alpha,
    status: ClientStatus,
    load: LoadReports,
}

impl Services {
    /// Serves `plane`. `identifier` is what discovery responses call this server (R5). Streams end
    /// when `shutdown` turns true.
    pub fn new(
        plane: Arc<Plane>,
        identifier: Arc<str>,
        options: Options,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let names: Arc<[String]> = service_names().into();
        let health = HealthService::new(&plane, Arc::clone(&names), shutdown.clone());
        let reflection = Arc::new(ReflectionService::new(names, shutdown.clone()));
        let readers = Readers::new(options.status_readers);
        let status = StatusService::new(Arc::clone(&plane), readers, shutdown.clone());
        if options.exports_load {
            plane.loads.export();
        }
        let load = LoadService::new(Arc::clone(&plane), options.load, shutdown.clone());
        Self {
            discovery: DiscoveryService::new(plane, identifier, shutdown),
            health: HealthServer::new(health),
            reflection: ServerReflectionServer::from_arc(Arc::clone(&reflection)),
            reflection_v1alpha: ServerReflectionServerV1Alpha::from_arc(reflection),
            status: ClientStatusDiscoveryServiceServer::new(status),
            load: LoadReportingServiceServer::new(load),
        }
    }
}

/// Full names of all services, in the order of the alphabet.
fn service_names() -> Vec<String> {
    let others = [
        ClientStatus::NAME,
        Health::NAME,
        LoadReports::NAME,
        Reflection::NAME,
        ReflectionV1Alpha::NAME,
    ];
    let others = others.into_iter().map(str::to_owned);
    let mut names: Vec<String> = grpc::service_names().chain(others).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        if grpc::is_discovery(request.uri().path()) {
            return Answer::Ready(self.discovery.call(request));
        }
        match service_of(request.uri().path()) {
            Some(Health::NAME) => Answer::Later(self.health.call(request)),
            Some(LoadReports::NAME) => Answer::Later(self.load.call(request)),
            Some(Reflection::NAME) => Answer::Later(self.reflection.call(request)),
            Some(ReflectionV1Alpha::NAME) => Answer::Later(self.reflection_v1alpha.call(request)),
            Some(ClientStatus::NAME) => Answer::Later(self.status.call(request)),
            Some(_) | None => {
                let message = format!("no such method: {}", request.uri().path());
                let response = Status::unimplemented(message).into_http();
                Answer::Ready(std::future::ready(Ok(response)))
            }
        }
    }
}

// `/package.Service/Method`.
fn service_of(path: &str) -> Option<&str> {
    let (service, _) = path.strip_prefix('/')?.split_once('/')?;
    Some(service)
}

/// The answer to one call; its body may go on for as long as a stream does.
pub enum Answer {
    /// Known at once.
    Ready(Ready<Result<Response<Body>, Infallible>>),
    /// Waits for the first message.
    Later(BoxFuture<Response<Body>, Infallible>),
}

impl fmt::Debug for Answer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Ready(_) => "Ready",
            Self::Later(_) => "Later",
        })
    }
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Ready(answer) => Pin::new(answer).poll(context),
            Self::Later(answer) => answer.as_mut().poll(context),
        }
    }
}
