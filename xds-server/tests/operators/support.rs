//! A discovery client that answers as it is told.

use std::path::Path;

use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use isthmus_proto::pb::google::protobuf::value::Kind;
use isthmus_proto::pb::google::protobuf::{Struct, Value};
use isthmus_proto::pb::google::rpc::Status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

pub(crate) use crate::running::{PATIENCE, Running};

impl Running {
    /// Connects over the Unix socket at `path`, where the kernel tells who calls.
    pub(crate) async fn unix_channel(&self, path: &Path) -> Channel {
        let endpoint = Endpoint::from_shared(format!("unix:{}", path.display())).unwrap();
        endpoint.connect().await.unwrap()
    }
}

/// One incremental aggregated stream, which answers when it is told to.
pub(crate) struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    pub(crate) async fn open(channel: Channel, node: &str, type_url: &str) -> Self {
        let (requests, outbound) = mpsc::channel(8);
        let node = Node {
            id: node.to_owned(),
            metadata: Some(metadata("NODE", node)),
            ..Node::default()
        };
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: type_url.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let outbound = ReceiverStream::new(outbound);
        let opened = client.delta_aggregated_resources(outbound).await.unwrap();
        let responses = opened.into_inner();
        Self {
            requests,
            responses,
        }
    }

    pub(crate) async fn subscribe(&self, type_url: &str, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned());
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next response, or how the stream ends.
    pub(crate) async fn next_or_end(&mut self) -> Result<DeltaDiscoveryResponse, tonic::Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message());
        let response = next.await.expect("something comes")?;
        Ok(response.expect("the stream does not end without a word"))
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = tokio::time::timeout(PATIENCE, self.responses.message());
        let response = next.await.expect("a response comes").unwrap();
        response.expect("the stream goes on")
    }

    pub(crate) async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| Status {
                code: 3,
                message: message.to_owned(),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

fn metadata(key: &str, value: &str) -> Struct {
    let kind = Some(Kind::StringValue(value.to_owned()));
    let fields = [(key.to_owned(), Value { kind })].into();
    Struct { fields }
}
