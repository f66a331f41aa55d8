//! CSDS, the server's view: which resource each client was sent, and what became of it (R58).
//!
//! One `ClientConfig` a stream. Resources are shown as `/config_dump` shows them: without secrets.

mod matchers;
mod report;

use std::sync::Arc;

use isthmus_proto::pb::envoy::service::status::v3::client_status_discovery_service_server::ClientStatusDiscoveryService;
use isthmus_proto::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status, Streaming};

use super::outbound::{self, Outbound};
use super::readers::{Readers, Sight};
use crate::plane::Plane;
use crate::transport::ConnectedPeer;
use matchers::NodeMatchers;
use report::{Contents, TooLarge, report};

/// Reports that are made at once: each may take seconds of CPU, which pushes need.
const REPORTS_AT_ONCE: usize = 1;

/// `envoy.service.status.v3.ClientStatusDiscoveryService`.
#[derive(Debug)]
pub(super) struct StatusService {
    reporter: Arc<Reporter>,
    shutdown: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Reporter {
    plane: Arc<Plane>,
    readers: Readers,
    permits: Arc<Semaphore>,
}

impl StatusService {
    /// Shows the clients of `plane`, to each caller those that `readers` lets it see.
    pub(super) fn new(
        plane: Arc<Plane>,
        readers: Readers,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let reporter = Arc::new(Reporter {
            plane,
            readers,
            permits: Arc::new(Semaphore::new(REPORTS_AT_ONCE)),
        });
        Self { reporter, shutdown }
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for StatusService {
    type StreamClientStatusStream = Outbound<ClientStatusResponse>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let sight = self.reporter.sight_of(&request)?;
        let mut requests = request.into_inner();
        let reporter = Arc::clone(&self.reporter);
        let body = outbound::spawn(self.shutdown.clone(), async move |responses| {
            while let Some(request) = requests.message().await? {
                let response = reporter.answer(request, sight.clone()).await?;
                if responses.send(Ok(response)).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
        Ok(Response::new(body))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        let sight = self.reporter.sight_of(&request)?;
        let answer = self.reporter.answer(request.into_inner(), sight);
        answer.await.map(Response::new)
    }
}

impl Reporter {
    fn sight_of<T>(&self, request: &Request<T>) -> Result<Sight, Status> {
        let peer = request.extensions().get::<ConnectedPeer>();
        self.readers.sight_of(&peer.cloned().unwrap_or_default())
    }

    async fn answer(
        &self,
        request: ClientStatusRequest,
        sight: Sight,
    ) -> Result<ClientStatusResponse, Status> {
        let matchers = NodeMatchers::try_from(request.node_matchers)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let contents = if request.exclude_resource_contents {
            Contents::Excluded
        } else {
            Contents::Shown
        };
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| Status::unavailable("the server is shutting down"))?;
        let plane = Arc::clone(&self.plane);
        let made = tokio::task::spawn_blocking(move || {
            // With the work, not with who waits for it: that one may go away, and ask again.
            let _permit = permit;
            report(&plane, &sight, &matchers, contents)
        });
        match made.await {
            Ok(made) => {
                made.map_err(|error: TooLarge| Status::resource_exhausted(error.to_string()))
            }
            Err(_) => Err(Status::internal(
                "the report could not be made; see the server's log",
            )),
        }
    }
}
