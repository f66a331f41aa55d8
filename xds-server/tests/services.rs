//! The running server, asked by gRPC and HTTP clients over real sockets.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/running.rs"]
mod running;

use std::fs;

use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use isthmus_proto::pb::envoy::service::route::v3::route_discovery_service_client::RouteDiscoveryServiceClient;
use isthmus_xds_core::type_rules::{CLUSTER, ROUTE, VIRTUAL_HOST};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use running::{PATIENCE, Running};

const DOCUMENT: &str = r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: edge}
spec:
  resources:
    - "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
      name: backend
      connectTimeout: 1s
    - "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
      name: main
---
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: secrets}
spec:
  selector: {cluster: trusted}
  resources:
    - "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
      name: cert
      tlsCertificate: {privateKey: {inlineString: TOP-SECRET-KEY}}
    - "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
      name: tls
      connectTimeout: 1s
      transportSocket:
        name: tls
        typedConfig:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          commonTlsContext: {tlsCertificates: [{privateKey: {inlineString: NESTED-SECRET-KEY}}]}
"#;

// One incremental aggregated stream.
struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    async fn open(running: &Running, node: &str, cluster: &str, type_url: &str) -> Self {
        let (requests, outbound) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
        requests
            .send(delta_request(node, cluster, type_url))
            .await
            .unwrap();
        let responses = client
            .delta_aggregated_resources(ReceiverStream::new(outbound))
            .await
            .unwrap();
        Self {
            requests,
            responses: responses.into_inner(),
        }
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = tokio::time::timeout(PATIENCE, self.responses.message());
        let response = next.await.expect("a response comes").unwrap();
        response.expect("the stream goes on")
    }

    async fn ack(&self, response: &DeltaDiscoveryResponse) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

