//! The protobuf encoding of discovery responses, written so that resources are encoded once.
//!
//! A response is a sequence of length-delimited fields, and parsers take them in any order: a
//! small header of its own, then slices that all streams share. Field numbers are those of
//! `envoy/service/discovery/v3/discovery.proto`.

use bytes::{BufMut, Bytes, BytesMut};

use std::time::Duration;

use crate::resource::{Extras, Name, Version};
use crate::stream::Variant;

// DiscoveryResponse
const SOTW_VERSION_INFO: u32 = 1;
const SOTW_RESOURCES: u32 = 2;
const SOTW_TYPE_URL: u32 = 4;
const SOTW_NONCE: u32 = 5;
const SOTW_CONTROL_PLANE: u32 = 6;
const SOTW_RESOURCE_ERRORS: u32 = 7;
// DeltaDiscoveryResponse
const DELTA_SYSTEM_VERSION_INFO: u32 = 1;
const DELTA_RESOURCES: u32 = 2;
const DELTA_TYPE_URL: u32 = 4;
const DELTA_NONCE: u32 = 5;
const DELTA_REMOVED_RESOURCES: u32 = 6;
const DELTA_CONTROL_PLANE: u32 = 7;
const DELTA_RESOURCE_ERRORS: u32 = 9;
// Resource
const RESOURCE_VERSION: u32 = 1;
const RESOURCE_RESOURCE: u32 = 2;
const RESOURCE_NAME: u32 = 3;
const RESOURCE_ALIASES: u32 = 4;
const RESOURCE_TTL: u32 = 6;
// ResourceError, ResourceName, and google.rpc.Status
const ERROR_RESOURCE_NAME: u32 = 1;
const ERROR_DETAIL: u32 = 2;
const RESOURCE_NAME_NAME: u32 = 1;
const STATUS_CODE: u32 = 1;
const STATUS_MESSAGE: u32 = 2;
// google.rpc.Code
const NOT_FOUND: u64 = 5;
// google.protobuf.Duration
const DURATION_SECONDS: u32 = 1;
const DURATION_NANOS: u32 = 2;
// google.protobuf.Any
const ANY_TYPE_URL: u32 = 1;
const ANY_VALUE: u32 = 2;
// core.v3.ControlPlane
const CONTROL_PLANE_IDENTIFIER: u32 = 1;

// Type of the `Any`s that have a `Resource` in them.
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// Header fields of a state-of-the-world response; resources follow as shared slices.
pub(crate) fn encode_sotw_header(
    version: Version,
    type_url: &str,
    nonce: &str,
    identifier: &str,
) -> Bytes {
    let version = version.to_string();
    let mut out = BytesMut::with_capacity(
        field_len(version.len())
            + field_len(type_url.len())
            + field_len(nonce.len())
            + field_len(field_len(identifier.len())),
    );
    put_field(&mut out, SOTW_VERSION_INFO, version.as_bytes());
    put_field(&mut out, SOTW_TYPE_URL, type_url.as_bytes());
    put_field(&mut out, SOTW_NONCE, nonce.as_bytes());
    put_control_plane(&mut out, SOTW_CONTROL_PLANE, identifier);
    out.freeze()
}

/// Header fields and removals of an incremental response; resources follow as shared slices.
pub(crate) fn encode_delta_header<'a>(
    version: Version,
    type_url: &str,
    nonce: &str,
    identifier: &str,
    removed: impl Iterator<Item = &'a str>,
) -> Bytes {
    let mut out = BytesMut::new();
    put_field(
        &mut out,
        DELTA_SYSTEM_VERSION_INFO,
        version.to_string().as_bytes(),
    );
    put_field(&mut out, DELTA_TYPE_URL, type_url.as_bytes());
    put_field(&mut out, DELTA_NONCE, nonce.as_bytes());
    put_control_plane(&mut out, DELTA_CONTROL_PLANE, identifier);
    for name in removed {
        put_field(&mut out, DELTA_REMOVED_RESOURCES, name.as_bytes());
    }
    out.freeze()
}

/// One `resources` entry of a state-of-the-world response: an `Any`. The message comes last.
pub(crate) fn encode_sotw_entry(type_url: &str, value: &[u8]) -> Bytes {
    let any_len = any_len(type_url, value);
    let mut out = BytesMut::with_capacity(field_len(any_len));
    put_prefix(&mut out, SOTW_RESOURCES, any_len);
    put_any(&mut out, type_url, value);
    out.freeze()
}

/// One `resources` entry of an incremental response: a `Resource` with name, version and `Any`.
pub(crate) fn encode_delta_entry(
    type_url: &str,
    name: &str,
    version: Version,
    value: &[u8],
    extras: &Extras,
) -> Bytes {
    wrap(&encode_resource(type_url, name, version, value, extras))
}

