//! A service moves from one backend to another in one commit, again and again, under load on a real Envoy: the new
//! cluster is made before the route turns to it, and the old one is broken only after.

use std::net::SocketAddrV4;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::backend::Backend;
use isthmus_integration_tests::envoy::Protocol;
use isthmus_integration_tests::load::Load;
use isthmus_integration_tests::loopback::LoopbackMesh;
use isthmus_integration_tests::sidecar::{EDGE_ROUTES, REVISION_HEADER, document, type_url};
use serde_json::{Value, json};

const SWITCHES: usize = 100;
const CONNECTIONS: usize = 4;
const REQUESTS: u64 = 20_000;

#[test]
fn a_hundred_backend_switches_fail_no_request_over_delta() -> Result<()> {
    switch_backends(Protocol::Delta)
}

#[test]
fn a_hundred_backend_switches_fail_no_request_over_sotw() -> Result<()> {
    switch_backends(Protocol::Sotw)
}

fn switch_backends(protocol: Protocol) -> Result<()> {
    let backend = Backend::start("ok\n")?;
    let mesh = LoopbackMesh::start(protocol, "000")?;
    let load = Load::start(&mesh.load_plan(CONNECTIONS));
    load.wait_for(100)?;

    let started = Instant::now();
    for number in 1..=SWITCHES {
        let revision = format!("{number:03}");
        let commit = commit(protocol, &revision, backend.address());
        mesh.control_plane.publish("routes.yaml", &commit)?;
        mesh.wait_revision(&revision)
            .with_context(|| format!("switch {number}"))?;
    }
    let took = started.elapsed();
    load.wait_for(REQUESTS.saturating_sub(load.completed()))?;
    let report = load.finish()?;
    println!(
        "{} requests in {SWITCHES} switches, which took {took:?}",
        report.requests
    );
    report.expect_no_failure(REQUESTS)?;
    ensure!(
        report.reversals == 0,
        "{} answers by an older route",
        report.reversals
    );

    let dump = mesh.control_plane.admin("/config_dump?type=cds")?;
    let served = String::from_utf8_lossy(&dump.body).into_owned();
    let last = format!("backend-{SWITCHES:03}");
    ensure!(served.contains(&last), "the last cluster is served");
    isthmus_integration_tests::wait::until(
        "the old clusters to be gone from Envoy",
        std::time::Duration::from_secs(15),
        || {
            let clusters = mesh.envoy().admin("/clusters")?;
            let old = clusters.lines().filter(|line| line.starts_with("backend-"));
            let old: Vec<&str> = old.filter(|line| !line.starts_with(&last)).collect();
            ensure!(old.is_empty(), "still there: {old:?}");
            Ok(())
        },
    )
}

// A cluster, its endpoints and the route to it, none of which was there before.
fn commit(protocol: Protocol, revision: &str, backend: SocketAddrV4) -> Value {
    let cluster = format!("backend-{revision}");
    let address = json!({"address": backend.ip().to_string(), "portValue": backend.port()});
    document(
        "routes",
        &[
            json!({
                "@type": type_url("envoy.config.cluster.v3.Cluster"),
                "name": cluster,
                "type": "EDS",
                "edsClusterConfig": {"edsConfig": protocol.config_source()},
                "connectTimeout": "5s",
            }),
            json!({
                "@type": type_url("envoy.config.endpoint.v3.ClusterLoadAssignment"),
                "clusterName": cluster,
                "endpoints": [{"lbEndpoints": [{"endpoint": {"address": {"socketAddress": address}}}]}],
            }),
            json!({
                "@type": type_url("envoy.config.route.v3.RouteConfiguration"),
                "name": EDGE_ROUTES,
                "virtualHosts": [{
                    "name": "edge",
                    "domains": ["*"],
                    "routes": [{"name": "default", "match": {"prefix": "/"}, "route": {"cluster": cluster}}],
                }],
                "responseHeadersToAdd": [{"header": {"key": REVISION_HEADER, "value": revision}}],
            }),
        ],
    )
}
