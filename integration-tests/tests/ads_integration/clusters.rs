//! Clusters that warm: what keeps them waiting, what ends it, and what goes on meanwhile.

use anyhow::{Result, ensure};
use isthmus_integration_tests::backend::SilentBackend;
use isthmus_integration_tests::envoy::Protocol;
use serde_json::{Value, json};

use super::fixture::{Lab, over_sotw_and_delta};
use super::resources::{
    CDS, EDS, SDS, certificate, endpoints_at, route, static_cluster, validation_context,
};

const WARMING: &str = "cluster_manager.warming_clusters";
const ACTIVE: &str = "cluster_manager.active_clusters";

#[test]
fn basic_cluster_initial_warming() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        lab.publish(&[lab.cluster("cluster_0")])?;
        lab.start()?;
        lab.server_says(CDS, "SYNCED")?;
        if protocol == Protocol::Delta {
            // Told that there are none (R28), Envoy goes on with an empty cluster.
            lab.stat_is("cluster.cluster_0.update_empty", 1)?;
            lab.stat_is("cluster.cluster_0.membership_total", 0)?;
        } else {
            lab.stat_is(WARMING, 1)?;
        }
        lab.publish(&[lab.cluster("cluster_0"), lab.endpoints("cluster_0")])?;
        lab.stat_is("cluster.cluster_0.membership_total", 1)?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_is(ACTIVE, 2)?;
        lab.server_says(EDS, "SYNCED")?;
        lab.expect_no_rejection()
    })
}

#[test]
fn cluster_initialization_update_the_only_warming_cluster() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        let silent = SilentBackend::start()?;
        let mut cluster = checked_cluster(&lab, "cluster_0");
        let unready = endpoints_at("cluster_0", &[silent.address()?]);
        lab.publish(&[cluster.clone(), unready.clone()])?;
        lab.start()?;
        lab.stat_is(WARMING, 1)?;

        cluster["lbPolicy"] = json!("MAGLEV");
        lab.publish(&[cluster.clone(), unready])?;
        lab.wait("the changed cluster to warm", |lab| {
            let warming = lab.dumped("ClustersConfigDump", "dynamic_warming_clusters")?;
            let policies: Vec<_> = warming
                .iter()
                .map(|it| &it["cluster"]["lb_policy"])
                .collect();
            ensure!(policies == ["MAGLEV"], "policies {policies:?}");
            Ok(())
        })?;
        lab.stat_is(WARMING, 1)?;

        lab.publish(&[cluster, lab.endpoints("cluster_0")])?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_is(ACTIVE, 2)?;
        lab.stat_is("cluster.cluster_0.membership_healthy", 1)
    })
}

#[test]
fn test_primary_cluster_warm_cluster_initialization() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        // A health check that does not end keeps the cluster warming.
        let silent = SilentBackend::start()?;
        let ready = static_cluster("fake_cluster", silent.address()?);
        let blocked = with_check(ready.clone());
        lab.publish(&[blocked])?;
        lab.start()?;
        lab.stat_is(WARMING, 1)?;

        lab.publish(&[ready])?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_is(ACTIVE, 2)?;
        lab.server_says(CDS, "SYNCED").map(drop)
    })
}

#[test]
fn cluster_initialization_update_one_of_the_2_warming() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        let silent = SilentBackend::start()?;
        let mut resources = vec![
            checked_cluster(&lab, "cluster_0"),
            checked_cluster(&lab, "cluster_1"),
            static_cluster("primary_cluster", lab.backend.address()),
            endpoints_at("cluster_0", &[silent.address()?]),
            endpoints_at("cluster_1", &[silent.address()?]),
        ];
        lab.publish(&resources)?;
        lab.start()?;
        lab.stat_is(WARMING, 2)?;

        resources[0]["lbPolicy"] = json!("MAGLEV");
        lab.publish(&resources)?;
        lab.stat_is("cluster_manager.cluster_modified", 1)?;
        lab.stat_is(WARMING, 2)?;

        resources.truncate(3);
        resources.extend(["cluster_0", "cluster_1"].map(|name| lab.endpoints(name)));
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_is(ACTIVE, 4)
    })
}

