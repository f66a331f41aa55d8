//! Under which name a resource is asked for.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::yaml::Node;

/// The field that holds the name of resources of a type, if the type has one.
///
/// It is `name` for all of Envoy's resource types but `ClusterLoadAssignment`, which goes by the name that
/// clusters look it up with.
pub(crate) fn name_field(message: &MessageDescriptor) -> Option<FieldDescriptor> {
    let field = match message.full_name() {
        "envoy.config.endpoint.v3.ClusterLoadAssignment" => {
            message.get_field_by_name("cluster_name")
        }
        _ => message.get_field_by_name("name"),
    };
    field
        .filter(|field| matches!(field.kind(), Kind::String) && !field.is_list() && !field.is_map())
}

/// The name that a resource's tree gives in `field`, by either of its spellings.
pub(super) fn name_of<'a>(field: &FieldDescriptor, node: &'a Node) -> Option<&'a str> {
    node.lookup(field.json_name())
        .or_else(|| node.lookup(field.name()))?
        .text()
}