/// One `resources` entry of a state-of-the-world response for a resource that has more to it than
/// a message: an `Any` of a `Resource` (R54).
pub(crate) fn encode_wrapped_entry(
    type_url: &str,
    name: &str,
    version: Version,
    value: &[u8],
    extras: &Extras,
) -> Bytes {
    let resource = encode_resource(type_url, name, version, value, extras);
    encode_sotw_entry(WRAPPER, &resource)
}

/// A heartbeat: the resource is as it was and lives on (R54).
pub(crate) fn encode_heartbeat(
    variant: Variant,
    name: &str,
    version: Version,
    ttl: Duration,
) -> Bytes {
    let extras = Extras {
        ttl: Some(ttl),
        ..Extras::default()
    };
    let resource = encode_resource_head(name, Some(version), &extras);
    match variant {
        Variant::Delta => wrap(&resource),
        Variant::Sotw => encode_sotw_entry(WRAPPER, &resource),
    }
}

/// An entry of `resource_errors`: there is no such resource (R56).
pub(crate) fn encode_not_found(variant: Variant, name: &str) -> Bytes {
    let mut resource_name = BytesMut::new();
    put_field(&mut resource_name, RESOURCE_NAME_NAME, name.as_bytes());
    let mut status = BytesMut::new();
    put_number(&mut status, STATUS_CODE, NOT_FOUND);
    put_field(
        &mut status,
        STATUS_MESSAGE,
        b"no resource of this name is configured for this node",
    );
    let mut error = BytesMut::new();
    put_field(&mut error, ERROR_RESOURCE_NAME, &resource_name);
    put_field(&mut error, ERROR_DETAIL, &status);
    let mut out = BytesMut::with_capacity(field_len(error.len()));
    let field = match variant {
        Variant::Sotw => SOTW_RESOURCE_ERRORS,
        Variant::Delta => DELTA_RESOURCE_ERRORS,
    };
    put_field(&mut out, field, &error);
    out.freeze()
}

/// A name that was asked for and does not exist, where absence is told by a resource without a
/// body and not by a removal (R57).
pub(crate) fn encode_absence(name: &Name) -> Bytes {
    let extras = Extras {
        aliases: vec![Name::clone(name)],
        ..Extras::default()
    };
    wrap(&encode_resource_head(name, None, &extras))
}

fn encode_resource(
    type_url: &str,
    name: &str,
    version: Version,
    value: &[u8],
    extras: &Extras,
) -> BytesMut {
    let mut out = encode_resource_head(name, Some(version), extras);
    put_prefix(&mut out, RESOURCE_RESOURCE, any_len(type_url, value));
    put_any(&mut out, type_url, value);
    out
}

fn encode_resource_head(name: &str, version: Option<Version>, extras: &Extras) -> BytesMut {
    let mut out = BytesMut::new();
    if let Some(version) = version {
        put_field(&mut out, RESOURCE_VERSION, version.to_string().as_bytes());
    }
    put_field(&mut out, RESOURCE_NAME, name.as_bytes());
    for alias in &extras.aliases {
        put_field(&mut out, RESOURCE_ALIASES, alias.as_bytes());
    }
    if let Some(ttl) = extras.ttl {
        let mut duration = BytesMut::new();
        put_number(&mut duration, DURATION_SECONDS, ttl.as_secs());
        put_number(&mut duration, DURATION_NANOS, ttl.subsec_nanos().into());
        put_field(&mut out, RESOURCE_TTL, &duration);
    }
    out
}

fn wrap(resource: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(field_len(resource.len()));
    put_field(&mut out, DELTA_RESOURCES, resource);
    out.freeze()
}

// Wire type 0; proto3 leaves zero out.
fn put_number(out: &mut BytesMut, field: u32, value: u64) {
    if value > 0 {
        put_varint(out, u64::from(field << 3));
        put_varint(out, value);
    }
}

fn any_len(type_url: &str, value: &[u8]) -> usize {
    field_len(type_url.len()) + field_len(value.len())
}

fn put_any(out: &mut BytesMut, type_url: &str, value: &[u8]) {
    put_field(out, ANY_TYPE_URL, type_url.as_bytes());
    put_field(out, ANY_VALUE, value);
}

fn put_control_plane(out: &mut BytesMut, field: u32, identifier: &str) {
    put_prefix(out, field, field_len(identifier.len()));
    put_field(out, CONTROL_PLANE_IDENTIFIER, identifier.as_bytes());
}

fn put_field(out: &mut BytesMut, field: u32, content: &[u8]) {
    put_prefix(out, field, content.len());
    out.put_slice(content);
}

fn put_prefix(out: &mut BytesMut, field: u32, len: usize) {
    // Wire type 2, length-delimited; every field here has a number below 16, so a one-byte tag.
    put_varint(out, u64::from(field << 3 | 2));
    put_varint(out, len as u64);
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.put_u8(value.to_le_bytes()[0]);
}

// Bytes of a length-delimited field with a one-byte tag.
fn field_len(content: usize) -> usize {
    let bits = usize::BITS - (content | 1).leading_zeros();
    1 + bits.div_ceil(7) as usize + content
}
