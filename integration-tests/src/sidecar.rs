//! The configuration of the lab's sidecars, as `EnvoyResources` documents, with Istio's names and shapes.
//!
//! Every sidecar gets both listeners: `virtualOutbound` takes what its application sends and routes it to a cluster of
//! endpoints, `virtualInbound` takes what arrives and hands it to the application at the original destination.

mod mutual_tls;

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

pub use self::mutual_tls::Identity;
use crate::envoy::Protocol;
use crate::http::Response;
use crate::iptables::{INBOUND_PORT, OUTBOUND_PORT};
use crate::nginx::APPLICATION_PORT;

/// Response header with the revision of the route that answered.
pub const REVISION_HEADER: &str = "x-isthmus-revision";

/// The listener of what leaves the pod, in access logs and statistics.
pub const OUTBOUND_LISTENER: &str = "virtualOutbound";

/// The listener of what arrives at the pod.
pub const INBOUND_LISTENER: &str = "virtualInbound";

/// Request header that makes a sidecar write an access log line: load goes unlogged.
pub const TRACE_HEADER: &str = "x-isthmus-trace";

/// The cluster behind the service.
pub const SERVICE_CLUSTER: &str = "outbound|8080||server.default.svc.cluster.local";

/// The route configuration of outbound HTTP.
pub const OUTBOUND_ROUTES: &str = "80";

/// The route configuration of an Envoy that answers by itself.
pub const EDGE_ROUTES: &str = "edge";

/// Address that an inbound sidecar dials its application from, so that no rule captures that again.
pub const INBOUND_SOURCE: &str = "127.0.0.6";

/// Idle connections between a sidecar and what it dials are closed after this: the next measurement starts afresh.
const UPSTREAM_IDLE: &str = "0.5s";

/// Listeners, clusters and endpoints: what does not change with a route.
pub fn mesh_document(protocol: Protocol, servers: &[Ipv4Addr]) -> Value {
    let inbound = inbound_listener();
    render_mesh(protocol, servers, inbound, service_cluster(protocol))
}

/// The same for sidecars of one workload that speak mutual TLS with each other, and plain text with nobody.
pub fn mutual_tls_document(protocol: Protocol, servers: &[Ipv4Addr], identity: &Identity) -> Value {
    let mut inbound = inbound_listener();
    inbound["filterChains"][0]["transportSocket"] = identity.downstream();
    let mut service = service_cluster(protocol);
    service["transportSocket"] = identity.upstream();
    render_mesh(protocol, servers, inbound, service)
}

fn render_mesh(
    protocol: Protocol,
    servers: &[Ipv4Addr],
    inbound_listener: Value,
    service_cluster: Value,
) -> Value {
    document(
        "mesh",
        &[
            outbound_listener(protocol),
            inbound_listener,
            inbound_cluster(),
            service_cluster,
            endpoints(servers),
        ],
    )
}

/// The outbound route; answers carry `revision`.
pub fn route_document(revision: &str) -> Value {
    document(
        "routes",
        &[json!({
            "@type": type_url("envoy.config.route.v3.RouteConfiguration"),
            "name": OUTBOUND_ROUTES,
            "virtualHosts": [{
                "name": "server.default.svc.cluster.local:80",
                "domains": ["*"],
                "routes": [{"name": "default", "match": {"prefix": "/"}, "route": {"cluster": SERVICE_CLUSTER, "timeout": "0s"}}],
            }],
            "responseHeadersToAdd": [{"header": {"key": REVISION_HEADER, "value": revision}}],
        })],
    )
}

/// A listener of an Envoy that answers by itself.
pub fn edge_document(protocol: Protocol, address: SocketAddrV4) -> Value {
    let routes = json!({"configSource": protocol.config_source(), "routeConfigName": EDGE_ROUTES});
    let mut edge = listener("edge", address.port(), "UNSPECIFIED", &("rds", routes));
    edge["address"]["socketAddress"]["address"] = json!(address.ip().to_string());
    edge["listenerFilters"] = json!([]);
    document("edge", &[edge])
}

/// The route of that listener; answers carry `revision`.
pub fn edge_route_document(revision: &str) -> Value {
    let answer = json!({"status": 200, "body": {"inlineString": "edge\n"}});
    document(
        "routes",
        &[json!({
            "@type": type_url("envoy.config.route.v3.RouteConfiguration"),
            "name": EDGE_ROUTES,
            "virtualHosts": [{
                "name": "edge",
                "domains": ["*"],
                "routes": [{"name": "default", "match": {"prefix": "/"}, "directResponse": answer}],
            }],
            "responseHeadersToAdd": [{"header": {"key": REVISION_HEADER, "value": revision}}],
        })],
    )
}

/// Wraps resources in a document for every client.
pub fn document(name: &str, resources: &[Value]) -> Value {
    json!({
        "apiVersion": "isthmus.io/v1alpha1",
        "kind": "EnvoyResources",
        "metadata": {"name": name},
        "spec": {"selector": {}, "resources": resources},
    })
}

/// A type URL.
pub fn type_url(message: &str) -> String {
    format!("type.googleapis.com/{message}")
}

