//! What a resource refers to by name, and the addresses that a listener binds.
//!
//! A table says which fields name something; how to reach them from any resource follows from the
//! descriptors. Not taken for references:
//!
//! * names from a source other than the stream they came on (`ads` or `self`): another control plane, a file
//!   or a node agent may have them;
//! * clusters of a management server (`ApiConfigSource`): Envoy wants them in its bootstrap;
//! * names that a request decides (`cluster_header`), and `xdstp://` names.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use isthmus_proto::descriptor_pool;
use isthmus_proto::pb::envoy::config::core::v3::address::Address as Kind;
use isthmus_proto::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use isthmus_proto::pb::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use isthmus_proto::pb::envoy::config::core::v3::{Address, SocketAddress};
use isthmus_proto::pb::envoy::config::listener::v3::Listener;
use isthmus_xds_core::type_rules;
use prost::Message;
use prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor};

use super::MAX_DEPTH;
use super::path::Step;
use super::wire::{Fields, Wire, last};

const ANY: &str = "google.protobuf.Any";
const TYPE_URL_PREFIX: &str = "type.googleapis.com/";
const CONFIG_SOURCE: &str = "envoy.config.core.v3.ConfigSource";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

/// References of one resource that are followed; a route table may name thousands of clusters.
pub const MAX_REFERENCES: usize = 100_000;

/// What kind of resource a reference is to.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Target {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// ECDS.
    ExtensionConfig,
    /// RDS.
    Route,
    /// SDS.
    Secret,
}

/// A name in a resource that stands for another resource.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reference {
    /// To the field that has the name.
    pub path: Vec<Step>,
    /// What it names.
    pub target: Target,
    /// The name, not empty.
    pub name: String,
}

/// An address that a listener wants for itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Binding {
    /// To the address.
    pub path: Vec<Step>,
    /// Equal for addresses that cannot be bound twice, such as `tcp 127.0.0.1:80`.
    pub address: String,
}

impl Target {
    /// The type of the resource.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => type_rules::CLUSTER,
            Self::Endpoints => type_rules::ENDPOINT,
            Self::ExtensionConfig => type_rules::EXTENSION_CONFIG,
            Self::Route => type_rules::ROUTE,
            Self::Secret => type_rules::SECRET,
        }
    }
}

/// Messages whose field is a name, wherever they stand: message, field, target.
const NAMES: [(&str, &str, Target); 22] = [
    (
        "envoy.config.core.v3.GrpcService.EnvoyGrpc",
        "cluster_name",
        Target::Cluster,
    ),
    ("envoy.config.core.v3.HttpUri", "cluster", Target::Cluster),
    (
        "envoy.config.route.v3.RouteAction",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.config.route.v3.RouteAction.RequestMirrorPolicy",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.config.route.v3.WeightedCluster.ClusterWeight",
        "name",
        Target::Cluster,
    ),
    (
        "envoy.config.route.v3.ScopedRouteConfiguration",
        "route_configuration_name",
        Target::Route,
    ),
    (
        "envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster",
        Target::Cluster,
    ),
    (
        "envoy.config.trace.v3.DatadogConfig",
        "collector_cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.clusters.aggregate.v3.ClusterConfig",
        "clusters",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.network.dubbo_proxy.v3.RouteAction",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.network.generic_proxy.action.v3.RouteAction",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy.PrefixRoutes.Route",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy.PrefixRoutes.Route.RequestMirrorPolicy",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
        "name",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.network.thrift_proxy.v3.RouteAction",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.network.thrift_proxy.v3.RouteAction.RequestMirrorPolicy",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.network.thrift_proxy.v3.WeightedCluster.ClusterWeight",
        "name",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.udp.udp_proxy.v3.Route",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.access_loggers.fluentd.v3.FluentdAccessLogConfig",
        "cluster",
        Target::Cluster,
    ),
    (
        "envoy.extensions.tracers.fluentd.v3.FluentdConfig",
        "cluster",
        Target::Cluster,
    ),
];

/// Messages whose field is a name if a source beside it is the stream itself: message, field, way to the
/// source, target.
const SOURCED: [(&str, &str, &[&str], Target); 7] = [
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.Rds",
        "route_config_name",
        &["config_source"],
        Target::Route,
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig",
        "name",
        &["sds_config"],
        Target::Secret,
    ),
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        "name",
        EXTENSION,
        Target::ExtensionConfig,
    ),
    (
        "envoy.config.listener.v3.Filter",
        "name",
        EXTENSION,
        Target::ExtensionConfig,
    ),
    (
        "envoy.config.listener.v3.ListenerFilter",
        "name",
        EXTENSION,
        Target::ExtensionConfig,
    ),
    (
        "envoy.config.cluster.v3.Filter",
        "name",
        EXTENSION,
        Target::ExtensionConfig,
    ),
    (
        "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig.SessionFilter",
        "name",
        EXTENSION,
        Target::ExtensionConfig,
    ),
];

