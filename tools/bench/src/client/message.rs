//! Requests and responses of xDS, read and written field by field: decoding a response into
//! structures would cost the client more than the server spends on sending it.

use bytes::{BufMut, Bytes, BytesMut};
use memchr::memmem;

use crate::resources::MARKER;

/// What a client needs of a response.
#[derive(Debug, Default)]
pub(crate) struct Response<'a> {
    pub(crate) type_url: &'a [u8],
    pub(crate) nonce: &'a [u8],
    /// State of the world: `version_info`.
    pub(crate) version: &'a [u8],
    pub(crate) resources: usize,
    pub(crate) resource_bytes: usize,
    /// Highest number of a change that a resource of it carries.
    pub(crate) newest_change: u32,
}

/// Reads a response of either variant; what is no protobuf ends early.
pub(crate) fn parse_response(message: &[u8]) -> Response<'_> {
    let mut response = Response::default();
    for (number, content) in Fields(message) {
        match number {
            1 => response.version = content,
            2 => {
                response.resources += 1;
                response.resource_bytes += content.len();
                response.newest_change = response.newest_change.max(newest_marker(content));
            }
            4 => response.type_url = content,
            5 => response.nonce = content,
            _ => {}
        }
    }
    response
}

/// Names and versions of the resources of an incremental response.
pub(crate) fn versions(message: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let resources = Fields(message).filter(|(number, _)| *number == 2);
    resources.map(|(_, resource)| {
        let (mut name, mut version) = (&[][..], &[][..]);
        for (number, content) in Fields(resource) {
            match number {
                1 => version = content,
                3 => name = content,
                _ => {}
            }
        }
        (name, version)
    })
}

fn newest_marker(resource: &[u8]) -> u32 {
    let Some(at) = memmem::find(resource, MARKER.as_bytes()) else {
        return 0;
    };
    let digits = resource[at + MARKER.len()..].iter().take(8);
    digits.fold(0, |number, digit| {
        number * 10 + u32::from(digit.wrapping_sub(b'0') % 10)
    })
}

/// Length-delimited fields of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let tag = take_varint(&mut self.0)?;
            match tag & 7 {
                0 => {
                    take_varint(&mut self.0)?;
                }
                2 => {
                    let length = usize::try_from(take_varint(&mut self.0)?).ok()?;
                    let (content, rest) = self.0.split_at_checked(length)?;
                    self.0 = rest;
                    return Some((tag >> 3, content));
                }
                _ => return None,
            }
        }
    }
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Puts one length-delimited field.
pub(crate) fn put_field(out: &mut BytesMut, number: u8, content: &[u8]) {
    out.put_u8(number << 3 | 2);
    put_varint(out, content.len());
    out.put_slice(content);
}

/// The fields `name` repeated, as part of a message.
pub(crate) fn name_fields(number: u8, names: impl IntoIterator<Item = String>) -> Bytes {
    let mut out = BytesMut::new();
    for name in names {
        put_field(&mut out, number, name.as_bytes());
    }
    out.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.put_u8(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use isthmus_proto::pb::envoy::service::discovery::v3::{
        DeltaDiscoveryResponse, DiscoveryResponse, Resource,
    };
    use isthmus_proto::pb::google::protobuf::Any;
    use prost::Message;

    use super::*;

    fn any(change: u32) -> Any {
        Any {
            type_url: "t".to_owned(),
            value: format!("..{MARKER}{change:08}..").into_bytes(),
        }
    }

    #[test]
    fn responses_of_both_variants_are_read() {
        let delta = DeltaDiscoveryResponse {
            system_version_info: "7".to_owned(),
            type_url: "t".to_owned(),
            nonce: "n".to_owned(),
            resources: [3, 41, 5]
                .map(|change| Resource {
                    name: format!("r{change}"),
                    version: format!("v{change}"),
                    resource: Some(any(change)),
                    ..Resource::default()
                })
                .to_vec(),
            ..DeltaDiscoveryResponse::default()
        }
        .encode_to_vec();
        let sotw = DiscoveryResponse {
            version_info: "7".to_owned(),
            type_url: "t".to_owned(),
            nonce: "n".to_owned(),
            resources: [3, 41, 5].map(any).to_vec(),
            ..DiscoveryResponse::default()
        }
        .encode_to_vec();
        for message in [&delta, &sotw] {
            let response = parse_response(message);
            assert_eq!(response.type_url, b"t");
            assert_eq!(response.nonce, b"n");
            assert_eq!(response.version, b"7");
            assert_eq!(response.resources, 3);
            assert_eq!(response.newest_change, 41);
        }
        let held: Vec<_> = versions(&delta).collect();
        assert_eq!(held[1], (&b"r41"[..], &b"v41"[..]));
    }
}
