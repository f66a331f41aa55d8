//! The commands that ask a running server, and an incremental client that answers as it is told.

use std::process::{Command, Output};

use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use isthmus_xds_core::type_rules::CLUSTER;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

pub(crate) use crate::running::{PATIENCE, Running};

/// A document of clusters, each a name and a connect timeout.
pub(crate) fn clusters(clusters: &[(&str, u32)]) -> String {
    let mut text =
        "apiVersion: isthmus.io/v1alpha1\nkind: EnvoyResources\nmetadata: {name: edge}\nspec:\n  \
                    resources:\n"
            .to_owned();
    for (name, seconds) in clusters {
        text +=
            "    - \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n      name: ";
        text += name;
        text += "\n      connectTimeout: ";
        text += &seconds.to_string();
        text += "s\n";
    }
    text
}

impl Running {
    /// Writes a document and waits until it is in force.
    pub(crate) async fn push(&self, document: &str, generation: u64) {
        self.write(document);
        self.wait_for_generation(generation).await;
    }

    pub(crate) async fn wait_for_generation(&self, generation: u64) {
        let wanted = format!("isthmus_config_generation {generation}\n");
        self.wait_for("/metrics", |it| it.contains(&wanted)).await;
    }

    /// Waits until so many clients have accepted a generation.
    pub(crate) async fn wait_for_accepted(&self, generation: u64, clients: u64) {
        let mut progress = self.plane.convergence.watch(generation).unwrap();
        let reached = progress.wait_for(|it| it.accepted == clients);
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        reached.expect("they accept it").unwrap();
    }

    /// Runs a command against the server.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus-xds"));
        let server = format!("http://{}", self.admin);
        command.args(arguments).args(["--server", &server]);
        let output = tokio::task::spawn_blocking(move || command.output());
        output.await.unwrap().unwrap()
    }

    /// What a command answers when all is well.
    pub(crate) async fn answer(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// One incremental aggregated stream that asks for all clusters.
pub(crate) struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    pub(crate) async fn connect(running: &Running, node: &str) -> Self {
        let (requests, outbound) = mpsc::channel(8);
        let endpoint = Channel::from_shared(format!("http://{}", running.xds)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let first = DeltaDiscoveryRequest {
            node: Some(Node {
                id: node.to_owned(),
                ..Node::default()
            }),
            type_url: CLUSTER.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let outbound = ReceiverStream::new(outbound);
        let responses = client.delta_aggregated_resources(outbound).await.unwrap();
        Self {
            requests,
            responses: responses.into_inner(),
        }
    }

    pub(crate) async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = tokio::time::timeout(PATIENCE, self.responses.message());
        let response = next.await.expect("a response comes").unwrap();
        response.expect("the stream goes on")
    }

    pub(crate) async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.reply(response, None).await;
    }

    pub(crate) async fn nack(&self, response: &DeltaDiscoveryResponse, words: &str) {
        self.reply(response, Some(words)).await;
    }

    async fn reply(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| isthmus_proto::pb::google::rpc::Status {
                code: 13,
                message: message.to_owned(),
                ..Default::default()
            }),
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await;
    }

    /// Receives a response and accepts it; returns the names in it.
    pub(crate) async fn accept(&mut self) -> Vec<String> {
        let response = self.next().await;
        self.ack(&response).await;
        names(&response)
    }
}

pub(crate) fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let names = response.resources.iter();
    names.map(|it| it.name.clone()).collect()
}