fn delta_request(node: &str, cluster: &str, type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node {
            id: node.to_owned(),
            cluster: cluster.to_owned(),
            client_features: vec!["xds.config.supports-resource-ttl".to_owned()],
            ..Node::default()
        }),
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|it| it.name.as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_get_what_selects_them_and_changes_as_they_come() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut plain = Delta::open(&running, "a", "other", CLUSTER).await;
    let mut trusted = Delta::open(&running, "b", "trusted", CLUSTER).await;
    let first = plain.next().await;
    assert_eq!(names(&first), ["backend"]);
    assert!(
        first
            .control_plane
            .unwrap()
            .identifier
            .starts_with("isthmus-xds/")
    );
    let first = trusted.next().await;
    assert_eq!(names(&first), ["backend", "tls"]);
    trusted.ack(&first).await;

    let changed = DOCUMENT.replace(
        "name: tls\n      connectTimeout: 1s",
        "name: tls\n      connectTimeout: 2s",
    );
    fs::write(running.dir.path().join("a.yaml"), changed).unwrap();
    assert_eq!(names(&trusted.next().await), ["tls"], "only what changed");
    running
        .wait_for("/metrics", |it| it.contains("isthmus_config_generation 2"))
        .await;
    let dump = running.get("/config_dump?node=a&type=cds").await;
    assert!(
        dump.contains("backend") && !dump.contains("\"tls\""),
        "{dump}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_selector_moves_clients() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut client = Delta::open(&running, "a", "other", CLUSTER).await;
    let first = client.next().await;
    client.ack(&first).await;
    let changed = DOCUMENT.replace("cluster: trusted", "cluster: other");
    fs::write(running.dir.path().join("a.yaml"), changed).unwrap();
    assert_eq!(names(&client.next().await), ["tls"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_without_configuration_streams_are_unavailable_not_empty() {
    let running = Running::start(None, &[]).await;
    assert!(running.get("/livez").await.contains("200 OK"));
    assert!(running.get("/readyz").await.contains("503"));
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    let requests = tokio_stream::iter([delta_request("a", "", CLUSTER)]);
    let refused = client
        .delta_aggregated_resources(requests)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);

    fs::write(running.dir.path().join("a.yaml"), DOCUMENT).unwrap();
    running.wait_for("/readyz", |it| it.contains("200")).await;
    let mut client = Delta::open(&running, "a", "", CLUSTER).await;
    assert_eq!(names(&client.next().await), ["backend"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_a_first_request_without_node_id_is_refused() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut client = AggregatedDiscoveryServiceClient::new(running.channel().await);
    for node in [None, Some(Node::default())] {
        let request = DiscoveryRequest {
            node,
            type_url: CLUSTER.to_owned(),
            ..DiscoveryRequest::default()
        };
        let requests = tokio_stream::iter([request]);
        let opened = client.stream_aggregated_resources(requests).await;
        let refused = opened.unwrap().into_inner().message().await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("node.id"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_services_of_one_type_speak_both_variants() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut client = RouteDiscoveryServiceClient::new(running.channel().await);
    let node = delta_request("a", "", "").node;
    let request = DiscoveryRequest {
        node: node.clone(),
        resource_names: vec!["main".to_owned()],
        ..DiscoveryRequest::default()
    };
    let (sender, requests) = mpsc::channel(1);
    sender.send(request).await.unwrap();
    let opened = client
        .stream_routes(ReceiverStream::new(requests))
        .await
        .unwrap();
    let response = opened.into_inner().message().await.unwrap().unwrap();
    assert_eq!(response.type_url, ROUTE);
    assert_eq!(response.resources.len(), 1);

    let request = DeltaDiscoveryRequest {
        node,
        resource_names_subscribe: vec!["main".to_owned(), "missing".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    let (sender, requests) = mpsc::channel(1);
    sender.send(request).await.unwrap();
    let opened = client
        .delta_routes(ReceiverStream::new(requests))
        .await
        .unwrap();
    let response = opened.into_inner().message().await.unwrap().unwrap();
    assert_eq!(names(&response), ["main"]);
    assert_eq!(response.removed_resources, ["missing"], "R28");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_tells_clients_to_reconnect() {
    let mut running = Running::start(Some(DOCUMENT), &[]).await;
    let mut client = Delta::open(&running, "a", "", CLUSTER).await;
    client.next().await;
    running.stop.take().unwrap().send(()).unwrap();
    let ended = client.responses.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    drop(client);
    tokio::time::timeout(PATIENCE, running.served)
        .await
        .expect("it ends")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_served_and_never_shown() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut client = Delta::open(&running, "b", "trusted", CLUSTER).await;
    let response = client.next().await;
    let served = format!("{response:?}");
    assert!(served.contains("tls"));
    let dump = running.get("/config_dump").await;
    assert!(dump.contains("[redacted]"), "{dump}");
    for secret in ["TOP-SECRET-KEY", "NESTED-SECRET-KEY"] {
        assert!(!dump.contains(secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n19_a_client_that_does_not_read_gets_the_newest_state_and_no_queue() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut client = Delta::open(&running, "a", "", CLUSTER).await;
    let first = client.next().await;
    let write = |seconds: u32| {
        let text = DOCUMENT.replace("connectTimeout: 1s", &format!("connectTimeout: {seconds}s"));
        let (part, whole) = (
            running.dir.path().join(".part"),
            running.dir.path().join("a.yaml"),
        );
        fs::write(&part, text).unwrap();
        fs::rename(part, whole).unwrap();
    };
    for round in 2..12 {
        write(round);
        let wanted = format!("isthmus_config_generation {round}");
        running
            .wait_for("/metrics", |it| it.contains(&wanted))
            .await;
    }
    client.ack(&first).await;
    let merged = client.next().await;
    client.ack(&merged).await;
    running
        .wait_for("/config_dump?node=a", |it| it.contains("SYNCED"))
        .await;
    let metrics = running.get("/metrics").await;
    let responses = metrics
        .lines()
        .find(|line| line.contains("xds_responses_total{type=\"cds\"}"));
    let count: u32 = responses
        .unwrap()
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        count <= 9,
        "ten changes went out in {count} responses: the unanswered ones coalesce"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r54_r57_what_a_wrapper_says_reaches_the_client() {
    let document = r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: edge}
spec:
  resources:
    - "@type": type.googleapis.com/envoy.service.discovery.v3.Resource
      name: main/shop
      aliases: [main/shop.example.org]
      ttl: 60s
      resource:
        "@type": type.googleapis.com/envoy.config.route.v3.VirtualHost
        name: shop
        domains: ["shop.example.org"]
    - "@type": type.googleapis.com/envoy.service.discovery.v3.Resource
      name: policy
      resource: {"@type": type.googleapis.com/acme.v1.Policy, value: AAEC}
"#;
    let running = Running::start(Some(document), &[]).await;
    let mut client = Delta::open(&running, "a", "", CLUSTER).await;
    for (type_url, asked, named) in [
        (VIRTUAL_HOST, "main/shop.example.org", "main/shop"),
        ("type.googleapis.com/acme.v1.Policy", "policy", "policy"),
    ] {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec![asked.to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        client.requests.send(request).await.unwrap();
        let mut response = client.next().await;
        while response.type_url != type_url {
            client.ack(&response).await;
            response = client.next().await;
        }
        let resource = &response.resources[0];
        assert_eq!(resource.name, named);
        assert_eq!(resource.resource.as_ref().unwrap().type_url, type_url);
        if type_url == VIRTUAL_HOST {
            assert_eq!(resource.aliases, [asked]);
            assert_eq!(resource.ttl.unwrap().seconds, 60);
        } else {
            assert_eq!(resource.resource.as_ref().unwrap().value, [0, 1, 2]);
        }
    }
}
