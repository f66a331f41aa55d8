//! LRS: clients report the load that they put on clusters (R59).
//!
//! The server speaks after the client's first message: which clusters, how often. A client that can
//! report all of its clusters is asked to; another gets the names of the clusters in its
//! configuration, and gets them again with the next report after they changed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_proto::pb::envoy::service::load_stats::v3::load_reporting_service_server::LoadReportingService;
use isthmus_proto::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use isthmus_proto::pb::google::protobuf::Duration as PbDuration;
use isthmus_xds_core::type_rules;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status, Streaming};

use super::outbound::{self, Outbound};
use crate::grpc::ClientNode;
use crate::plane::Plane;
use crate::transport::ConnectedPeer;

/// What a client says that can report clusters which it was not asked for by name.
const SENDS_ALL: &str = "envoy.lrs.supports_send_all_clusters";

/// How long a client may hold a stream open without a first message.
const FIRST_REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// How clients report.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LoadReporting {
    /// From one report to the next.
    pub interval: Duration,
    /// Whether endpoints are reported one by one.
    pub granularity: Granularity,
}

/// How fine reports are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Granularity {
    /// Sums of all endpoints in one locality.
    #[default]
    Locality,
    /// Each endpoint as well.
    Endpoint,
}

impl Default for LoadReporting {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            granularity: Granularity::Locality,
        }
    }
}

/// `envoy.service.load_stats.v3.LoadReportingService`.
#[derive(Debug)]
pub(super) struct LoadService {
    plane: Arc<Plane>,
    reporting: LoadReporting,
    shutdown: watch::Receiver<bool>,
}

impl LoadService {
    /// Puts what clients report into the loads of `plane`.
    pub(super) fn new(
        plane: Arc<Plane>,
        reporting: LoadReporting,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self {
            plane,
            reporting,
            shutdown,
        }
    }
}

#[tonic::async_trait]
impl LoadReportingService for LoadService {
    type StreamLoadStatsStream = Outbound<LoadStatsResponse>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let peer = request.extensions().get::<ConnectedPeer>();
        let peer = peer.cloned().unwrap_or_default();
        let mut requests = request.into_inner();
        let (plane, reporting) = (Arc::clone(&self.plane), self.reporting);
        let body = outbound::spawn(self.shutdown.clone(), async move |responses| {
            let first = tokio::time::timeout(FIRST_REQUEST_PATIENCE, requests.message()).await;
            let first = first.map_err(|_| {
                let message = format!("no request came within {FIRST_REQUEST_PATIENCE:?}");
                Status::deadline_exceeded(message)
            })?;
            let Some(LoadStatsRequest {
                node,
                cluster_stats,
            }) = first?
            else {
                return Ok(());
            };
            let reporter = Reporter::new(node, peer)?;
            plane.loads.record(cluster_stats, SystemTime::now());
            let mut asked = None;
            loop {
                let wanted = reporter.wanted(&plane);
                if asked.as_ref() != Some(&wanted) {
                    let response = response(&wanted, reporting);
                    if responses.send(Ok(response)).await.is_err() {
                        return Ok(());
                    }
                    asked = Some(wanted);
                }
                match requests.message().await {
                    Ok(Some(report)) => {
                        plane.loads.record(report.cluster_stats, SystemTime::now());
                    }
                    Ok(None) => return Ok(()),
                    // The client went away, as clients do.
                    Err(status) if status.code() == Code::Unknown => return Ok(()),
                    Err(status) => return Err(status),
                }
            }
        });
        Ok(Response::new(body))
    }
}

/// Which clusters a client is asked for.
#[derive(Debug, Eq, PartialEq)]
enum Wanted {
    All,
    Named(BTreeSet<Arc<str>>),
}

#[derive(Debug)]
struct Reporter {
    node: ClientNode,
    sends_all: bool,
}

impl Reporter {
    fn new(
        node: Option<isthmus_proto::pb::envoy::config::core::v3::Node>,
        peer: ConnectedPeer,
    ) -> Result<Self, Status> {
        let features = node.iter().flat_map(|node| &node.client_features);
        let sends_all = features.into_iter().any(|feature| feature == SENDS_ALL);
        Ok(Self {
            node: ClientNode::parse(node, peer)?,
            sends_all,
        })
    }

    fn wanted(&self, plane: &Plane) -> Wanted {
        if self.sends_all {
            return Wanted::All;
        }
        let view = plane.scope_of(&self.node.view()).view();
        let clusters = view.type_set(type_rules::CLUSTER);
        let names = clusters.into_iter().flat_map(|set| set.resources());
        Wanted::Named(names.map(|it| Arc::clone(it.name())).collect())
    }
}

fn response(wanted: &Wanted, reporting: LoadReporting) -> LoadStatsResponse {
    let clusters = match wanted {
        Wanted::All => Vec::new(),
        Wanted::Named(names) => names.iter().map(ToString::to_string).collect(),
    };
    LoadStatsResponse {
        clusters,
        send_all_clusters: *wanted == Wanted::All,
        load_reporting_interval: Some(PbDuration {
            seconds: i64::try_from(reporting.interval.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(reporting.interval.subsec_nanos()).unwrap_or(0),
        }),
        report_endpoint_granularity: reporting.granularity == Granularity::Endpoint,
    }
}
