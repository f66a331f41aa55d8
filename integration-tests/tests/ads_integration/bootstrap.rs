//! What an Envoy's bootstrap asks for before any cluster or listener came.

use std::fs;

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::envoy::Protocol;
use serde_json::{Value, json};

use super::fixture::{Lab, over, over_sotw_and_delta};
use super::resources::{CDS, EDS, RTDS, endpoints_at, route};

#[test]
fn ads_fail_connect_disconnect() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        // Without a configuration that can be served, streams are ended (R6) and not answered with nothing.
        let mut lab = Lab::new(protocol)?;
        lab.control_plane
            .publish_text("resources.yaml", "not: [a document")?;
        lab.control_plane.launch()?;
        lab.start_envoy(|_| ())?;
        lab.stat_reaches("cluster_manager.cds.update_failure", 3)?;
        lab.stat_is("cluster_manager.cds.update_success", 0)?;

        lab.publish(&lab.basic())?;
        lab.wait_live()?;
        lab.expect_answer(0)?;
        lab.stat_is("control_plane.connected_state", 1)
    })
}

#[test]
fn eds_cluster_with_ads_config_source() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        let cluster = static_eds_cluster(&lab, "ads_eds_cluster");
        let mut resources = lab.basic();
        resources.push(lab.endpoints("ads_eds_cluster"));
        resources[3] = route("route_config_0", "ads_eds_cluster", "r1");
        lab.publish(&resources)?;
        lab.start_with(|bootstrap| add_cluster(bootstrap, cluster))?;
        lab.wait_live()?;
        lab.stat_is("cluster.ads_eds_cluster.membership_total", 1)?;
        lab.wait_answer(0, "r1")
    })
}

#[test]
fn basic_test_wids_ads_endpoint_loaded_from_file() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        // The way to the control plane is an EDS cluster, from a file; another EDS cluster asks over it.
        let mut lab = Lab::new(protocol)?;
        let file = lab.dir().join("control-plane.json");
        let assignment = endpoints_at("xds-grpc", &[lab.xds]);
        fs::write(&file, json!({"resources": [assignment]}).to_string())?;
        let cluster = static_eds_cluster(&lab, "ads_eds_cluster");
        let mut resources = lab.basic();
        resources.push(lab.endpoints("ads_eds_cluster"));
        lab.publish(&resources)?;
        lab.start_with(|bootstrap| {
            let way = &mut bootstrap["static_resources"]["clusters"][0];
            way["type"] = json!("EDS");
            let source =
                json!({"path_config_source": {"path": file}, "resource_api_version": "V3"});
            way["eds_cluster_config"] = json!({"eds_config": source});
            if let Some(fields) = way.as_object_mut() {
                fields.remove("load_assignment");
            }
            add_cluster(bootstrap, cluster);
        })?;
        lab.wait_live()?;
        lab.stat_is("cluster.ads_eds_cluster.membership_total", 1)?;
        let status = lab.server_says(EDS, "SYNCED")?;
        ensure!(status["names"] == 2, "{status}");
        lab.expect_answer(0).map(drop)
    })
}

#[test]
fn ads_with_rtds_basic() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        let mut resources = lab.basic();
        resources.push(runtime("bar"));
        lab.publish(&resources)?;
        let source = lab.patient_source();
        lab.start_with(|bootstrap| add_runtime(bootstrap, &source))?;
        lab.wait_live()?;
        lab.stat_reaches("runtime.load_success", 1)?;
        wait_runtime(&lab, "bar")?;

        resources[4] = runtime("changed");
        lab.publish(&resources)?;
        wait_runtime(&lab, "changed")?;
        lab.server_says(RTDS, "SYNCED")?;
        lab.expect_answer(0)?;
        lab.expect_no_rejection()
    })
}

#[test]
fn ads_with_rtds_waits_for_the_layer_before_clusters() -> Result<()> {
    // Told that there is no such layer (R28), an incremental Envoy goes on.
    over(&[Protocol::Sotw], |protocol| {
        let mut lab = Lab::new(protocol)?;
        lab.publish(&lab.basic())?;
        let source = lab.patient_source();
        lab.start_with(|bootstrap| add_runtime(bootstrap, &source))?;
        let status = lab.wait("the layer to be asked for", |lab| lab.server_view(RTDS))?;
        ensure!(status["names"] == 1, "{status}");
        ensure!(
            lab.server_view(CDS).is_err(),
            "clusters come after the layer"
        );

        let mut resources = lab.basic();
        resources.push(runtime("bar"));
        lab.publish(&resources)?;
        lab.wait_live()?;
        lab.expect_answer(0).map(drop)
    })
}

#[test]
fn ads_with_rtds_and_secondary_clusters_basic() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        let mut resources = lab.basic();
        resources.extend([runtime("bar"), lab.endpoints("eds_cluster")]);
        lab.publish(&resources)?;
        let source = lab.patient_source();
        let cluster = static_eds_cluster(&lab, "eds_cluster");
        lab.start_with(|bootstrap| {
            add_runtime(bootstrap, &source);
            add_cluster(bootstrap, cluster);
        })?;
        lab.wait_live()?;
        wait_runtime(&lab, "bar")?;
        lab.stat_is("cluster.eds_cluster.membership_total", 1)?;
        lab.server_says(CDS, "SYNCED")?;
        lab.expect_answer(0)?;
        lab.expect_no_rejection()
    })
}

/// The layer that the bootstrap names.
pub(crate) fn runtime(value: &str) -> Value {
    json!({"@type": RTDS, "name": "ads_rtds_layer", "layer": {"foo": value, "baz": "meh"}})
}

pub(crate) fn add_runtime(bootstrap: &mut Value, source: &Value) {
    let layer = json!({"name": "ads_rtds_layer", "rtds_config": source});
    bootstrap["layered_runtime"] = json!({"layers": [{"name": "foobar", "rtds_layer": layer}]});
}

pub(crate) fn wait_runtime(lab: &Lab, value: &str) -> Result<()> {
    lab.wait(&format!("{value} in the runtime"), |lab| {
        let runtime: Value = serde_json::from_str(&lab.envoy()?.admin("/runtime")?)
            .context("the runtime is not JSON")?;
        let found = &runtime["entries"]["foo"]["final_value"];
        ensure!(found == value, "it is {found}");
        Ok(())
    })
}

fn static_eds_cluster(lab: &Lab, name: &str) -> Value {
    let source = lab.protocol.config_source();
    json!({"name": name, "type": "EDS", "eds_cluster_config": {"eds_config": source}})
}

fn add_cluster(bootstrap: &mut Value, cluster: Value) {
    if let Some(known) = bootstrap["static_resources"]["clusters"].as_array_mut() {
        known.push(cluster);
    }
}