const EXTENSION: &[&str] = &["config_discovery", "config_source"];

/// Finds the references of an encoded message of a type, in the order of the bytes; those after
/// [`MAX_REFERENCES`] are left out.
pub fn references(full_name: &str, message: &[u8]) -> Vec<Reference> {
    let mut walk = Walk {
        depth: 0,
        found: Vec::new(),
        path: Vec::new(),
    };
    if let Some(node) = GRAPH.of_message(full_name) {
        walk.message(node, message);
    }
    walk.found
}

/// Finds the addresses of an encoded `Listener` that no other listener may have beside it. A port that the
/// kernel chooses is none.
pub fn bindings(listener: &[u8]) -> Vec<Binding> {
    let Ok(listener) = Listener::decode(listener) else {
        return Vec::new();
    };
    let binds = listener.bind_to_port.is_none_or(|binds| binds.value);
    let step = |name: &str, json_name: &str| Step::Field {
        name: name.into(),
        json_name: json_name.into(),
    };
    let first = listener
        .address
        .iter()
        .map(|address| (vec![step("address", "address")], address));
    let more = listener.additional_addresses.iter().enumerate();
    let more = more.filter_map(|(index, additional)| {
        let path = vec![
            step("additional_addresses", "additionalAddresses"),
            Step::Index(index),
            step("address", "address"),
        ];
        Some((path, additional.address.as_ref()?))
    });
    first
        .chain(more)
        .filter_map(|(path, address)| {
            let address = bound(address, binds)?;
            Some(Binding { path, address })
        })
        .collect()
}

fn bound(address: &Address, binds: bool) -> Option<String> {
    match address.address.as_ref()? {
        Kind::SocketAddress(socket) => {
            let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
                return None;
            };
            // The kernel chooses a free port.
            (port != 0 || !binds).then(|| socket_name(socket, port))
        }
        Kind::Pipe(pipe) => Some(format!("unix {}", pipe.path)),
        Kind::EnvoyInternalAddress(internal) => match internal.address_name_specifier.as_ref()? {
            AddressNameSpecifier::ServerListenerName(name) => Some(format!("internal {name}")),
        },
    }
}

