//! One client: subscribes as Envoy does (clusters, then their endpoints; listeners, then their
//! routes), accepts all, and notes when it heard of each change.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use isthmus_proto::pb::envoy::config::core::v3::Node;
use prost::Message;

use super::http2::{Connection, Windows};
use super::message::{Response, name_fields, parse_response, put_field, versions};
use super::{ClientArgs, Plan, Shared, Variant};
use crate::clock;
use crate::resources::{Kind, TYPE_URLS, cluster_name, route_name};

pub(crate) const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const SOTW: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// Bytes that an answer of the floor's clients has: as an ACK of an incremental client with its
/// HTTP/2 frame.
pub(crate) const FLOOR_ANSWER_BYTES: usize = 100;

/// What every client of a process asks for, encoded once, and what the first of them holds.
#[derive(Debug)]
pub(crate) struct Names {
    // Subscribed names by type, as fields of a request.
    fields: [Bytes; 4],
    held: [BTreeMap<Vec<u8>, Vec<u8>>; 4],
    version: [Vec<u8>; 4],
}

impl Names {
    pub(crate) fn new(args: &ClientArgs) -> Self {
        let clusters = args.endpoints.clone();
        let clusters = clusters.map(|index| cluster_name(&args.group, index));
        // Both variants have them in field 3.
        let fields = [
            Bytes::new(),
            name_fields(3, clusters),
            Bytes::new(),
            name_fields(3, [route_name(&args.group)]),
        ];
        Self {
            fields,
            held: [const { BTreeMap::new() }; 4],
            version: [const { Vec::new() }; 4],
        }
    }

    fn initial_versions(&self, kind: usize) -> Bytes {
        let mut out = BytesMut::new();
        for (name, version) in &self.held[kind] {
            let mut entry = BytesMut::new();
            put_field(&mut entry, 1, name);
            put_field(&mut entry, 2, version);
            put_field(&mut out, 5, &entry);
        }
        out.freeze()
    }
}

#[derive(Debug)]
pub(crate) struct Session {
    protocol: Protocol,
    is_first: bool,
    is_counted_ready: bool,
    seen: [u32; 4],
    noted: u32,
}

#[derive(Debug)]
enum Protocol {
    Xds {
        connection: Box<Connection>,
        is_delta: bool,
        answered: [bool; 4],
    },
    Floor {
        received: usize,
        out: Vec<u8>,
    },
}

impl Session {
    /// Connects client `index`; one that comes back says what it holds.
    pub(crate) fn open(shared: &Shared, index: usize, is_back: bool) -> Self {
        let is_delta = match shared.args.variant {
            Variant::Floor => {
                return Self {
                    protocol: Protocol::Floor {
                        received: 0,
                        out: vec![0],
                    },
                    is_first: false,
                    is_counted_ready: false,
                    seen: [0; 4],
                    noted: 0,
                };
            }
            Variant::Delta => true,
            Variant::Sotw => false,
        };
        let mut connection =
            Connection::open(if is_delta { DELTA } else { SOTW }, Windows::Endless);
        let number = if is_delta { 1 } else { 2 };
        let mut node_field = node_field(&shared.args.group, index, number);
        let kinds: &[Kind] = if is_back {
            &[Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Route]
        } else {
            &[Kind::Cluster, Kind::Listener]
        };
        for kind in kinds {
            let kind = *kind as usize;
            let mut fields = vec![std::mem::take(&mut node_field)];
            // A client that was never here holds nothing, whatever the first one has by then.
            let version: &[u8] = if is_back {
                &shared.names.version[kind]
            } else {
                b""
            };
            fields.push(head(is_delta, kind, b"", version));
            fields.push(shared.names.fields[kind].clone());
            if is_delta && is_back {
                fields.push(shared.names.initial_versions(kind));
            }
            connection.send(fields);
        }
        Self {
            protocol: Protocol::Xds {
                connection: Box::new(connection),
                is_delta,
                answered: [is_back; 4],
            },
            is_first: index == 0,
            is_counted_ready: is_back,
            seen: [0; 4],
            noted: 0,
        }
    }

    /// Takes what has to be written to the socket.
    pub(crate) fn take_out(&mut self) -> Vec<u8> {
        match &mut self.protocol {
            Protocol::Xds { connection, .. } => connection.take_out(),
            Protocol::Floor { out, .. } => std::mem::take(out),
        }
    }

    /// Why the stream is over, if it is.
    pub(crate) fn ended(&self) -> Option<&str> {
        match &self.protocol {
            Protocol::Xds { connection, .. } => connection.ended(),
            Protocol::Floor { .. } => None,
        }
    }

