//! What is sent, to whom, and what a reset of the stream costs.

use anyhow::{Result, ensure};
use isthmus_integration_tests::envoy::Protocol;
use isthmus_integration_tests::sidecar::document;
use serde_json::{Value, json};

use super::fixture::{Lab, NODE, NODE_CLUSTER, over_sotw_and_delta};
use super::resources::{CDS, EDS, LDS, RDS, endpoints_at, listener_at, route, virtual_host};

#[test]
fn basic() -> Result<()> {
    over_sotw_and_delta(|protocol| basic_flow(protocol, |_| ()))
}

#[test]
fn basic_with_rate_limiting() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        basic_flow(protocol, |bootstrap| {
            bootstrap["dynamic_resources"]["ads_config"]["rate_limit_settings"] =
                json!({"max_tokens": 100, "fill_rate": 10.0});
        })
    })
}

// Delivery, more of everything, and removal, with a request after each.
fn basic_flow(protocol: Protocol, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut lab = Lab::new(protocol)?;
    lab.publish(&lab.basic())?;
    lab.start_with(change)?;
    lab.wait_live()?;
    lab.expect_answer(0)?;
    for type_url in [CDS, EDS, LDS, RDS] {
        lab.server_says(type_url, "SYNCED")?;
    }

    // Clusters and the route to one of them, in one commit.
    lab.publish(&[
        lab.cluster("cluster_1"),
        lab.cluster("cluster_2"),
        lab.endpoints("cluster_1"),
        lab.endpoints("cluster_2"),
        lab.listener(0, "listener_0", "route_config_0"),
        route("route_config_0", "cluster_1", "r2"),
    ])?;
    lab.wait_answer(0, "r2")?;
    lab.wait("cluster_0 to be gone", |lab| {
        let names = lab.clusters("dynamic_active_clusters")?;
        ensure!(names == ["cluster_1", "cluster_2"], "there are {names:?}");
        Ok(())
    })?;

    lab.publish(&[
        lab.cluster("cluster_1"),
        lab.endpoints("cluster_1"),
        lab.listener(1, "listener_1", "route_config_1"),
        route("route_config_1", "cluster_1", "r3"),
    ])?;
    lab.wait_answer(1, "r3")?;
    lab.stat_is("listener_manager.listener_removed", 1)?;
    for type_url in [CDS, EDS, LDS, RDS] {
        lab.server_says(type_url, "SYNCED")?;
    }
    lab.expect_no_rejection()
}

#[test]
fn failure() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        // Each kind of resource is refused once, for what only Envoy knows, and then mended.
        let mut lab = Lab::new(protocol)?;
        let mut cluster = lab.cluster("cluster_0");
        cluster["lbPolicy"] = json!("CLUSTER_PROVIDED");
        let mut endpoints = lab.endpoints("cluster_0");
        // A name where an address is due.
        endpoints["endpoints"][0]["lbEndpoints"][0]["endpoint"]["address"]["socketAddress"]["address"] =
            json!("no-address");
        let mut listener = lab.listener(0, "listener_0", "route_config_0");
        listener["filterChains"] = json!([]);
        let mut routes = route("route_config_0", "cluster_0", "r0");
        routes["virtualHosts"] = json!([
            virtual_host("one", &["*"], "cluster_0"),
            virtual_host("two", &["*"], "cluster_0")
        ]);

        let good = lab.basic();
        let bad = [cluster, endpoints, listener, routes];
        let with_bad = |place: usize| {
            let mut resources = good.clone();
            resources[place] = bad[place].clone();
            resources
        };
        lab.publish(&with_bad(0))?;
        lab.start()?;
        for (place, (stat, r#type)) in [
            ("cluster_manager.cds.update_rejected", "cds"),
            ("cluster.cluster_0.update_rejected", "eds"),
            ("listener_manager.lds.update_rejected", "lds"),
            ("http.ads_test.rds.route_config_0.update_rejected", "rds"),
        ]
        .into_iter()
        .enumerate()
        {
            lab.publish(&with_bad(place))?;
            lab.stat_reaches(stat, 1)?;
            lab.wait("a refusal that is counted", |lab| {
                let labels = [&*format!("type=\"{type}\""), "kind=\"nack\""];
                let nacks = lab
                    .control_plane
                    .metric("isthmus_xds_requests_total", &labels)?;
                ensure!(nacks >= 1, "{type} was not refused");
                Ok(())
            })?;
        }
        lab.publish(&good)?;
        lab.wait_live()?;
        lab.wait_answer(0, "r1")
    })
}