fn socket_name(socket: &SocketAddress, port: u32) -> String {
    let protocol = match socket.protocol() {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    // Two ways to write an IPv6 address are one address.
    let ip = socket.address.parse::<std::net::IpAddr>();
    let host = match ip {
        Ok(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
        Ok(std::net::IpAddr::V4(ip)) => ip.to_string(),
        Err(_) => socket.address.clone(),
    };
    let netns = &socket.network_namespace_filepath;
    if netns.is_empty() {
        format!("{protocol} {host}:{port}")
    } else {
        format!("{protocol} {host}:{port} in {netns}")
    }
}

/// Which fields of which messages lead to names.
#[derive(Debug)]
struct Graph {
    by_name: HashMap<String, usize>,
    nodes: Vec<Node>,
    /// Fields of `ConfigSource` that mean the stream itself.
    own_sources: Vec<u32>,
}

#[derive(Debug, Default)]
struct Node {
    /// By number; only those that lead to a name.
    edges: Vec<Edge>,
    names: Vec<Name>,
    /// Whether it is a cluster, whose endpoints have a name by more than one field.
    cluster: Option<ClusterFields>,
}

#[derive(Debug)]
struct Edge {
    field: Field,
    is_list: bool,
    is_map: bool,
    to: To,
}

#[derive(Clone, Copy, Debug)]
enum To {
    Any,
    Message(usize),
}

#[derive(Clone, Debug)]
struct Field {
    number: u32,
    name: Arc<str>,
    json_name: Arc<str>,
}

#[derive(Debug)]
struct Name {
    field: Field,
    is_list: bool,
    /// Way to a `ConfigSource`; empty if there is none.
    source: Vec<u32>,
    target: Target,
}

#[derive(Debug)]
struct ClusterFields {
    kind: u32,
    name: u32,
    eds: Field,
    eds_config: u32,
    service_name: Field,
}

static GRAPH: LazyLock<Graph> = LazyLock::new(|| Graph::of(descriptor_pool()));

impl Graph {
    fn of(pool: &DescriptorPool) -> Self {
        let by_name: HashMap<String, usize> = pool
            .all_messages()
            .enumerate()
            .map(|(index, message)| (message.full_name().to_owned(), index))
            .collect();
        let mut nodes: Vec<Node> = pool
            .all_messages()
            .map(|message| node_of(&message, &by_name))
            .collect();
        prune(&mut nodes);
        let source = pool.get_message_by_name(CONFIG_SOURCE);
        let own_sources = source.iter().flat_map(|source| {
            ["ads", "self"]
                .iter()
                .filter_map(|name| source.get_field_by_name(name))
        });
        Self {
            own_sources: own_sources.map(|field| field.number()).collect(),
            by_name,
            nodes,
        }
    }

    fn of_message(&self, full_name: &str) -> Option<&Node> {
        self.by_name
            .get(full_name)
            .and_then(|index| self.nodes.get(*index))
    }

    /// Whether the encoded `ConfigSource` is the stream that the resource comes on.
    fn is_own(&self, source: &[u8]) -> bool {
        self.own_sources
            .iter()
            .any(|number| last(source, *number).is_some())
    }
}

fn node_of(message: &MessageDescriptor, by_name: &HashMap<String, usize>) -> Node {
    if message.full_name() == CONFIG_SOURCE {
        return Node::default();
    }
    let plain = NAMES
        .iter()
        .map(|(of, field, target)| (of, field, &[][..], target));
    let sourced = SOURCED
        .iter()
        .map(|(of, field, source, target)| (of, field, *source, target));
    let names = plain
        .chain(sourced)
        .filter(|(of, ..)| **of == message.full_name())
        .filter_map(|(_, field, source, target)| {
            let field = message.get_field_by_name(field)?;
            Some(Name {
                is_list: field.is_list(),
                field: Field::of(&field),
                source: numbers(message, source)?,
                target: *target,
            })
        });
    let mut edges: Vec<Edge> = message
        .fields()
        .filter_map(|field| edge_of(&field, by_name))
        .collect();
    edges.sort_by_key(|edge| edge.field.number);
    Node {
        names: names.collect(),
        cluster: (message.full_name() == CLUSTER)
            .then(|| ClusterFields::of(message))
            .flatten(),
        edges,
    }
}

fn edge_of(field: &FieldDescriptor, by_name: &HashMap<String, usize>) -> Option<Edge> {
    let kind = field.kind();
    let mut message = kind.as_message()?.clone();
    if field.is_map() {
        message = message.map_entry_value_field().kind().as_message()?.clone();
    }
    let to = if message.full_name() == ANY {
        To::Any
    } else {
        To::Message(*by_name.get(message.full_name())?)
    };
    Some(Edge {
        field: Field::of(field),
        is_list: field.is_list(),
        is_map: field.is_map(),
        to,
    })
}

fn numbers(message: &MessageDescriptor, way: &[&str]) -> Option<Vec<u32>> {
    let mut message = message.clone();
    let mut numbers = Vec::new();
    for name in way {
        let field = message.get_field_by_name(name)?;
        numbers.push(field.number());
        message = field.kind().as_message()?.clone();
    }
    Some(numbers)
}

/// Drops the edges that lead to no name. An `Any` may.
fn prune(nodes: &mut [Node]) {
    let leads_itself = |node: &Node| {
        let has_any = node.edges.iter().any(|edge| matches!(edge.to, To::Any));
        has_any || !node.names.is_empty() || node.cluster.is_some()
    };
    let mut leads: Vec<bool> = nodes.iter().map(leads_itself).collect();
    let leads_on = |edge: &Edge, leads: &[bool]| match edge.to {
        To::Any => true,
        To::Message(index) => leads[index],
    };
    loop {
        let before = leads.iter().filter(|leads| **leads).count();
        for (index, node) in nodes.iter().enumerate() {
            leads[index] = leads[index] || node.edges.iter().any(|edge| leads_on(edge, &leads));
        }
        if leads.iter().filter(|leads| **leads).count() == before {
            break;
        }
    }
    for node in nodes {
        node.edges.retain(|edge| leads_on(edge, &leads));
    }
}

impl Field {
    fn of(field: &FieldDescriptor) -> Self {
        Self {
            number: field.number(),
            name: field.name().into(),
            json_name: field.json_name().into(),
        }
    }

    fn step(&self) -> Step {
        Step::Field {
            name: Arc::clone(&self.name),
            json_name: Arc::clone(&self.json_name),
        }
    }
}

impl ClusterFields {
    fn of(cluster: &MessageDescriptor) -> Option<Self> {
        let eds = cluster.get_field_by_name("eds_cluster_config")?;
        let config = eds.kind().as_message()?.clone();
        Some(Self {
            kind: cluster.get_field_by_name("type")?.number(),
            name: cluster.get_field_by_name("name")?.number(),
            eds: Field::of(&eds),
            eds_config: config.get_field_by_name("eds_config")?.number(),
            service_name: Field::of(&config.get_field_by_name("service_name")?),
        })
    }
}

#[derive(Debug)]
enum At<'a> {
    Field(&'a Field),
    Index(usize),
    Key(Wire<'a>),
}

#[derive(Debug)]
struct Walk<'a> {
    depth: usize,
    found: Vec<Reference>,
    path: Vec<At<'a>>,
}

impl<'a> Walk<'a> {
    fn message(&mut self, node: &'static Node, message: &'a [u8]) {
        if self.depth >= MAX_DEPTH {
            return;
        }
        self.depth += 1;
        for name in &node.names {
            self.name(name, message);
        }
        if let Some(fields) = &node.cluster {
            self.endpoints(fields, message);
        }
        let mut counts = vec![0; node.edges.len()];
        for (number, value) in Fields::new(message).filter_map(Result::ok) {
            let edge = node
                .edges
                .binary_search_by_key(&number, |edge| edge.field.number);
            let Ok(index) = edge else { continue };
            let edge = &node.edges[index];
            self.path.push(At::Field(&edge.field));
            if edge.is_map {
                self.path
                    .push(At::Key(last(value.bytes(), 1).unwrap_or(Wire::Bytes(&[]))));
                let inner = last(value.bytes(), 2).map_or(&[][..], Wire::bytes);
                self.follow(edge.to, inner);
                self.path.pop();
            } else if edge.is_list {
                self.path.push(At::Index(counts[index]));
                self.follow(edge.to, value.bytes());
                self.path.pop();
            } else {
                self.follow(edge.to, value.bytes());
            }
            counts[index] += 1;
            self.path.pop();
        }
        self.depth -= 1;
    }

    fn follow(&mut self, to: To, message: &'a [u8]) {
        let (node, message) = match to {
            To::Message(index) => (GRAPH.nodes.get(index), message),
            To::Any => {
                let url = last(message, 1).map_or(&[][..], Wire::bytes);
                let url = str::from_utf8(url).unwrap_or_default();
                let name = url.strip_prefix(TYPE_URL_PREFIX).unwrap_or(url);
                let payload = last(message, 2).map_or(&[][..], Wire::bytes);
                (GRAPH.of_message(name), payload)
            }
        };
        if let Some(node) = node {
            self.message(node, message);
        }
    }

    fn name(&mut self, name: &'static Name, message: &'a [u8]) {
        if !name.source.is_empty() {
            let source = name.source.iter().try_fold(message, |message, number| {
                last(message, *number).map(Wire::bytes)
            });
            if !source.is_some_and(|source| GRAPH.is_own(source)) {
                return;
            }
        }
        let values = Fields::new(message).filter_map(Result::ok);
        let values = values.filter(|(number, _)| *number == name.field.number);
        for (index, (_, value)) in values.enumerate() {
            self.path.push(At::Field(&name.field));
            if name.is_list {
                self.path.push(At::Index(index));
            }
            self.found(name.target, value.bytes());
            if name.is_list {
                self.path.pop();
            }
            self.path.pop();
        }
    }

    /// A cluster's endpoints go by the name of its service, or by its own.
    fn endpoints(&mut self, fields: &'static ClusterFields, cluster: &'a [u8]) {
        const EDS: u64 = 3;
        let config = last(cluster, fields.eds.number).map(Wire::bytes);
        let Some(config) =
            config.filter(|_| last(cluster, fields.kind).map(Wire::bits) == Some(EDS))
        else {
            return;
        };
        let source = last(config, fields.eds_config).map_or(&[][..], Wire::bytes);
        if !GRAPH.is_own(source) {
            return;
        }
        self.path.push(At::Field(&fields.eds));
        let service = last(config, fields.service_name.number).map(Wire::bytes);
        if let Some(service) = service.filter(|service| !service.is_empty()) {
            self.path.push(At::Field(&fields.service_name));
            self.found(Target::Endpoints, service);
            self.path.pop();
        } else {
            let name = last(cluster, fields.name).map_or(&[][..], Wire::bytes);
            self.found(Target::Endpoints, name);
        }
        self.path.pop();
    }

    fn found(&mut self, target: Target, name: &[u8]) {
        let Ok(name) = str::from_utf8(name) else {
            return;
        };
        if name.is_empty() || name.starts_with("xdstp://") || self.found.len() >= MAX_REFERENCES {
            return;
        }
        let path = self.path.iter().map(|at| match at {
            At::Field(field) => field.step(),
            At::Index(index) => Step::Index(*index),
            At::Key(key) => Step::Key(String::from_utf8_lossy(key.bytes()).into_owned()),
        });
        self.found.push(Reference {
            path: path.collect(),
            target,
            name: name.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_tables_is_in_the_descriptors() {
        let named: usize = GRAPH.nodes.iter().map(|node| node.names.len()).sum();
        assert_eq!(named, NAMES.len() + SOURCED.len());
        assert_eq!(GRAPH.own_sources.len(), 2);
        assert!(
            GRAPH
                .of_message(CLUSTER)
                .is_some_and(|node| node.cluster.is_some())
        );
    }
}
