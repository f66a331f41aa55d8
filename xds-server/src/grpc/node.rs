//! What a client said of itself in its first request, beside what its connection proved.

use std::collections::BTreeMap;

use bytes::Bytes;
use isthmus_api::envoy_resources::NodeView;
use isthmus_proto::pb::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use isthmus_proto::pb::google::protobuf::value::Kind;
use isthmus_xds_core::Features;
use isthmus_xds_core::stream::Peer;
use prost::Message;
use tonic::Status;

use crate::transport::ConnectedPeer;

/// Bytes of `node.id`: it is repeated in each log line, refusal and report about the client. A pod's
/// name with its namespace and address is below 600.
const ID_BYTES: usize = 1024;

/// Bytes of a whole node without its extensions, nearly all of them metadata: what selectors look at
/// is held for the length of a stream. Istio's sidecars send about 3 KB.
const NODE_BYTES: usize = 256 * 1024;

/// Bytes of a node that are kept for the length of a stream; Istio's sidecars send about 3 KB. Of a
/// longer one the id is kept.
const KEPT_NODE_BYTES: usize = 16 * 1024;

/// A client's node, reduced to what decides something or helps a reader.
#[derive(Debug, Default)]
pub(crate) struct ClientNode {
    pub(super) id: String,
    pub(super) cluster: String,
    pub(super) user_agent: String,
    region: String,
    zone: String,
    sub_zone: String,
    metadata: BTreeMap<String, String>,
    /// The message, for who asks about the client.
    pub(super) encoded: Bytes,
    client_features: Vec<String>,
    proven: ConnectedPeer,
}

impl ClientNode {
    /// Reads the node of a first request (R3, R4) that came over a connection from `proven`.
    pub(crate) fn parse(node: Option<Node>, proven: ConnectedPeer) -> Result<Self, Status> {
        let Some(node) = node.filter(|node| !node.id.is_empty()) else {
            let message = "the first request of a stream must have a node with an id; \
                           set node.id in the bootstrap (Envoy: --service-node)";
            return Err(Status::invalid_argument(message));
        };
        // Envoy lists every extension that it was built with, some 30 KB that nobody asks for here.
        let node = Node {
            extensions: Vec::new(),
            ..node
        };
        check_size(&node)?;
        let encoded = encode_kept(&node);
        let locality = node.locality.unwrap_or_default();
        let fields = node.metadata.unwrap_or_default().fields;
        let metadata = fields
            .into_iter()
            .filter_map(|(key, value)| match value.kind {
                Some(Kind::StringValue(text)) => Some((key, text)),
                Some(
                    Kind::BoolValue(_)
                    | Kind::ListValue(_)
                    | Kind::NullValue(_)
                    | Kind::NumberValue(_)
                    | Kind::StructValue(_),
                )
                | None => None,
            });
        Ok(Self {
            id: node.id,
            cluster: node.cluster,
            user_agent: render_user_agent(&node.user_agent_name, node.user_agent_version_type),
            region: locality.region,
            zone: locality.zone,
            sub_zone: locality.sub_zone,
            metadata: metadata.collect(),
            encoded,
            client_features: node.client_features,
            proven,
        })
    }

    /// What selectors look at.
    pub(crate) fn view(&self) -> NodeView<'_> {
        NodeView {
            id: &self.id,
            cluster: &self.cluster,
            identity: self.proven.identity(),
            region: &self.region,
            zone: &self.zone,
            sub_zone: &self.sub_zone,
            metadata: &self.metadata,
        }
    }

    /// What the client can read.
    pub(super) fn features(&self) -> Features {
        let features = self.client_features.iter().map(String::as_str);
        Features::parse(self.peer(), features)
    }

    /// How the client reads the protocol.
    pub(super) fn peer(&self) -> Peer {
        // The user agent of every gRPC library starts so: "gRPC Go", "gRPC C-core", "gRPC Java".
        if self.user_agent.starts_with("gRPC") {
            Peer::Grpc
        } else {
            Peer::Envoy
        }
    }
}

fn check_size(node: &Node) -> Result<(), Status> {
    let (id_bytes, node_bytes) = (node.id.len(), node.encoded_len());
    if id_bytes > ID_BYTES {
        return Err(Status::resource_exhausted(format!(
            "a node.id of {id_bytes} bytes is over the limit of {ID_BYTES}"
        )));
    }
    if node_bytes > NODE_BYTES {
        return Err(Status::resource_exhausted(format!(
            "a node of {node_bytes} bytes without its extensions is over the limit of {NODE_BYTES}; \
             send less in node.metadata"
        )));
    }
    Ok(())
}

fn encode_kept(node: &Node) -> Bytes {
    if node.encoded_len() <= KEPT_NODE_BYTES {
        return node.encode_to_vec().into();
    }
    let known = Node {
        id: node.id.clone(),
        ..Node::default()
    };
    known.encode_to_vec().into()
}

fn render_user_agent(name: &str, version: Option<UserAgentVersionType>) -> String {
    match version {
        Some(UserAgentVersionType::UserAgentVersion(version)) => format!("{name}/{version}"),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => match build.version {
            Some(version) => format!(
                "{name}/{}.{}.{}",
                version.major_number, version.minor_number, version.patch
            ),
            None => name.to_owned(),
        },
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::pb::envoy::config::core::v3::Extension;
    use isthmus_proto::pb::google::protobuf::{Struct, Value};
    use tonic::Code;

    use super::*;

    fn node(id_bytes: usize, metadata_bytes: usize) -> Node {
        let value = Value {
            kind: Some(Kind::StringValue("v".repeat(metadata_bytes))),
        };
        Node {
            id: "n".repeat(id_bytes),
            metadata: Some(Struct {
                fields: [("key".to_owned(), value)].into(),
            }),
            ..Node::default()
        }
    }

    #[test]
    fn a_node_over_a_limit_is_refused_and_the_limit_is_named() {
        let parse = |node| ClientNode::parse(Some(node), ConnectedPeer::default());
        for (node, limit) in [
            (node(ID_BYTES + 1, 0), "limit of 1024"),
            (node(1, NODE_BYTES), "limit of 262144"),
        ] {
            let refused = parse(node).unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted);
            assert!(refused.message().contains(limit), "{refused}");
        }
        let extension = Extension {
            name: "x".repeat(NODE_BYTES),
            ..Extension::default()
        };
        let largest = Node {
            extensions: vec![extension],
            ..node(ID_BYTES, NODE_BYTES - ID_BYTES - 64)
        };
        let parsed = parse(largest).unwrap();
        let kept = Node::decode(parsed.encoded).unwrap();
        assert_eq!((parsed.id.len(), kept.id.len()), (ID_BYTES, ID_BYTES));
        assert!(kept.metadata.is_none(), "it is over what is kept");
    }
}
