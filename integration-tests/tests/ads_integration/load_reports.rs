//! LRS: a real Envoy reports the load that it puts on a cluster, and `/load` shows it.

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::envoy::Protocol;
use serde_json::{Value, json};

use super::fixture::{Lab, over};

const REQUESTS: u64 = 25;

#[test]
fn r59_envoy_reports_the_requests_of_a_cluster() -> Result<()> {
    over(&[Protocol::Delta], |protocol| {
        let mut lab = Lab::new(protocol)?;
        let flags = [
            "--load-report-interval",
            "1",
            "--load-report-endpoints",
            "--load-metrics",
        ];
        lab.control_plane.add_flags(&flags);
        lab.publish(&lab.basic())?;
        lab.start_with(|bootstrap| {
            let source = &bootstrap["dynamic_resources"]["ads_config"];
            let source = json!({
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": source["grpc_services"],
            });
            bootstrap["cluster_manager"] = json!({"load_stats_config": source});
        })?;
        lab.wait_live()?;
        // A cluster is counted from the first report on that finds it there.
        // Envoy's words: the server requests, and each report is a response.
        lab.stat_reaches("load_reporter.requests", 1)?;
        let reports = lab.envoy()?.stat("load_reporter.responses")?;
        lab.stat_reaches("load_reporter.responses", reports + 2)?;
        for _ in 0..REQUESTS {
            lab.expect_answer(0)?;
        }
        let load = lab.wait("the load of all requests", |lab| {
            let load = locality(lab)?;
            let successful = load["requests"]["successful"].as_u64();
            ensure!(successful == Some(REQUESTS), "it is {load}");
            Ok(load)
        })?;
        ensure!(load["requests"]["issued"] == REQUESTS, "{load}");
        ensure!(load["requests"]["errors"] == 0, "{load}");
        ensure!(
            load["endpoints"][0]["requests"]["successful"] == REQUESTS,
            "{load}"
        );
        let labels = ["cluster=\"cluster_0\""];
        let counter = "isthmus_load_requests_successful_total";
        let exported = lab.control_plane.metric(counter, &labels)?;
        ensure!(exported == REQUESTS, "{counter} is {exported}");
        Ok(())
    })
}

/// The load of the one locality of the cluster that routes lead to.
fn locality(lab: &Lab) -> Result<Value> {
    let load: Value = serde_json::from_slice(&lab.control_plane.admin("/load")?.body)?;
    let clusters = load["clusters"].as_array().context("no list of clusters")?;
    let cluster = clusters.iter().find(|it| it["cluster"] == "cluster_0");
    let cluster = cluster.with_context(|| format!("nobody reported it: {load}"))?;
    Ok(cluster["localities"][0].clone())
}
