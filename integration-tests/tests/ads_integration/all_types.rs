//! Every type that Envoy takes, over each protocol that has it: accepted, in force, and seen in traffic.

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::envoy::Protocol;
use isthmus_integration_tests::http::HttpConnection;
use isthmus_integration_tests::sidecar::{REVISION_HEADER, type_url};
use serde_json::{Value, json};
use std::net::TcpStream;

use super::bootstrap::{add_runtime, runtime, wait_runtime};
use super::fixture::{Lab, over};
use super::resources::{
    CDS, ECDS, EDS, LDS, RDS, RTDS, SDS, SRDS, VHDS, certificate, route, static_cluster,
    validation_context, virtual_host,
};

#[test]
fn envoy_takes_every_type_of_ads_and_of_the_services_of_each_type() -> Result<()> {
    over(
        &[
            Protocol::Sotw,
            Protocol::PerType,
            Protocol::Delta,
            Protocol::PerTypeDelta,
        ],
        takes_every_type,
    )
}

// One request goes through all of it: a scope picks the routes, an extension marks the answer, and the cluster behind is
// the Envoy's own TLS listener, whose certificate is a secret.
fn takes_every_type(protocol: Protocol) -> Result<()> {
    let mut lab = Lab::new(protocol)?;
    let (cert, key) = certificate()?;
    let mut resources = every_type(&lab, "r1", "e1");
    resources.extend([
        validation_context("ca", &cert),
        json!({
            "@type": SDS,
            "name": "server",
            "tlsCertificate": {"certificateChain": {"inlineString": cert}, "privateKey": {"inlineString": key}},
        }),
        runtime("bar"),
    ]);
    lab.publish(&resources)?;
    let source = lab.patient_source();
    lab.start_with(|bootstrap| add_runtime(bootstrap, &source))?;
    lab.wait_live()?;
    wait_runtime(&lab, "bar")?;
    wait_scoped_answer(&lab, "r1", "e1")?;

    // Changes of the innermost types arrive as well.
    let changed = every_type(&lab, "r2", "e2");
    resources.splice(..changed.len(), changed);
    lab.publish(&resources)?;
    wait_scoped_answer(&lab, "r2", "e2")?;
    for type_url in [CDS, EDS, LDS, RDS, SRDS, SDS, RTDS, ECDS] {
        lab.server_says(type_url, "SYNCED")?;
    }
    lab.expect_no_rejection()
}

fn every_type(lab: &Lab, revision: &str, extension: &str) -> Vec<Value> {
    let mut tls_cluster = static_cluster("tls", lab.listeners[1]);
    tls_cluster["transportSocket"] = lab.upstream_tls("ca");
    let filter = |name: &str, config: Value| json!({"name": name, "typedConfig": config});
    let header = json!({"append": {"header": {"key": "x-extension", "value": extension}}});
    let mutation = json!({
        "@type": type_url("envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"),
        "mutations": {"responseMutations": [header]},
    });
    let router = json!({"@type": type_url("envoy.extensions.filters.http.router.v3.Router")});
    let discovery = json!({
        "configSource": lab.patient_source(),
        "typeUrls": [type_url("envoy.extensions.filters.http.header_mutation.v3.HeaderMutation")],
    });
    let fragment = json!({"headerValueExtractor": {"name": "x-scope", "element": {"separator": "=", "key": "s"}}});
    let scopes = json!({
        "name": "scopes",
        "scopeKeyBuilder": {"fragments": [fragment]},
        "rdsConfigSource": lab.patient_source(),
        "scopedRds": {"scopedRdsConfigSource": lab.patient_source()},
    });
    let filters = json!([
        {"name": "extension", "configDiscovery": discovery},
        filter("envoy.filters.http.router", router),
    ]);
    let manager = json!({"scopedRoutes": scopes, "httpFilters": filters});
    let inner_routes = json!({"configSource": lab.patient_source(), "routeConfigName": "inner"});
    let mut inner = lab.listener_with(1, "inner", json!({"rds": inner_routes}));
    let context = json!({
        "@type": type_url("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "commonTlsContext": {
            "tlsCertificateSdsSecretConfigs": [{"name": "server", "sdsConfig": lab.patient_source()}],
        },
    });
    inner["filterChains"][0]["transportSocket"] = filter("envoy.transport_sockets.tls", context);
    vec![
        lab.cluster("cluster_0"),
        lab.endpoints("cluster_0"),
        tls_cluster,
        inner,
        route("inner", "cluster_0", "inner"),
        lab.listener_with(0, "outer", manager),
        json!({
            "@type": SRDS,
            "name": "scope",
            "routeConfigurationName": "outer",
            "key": {"fragments": [{"stringKey": "one"}]},
        }),
        route("outer", "tls", revision),
        json!({"@type": ECDS, "name": "extension", "typedConfig": mutation}),
    ]
}