#[test]
fn cluster_sharing_secret_warming() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        let (ca, _) = certificate()?;
        let mut resources = tls_clusters(&lab, ["validation_context", "validation_context"]);
        lab.publish(&resources)?;
        lab.start()?;
        let status = lab.wait("the secret to be asked for", |lab| lab.server_view(SDS))?;
        wait_for_secrets(&lab)?;
        ensure!(status["names"] == 1, "{status}");

        resources.push(validation_context("validation_context", &ca));
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_is(ACTIVE, 3)?;
        lab.server_says(SDS, "SYNCED").map(drop)
    })
}

#[test]
fn secrets_paused_during_cds() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        let (ca, _) = certificate()?;
        let secrets = ["validation_context_0", "validation_context_1"];
        let mut resources = tls_clusters(&lab, secrets);
        lab.publish(&resources)?;
        lab.start()?;
        wait_for_secrets(&lab)?;
        let status = lab.wait("both secrets to be asked for", |lab| {
            let status = lab.server_view(SDS)?;
            ensure!(status["names"] == 2, "{status}");
            Ok(status)
        })?;
        ensure!(status["error"].is_null(), "{status}");
        let labels = ["type=\"sds\"", "kind=\"subscribe\""];
        let asked = lab
            .control_plane
            .metric("isthmus_xds_requests_total", &labels)?;
        ensure!(
            asked == 1,
            "secrets were asked for {asked} times, not once for all clusters"
        );

        resources.extend(secrets.map(|name| validation_context(name, &ca)));
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_is(ACTIVE, 3)?;
        lab.expect_no_rejection()
    })
}

// Without their secrets, clusters wait, unless Envoy is told that there are none (R28): then it goes on without.
fn wait_for_secrets(lab: &Lab) -> Result<()> {
    match lab.protocol {
        Protocol::Delta | Protocol::PerTypeDelta => lab.stat_is(ACTIVE, 3),
        Protocol::Sotw | Protocol::PerType => lab.stat_is(WARMING, 2),
    }
}

// Two clusters that are complete but for their secrets.
fn tls_clusters(lab: &Lab, secrets: [&str; 2]) -> Vec<Value> {
    let clusters = ["cluster_0", "cluster_1"].iter().zip(secrets);
    clusters
        .map(|(name, secret)| {
            let mut cluster = static_cluster(name, lab.backend.address());
            cluster["transportSocket"] = lab.upstream_tls(secret);
            cluster
        })
        .collect()
}

#[test]
fn cds_paused_during_warming() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let lab = Lab::live(protocol, Lab::basic)?;
        let silent = SilentBackend::start()?;
        lab.expect_answer(0)?;
        let mut resources = lab.basic();
        resources.extend([
            checked_cluster(&lab, "warming_cluster_1"),
            endpoints_at("warming_cluster_1", &[silent.address()?]),
        ]);
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 1)?;
        wait_asked(&lab, 2)?;
        // Not answered for as long as the cluster warms (R46).
        lab.server_says(CDS, "STALE")?;

        // The next clusters come all the same (R46a).
        resources.extend([
            checked_cluster(&lab, "warming_cluster_2"),
            endpoints_at("warming_cluster_2", &[silent.address()?]),
        ]);
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 2)?;
        wait_asked(&lab, 3)?;
        lab.server_says(CDS, "STALE")?;
        lab.expect_answer(0)?;

        let mut resources = lab.basic();
        for name in ["warming_cluster_1", "warming_cluster_2"] {
            resources.extend([checked_cluster(&lab, name), lab.endpoints(name)]);
        }
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_is(ACTIVE, 4)?;
        for type_url in [CDS, EDS] {
            lab.server_says(type_url, "SYNCED")?;
        }
        lab.expect_answer(0)?;
        lab.expect_no_rejection()
    })
}

