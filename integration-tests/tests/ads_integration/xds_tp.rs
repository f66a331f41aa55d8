//! Names of the form `xdstp://`: collections that are asked for by a glob, and endpoints one by one.

use anyhow::{Result, ensure};
use isthmus_integration_tests::envoy::Protocol;
use serde_json::{Value, json};

use super::fixture::{Lab, NODE, NODE_CLUSTER};
use super::resources::{CDS, LDS, RDS, route};

fn context() -> String {
    format!("?xds.node.cluster={NODE_CLUSTER}&xds.node.id={NODE}")
}

fn cluster_name(id: &str) -> String {
    format!(
        "xdstp://test/envoy.config.cluster.v3.Cluster/foo-cluster/{id}{}",
        context()
    )
}

fn listener_name(id: &str) -> String {
    format!(
        "xdstp://test/envoy.config.listener.v3.Listener/foo-listener/{id}{}",
        context()
    )
}

fn endpoints_name(id: &str) -> String {
    format!("xdstp://test/envoy.config.endpoint.v3.ClusterLoadAssignment/foo-cluster/{id}")
}

fn routes_name(number: u8) -> String {
    format!("xdstp://test/envoy.config.route.v3.RouteConfiguration/route_config_{number}")
}

// Collections in the place of wildcards.
fn with_collections(bootstrap: &mut Value) {
    bootstrap["node_context_params"] = json!(["id", "cluster"]);
    let source = json!({
        "api_config_source": {"api_type": "AGGREGATED_DELTA_GRPC", "transport_api_version": "V3"},
        "resource_api_version": "V3",
    });
    let dynamic = &mut bootstrap["dynamic_resources"];
    dynamic["cds_config"] = source.clone();
    dynamic["lds_config"] = source;
    dynamic["cds_resources_locator"] =
        json!("xdstp://test/envoy.config.cluster.v3.Cluster/foo-cluster/*");
    dynamic["lds_resources_locator"] =
        json!("xdstp://test/envoy.config.listener.v3.Listener/foo-listener/*");
}

fn cluster(lab: &Lab, id: &str) -> Value {
    let mut cluster = lab.cluster(&cluster_name(id));
    cluster["edsClusterConfig"]["serviceName"] = json!(endpoints_name(id));
    cluster
}

#[test]
fn xds_tp_basic() -> Result<()> {
    let mut lab = Lab::new(Protocol::Delta)?;
    let routes = routes_name(0);
    let other_node = listener_name("baz").replace(NODE, "other-node");
    let impostor = listener_name("bar").replace("foo-listener", "impostor");
    let mut resources = vec![
        cluster(&lab, "baz"),
        lab.endpoints(&endpoints_name("baz")),
        lab.listener(0, &listener_name("bar"), &routes),
        route(&routes, &cluster_name("baz"), "r1"),
        // Of other collections: not asked for, so not sent.
        lab.listener(1, &impostor, &routes),
        lab.listener(2, &other_node, &routes),
    ];
    lab.publish(&resources)?;
    lab.start_with(with_collections)?;
    lab.wait_live()?;
    lab.wait_answer(0, "r1")?;
    lab.stat_is("listener_manager.listener_create_success", 1)?;
    let sent = lab
        .control_plane
        .metric("isthmus_xds_resources_sent_total", &["type=\"lds\""])?;
    ensure!(sent == 1, "{sent} listeners were sent");

    // Another one in the same collection, with routes of its own.
    let more = routes_name(1);
    resources.truncate(4);
    resources.extend([
        lab.listener(1, &listener_name("baz"), &more),
        route(&more, &cluster_name("baz"), "r2"),
    ]);
    lab.publish(&resources)?;
    lab.stat_is("listener_manager.listener_create_success", 2)?;
    lab.wait_answer(1, "r2")?;

    // A change of one, and its end.
    resources[2] = lab.listener(0, &listener_name("bar"), &more);
    lab.publish(&resources)?;
    lab.wait_answer(0, "r2")?;
    lab.stat_is("listener_manager.listener_in_place_updated", 1)?;
    resources.remove(2);
    lab.publish(&resources)?;
    lab.stat_is("listener_manager.listener_removed", 1)?;
    lab.wait_answer(1, "r2")?;
    for type_url in [CDS, LDS, RDS] {
        lab.server_says(type_url, "SYNCED")?;
    }
    lab.expect_no_rejection()
}