fn wait_scoped_answer(lab: &Lab, revision: &str, extension: &str) -> Result<()> {
    lab.wait(&format!("{revision} and {extension}"), |lab| {
        let stream = TcpStream::connect(lab.listeners[0])?;
        let headers = "connection: close\r\nx-scope: s=one\r\n";
        let response = HttpConnection::new(stream).request("GET", "host", "/", headers)?;
        ensure!(
            response.status == 200,
            "status {}: {}",
            response.status,
            response.text()
        );
        let mut revisions = response
            .headers
            .iter()
            .filter(|(name, _)| name == REVISION_HEADER);
        ensure!(
            revisions.any(|(_, value)| value == revision),
            "{:?}",
            response.headers
        );
        let found = response.header("x-extension").unwrap_or_default();
        ensure!(found == extension, "the extension says {found:?}");
        Ok(())
    })
}

#[test]
fn envoy_takes_virtual_hosts_and_asks_for_one_that_there_is_not() -> Result<()> {
    over(&[Protocol::Delta, Protocol::PerTypeDelta], |protocol| {
        let mut lab = Lab::new(protocol)?;
        lab.publish(&on_demand(&lab, "/first"))?;
        lab.start()?;
        lab.wait_live()?;
        let known = lab.wait("an answer of the virtual host", |lab| {
            let response = on_demand_request(lab, "known.example", "/first")?;
            ensure!(response == 200, "status {response}");
            Ok(response)
        });
        known.with_context(|| format!("{:?}", lab.server_view(VHDS)))?;
        // A host that there is none of is asked for when a request needs it, and answered (R57): nobody waits.
        ensure!(on_demand_request(&lab, "unknown.example", "/first")? == 404);

        lab.publish(&on_demand(&lab, "/second"))?;
        lab.wait("the changed virtual host", |lab| {
            let response = on_demand_request(lab, "known.example", "/second")?;
            ensure!(response == 200, "status {response}");
            Ok(())
        })?;
        lab.server_says(VHDS, "SYNCED")?;
        lab.expect_no_rejection()
    })
}

fn on_demand(lab: &Lab, prefix: &str) -> Vec<Value> {
    let router = json!({"@type": type_url("envoy.extensions.filters.http.router.v3.Router")});
    let on_demand =
        json!({"@type": type_url("envoy.extensions.filters.http.on_demand.v3.OnDemand")});
    let rds = json!({"configSource": lab.patient_source(), "routeConfigName": "vhds"});
    let filters = json!([
        {"name": "envoy.filters.http.on_demand", "typedConfig": on_demand},
        {"name": "envoy.filters.http.router", "typedConfig": router},
    ]);
    let listener = lab.listener_with(0, "listener_0", json!({"rds": rds, "httpFilters": filters}));
    let mut host = virtual_host("vhds/known.example", &["known.example"], "cluster_0");
    host["@type"] = json!(VHDS);
    host["routes"][0]["match"]["prefix"] = json!(prefix);
    vec![
        lab.cluster("cluster_0"),
        lab.endpoints("cluster_0"),
        listener,
        json!({"@type": RDS, "name": "vhds", "vhds": {"configSource": lab.patient_source()}}),
        host,
    ]
}

fn on_demand_request(lab: &Lab, host: &str, path: &str) -> Result<u16> {
    let stream = TcpStream::connect(lab.listeners[0])?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    let response =
        HttpConnection::new(stream).request("GET", host, path, "connection: close\r\n")?;
    Ok(response.status)
}
