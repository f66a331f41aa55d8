//! A fleet that comes all at once: some go on, some wait for their turn, some are told to come
//! again, and who was there before does not notice.

use isthmus_xds_core::type_rules::CLUSTER;
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{Delta, Running};

fn document(timeout: &str) -> String {
    format!(
        r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {{name: edge}}
spec:
  resources:
    - "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
      name: backend
      connectTimeout: {timeout}
"#
    )
}

#[tokio::test]
async fn streams_over_the_rate_wait_and_then_are_refused_and_open_ones_go_on() {
    // Two at once, then one a second for ten seconds.
    let limit = ["--max-stream-opens-per-second", "1"];
    let running = Running::start(Some(&document("1s")), &limit).await;
    let mut healthy = Delta::open(running.channel().await, "healthy", CLUSTER).await;
    let response = healthy.next().await;
    healthy.answer(&response, None).await;

    let channel = running.channel().await;
    let mut storm = JoinSet::new();
    for node in 0..20 {
        let channel = channel.clone();
        storm.spawn(async move {
            let mut stream = Delta::open(channel, &format!("storm-{node}"), CLUSTER).await;
            stream.next_or_end().await
        });
    }
    let counted = |answer: &str, outcome: &str| {
        let series = format!("isthmus_xds_stream_openings_total{{outcome=\"{outcome}\"}} ");
        let count = answer.lines().find_map(|line| line.strip_prefix(&series));
        count.map_or(0, |count| count.parse::<u32>().unwrap())
    };
    let all = |answer: &str| {
        let outcomes = ["at_once", "waited", "refused"];
        outcomes
            .map(|outcome| counted(answer, outcome))
            .iter()
            .sum::<u32>()
            == 21
    };
    let metrics = running.wait_for("/metrics", all).await;
    assert!(
        counted(&metrics, "waited") > 0 && counted(&metrics, "refused") > 0,
        "{metrics}"
    );

    running.write(&document("2s"));
    let changed = healthy.next().await;
    assert_eq!(changed.resources[0].name, "backend");

    let (mut served, mut refused) = (0, 0);
    // The second of those that are served has waited.
    while served < 2 || refused == 0 {
        match storm.join_next().await.expect("there are more").unwrap() {
            Ok(response) => {
                assert_eq!(response.resources[0].name, "backend");
                served += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                assert!(
                    status.message().contains("reconnect with backoff"),
                    "{status}"
                );
                refused += 1;
            }
        }
    }
}
