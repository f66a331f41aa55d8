//! A running server, its admin endpoint, and a discovery client that answers as it is told.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use isthmus_proto::pb::google::protobuf::value::Kind;
use isthmus_proto::pb::google::protobuf::{Struct, Value};
use isthmus_proto::pb::google::rpc::Status;
use isthmus_xds::cli::Cli;
use isthmus_xds::server::Server;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Nothing here takes a second; a busy machine may.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Running {
    pub(crate) dir: TempDir,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) served: JoinHandle<()>,
    xds: SocketAddr,
    admin: SocketAddr,
}

impl Running {
    /// Serves `document`, once it is read; without one, a server that is not ready.
    pub(crate) async fn start(document: Option<&str>, more_args: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        if let Some(document) = document {
            fs::write(dir.path().join("a.yaml"), document).unwrap();
        }
        let any = "127.0.0.1:0";
        let args = ["isthmus-xds", "--xds-listen", any, "--admin-listen", any];
        let config_dir = ["--config-dir", dir.path().to_str().unwrap()];
        let args = args.iter().chain(&config_dir).chain(more_args);
        let server = Server::bind(&Cli::parse_from(args)).await.unwrap();
        let (xds, admin) = (server.xds_addr().unwrap(), server.admin_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            let stop = async { stopped.await.unwrap_or(()) };
            server.serve(stop).await.unwrap();
        });
        let this = Self {
            dir,
            stop: Some(stop),
            served: running,
            xds,
            admin,
        };
        if document.is_some() {
            this.wait_for("/readyz", |answer| answer.contains("200 OK"))
                .await;
        }
        this
    }

    pub(crate) fn write(&self, document: &str) {
        let dir = self.dir.path();
        fs::write(dir.join(".part"), document).unwrap();
        fs::rename(dir.join(".part"), dir.join("a.yaml")).unwrap();
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Returns the answer of the admin endpoint once it is as wanted.
    pub(crate) async fn wait_for(&self, path: &str, is_it: impl Fn(&str) -> bool) -> String {
        let seen = async {
            loop {
                let answer = self.get(path).await;
                if is_it(&answer) {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        seen.expect("the server gets there")
    }

    /// Connects over the Unix socket at `path`, where the kernel tells who calls.
    pub(crate) async fn unix_channel(&self, path: &Path) -> Channel {
        let endpoint = Endpoint::from_shared(format!("unix:{}", path.display())).unwrap();
        endpoint.connect().await.unwrap()
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.xds)).unwrap();
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
