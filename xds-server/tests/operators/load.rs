//! LRS: whom the server asks for what, and what it makes of the answers.

use isthmus_proto::pb::envoy::config::core::v3::{Locality, Node};
use isthmus_proto::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use isthmus_proto::pb::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use isthmus_proto::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::support::{PATIENCE, Running};

const DOCUMENT: &str = r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: edge}
spec:
  resources:
    - {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: backend}
    - {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: auth}
"#;

struct Reporter {
    requests: mpsc::Sender<LoadStatsRequest>,
    responses: Streaming<LoadStatsResponse>,
}

impl Reporter {
    async fn open(running: &Running, features: &[&str]) -> Self {
        let mut this = Self::connect(running).await;
        // Nothing is said before the client spoke: the first message is what the next one answers.
        let node = Node {
            id: "proxy".to_owned(),
            client_features: features.iter().map(|it| (*it).to_owned()).collect(),
            ..Node::default()
        };
        let silence = tokio::time::timeout(
            std::time::Duration::from_millis(50),
            this.responses.message(),
        );
        assert!(silence.await.is_err(), "the server speaks second");
        this.send(Some(node), Vec::new()).await;
        this
    }

    async fn connect(running: &Running) -> Self {
        let (requests, outbound) = mpsc::channel(8);
        let mut client = LoadReportingServiceClient::new(running.channel().await);
        let outbound = ReceiverStream::new(outbound);
        let opened = client.stream_load_stats(outbound).await.unwrap();
        Self {
            requests,
            responses: opened.into_inner(),
        }
    }

    async fn send(&self, node: Option<Node>, cluster_stats: Vec<ClusterStats>) {
        let request = LoadStatsRequest {
            node,
            cluster_stats,
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> LoadStatsResponse {
        let next = tokio::time::timeout(PATIENCE, self.responses.message());
        next.await.expect("in time").unwrap().expect("it goes on")
    }
}

fn stats(cluster: &str, successful: u64) -> ClusterStats {
    let locality = Locality {
        region: "eu".to_owned(),
        zone: "eu-1".to_owned(),
        ..Locality::default()
    };
    ClusterStats {
        cluster_name: cluster.to_owned(),
        upstream_locality_stats: vec![UpstreamLocalityStats {
            locality: Some(locality),
            total_successful_requests: successful,
            total_issued_requests: successful,
            ..UpstreamLocalityStats::default()
        }],
        ..ClusterStats::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r59_all_clusters_are_asked_for_only_where_that_is_understood() {
    let args = ["--load-report-interval", "3", "--load-report-endpoints"];
    let running = Running::start(Some(DOCUMENT), &args).await;
    let mut able = Reporter::open(&running, &["envoy.lrs.supports_send_all_clusters"]).await;
    let asked = able.next().await;
    assert!(asked.send_all_clusters && asked.clusters.is_empty());
    assert!(asked.report_endpoint_granularity);
    assert_eq!(asked.load_reporting_interval.unwrap().seconds, 3);

    let mut plain = Reporter::open(&running, &[]).await;
    let asked = plain.next().await;
    assert!(!asked.send_all_clusters);
    assert_eq!(asked.clusters, ["auth", "backend"]);
    // With the first report after a change, the names are told anew, and only then.
    plain.send(None, vec![stats("auth", 1)]).await;
    running.write(&DOCUMENT.replace("name: auth", "name: login"));
    let is_in_force = |metrics: &str| metrics.contains("isthmus_config_generation 2");
    running.wait_for("/metrics", is_in_force).await;
    plain.send(None, vec![stats("auth", 1)]).await;
    assert_eq!(plain.next().await.clusters, ["backend", "login"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r59_reports_are_summed_shown_and_exported_on_demand() {
    for (args, is_exported) in [(&[][..], false), (&["--load-metrics"][..], true)] {
        let running = Running::start(Some(DOCUMENT), args).await;
        let mut open = Vec::new();
        for successful in [20, 22] {
            let mut reporter = Reporter::open(&running, &[]).await;
            reporter.next().await;
            reporter
                .send(None, vec![stats("backend", successful)])
                .await;
            open.push(reporter);
        }
        let shown = running
            .wait_for("/load", |load| load.contains("\"successful\":42"))
            .await;
        let body = shown.split_once("\r\n\r\n").unwrap().1;
        let load: serde_json::Value = serde_json::from_str(body).unwrap();
        let cluster = &load["clusters"][0];
        assert_eq!(cluster["cluster"], "backend");
        assert_eq!(cluster["localities"][0]["zone"], "eu-1");
        assert_eq!(cluster["localities"][0]["requests"]["issued"], 42);

        let metrics = running.get("/metrics").await;
        let series = "isthmus_load_requests_successful_total{cluster=\"backend\",service=\"\",\
                      region=\"eu\",zone=\"eu-1\",sub_zone=\"\"} 42";
        assert_eq!(metrics.contains(series), is_exported, "{metrics}");
        assert!(
            metrics.contains("isthmus_load_reports_total 4"),
            "two each: {metrics}"
        );
        assert!(metrics.contains("isthmus_load_sums 2"), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r59_a_report_must_say_whose_it_is() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut reporter = Reporter::connect(&running).await;
    reporter.send(None, vec![stats("backend", 1)]).await;
    let refused = reporter.responses.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("node"), "{refused}");
    let load = running.get("/load").await;
    assert!(load.contains("\"reports\":0"), "{load}");
}
