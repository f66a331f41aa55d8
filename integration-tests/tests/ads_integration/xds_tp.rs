//! Names of the form `xdstp://`: collections that are asked for by a glob, and endpoints one by one.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use isthmus_integration_tests::backend::Backend;
use isthmus_integration_tests::envoy::Protocol;
use isthmus_integration_tests::sidecar::type_url;
use serde_json::{Value, json};

use super::fixture::{Lab, NODE, NODE_CLUSTER};
use super::resources::{CDS, EDS, LDS, LEDS, RDS, lb_endpoint, route};

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

fn collection(folder: &str) -> String {
    format!("xdstp://test/envoy.config.endpoint.v3.LbEndpoint/{folder}/*")
}

// Endpoints that are a collection of their own (LEDS).
fn endpoints_in(folder: &str, id: &str) -> Value {
    let leds = json!({"ledsConfig": collection_source(), "ledsCollectionName": collection(folder)});
    json!({
        "@type": EDS,
        "clusterName": endpoints_name(id),
        "endpoints": [{"locality": {"zone": "a"}, "ledsClusterLocalityConfig": leds}],
    })
}

// One endpoint of a collection: it has no name of its own, so it is wrapped.
fn endpoint(folder: &str, id: &str, address: SocketAddrV4) -> Value {
    let mut body = lb_endpoint(address);
    body["@type"] = json!(LEDS);
    let name = collection(folder).replace('*', &format!("{id}{}", context()));
    json!({"@type": type_url("envoy.service.discovery.v3.Resource"), "name": name, "resource": body})
}

fn collection_source() -> Value {
    json!({
        "api_config_source": {"api_type": "AGGREGATED_DELTA_GRPC", "transport_api_version": "V3"},
        "resource_api_version": "V3",
    })
}

// Collections in the place of wildcards.
fn with_collections(bootstrap: &mut Value) {
    bootstrap["node_context_params"] = json!(["id", "cluster"]);
    let source = collection_source();
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
    cluster["altStatName"] = json!(id);
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

#[test]
fn xds_tp_basic_with_leds() -> Result<()> {
    let mut lab = Lab::new(Protocol::Delta)?;
    let other = Backend::start("other")?;
    let routes = routes_name(0);
    let mut resources = vec![
        cluster(&lab, "baz"),
        endpoints_in("foo-endpoints", "baz"),
        lab.listener(0, &listener_name("bar"), &routes),
        route(&routes, &cluster_name("baz"), "r1"),
        endpoint("foo-endpoints", "endpoint_0", lab.backend.address()),
        endpoint("foo-endpoints", "endpoint_1", other.address()),
        // Of another collection.
        endpoint("impostor", "endpoint_2", lab.xds),
    ];
    lab.publish(&resources)?;
    lab.start_with(with_collections)?;
    lab.wait_live()?;
    lab.stat_is("cluster.baz.membership_total", 2)?;
    lab.wait_answer(0, "r1")?;
    let sent = |r#type: &str| {
        let name = "isthmus_xds_resources_sent_total";
        lab.control_plane
            .metric(name, &[&format!("type=\"{type}\"")])
    };
    let before = (sent("leds")?, sent("eds")?);

    // One endpoint goes, and that costs no word about the others.
    resources.remove(5);
    lab.publish(&resources)?;
    lab.stat_is("cluster.baz.membership_total", 1)?;
    lab.expect_answer(0)?;
    resources.push(endpoint("foo-endpoints", "endpoint_3", other.address()));
    lab.publish(&resources)?;
    lab.stat_is("cluster.baz.membership_total", 2)?;
    ensure!((sent("leds")?, sent("eds")?) == (before.0 + 1, before.1));
    let status = lab.server_says(LEDS, "SYNCED")?;
    ensure!(status["names"] == 1, "{status}");
    lab.expect_no_rejection()
}

#[test]
fn leds_cluster_warming_updating_eds() -> Result<()> {
    let mut lab = Lab::new(Protocol::Delta)?;
    let mut resources = vec![cluster(&lab, "baz"), endpoints_in("foo-endpoints", "baz")];
    lab.publish(&resources)?;
    lab.start_with(with_collections)?;
    wait_collections(&lab, 1)?;

    // While nothing is known of its endpoints, the cluster gets another collection.
    resources[1] = endpoints_in("bar-endpoints", "baz");
    let addresses = [lab.backend.address(), lab.listeners[1]];
    for (number, address) in addresses.into_iter().enumerate() {
        let id = format!("endpoint_{number}");
        resources.push(endpoint("bar-endpoints", &id, address));
    }
    lab.publish(&resources)?;
    lab.stat_is("cluster.baz.membership_total", 2)?;
    lab.stat_is("cluster_manager.warming_clusters", 0)?;
    lab.stat_is("cluster_manager.active_clusters", 2)?;
    // Nobody is interested in the first collection any more.
    wait_collections(&lab, 1)?;
    lab.server_says(LEDS, "SYNCED")?;
    lab.expect_no_rejection()
}

#[test]
fn leds_cluster_warming_updating_cds() -> Result<()> {
    let mut lab = Lab::new(Protocol::Delta)?;
    lab.publish(&[
        cluster(&lab, "cluster1"),
        endpoints_in("foo-endpoints1", "cluster1"),
    ])?;
    lab.start_with(with_collections)?;
    wait_collections(&lab, 1)?;

    // While nothing is known of its endpoints, another cluster takes its place.
    lab.publish(&[
        cluster(&lab, "cluster2"),
        endpoints_in("foo-endpoints2", "cluster2"),
        endpoint("foo-endpoints2", "endpoint_0", lab.backend.address()),
        endpoint("foo-endpoints2", "endpoint_1", lab.listeners[1]),
    ])?;
    lab.stat_is("cluster.cluster2.membership_total", 2)?;
    lab.stat_is("cluster_manager.warming_clusters", 0)?;
    lab.wait("the first cluster to be gone", |lab| {
        let names = lab.clusters("dynamic_active_clusters")?;
        ensure!(names == [cluster_name("cluster2")], "there are {names:?}");
        Ok(())
    })?;
    wait_collections(&lab, 1)?;
    for type_url in [CDS, EDS, LEDS] {
        lab.server_says(type_url, "SYNCED")?;
    }
    lab.expect_no_rejection()
}

fn wait_collections(lab: &Lab, wanted: u64) -> Result<()> {
    lab.wait(&format!("{wanted} collections to be asked for"), |lab| {
        let status = lab.server_view(LEDS)?;
        ensure!(status["names"] == wanted, "{status}");
        Ok(())
    })
}
