//! CSDS: what the server says of clients that accept, refuse, do not answer, and are not sent to.

use std::os::unix::fs::MetadataExt;

use isthmus_proto::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use isthmus_proto::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use isthmus_proto::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};
use isthmus_proto::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use isthmus_proto::pb::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};
use isthmus_xds_core::type_rules::{CLUSTER, LISTENER, SECRET};
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;

use crate::support::{Delta, PATIENCE, Running};

const DOCUMENT: &str = r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: edge}
spec:
  resources:
    - "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
      name: backend
      connectTimeout: 1s
      transportSocket:
        name: tls
        typedConfig:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          commonTlsContext: {tlsCertificates: [{privateKey: {inlineString: NESTED-SECRET-KEY}}]}
    - {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: doomed}
    - {"@type": type.googleapis.com/envoy.config.listener.v3.Listener, name: ingress, statPrefix: one}
    - "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
      name: cert
      tlsCertificate: {privateKey: {inlineString: TOP-SECRET-KEY}}
"#;

type Client = ClientStatusDiscoveryServiceClient<Channel>;

async fn fetch(client: &mut Client, request: ClientStatusRequest) -> Vec<ClientConfig> {
    let fetched = client.fetch_client_status(request).await.unwrap();
    fetched.into_inner().config
}

fn about(node: &str) -> ClientStatusRequest {
    let node_id = StringMatcher {
        match_pattern: Some(MatchPattern::Exact(node.to_owned())),
        ignore_case: false,
    };
    ClientStatusRequest {
        node_matchers: vec![NodeMatcher {
            node_id: Some(node_id),
            node_metadatas: Vec::new(),
        }],
        ..ClientStatusRequest::default()
    }
}

