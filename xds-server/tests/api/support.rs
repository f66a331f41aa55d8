//! A server with the API, callers of each kind, and clients of discovery.

use std::fs;
use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use isthmus_proto::control::resource::Content;
use isthmus_proto::control::resource_service_client::ResourceServiceClient;
use isthmus_proto::control::{Document, Resource, SetDocumentRequest};
use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use isthmus_proto::pb::google::rpc;
use isthmus_xds::cli::Cli;
use isthmus_xds::server::Server;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tower_service::Service;

/// Nothing here takes a second; a busy machine may.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const ANY_PORT: &str = "127.0.0.1:0";

pub(crate) type Caller = ResourceServiceClient<Channel>;

/// A server in this process.
pub(crate) struct Running {
    pub(crate) dir: TempDir,
    pub(crate) xds: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) api: Option<SocketAddr>,
    _stop: oneshot::Sender<()>,
}

impl Running {
    /// One whose only source is the API, on loopback.
    pub(crate) async fn start() -> Self {
        Self::start_with(TempDir::new().unwrap(), &["--api-listen", ANY_PORT]).await
    }

    pub(crate) async fn start_with(dir: TempDir, args: &[&str]) -> Self {
        let cli = Cli {
            xds_listen: ANY_PORT.parse().unwrap(),
            admin_listen: ANY_PORT.parse().unwrap(),
            ..parse(args).unwrap()
        };
        let server = Server::bind(&cli).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let running = Self {
            dir,
            xds: server.xds_addr().unwrap(),
            admin: server.admin_addr().unwrap(),
            api: server.api_addr().ok(),
            _stop: stop,
        };
        tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        running
    }

    pub(crate) async fn caller(&self) -> Caller {
        let stream = TcpStream::connect(self.api.unwrap()).await.unwrap();
        ResourceServiceClient::new(channel(stream).await)
    }

    pub(crate) async fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub(crate) async fn wait_for_page(&self, path: &str, text: &str) {
        let seen = async {
            while !self.page(path).await.contains(text) {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, seen).await;
        assert!(waited.is_ok(), "{path} never says {text:?}");
    }
}

/// A command line; an error is what a user would read.
pub(crate) fn parse(args: &[&str]) -> Result<Cli, String> {
    let all = ["isthmus-xds"].iter().chain(args);
    clap::Parser::try_parse_from(all).map_err(|error: clap::Error| error.to_string())
}

pub(crate) async fn channel<S>(stream: S) -> Channel
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint
        .connect_with_connector(Once(Some(stream)))
        .await
        .unwrap()
}

/// Gives a connection that exists already.
struct Once<S>(Option<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Service<Uri> for Once<S> {
    type Response = TokioIo<S>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<S>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self
            .0
            .take()
            .ok_or_else(|| io::ErrorKind::NotConnected.into());
        ready(stream.map(TokioIo::new))
    }
}

pub(crate) fn cluster(name: &str, timeout: &str) -> Resource {
    json(&format!(
        r#"{{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "{name}", "connectTimeout": "{timeout}"}}"#
    ))
}

pub(crate) fn json(text: &str) -> Resource {
    Resource {
        content: Some(Content::Json(text.to_owned())),
        ..Resource::default()
    }
}

pub(crate) fn document(name: &str, resources: Vec<Resource>) -> Document {
    Document {
        name: name.to_owned(),
        resources,
        ..Document::default()
    }
}

pub(crate) fn set(document: Document) -> SetDocumentRequest {
    SetDocumentRequest {
        document: Some(document),
        if_generation: None,
    }
}

/// A stream of incremental aggregated discovery.
pub(crate) struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    pub(crate) async fn open(
        running: &Running,
        node: &str,
        types: &[&str],
    ) -> Result<Self, Status> {
        let stream = TcpStream::connect(running.xds).await.unwrap();
        let (requests, outbound) = mpsc::channel(8);
        for type_url in types {
            let request = DeltaDiscoveryRequest {
                node: Some(Node {
                    id: node.to_owned(),
                    ..Node::default()
                }),
                type_url: (*type_url).to_owned(),
                resource_names_subscribe: vec!["*".to_owned()],
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(request).await.unwrap();
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel(stream).await);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outbound));
        Ok(Self {
            requests,
            responses: responses.await?.into_inner(),
        })
    }

    /// The next response.
    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        next.expect("the server answers").unwrap().unwrap()
    }

    /// The next response, accepted.
    pub(crate) async fn accept(&mut self) -> DeltaDiscoveryResponse {
        let response = self.next().await;
        self.answer(&response, None).await;
        response
    }

    pub(crate) async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| rpc::Status {
                message: message.to_owned(),
                ..rpc::Status::default()
            }),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

pub(crate) fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let names = response.resources.iter().map(|it| &*it.name);
    names.collect()
}

/// A CA.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, in PEM.
pub(crate) struct Leaf {
    cert: String,
    key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn client(&self, uri: Option<&str>) -> Leaf {
        let mut params = CertificateParams::default();
        let uris = uri
            .into_iter()
            .map(|uri| SanType::URI(uri.try_into().unwrap()));
        params.subject_alt_names = uris.collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        Leaf {
            cert: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// Writes the files of a server, and gives the options that name them.
    pub(crate) fn server_args(&self, dir: &Path) -> Vec<String> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = self.sign(&params);
        let files = [
            ("--tls-cert", "tls.crt", &leaf.cert),
            ("--tls-key", "tls.key", &leaf.key),
            ("--tls-client-ca", "ca.crt", &self.pem),
        ];
        let mut args = Vec::new();
        for (flag, name, content) in files {
            let path = dir.join(name);
            fs::write(&path, content).unwrap();
            args.extend([flag.to_owned(), path.to_str().unwrap().to_owned()]);
        }
        args
    }

    /// A caller with a certificate of any CA, to a server of this one.
    pub(crate) async fn caller(&self, running: &Running, leaf: &Leaf) -> Caller {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![CertificateDer::from_pem_slice(leaf.cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(running.api.unwrap()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await;
        ResourceServiceClient::new(channel(stream.unwrap()).await)
    }
}
