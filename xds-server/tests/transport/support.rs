//! Certificates made on the spot, a server with a log that can be read, and clients of each kind.

use std::fs::{self, File};
use std::future::{Ready, ready};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use isthmus_xds_core::type_rules::CLUSTER;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

/// Nothing here takes a second; a busy machine may.
const PATIENCE: Duration = Duration::from_secs(30);

/// A CA.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// A line of the key's PEM that holds key material.
    pub(crate) key_line: String,
}

/// A certificate and its key, in PEM.
pub(crate) struct Leaf {
    pub(crate) cert_pem: String,
    key_pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let key_line = key.serialize_pem().lines().nth(1).unwrap().to_owned();
        Self {
            issuer: Issuer::new(params, key),
            pem,
            key_line,
        }
    }

    pub(crate) fn leaf(&self, uris: &[&str]) -> Leaf {
        self.leaf_between(uris, 2000, 4000)
    }

    pub(crate) fn leaf_between(&self, uris: &[&str], from_year: i32, to_year: i32) -> Leaf {
        let mut params = client_params(uris);
        params.not_before = date_time_ymd(from_year, 1, 1);
        params.not_after = date_time_ymd(to_year, 1, 1);
        self.sign(&params)
    }

    pub(crate) fn server(&self) -> Leaf {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        Leaf {
            cert_pem: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key_pem: key.serialize_pem(),
        }
    }
}

impl Leaf {
    pub(crate) fn self_signed(uri: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self {
            cert_pem: client_params(&[uri]).self_signed(&key).unwrap().pem(),
            key_pem: key.serialize_pem(),
        }
    }
}

fn client_params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    // Else it goes by the name of the CA.
    params
        .distinguished_name
        .push(DnType::CommonName, "a client");
    params
}

/// The real program, with its log.
pub(crate) struct Running {
    dir: TempDir,
    process: Child,
    xds: SocketAddr,
    admin: SocketAddr,
    revision: u32,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Running {
    pub(crate) async fn start(args: &[&str], uid: Option<u32>) -> Self {
        Self::start_in(TempDir::new().unwrap(), args, uid).await
    }

    pub(crate) async fn start_tls(server: &Authority, client_ca: Option<&Authority>) -> Self {
        let dir = TempDir::new().unwrap();
        let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (cert, key, ca) = (file("tls.crt"), file("tls.key"), file("ca.crt"));
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(Path::new("..data").join(name), file(name)).unwrap();
        }
        swap(dir.path(), 0, &tls_files(server, client_ca));
        let mut args = vec!["--tls-cert", &cert, "--tls-key", &key];
        if client_ca.is_some() {
            args.extend(["--tls-client-ca", &ca]);
        }
        Self::start_in(dir, &args, None).await
    }