#[test]
fn reject_v2_transport_config_by_default() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        let mut cluster = lab.cluster("cluster_0");
        let source = json!({
            "apiType": "GRPC",
            "transportApiVersion": "V2",
            "grpcServices": [{"envoyGrpc": {"clusterName": "xds-grpc"}}],
        });
        cluster["edsClusterConfig"]["edsConfig"] = json!({"apiConfigSource": source});
        lab.publish(&[cluster])?;
        lab.start()?;
        lab.stat_reaches("cluster_manager.cds.update_rejected", 1)
    })
}

#[test]
fn update_to_subset_of_resources() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let lab = Lab::live(protocol, |lab| {
            let mut resources = lab.basic();
            resources.extend([lab.cluster("cluster_1"), lab.endpoints("cluster_1")]);
            resources
        })?;
        for cluster in ["cluster_0", "cluster_1"] {
            lab.stat_is(&format!("cluster.{cluster}.update_success"), 1)?;
        }
        let sent = |lab: &Lab| {
            let name = "isthmus_xds_resources_sent_total";
            lab.control_plane.metric(name, &["type=\"eds\""])
        };
        let before = sent(&lab)?;

        let mut resources = lab.basic();
        let addresses = [lab.backend.address(), lab.listeners[1]];
        resources[1] = endpoints_at("cluster_0", &addresses);
        resources.extend([lab.cluster("cluster_1"), lab.endpoints("cluster_1")]);
        lab.publish(&resources)?;
        lab.stat_is("cluster.cluster_0.update_success", 2)?;
        lab.stat_is("cluster.cluster_0.membership_total", 2)?;
        lab.server_says(EDS, "SYNCED")?;
        lab.stat_is("cluster.cluster_1.update_success", 1)?;
        lab.stat_is("cluster.cluster_1.membership_total", 1)?;
        ensure!(sent(&lab)? == before + 1, "one assignment was sent");
        Ok(())
    })
}

#[test]
fn resend_node_on_stream_reset() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::live(protocol, Lab::basic)?;
        lab.restart_control_plane()?;
        for type_url in [CDS, EDS, LDS, RDS] {
            lab.server_says(type_url, "SYNCED")?;
        }
        let clients = lab.control_plane.clients_of(NODE)?;
        ensure!(clients.len() == 1, "one stream: {clients:?}");
        if protocol == Protocol::Delta {
            // What the client says that it holds is not sent to it again (R38), by a process that has never seen it (R39).
            let name = "isthmus_xds_resources_sent_total";
            let sent = lab.control_plane.metric(name, &[])?;
            ensure!(sent == 0, "{sent} resources were sent again");
        }
        lab.expect_answer(0)?;
        lab.expect_no_rejection()
    })
}

#[test]
fn resource_names_on_stream_reset() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::live(protocol, Lab::basic)?;
        lab.restart_control_plane()?;
        let eds = lab.server_says(EDS, "SYNCED")?;
        ensure!(eds["names"] == 1, "{eds}");
        let rds = lab.server_says(RDS, "SYNCED")?;
        ensure!(rds["names"] == 1, "{rds}");
        for type_url in [CDS, LDS] {
            let status = lab.server_says(type_url, "SYNCED")?;
            ensure!(status["isWildcard"] == json!(true), "{status}");
        }

        // The wildcard still stands for what is new.
        let mut resources = lab.basic();
        resources.extend([lab.cluster("cluster_1"), lab.endpoints("cluster_1")]);
        lab.publish(&resources)?;
        lab.stat_is("cluster.cluster_1.membership_total", 1)
    })
}

#[test]
fn duplicate_initial_clusters() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        // Envoy would refuse all clusters, if it got them.
        let mut lab = Lab::new(protocol)?;
        publish_twice(&lab, lab.cluster("duplicate_cluster"))?;
        lab.control_plane.launch()?;
        lab.start_envoy(|_| ())?;
        wait_log(&lab, "duplicate_cluster")?;
        lab.stat_reaches("cluster_manager.cds.update_failure", 1)?;
        lab.stat_is("cluster_manager.cds.update_rejected", 0)?;

        lab.control_plane
            .publish("twin.yaml", &document("twin", &[]))?;
        lab.publish(&lab.basic())?;
        lab.wait_live()?;
        lab.expect_answer(0)?;
        lab.expect_no_rejection()
    })
}

#[test]
fn duplicate_warming_clusters() -> Result<()> {
    over_sotw_and_delta(|protocol| refuses_duplicates(protocol, |lab| lab.cluster("duplicate")))
}

#[test]
fn duplicate_warming_listeners() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        refuses_duplicates(protocol, |lab| {
            lab.listener(1, "duplicate", "route_config_0")
        })
    })
}

