//! The resources of the cases, named as in Envoy's test: `cluster_0`, `listener_0`, `route_config_0`.

use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use isthmus_integration_tests::sidecar::{REVISION_HEADER, type_url};
use serde_json::{Value, json};

use super::fixture::Lab;

pub(crate) const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(crate) const LEDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint";
pub(crate) const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub(crate) const SRDS: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
pub(crate) const VHDS: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
pub(crate) const SDS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
pub(crate) const RTDS: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
pub(crate) const ECDS: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";

impl Lab {
    /// A cluster, its endpoint, a listener and the route from one to the other.
    pub(crate) fn basic(&self) -> Vec<Value> {
        vec![
            self.cluster("cluster_0"),
            self.endpoints("cluster_0"),
            self.listener(0, "listener_0", "route_config_0"),
            route("route_config_0", "cluster_0", "r1"),
        ]
    }

    /// A cluster with endpoints over EDS.
    pub(crate) fn cluster(&self, name: &str) -> Value {
        json!({
            "@type": CDS,
            "name": name,
            "type": "EDS",
            "edsClusterConfig": {"edsConfig": self.patient_source()},
            "connectTimeout": "5s",
        })
    }

    /// TLS to the endpoints, with a CA that comes over SDS.
    pub(crate) fn upstream_tls(&self, secret: &str) -> Value {
        let context = json!({
            "@type": type_url("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
            "commonTlsContext": {
                "validationContextSdsSecretConfig": {"name": secret, "sdsConfig": self.patient_source()},
            },
        });
        json!({"name": "envoy.transport_sockets.tls", "typedConfig": context})
    }

    /// The backend as the endpoint of a cluster.
    pub(crate) fn endpoints(&self, cluster: &str) -> Value {
        endpoints_at(cluster, &[self.backend.address()])
    }

    /// A listener that routes over RDS.
    pub(crate) fn listener(&self, place: usize, name: &str, routes: &str) -> Value {
        self.listener_as(place, name, routes, "ads_test")
    }

    /// Such a listener with another prefix of its statistics: the smallest change there is.
    pub(crate) fn listener_as(
        &self,
        place: usize,
        name: &str,
        routes: &str,
        prefix: &str,
    ) -> Value {
        let rds = json!({"configSource": self.patient_source(), "routeConfigName": routes});
        self.listener_with(place, name, json!({"statPrefix": prefix, "rds": rds}))
    }

    /// A listener with these fields of its connection manager.
    pub(crate) fn listener_with(&self, place: usize, name: &str, manager: Value) -> Value {
        listener_at(self.listeners[place], name, manager)
    }

    /// The source of a resource that Envoy waits for as long as it takes.
    pub(crate) fn patient_source(&self) -> Value {
        let mut source = self.protocol.config_source();
        source["initial_fetch_timeout"] = json!("0s");
        source
    }
}

/// Endpoints of a cluster.
pub(crate) fn endpoints_at(cluster: &str, addresses: &[SocketAddrV4]) -> Value {
    let lb_endpoints: Vec<Value> = addresses.iter().copied().map(lb_endpoint).collect();
    json!({"@type": EDS, "clusterName": cluster, "endpoints": [{"lbEndpoints": lb_endpoints}]})
}

pub(crate) fn lb_endpoint(address: SocketAddrV4) -> Value {
    let socket_address = json!({"address": address.ip().to_string(), "portValue": address.port()});
    json!({"endpoint": {"address": {"socketAddress": socket_address}}})
}

/// A cluster whose endpoint is in it.
pub(crate) fn static_cluster(name: &str, address: SocketAddrV4) -> Value {
    let mut assignment = endpoints_at(name, &[address]);
    if let Some(fields) = assignment.as_object_mut() {
        fields.remove("@type");
    }
    json!({
        "@type": CDS,
        "name": name,
        "type": "STATIC",
        "connectTimeout": "5s",
        "loadAssignment": assignment,
    })
}

/// A listener with these fields of its connection manager.
pub(crate) fn listener_at(address: SocketAddrV4, name: &str, manager: Value) -> Value {
    let router = json!({"@type": type_url("envoy.extensions.filters.http.router.v3.Router")});
    let mut whole = json!({
        "@type": type_url("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "statPrefix": "ads_test",
        "httpFilters": [{"name": "envoy.filters.http.router", "typedConfig": router}],
    });
    if let (Some(whole), Value::Object(fields)) = (whole.as_object_mut(), manager) {
        whole.extend(fields);
    }
    let socket_address = json!({"address": address.ip().to_string(), "portValue": address.port()});
    json!({
        "@type": LDS,
        "name": name,
        "address": {"socketAddress": socket_address},
        "filterChains": [{
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typedConfig": whole}],
        }],
    })
}

/// Routes everything to a cluster; answers carry `revision`.
pub(crate) fn route(name: &str, cluster: &str, revision: &str) -> Value {
    json!({
        "@type": RDS,
        "name": name,
        "virtualHosts": [virtual_host("all", &["*"], cluster)],
        "responseHeadersToAdd": [{"header": {"key": REVISION_HEADER, "value": revision}}],
    })
}

pub(crate) fn virtual_host(name: &str, domains: &[&str], cluster: &str) -> Value {
    json!({
        "name": name,
        "domains": domains,
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}],
    })
}

/// A secret with a CA.
pub(crate) fn validation_context(name: &str, ca: &str) -> Value {
    json!({"@type": SDS, "name": name, "validationContext": {"trustedCa": {"inlineString": ca}}})
}

/// A certificate of localhost that is its own CA, and its key, in PEM.
pub(crate) fn certificate() -> Result<(String, String)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])
        .context("no certificate could be made")?;
    Ok((made.cert.pem(), made.signing_key.serialize_pem()))
}
