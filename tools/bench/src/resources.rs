//! What is served: the same bytes for every server, written to files that they load.
//!
//! A resource that changes carries the number of its last change as text of fixed width, where
//! the client finds it without decoding.

use std::fs;
use std::path::Path;

use anyhow::Context;
use isthmus_proto::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
use isthmus_proto::pb::envoy::config::core::v3::address::Address as AddressKind;
use isthmus_proto::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use isthmus_proto::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use isthmus_proto::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress,
};
use isthmus_proto::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use isthmus_proto::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use isthmus_proto::pb::envoy::config::listener::v3::filter::ConfigType;
use isthmus_proto::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
use isthmus_proto::pb::envoy::config::route::v3::route::Action;
use isthmus_proto::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use isthmus_proto::pb::envoy::config::route::v3::route_match::PathSpecifier;
use isthmus_proto::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use isthmus_proto::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use isthmus_proto::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds,
};
use isthmus_proto::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use isthmus_proto::pb::google::protobuf::{Any, Duration};
use prost::Message;

/// Comes before the eight digits of a change's number.
pub(crate) const MARKER: &str = "change-";

/// The types of the benchmark, in the order of [`Kind`].
pub(crate) const TYPE_URLS: [&str; 4] = [
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
    "type.googleapis.com/envoy.config.listener.v3.Listener",
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
];

const HTTP_CONNECTION_MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Index into [`TYPE_URLS`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Cluster = 0,
    Endpoints = 1,
    Listener = 2,
    Route = 3,
}

/// Routes of the route configuration at most: what one sidecar's port has, not what a fleet has.
const MAX_ROUTES: usize = 100;

/// Endpoints of each cluster.
const ENDPOINTS: u8 = 3;

/// What a change touches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Touched {
    OneEndpoint,
    OneRoute,
    Everything,
}

impl Touched {
    /// The types that a client must hear of, as bits.
    pub(crate) fn mask(self) -> u8 {
        match self {
            Self::OneEndpoint => 1 << Kind::Endpoints as u8,
            Self::OneRoute => 1 << Kind::Route as u8,
            Self::Everything => 0b1111,
        }
    }
}

/// Name of a cluster, and of its endpoints.
pub(crate) fn cluster_name(group: &str, index: usize) -> String {
    format!("outbound|80||{group}-{index:05}.bench.svc.cluster.local")
}

/// Name of the only route configuration of a group.
pub(crate) fn route_name(group: &str) -> String {
    format!("{group}-routes")
}

/// All that a group has, as of change number `change`.
pub(crate) fn all(group: &str, clusters: usize, change: u32) -> Vec<(Kind, String, Vec<u8>)> {
    let mut all = Vec::with_capacity(2 * clusters + 2);
    for index in 0..clusters {
        let name = cluster_name(group, index);
        all.push((Kind::Cluster, name.clone(), cluster(&name, change)));
        all.push((Kind::Endpoints, name.clone(), endpoints(&name, change)));
    }
    all.push((
        Kind::Listener,
        format!("{group}-listener"),
        listener(group, change),
    ));
    all.push((
        Kind::Route,
        route_name(group),
        routes(group, clusters, change),
    ));
    all
}

/// The resources that a change touches, as they are after it.
pub(crate) fn changed(
    group: &str,
    clusters: usize,
    touched: Touched,
    change: u32,
) -> Vec<(Kind, String, Vec<u8>)> {
    match touched {
        Touched::OneEndpoint => {
            let name = cluster_name(group, 0);
            let value = endpoints(&name, change);
            vec![(Kind::Endpoints, name, value)]
        }
        Touched::OneRoute => {
            vec![(
                Kind::Route,
                route_name(group),
                routes(group, clusters, change),
            )]
        }
        Touched::Everything => all(group, clusters, change),
    }
}

/// The endpoints of one cluster, as of change number `change`.
pub(crate) fn one_endpoint(group: &str, cluster: usize, change: u32) -> (String, Any) {
    let name = cluster_name(group, cluster);
    let message = Any {
        type_url: TYPE_URLS[Kind::Endpoints as usize].to_owned(),
        value: endpoints(&name, change),
    };
    (name, message)
}

/// Writes resources as a message that any server can read.
pub(crate) fn write(path: &Path, resources: Vec<(Kind, String, Vec<u8>)>) -> anyhow::Result<()> {
    let resources = resources.into_iter().map(|(kind, name, value)| Resource {
        name,
        resource: Some(Any {
            type_url: TYPE_URLS[kind as usize].to_owned(),
            value,
        }),
        ..Resource::default()
    });
    let message = DeltaDiscoveryResponse {
        resources: resources.collect(),
        ..DeltaDiscoveryResponse::default()
    };
    fs::write(path, message.encode_to_vec())
        .with_context(|| format!("{} could not be written", path.display()))
}

/// Reads what [`write()`] wrote.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<(String, Any)>> {
    let bytes = fs::read(path).with_context(|| format!("{} could not be read", path.display()))?;
    let message = DeltaDiscoveryResponse::decode(&bytes[..])?;
    let resources = message.resources.into_iter();
    Ok(resources
        .filter_map(|it| Some((it.name, it.resource?)))
        .collect())
}

fn marker(change: u32) -> String {
    format!("{MARKER}{change:08}")
}

fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

fn cluster(name: &str, change: u32) -> Vec<u8> {
    Cluster {
        name: name.to_owned(),
        alt_stat_name: marker(change),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: name.to_owned(),
        }),
        connect_timeout: Some(Duration {
            seconds: 10,
            nanos: 0,
        }),
        ..Cluster::default()
    }
    .encode_to_vec()
}

fn endpoints(name: &str, change: u32) -> Vec<u8> {
    let endpoint = |index: u8| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            hostname: if index == 0 {
                marker(change)
            } else {
                String::new()
            },
            address: Some(Address {
                address: Some(AddressKind::SocketAddress(SocketAddress {
                    address: format!("198.18.0.{index}"),
                    port_specifier: Some(PortSpecifier::PortValue(8080)),
                    ..SocketAddress::default()
                })),
            }),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: (0..ENDPOINTS).map(endpoint).collect(),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
    .encode_to_vec()
}

fn listener(group: &str, change: u32) -> Vec<u8> {
    let manager = HttpConnectionManager {
        stat_prefix: marker(change),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: route_name(group),
        })),
        ..HttpConnectionManager::default()
    };
    Listener {
        name: format!("{group}-listener"),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "envoy.filters.network.http_connection_manager".to_owned(),
                config_type: Some(ConfigType::TypedConfig(Any {
                    type_url: HTTP_CONNECTION_MANAGER.to_owned(),
                    value: manager.encode_to_vec(),
                })),
            }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
    .encode_to_vec()
}

fn routes(group: &str, clusters: usize, change: u32) -> Vec<u8> {
    let route = |index: usize| Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(format!("/service-{index}/"))),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster_name(group, index))),
            ..RouteAction::default()
        })),
        ..Route::default()
    };
    RouteConfiguration {
        name: route_name(group),
        virtual_hosts: vec![VirtualHost {
            name: marker(change),
            domains: vec!["*".to_owned()],
            routes: (0..clusters.min(MAX_ROUTES)).map(route).collect(),
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
    .encode_to_vec()
}