#[test]
fn remove_warming_cluster() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let lab = Lab::live(protocol, Lab::basic)?;
        let silent = SilentBackend::start()?;
        lab.expect_answer(0)?;
        let with_warming = |name: &str| {
            let mut resources = lab.basic();
            resources.extend([
                checked_cluster(&lab, name),
                endpoints_at(name, &[silent.address()?]),
            ]);
            Ok::<_, anyhow::Error>(resources)
        };
        lab.publish(&with_warming("warming_cluster_1")?)?;
        lab.stat_is(WARMING, 1)?;

        lab.publish(&with_warming("warming_cluster_2")?)?;
        lab.wait("the second to warm in the place of the first", |lab| {
            let names = lab.clusters("dynamic_warming_clusters")?;
            ensure!(names == ["warming_cluster_2"], "it is {names:?}");
            Ok(())
        })?;
        lab.stat_is(WARMING, 1)?;

        let mut resources = with_warming("warming_cluster_2")?;
        resources[5] = lab.endpoints("warming_cluster_2");
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_is(ACTIVE, 3)?;
        lab.server_says(CDS, "SYNCED")?;
        lab.expect_answer(0)?;
        lab.expect_no_rejection()
    })
}

#[test]
fn cluster_warming_on_named_response() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::live(protocol, Lab::basic)?;
        let silent = SilentBackend::start()?;
        let mut resources = lab.basic();
        for name in ["warming_cluster_1", "warming_cluster_2"] {
            resources.extend([
                checked_cluster(&lab, name),
                endpoints_at(name, &[silent.address()?]),
            ]);
        }
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 2)?;

        resources[5] = lab.endpoints("warming_cluster_1");
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 1)?;
        let names = lab.clusters("dynamic_warming_clusters")?;
        ensure!(names == ["warming_cluster_2"], "it is {names:?}");

        // A new stream changes nothing of that.
        lab.restart_control_plane()?;
        wait_asked(&lab, 3)?;
        lab.server_says(EDS, "SYNCED")?;
        lab.stat_is(WARMING, 1)?;

        resources[7] = lab.endpoints("warming_cluster_2");
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 0)?;
        lab.server_says(CDS, "SYNCED")?;
        lab.expect_answer(0)?;
        lab.expect_no_rejection()
    })
}

#[test]
fn cds_eds_replacement_warming() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let lab = Lab::live(protocol, Lab::basic)?;
        lab.expect_answer(0)?;
        // A cluster that is replaced warms anew, though its endpoints are as they were (R48).
        let mut resources = lab.basic();
        resources[0]["lbPolicy"] = json!("MAGLEV");
        resources[3] = route("route_config_0", "cluster_0", "r2");
        lab.publish(&resources)?;
        lab.wait_answer(0, "r2")?;
        lab.stat_is("cluster_manager.cluster_modified", 1)?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_is("cluster.cluster_0.membership_total", 1)?;

        // And with other endpoints in the same commit.
        resources[0]["lbPolicy"] = json!("RANDOM");
        resources[1]["policy"] = json!({"overprovisioningFactor": 150});
        resources[3] = route("route_config_0", "cluster_0", "r3");
        lab.publish(&resources)?;
        lab.wait_answer(0, "r3")?;
        lab.stat_is("cluster_manager.cluster_modified", 2)?;
        lab.stat_is(WARMING, 0)?;
        for type_url in [CDS, EDS] {
            lab.server_says(type_url, "SYNCED")?;
        }
        lab.expect_no_rejection()
    })
}

// A cluster whose endpoints must prove their health before it is active. What Envoy's test withholds is the assignment;
// an incremental server must say that there is none (R28), and that ends the waiting.
fn checked_cluster(lab: &Lab, name: &str) -> Value {
    with_check(lab.cluster(name))
}

fn with_check(mut cluster: Value) -> Value {
    cluster["healthChecks"] = json!([{
        "timeout": "3600s",
        "interval": "3600s",
        "unhealthyThreshold": 1,
        "healthyThreshold": 1,
        "httpHealthCheck": {"path": "/"},
    }]);
    cluster
}

fn wait_asked(lab: &Lab, clusters: u64) -> Result<()> {
    lab.wait(
        &format!("endpoints of {clusters} clusters to be asked for"),
        |lab| {
            let status = lab.server_view(EDS)?;
            ensure!(status["names"] == clusters, "{status}");
            Ok(())
        },
    )
}