/// Fails if another route has answered than one of this revision.
///
/// # Errors
///
/// When it has, or nothing but an error was the answer.
pub fn require_revision(response: &Response, revision: &str) -> Result<()> {
    let found = response.header(REVISION_HEADER).unwrap_or_default();
    ensure!(
        response.status == 200 && found == revision,
        "status {}, route {found:?}",
        response.status
    );
    Ok(())
}

fn outbound_listener(protocol: Protocol) -> Value {
    let routes =
        json!({"configSource": protocol.config_source(), "routeConfigName": OUTBOUND_ROUTES});
    listener(
        OUTBOUND_LISTENER,
        OUTBOUND_PORT,
        "OUTBOUND",
        &("rds", routes),
    )
}

fn inbound_listener() -> Value {
    let routes = json!({
        "name": format!("inbound|{APPLICATION_PORT}||"),
        "virtualHosts": [{
            "name": format!("inbound|http|{APPLICATION_PORT}"),
            "domains": ["*"],
            "routes": [{"name": "default", "match": {"prefix": "/"}, "route": {"cluster": "InboundPassthroughCluster", "timeout": "0s"}}],
        }],
    });
    listener(
        INBOUND_LISTENER,
        INBOUND_PORT,
        "INBOUND",
        &("routeConfig", routes),
    )
}

fn listener(name: &str, port: u16, direction: &str, routes: &(&str, Value)) -> Value {
    let terminal = json!({"@type": type_url("envoy.extensions.filters.http.router.v3.Router")});
    let mut manager = json!({
        "@type": type_url("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "statPrefix": name,
        "httpFilters": [{"name": "envoy.filters.http.router", "typedConfig": terminal}],
        "accessLog": [access_log(name)],
    });
    manager[routes.0] = routes.1.clone();
    let original_dst =
        json!({"@type": type_url("envoy.extensions.filters.listener.original_dst.v3.OriginalDst")});
    json!({
        "@type": type_url("envoy.config.listener.v3.Listener"),
        "name": name,
        "address": {"socketAddress": {"address": "0.0.0.0", "portValue": port}},
        "trafficDirection": direction,
        "listenerFilters": [{"name": "envoy.filters.listener.original_dst", "typedConfig": original_dst}],
        "filterChains": [{
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typedConfig": manager}],
        }],
    })
}

/// One line of JSON on standard output for each request that asks for it.
fn access_log(listener: &str) -> Value {
    json!({
        "name": "envoy.access_loggers.stdout",
        "filter": {"headerFilter": {"header": {"name": TRACE_HEADER, "presentMatch": true}}},
        "typedConfig": {
            "@type": type_url("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"),
            "logFormat": {"jsonFormat": {
                "listener": listener,
                "local": "%DOWNSTREAM_LOCAL_ADDRESS%",
                "peer": "%DOWNSTREAM_PEER_URI_SAN%",
                "remote": "%DOWNSTREAM_REMOTE_ADDRESS%",
                "status": "%RESPONSE_CODE%",
                "trace": format!("%REQ({TRACE_HEADER})%"),
                "upstream": "%UPSTREAM_HOST%",
            }},
        },
    })
}

fn inbound_cluster() -> Value {
    json!({
        "@type": type_url("envoy.config.cluster.v3.Cluster"),
        "name": "InboundPassthroughCluster",
        "type": "ORIGINAL_DST",
        "lbPolicy": "CLUSTER_PROVIDED",
        "connectTimeout": "5s",
        "upstreamBindConfig": {"sourceAddress": {"address": INBOUND_SOURCE, "portValue": 0}},
        "typedExtensionProtocolOptions": http_options(),
    })
}

fn service_cluster(protocol: Protocol) -> Value {
    json!({
        "@type": type_url("envoy.config.cluster.v3.Cluster"),
        "name": SERVICE_CLUSTER,
        "type": "EDS",
        "edsClusterConfig": {"edsConfig": protocol.config_source(), "serviceName": SERVICE_CLUSTER},
        "connectTimeout": "5s",
        "typedExtensionProtocolOptions": http_options(),
    })
}

// What arrives as HTTP/2 (gRPC) goes on as HTTP/2, as with Istio's protocol detection; a call may last, as with Istio.
fn http_options() -> Value {
    let options = json!({
        "@type": type_url("envoy.extensions.upstreams.http.v3.HttpProtocolOptions"),
        "commonHttpProtocolOptions": {"idleTimeout": UPSTREAM_IDLE},
        "useDownstreamProtocolConfig": {"httpProtocolOptions": {}, "http2ProtocolOptions": {}},
    });
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options})
}

fn endpoints(servers: &[Ipv4Addr]) -> Value {
    let endpoint = |address: &Ipv4Addr| {
        let socket_address = json!({"address": address.to_string(), "portValue": APPLICATION_PORT});
        json!({"endpoint": {"address": {"socketAddress": socket_address}}})
    };
    json!({
        "@type": type_url("envoy.config.endpoint.v3.ClusterLoadAssignment"),
        "clusterName": SERVICE_CLUSTER,
        "endpoints": [{"lbEndpoints": servers.iter().map(endpoint).collect::<Vec<_>>()}],
    })
}
