//! The report that CSDS gives: every client that is asked for, resource by resource.

use std::collections::BTreeMap;

use isthmus_proto::pb::envoy::admin::v3::UpdateFailureState;
use isthmus_proto::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use isthmus_proto::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusResponse, ConfigStatus as CsdsStatus,
};
use isthmus_proto::pb::google::protobuf::Any;
use isthmus_xds_core::{ConfigStatus, ResourceStatus, TypeUrl, Version, View};
use prost::Message;

use super::matchers::NodeMatchers;
use crate::plane::Plane;
use crate::redact;
use crate::services::readers::Sight;

/// Encoded bytes of one report. Several times what a client takes by default (4 MiB); a client that
/// asks for more of a fleet than this would rather have it in parts.
const REPORT_BYTES: usize = 64 * 1024 * 1024;

/// Whether a report holds the resources themselves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Contents {
    Excluded,
    Shown,
}

/// A report would be over [`REPORT_BYTES`].
#[derive(Debug, thiserror::Error)]
#[error(
    "the status of all these clients is over the limit of {REPORT_BYTES} bytes; set exclude_resource_contents, \
     or ask for fewer clients with node_matchers"
)]
pub(super) struct TooLarge;

/// Tells where each client stands that is seen and matches.
pub(super) fn report(
    plane: &Plane,
    sight: &Sight,
    matchers: &NodeMatchers,
    contents: Contents,
) -> Result<ClientStatusResponse, TooLarge> {
    let mut shown = Shown {
        contents,
        bodies: BTreeMap::new(),
    };
    let (mut config, mut size_bytes) = (Vec::new(), 0);
    for (_, client) in plane.clients.list() {
        if !sight.sees(client.peer.identity()) {
            continue;
        }
        let node = client.node();
        if !matchers.match_node(&node) {
            continue;
        }
        let (resources, view) = client.resources();
        let mut generic_xds_configs = Vec::with_capacity(resources.len());
        for status in resources {
            let body = shown.body(&view, &status);
            let row = row(status, body);
            size_bytes += row.encoded_len();
            if size_bytes > REPORT_BYTES {
                return Err(TooLarge);
            }
            generic_xds_configs.push(row);
        }
        config.push(ClientConfig {
            node: Some(node),
            generic_xds_configs,
            ..ClientConfig::default()
        });
    }
    Ok(ClientStatusResponse { config })
}

struct Shown {
    contents: Contents,
    // Redacted once however many clients have it.
    bodies: BTreeMap<(TypeUrl, Version), Vec<u8>>,
}

impl Shown {
    fn body(&mut self, view: &View, status: &ResourceStatus) -> Option<Any> {
        let version = status.version?;
        if self.contents == Contents::Excluded {
            return None;
        }
        let resource = view.resource(&status.type_url, &status.name)?;
        // The client is being moved to another version, and that one is not what the row tells of.
        if resource.version() != version {
            return None;
        }
        let body = self
            .bodies
            .entry((TypeUrl::clone(&status.type_url), version))
            .or_insert_with(|| redact::encode(&status.type_url, &resource.value()));
        Some(Any {
            type_url: status.type_url.to_string(),
            value: body.clone(),
        })
    }
}

fn row(status: ResourceStatus, body: Option<Any>) -> GenericXdsConfig {
    let version_info = status.version.map(|it| it.to_string()).unwrap_or_default();
    let config_status = match (status.status, status.version) {
        // Nothing answers to the name: there is nothing that could have been sent.
        (ConfigStatus::NotSent, _) | (ConfigStatus::Synced, None) => CsdsStatus::NotSent,
        (ConfigStatus::Synced, Some(_)) => CsdsStatus::Synced,
        (ConfigStatus::Stale, _) => CsdsStatus::Stale,
        (ConfigStatus::Error, _) => CsdsStatus::Error,
    };
    let error_state = status.error.map(|details| UpdateFailureState {
        details: details.to_string(),
        version_info: version_info.clone(),
        ..UpdateFailureState::default()
    });
    GenericXdsConfig {
        type_url: status.type_url.to_string(),
        name: status.name.to_string(),
        version_info,
        xds_config: body,
        config_status: config_status.into(),
        error_state,
        ..GenericXdsConfig::default()
    }
}