// What Envoy would refuse is not sent to it, and all that it has stays.
fn refuses_duplicates(protocol: Protocol, twin: fn(&Lab) -> Value) -> Result<()> {
    let lab = Lab::live(protocol, Lab::basic)?;
    lab.expect_answer(0)?;
    publish_twice(&lab, twin(&lab))?;
    wait_log(&lab, "duplicate")?;
    lab.expect_answer(0)?;
    lab.expect_no_rejection()?;

    // The first commit without twins is served.
    lab.control_plane
        .publish("twin.yaml", &document("twin", &[]))?;
    let mut resources = lab.basic();
    resources[3] = route("route_config_0", "cluster_0", "r2");
    lab.publish(&resources)?;
    lab.wait_answer(0, "r2")
}

fn publish_twice(lab: &Lab, resource: Value) -> Result<()> {
    lab.control_plane.publish(
        "twin.yaml",
        &document("twin", std::slice::from_ref(&resource)),
    )?;
    let mut resources = lab.basic();
    resources.push(resource);
    lab.publish(&resources)
}

fn wait_log(lab: &Lab, text: &str) -> Result<()> {
    lab.wait(&format!("{text} in the log of isthmus-xds"), |lab| {
        ensure!(lab.control_plane.log()?.contains(text), "it is not there");
        Ok(())
    })
}

#[test]
fn xds_batching() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        let (first, second) = ("eds_cluster", "eds_cluster2");
        lab.publish(&[
            lab.endpoints(first),
            lab.endpoints(second),
            route("route_config", first, "r1"),
            route("route_config2", second, "r2"),
        ])?;
        let clusters = [lab.cluster(first), lab.cluster(second)];
        let listeners = [(0, "route_config"), (1, "route_config2")].map(|(place, routes)| {
            let rds = json!({"configSource": lab.patient_source(), "routeConfigName": routes});
            listener_at(lab.listeners[place], routes, json!({"rds": rds}))
        });
        lab.start_with(|bootstrap| {
            if let Some(dynamic) = bootstrap["dynamic_resources"].as_object_mut() {
                dynamic.retain(|name, _| name == "ads_config");
            }
            if let Some(known) = bootstrap["static_resources"]["clusters"].as_array_mut() {
                known.extend(clusters.map(in_bootstrap));
            }
            bootstrap["static_resources"]["listeners"] = listeners.map(in_bootstrap).into();
        })?;
        lab.wait_live()?;
        lab.wait_answer(0, "r1")?;
        lab.wait_answer(1, "r2")?;
        for (r#type, type_url) in [("eds", EDS), ("rds", RDS)] {
            let labels = [&*format!("type=\"{type}\""), "kind=\"subscribe\""];
            let asked = lab
                .control_plane
                .metric("isthmus_xds_requests_total", &labels)?;
            ensure!(
                asked == 1,
                "{type} was asked for {asked} times, not once for both"
            );
            let status = lab.server_says(type_url, "SYNCED")?;
            ensure!(status["names"] == 2, "{status}");
        }
        Ok(())
    })
}

// A bootstrap holds messages, not resources.
fn in_bootstrap(mut resource: Value) -> Value {
    if let Some(fields) = resource.as_object_mut() {
        fields.remove("@type");
    }
    resource
}

#[test]
fn node_message() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let lab = Lab::live(protocol, Lab::basic)?;
        let clients = lab.control_plane.clients_of(NODE)?;
        let [client] = &clients[..] else {
            anyhow::bail!("one stream: {clients:?}");
        };
        let node = json!({"id": NODE, "cluster": NODE_CLUSTER});
        ensure!(client["node"] == node, "{client}");
        let agent = client["userAgent"].as_str().unwrap_or_default();
        ensure!(
            agent.contains("envoy") && agent.contains("1.40.0"),
            "{agent}"
        );
        let variant = if protocol == Protocol::Delta {
            "delta"
        } else {
            "sotw"
        };
        ensure!(client["variant"] == variant, "{client}");
        Ok(())
    })
}

#[test]
fn set_node_always() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        lab.publish(&lab.basic())?;
        lab.start_with(|bootstrap| {
            bootstrap["dynamic_resources"]["ads_config"]["set_node_on_first_message_only"] =
                json!(false);
        })?;
        lab.wait_live()?;
        let mut resources = lab.basic();
        resources[3] = route("route_config_0", "cluster_0", "r2");
        lab.publish(&resources)?;
        lab.wait_answer(0, "r2")?;
        for type_url in [CDS, EDS, LDS, RDS] {
            lab.server_says(type_url, "SYNCED")?;
        }
        let ended = lab
            .control_plane
            .metric("isthmus_xds_streams_refused_total", &[])?;
        ensure!(ended == 0, "{ended} streams were ended");
        Ok(())
    })
}