    async fn start_in(dir: TempDir, args: &[&str], uid: Option<u32>) -> Self {
        let config = dir.path().join("config");
        fs::create_dir(&config).unwrap();
        fs::write(config.join("a.json"), documents("1s", uid)).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = command(&config);
        if !args.contains(&"--xds-listen") {
            command.args(["--xds-listen", "127.0.0.1:0"]);
        }
        let process = command.args(args).stderr(log).spawn().unwrap();
        let mut running = Self {
            dir,
            process,
            xds: (Ipv4Addr::LOCALHOST, 0).into(),
            admin: (Ipv4Addr::LOCALHOST, 0).into(),
            revision: 0,
        };
        running.wait_for_log("start", "configuration").await;
        running.wait_for_log("start", "serving").await;
        let log = running.log();
        let addr = |key: &str| {
            let rest = &log[log.find(key).unwrap() + key.len()..];
            rest[..rest.find('"').unwrap()]
                .parse::<SocketAddr>()
                .unwrap()
        };
        running.xds = (Ipv4Addr::LOCALHOST, addr(" xds=\"").port()).into();
        running.admin = addr(" admin=\"");
        running.wait_for_page("/readyz", "200 OK").await;
        running
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub(crate) async fn wait_for_log(&self, name: &str, text: &str) {
        let seen = async {
            while !self.log().contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, seen).await;
        assert!(
            waited.is_ok(),
            "{name}: {text:?} is not in the log:\n{}",
            self.log()
        );
    }

    /// The line that says why a connection was refused, among those after `from`.
    pub(crate) async fn wait_for_refusal(&self, name: &str, from: usize) -> String {
        let seen = async {
            loop {
                let log = self.log();
                let mut lines = log[from..].split_inclusive('\n');
                let refusal = lines.find(|it| it.contains("connection refused"));
                if let Some(line) = refusal.filter(|line| line.ends_with('\n')) {
                    return line.to_owned();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, seen).await;
        waited.unwrap_or_else(|_| panic!("{name}: no refusal in the log:\n{}", self.log()))
    }

    /// A line of the server's own key that holds key material.
    pub(crate) fn tls_key_line(&self) -> String {
        let key = fs::read_to_string(self.dir.path().join("tls.key")).unwrap();
        key.lines().nth(1).unwrap().to_owned()
    }

    pub(crate) async fn wait_for_page(&self, path: &str, text: &str) {
        let seen = async {
            while !self.get(path).await.contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, seen).await;
        assert!(
            waited.is_ok(),
            "{path} never says {text:?}:\n{}",
            self.log()
        );
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Gives every cluster another timeout.
    pub(crate) fn change(&self, timeout: &str) {
        fs::write(
            self.dir.path().join("config/a.json"),
            documents(timeout, None),
        )
        .unwrap();
    }

    pub(crate) fn swap_tls(&mut self, server: &Authority, client_ca: Option<&Authority>) {
        self.swap(&tls_files(server, client_ca));
    }

    pub(crate) fn swap_file(&mut self, name: &str, content: &str) {
        let mut files = self.tls_now();
        files.retain(|(other, _)| other != name);
        files.push((name.to_owned(), content.to_owned()));
        self.swap(&files);
    }

    pub(crate) fn remove_file(&mut self, name: &str) {
        let mut files = self.tls_now();
        files.retain(|(other, _)| other != name);
        self.swap(&files);
    }

    fn swap(&mut self, files: &[(String, String)]) {
        self.revision += 1;
        swap(self.dir.path(), self.revision, files);
    }

    fn tls_now(&self) -> Vec<(String, String)> {
        let names = ["tls.crt", "tls.key", "ca.crt"];
        let read = |name: &str| {
            let text = fs::read_to_string(self.dir.path().join(name)).ok()?;
            Some((name.to_owned(), text))
        };
        names.into_iter().filter_map(read).collect()
    }

    /// Asks the program to end, and waits until it has done so well.
    pub(crate) async fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        let ended = async {
            loop {
                if let Some(status) = self.process.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let status = tokio::time::timeout(PATIENCE, ended).await;
        let status = status.expect("it ends");
        assert!(status.success(), "{status}:\n{}", self.log());
    }
}

/// What the program says when it will not start.
pub(crate) fn refusal(args: &[String]) -> String {
    let config = TempDir::new().unwrap();
    let output = command(config.path())
        .args(args)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus-xds"));
    command
        .arg("--config-dir")
        .arg(config)
        .args(["--admin-listen", "127.0.0.1:0"]);
    command
}

fn tls_files(server: &Authority, client_ca: Option<&Authority>) -> Vec<(String, String)> {
    let leaf = server.server();
    let mut files = vec![
        ("tls.crt".to_owned(), leaf.cert_pem),
        ("tls.key".to_owned(), leaf.key_pem),
    ];
    files.extend(client_ca.map(|ca| ("ca.crt".to_owned(), ca.pem.clone())));
    files
}

// All files at once, as Kubernetes updates a volume: by the link to their directory.
fn swap(dir: &Path, revision: u32, files: &[(String, String)]) {
    let name = format!("..{revision}");
    fs::create_dir(dir.join(&name)).unwrap();
    for (file, content) in files {
        fs::write(dir.join(&name).join(file), content).unwrap();
    }
    symlink(&name, dir.join("..draft")).unwrap();
    fs::rename(dir.join("..draft"), dir.join("..data")).unwrap();
}

fn documents(timeout: &str, uid: Option<u32>) -> String {
    let document = |name: &str, selector: &str| {
        format!(
            r#"{{"apiVersion": "isthmus.io/v1alpha1", "kind": "EnvoyResources", "metadata": {{"name": "{name}"}}, "spec":
            {{"selector": {selector}, "resources": [{{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "{name}", "connectTimeout": "{timeout}", "transportSocket": {{"name": "tls", "typedConfig":
            {{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "commonTlsContext": {{"tlsCertificates": [{{"privateKey": {{"inlineString": "SECRET-OF-CART"}}}}]}}}}}}}},
            {{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": "{name}",
            "genericSecret": {{"secret": {{"inlineString": "SECRET-OF-CART"}}}}}}]}}}}"#
        )
    };
    let mut all = vec![
        document("everybody", "{}"),
        document(
            "cart",
            r#"{"identity": "spiffe://example.org/ns/shop/sa/cart"}"#,
        ),
        document("shop", r#"{"identity": "spiffe://example.org/ns/shop/*"}"#),
    ];
    all.extend(uid.map(|uid| document("mine", &format!(r#"{{"identity": "uid:{uid}"}}"#))));
    all.join("\n---\n")
}

/// The resources of a response, sorted.
pub(crate) fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let mut names: Vec<&str> = response
        .resources
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    names.sort_unstable();
    names
}

/// How a client shakes hands.
#[derive(Clone, Copy)]
pub(crate) struct TlsPlan<'a> {
    server: &'a Authority,
    leaf: Option<&'a Leaf>,
    version: &'static SupportedProtocolVersion,
    alpn: &'a [u8],
    host: &'a str,
    node: &'a str,
}

impl<'a> TlsPlan<'a> {
    /// Trusts a CA, and does everything as it should but for having no certificate.
    pub(crate) fn new(server: &'a Authority) -> Self {
        Self {
            server,
            leaf: None,
            version: &TLS13,
            alpn: b"h2",
            host: "localhost",
            node: "cart",
        }
    }

    pub(crate) fn with(self, leaf: &'a Leaf) -> Self {
        let leaf = Some(leaf);
        Self { leaf, ..self }
    }

    pub(crate) fn version(self, version: &'static SupportedProtocolVersion) -> Self {
        Self { version, ..self }
    }

    pub(crate) fn alpn(self, alpn: &'a [u8]) -> Self {
        Self { alpn, ..self }
    }

    pub(crate) fn host(self, host: &'a str) -> Self {
        Self { host, ..self }
    }

    pub(crate) fn node(self, node: &'a str) -> Self {
        Self { node, ..self }
    }
}

/// One incremental stream, or why there is none.
pub(crate) struct Client(Result<Stream, String>);

struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    pub(crate) async fn tls(running: &Running, plan: &TlsPlan<'_>) -> Self {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(plan.server.pem.as_bytes()).unwrap())
            .unwrap();
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[plan.version])
                .unwrap()
                .with_root_certificates(roots);
        let mut config = match plan.leaf {
            None => builder.with_no_client_auth(),
            Some(leaf) => {
                let cert = CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        config.alpn_protocols = vec![plan.alpn.to_vec()];
        let stream = TcpStream::connect(running.xds).await.unwrap();
        let name = ServerName::try_from(plan.host.to_owned()).unwrap();
        match TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
        {
            Ok(stream) => Self::over(stream, plan.node, &[]).await,
            Err(error) => Self(Err(error.to_string())),
        }
    }

    pub(crate) async fn plain(running: &Running, node: &str) -> Self {
        Self::plain_holding(running, node, &[]).await
    }

    /// One that says that it holds these resources.
    pub(crate) async fn plain_holding(running: &Running, node: &str, held: &[Resource]) -> Self {
        Self::over(TcpStream::connect(running.xds).await.unwrap(), node, held).await
    }

    pub(crate) async fn unix(path: &Path, node: &str) -> Self {
        Self::over(UnixStream::connect(path).await.unwrap(), node, &[]).await
    }

    async fn over<S>(stream: S, node: &str, held: &[Resource]) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let request = DeltaDiscoveryRequest {
            node: Some(Node {
                id: node.to_owned(),
                ..Node::default()
            }),
            type_url: CLUSTER.to_owned(),
            initial_resource_versions: held
                .iter()
                .map(|it| (it.name.clone(), it.version.clone()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        };
        let (requests, outbound) = mpsc::channel(8);
        requests.send(request).await.unwrap();
        let endpoint = Endpoint::from_static("http://localhost");
        let opened = async {
            let connector = Once(Some(TokioIo::new(stream)));
            let channel = endpoint
                .connect_with_connector(connector)
                .await
                .map_err(|error| error.to_string())?;
            let mut client = AggregatedDiscoveryServiceClient::new(channel);
            let opened = client
                .delta_aggregated_resources(ReceiverStream::new(outbound))
                .await;
            let responses = opened.map_err(|status| status.to_string())?.into_inner();
            Ok(Stream {
                requests,
                responses,
            })
        };
        Self(
            tokio::time::timeout(PATIENCE, opened)
                .await
                .expect("an answer in time"),
        )
    }

    /// The next response.
    pub(crate) async fn next(&mut self) -> Result<DeltaDiscoveryResponse, String> {
        let stream = self.0.as_mut().map_err(|reason| reason.clone())?;
        let next = tokio::time::timeout(PATIENCE, stream.responses.message())
            .await
            .expect("an answer in time");
        let response = next.map_err(|status: Status| status.to_string())?;
        response.ok_or_else(|| "the stream ended".to_owned())
    }

    /// Asks for resources of a type by name.
    pub(crate) async fn ask(&self, type_url: &str, names: &[&str]) {
        let stream = self.0.as_ref().expect("a stream");
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        stream.requests.send(request).await.unwrap();
    }

    pub(crate) async fn ack(&self, response: &DeltaDiscoveryResponse) {
        let stream = self.0.as_ref().expect("a stream");
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        stream.requests.send(request).await.unwrap();
    }
}

// Gives a channel the one connection that there is.
struct Once<S>(Option<S>);

impl<S> tower_service::Service<Uri> for Once<S> {
    type Response = S;
    type Error = io::Error;
    type Future = Ready<io::Result<S>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(
            self.0
                .take()
                .ok_or_else(|| io::ErrorKind::NotConnected.into()),
        )
    }
}