/// Asks until the status of `node`'s resource is as wanted, and returns its row.
async fn row(
    client: &mut Client,
    node: &str,
    name: &str,
    wanted: ConfigStatus,
) -> GenericXdsConfig {
    let mut last = None;
    let seen = async {
        loop {
            let clients = fetch(client, about(node)).await;
            let mut rows = clients.into_iter().flat_map(|it| it.generic_xds_configs);
            let row = rows.find(|row| row.name == name);
            if let Some(row) = row.clone().filter(|it| it.config_status() == wanted) {
                return row;
            }
            last = row;
            tokio::task::yield_now().await;
        }
    };
    let row = tokio::time::timeout(PATIENCE, seen).await;
    row.unwrap_or_else(|_| panic!("{node}, {name}: not {wanted:?} but {last:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r58_each_resource_of_each_client_has_the_state_that_it_is_in() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut status = Client::new(running.channel().await);

    let mut synced = Delta::open(running.channel().await, "synced", CLUSTER).await;
    let response = synced.next().await;
    synced.answer(&response, None).await;
    let mut stale = Delta::open(running.channel().await, "stale", CLUSTER).await;
    stale.next().await;
    let mut refused = Delta::open(running.channel().await, "refused", CLUSTER).await;
    let response = refused.next().await;
    let words = "Error adding/updating cluster(s) backend: no such thing";
    refused.answer(&response, Some(words)).await;

    let row_of = row(&mut status, "synced", "backend", ConfigStatus::Synced).await;
    assert_eq!(row_of.type_url, CLUSTER);
    let sent = response.resources.iter().find(|it| it.name == "backend");
    assert_eq!(row_of.version_info, sent.unwrap().version);
    let shown = row_of.xds_config.unwrap();
    assert_eq!(shown.type_url, CLUSTER);
    let stale_row = row(&mut status, "stale", "backend", ConfigStatus::Stale).await;
    assert_eq!(stale_row.xds_config.unwrap(), shown);
    let error_row = row(&mut status, "refused", "backend", ConfigStatus::Error).await;
    let error = error_row.error_state.unwrap();
    assert_eq!(error.details, words);
    assert_eq!(error.version_info, error_row.version_info);

    // A name that nothing answers to was never sent.
    synced.subscribe(CLUSTER, &["nobody"]).await;
    let response = synced.next().await;
    assert_eq!(response.removed_resources, ["nobody"]);
    synced.answer(&response, None).await;
    let missing = row(&mut status, "synced", "nobody", ConfigStatus::NotSent).await;
    assert_eq!(missing.version_info, "");
    assert!(missing.xds_config.is_none());
}

/// A cluster that a refused listener may still refer to is not removed from the client, and said so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r58_what_is_held_back_is_not_sent() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut status = Client::new(running.channel().await);
    let mut proxy = Delta::open(running.channel().await, "proxy", CLUSTER).await;
    let clusters = proxy.next().await;
    proxy.answer(&clusters, None).await;
    proxy.subscribe(LISTENER, &["*"]).await;
    let listeners = proxy.next().await;
    proxy.answer(&listeners, None).await;
    row(&mut status, "proxy", "ingress", ConfigStatus::Synced).await;

    let doomed =
        "    - {\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: doomed}\n";
    let changed = DOCUMENT
        .replace(doomed, "")
        .replace("statPrefix: one", "statPrefix: two");
    running.write(&changed);
    let listeners = proxy.next().await;
    assert_eq!(listeners.type_url, LISTENER, "removals come last");
    proxy.answer(&listeners, Some("no")).await;
    row(&mut status, "proxy", "ingress", ConfigStatus::Error).await;
    let held = row(&mut status, "proxy", "doomed", ConfigStatus::NotSent).await;
    assert_eq!(held.version_info, "", "there is no such cluster any more");
    row(&mut status, "proxy", "backend", ConfigStatus::Synced).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r58_secrets_are_not_shown_and_contents_can_be_left_out() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut status = Client::new(running.channel().await);
    let mut proxy = Delta::open(running.channel().await, "proxy", SECRET).await;
    proxy.subscribe(SECRET, &["cert"]).await;
    let secret = proxy.next().await;
    assert!(format!("{secret:?}").contains("resources"), "served");
    proxy.answer(&secret, None).await;
    proxy.subscribe(CLUSTER, &["*"]).await;
    let clusters = proxy.next().await;
    proxy.answer(&clusters, None).await;
    row(&mut status, "proxy", "backend", ConfigStatus::Synced).await;
    let cert = row(&mut status, "proxy", "cert", ConfigStatus::Synced).await;
    assert_ne!(cert.version_info, "");

    let shown = fetch(&mut status, about("proxy")).await;
    let bytes: Vec<u8> = shown
        .iter()
        .flat_map(prost::Message::encode_to_vec)
        .collect();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("[redacted]"));
    assert!(!text.contains("SECRET-KEY"));

    let request = ClientStatusRequest {
        exclude_resource_contents: true,
        ..about("proxy")
    };
    let bare = fetch(&mut status, request).await;
    let rows = &bare[0].generic_xds_configs;
    assert_eq!(rows.len(), shown[0].generic_xds_configs.len());
    assert!(
        rows.iter()
            .all(|row| row.xds_config.is_none() && !row.version_info.is_empty())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r58_matchers_are_or_ed_and_each_request_of_a_stream_is_answered() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut open = Vec::new();
    for node in ["a", "b", "c"] {
        let mut client = Delta::open(running.channel().await, node, CLUSTER).await;
        client.next().await;
        open.push(client);
    }
    let mut status = Client::new(running.channel().await);
    let mut both = about("a");
    both.node_matchers.extend(about("c").node_matchers);
    let requests = [both, about("nobody"), ClientStatusRequest::default()];
    let responses = status
        .stream_client_status(tokio_stream::iter(requests))
        .await;
    let mut responses = responses.unwrap().into_inner();
    let mut seen: Vec<Vec<String>> = Vec::new();
    while let Some(ClientStatusResponse { config }) = responses.message().await.unwrap() {
        let nodes = config.into_iter().map(|it| it.node.unwrap().id);
        seen.push(nodes.collect());
    }
    assert_eq!(seen, [vec!["a", "c"], vec![], vec!["a", "b", "c"]]);

    let custom = ClientStatusRequest {
        node_matchers: vec![NodeMatcher::default()],
        ..ClientStatusRequest::default()
    };
    let refused = status.fetch_client_status(custom).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().starts_with("node_matchers[0]: "),
        "{refused}"
    );
}

/// A client that proved who it is sees its own streams; with `--status-reader`, all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r58_a_client_does_not_read_the_status_of_others() {
    let dir = TempDir::new().unwrap();
    let uid = format!("uid:{}", dir.path().metadata().unwrap().uid());
    for (reader, wanted) in [("uid:4242", vec!["own"]), (&*uid, vec!["other", "own"])] {
        let socket = dir.path().join(reader.replace(':', "-"));
        let args = [
            "--xds-socket",
            socket.to_str().unwrap(),
            "--status-reader",
            reader,
        ];
        let running = Running::start(Some(DOCUMENT), &args).await;
        let mut other = Delta::open(running.channel().await, "other", CLUSTER).await;
        other.next().await;
        let mut own = Delta::open(running.unix_channel(&socket).await, "own", CLUSTER).await;
        own.next().await;
        let mut status = Client::new(running.unix_channel(&socket).await);
        let seen = fetch(&mut status, ClientStatusRequest::default()).await;
        let nodes: Vec<String> = seen.into_iter().map(|it| it.node.unwrap().id).collect();
        assert_eq!(nodes, wanted, "{reader}");
    }
}