    /// Takes bytes from the socket.
    pub(crate) fn feed(&mut self, bytes: &[u8], shared: &mut Shared) {
        shared.counters.bytes_in += bytes.len() as u64;
        let now = clock::now();
        let Self { protocol, seen, .. } = self;
        match protocol {
            Protocol::Xds {
                connection,
                is_delta,
                answered,
            } => {
                let mut replies = Vec::new();
                connection.feed(bytes, |message| {
                    let response = parse_response(message);
                    let Some(kind) = kind_of(&response) else {
                        return;
                    };
                    shared.last_response = now;
                    shared.counters.responses += 1;
                    shared.counters.resource_bytes += response.resource_bytes as u64;
                    seen[kind] = seen[kind].max(response.newest_change);
                    if self.is_first {
                        remember(shared, kind, &response, is_delta.then_some(message));
                    }
                    let names = &shared.names.fields;
                    let version = if *is_delta { b"" } else { response.version };
                    let ack = head(*is_delta, kind, response.nonce, version);
                    // An incremental client does not repeat its names.
                    let repeated = if *is_delta {
                        Bytes::new()
                    } else {
                        names[kind].clone()
                    };
                    replies.push([ack, repeated]);
                    shared.answered[kind] += usize::from(!answered[kind]);
                    let is_named_next = !answered[kind] && kind != Kind::Endpoints as usize;
                    answered[kind] = true;
                    if is_named_next && kind != Kind::Route as usize {
                        let next = kind + 1;
                        replies.push([head(*is_delta, next, b"", b""), names[next].clone()]);
                    }
                });
                for reply in replies {
                    connection.send(reply);
                }
                if !self.is_counted_ready && *answered == [true; 4] {
                    self.is_counted_ready = true;
                    shared.ready += 1;
                }
            }
            Protocol::Floor { received, out } => {
                if !self.is_counted_ready {
                    // One byte says that the connection was accepted.
                    self.is_counted_ready = true;
                    shared.ready += 1;
                }
                *received += bytes.len();
                if let Some(plan) = shared.plan.filter(|_| *received > plan_bytes(shared)) {
                    let whole = (*received - 1) / plan.bytes;
                    *received -= whole * plan.bytes;
                    out.resize(whole * FLOOR_ANSWER_BYTES, 1);
                    let newest = seen[0].max(plan.first - 1);
                    *seen = [newest + u32::try_from(whole).expect("few changes"); 4];
                }
            }
        }
        if let Some(plan) = shared.plan {
            self.note(&plan, now, shared);
        }
    }

    fn note(&mut self, plan: &Plan, now: Duration, shared: &mut Shared) {
        let last = plan.first + plan.count - 1;
        let wanted = self.seen.iter().enumerate();
        let wanted = wanted.filter(|(kind, _)| plan.mask & (1 << kind) != 0);
        let newest = wanted.map(|(_, seen)| *seen).min().unwrap_or(0).min(last);
        let from = self.noted.max(plan.first - 1) + 1;
        for change in from..=newest {
            let planned = plan.start + plan.interval * (change - plan.first);
            let micros = now.saturating_sub(planned).as_micros();
            shared
                .samples
                .push(u32::try_from(micros).unwrap_or(u32::MAX));
        }
        if newest >= from && newest == last {
            shared.converged += 1;
        }
        self.noted = self.noted.max(newest);
    }
}

fn plan_bytes(shared: &Shared) -> usize {
    shared.plan.map_or(usize::MAX, |plan| plan.bytes)
}

fn kind_of(response: &Response<'_>) -> Option<usize> {
    TYPE_URLS
        .iter()
        .position(|url| url.as_bytes() == response.type_url)
}

fn remember(shared: &mut Shared, kind: usize, response: &Response<'_>, delta: Option<&[u8]>) {
    match delta {
        Some(message) => {
            let resources =
                versions(message).map(|(name, version)| (name.to_vec(), version.to_vec()));
            shared.names.held[kind].extend(resources);
        }
        None => shared.names.version[kind] = response.version.to_vec(),
    }
}

/// The node of a client, as field `number` of a request.
pub(crate) fn node_field(group: &str, index: usize, number: u8) -> Bytes {
    let node = Node {
        id: format!("sidecar~198.18.0.1~{group}-{index:05}~bench"),
        cluster: group.to_owned(),
        user_agent_name: "envoy".to_owned(),
        ..Node::default()
    };
    let mut field = BytesMut::new();
    put_field(&mut field, number, &node.encode_to_vec());
    field.freeze()
}

/// The fields of a request that are not names: type, nonce, version.
pub(crate) fn head(is_delta: bool, kind: usize, nonce: &[u8], version: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    let (type_field, nonce_field) = if is_delta { (2, 6) } else { (4, 5) };
    if !is_delta && !version.is_empty() {
        put_field(&mut out, 1, version);
    }
    put_field(&mut out, type_field, TYPE_URLS[kind].as_bytes());
    if !nonce.is_empty() {
        put_field(&mut out, nonce_field, nonce);
    }
    out.freeze()
}
