//! Requests are decoded by their messages; responses are written from bytes that exist already.

use std::marker::PhantomData;

use bytes::BufMut;
use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use isthmus_xds_core::{Name, Request, Response};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// A request of either variant, and the node if the client sent it.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) node: Option<Node>,
    pub(super) request: Request,
}

impl From<DiscoveryRequest> for Inbound {
    fn from(message: DiscoveryRequest) -> Self {
        Self {
            node: message.node,
            request: Request {
                type_url: message.type_url,
                nonce: message.response_nonce,
                error: message.error_detail.map(|status| status.message),
                names: names(message.resource_names),
                ..Request::default()
            },
        }
    }
}

impl From<DeltaDiscoveryRequest> for Inbound {
    fn from(message: DeltaDiscoveryRequest) -> Self {
        let initial = message.initial_resource_versions.into_iter();
        Self {
            node: message.node,
            request: Request {
                type_url: message.type_url,
                nonce: message.response_nonce,
                error: message.error_detail.map(|status| status.message),
                subscribe: names(message.resource_names_subscribe),
                unsubscribe: names(message.resource_names_unsubscribe),
                initial_versions: initial
                    .map(|(name, version)| (Name::from(name), version))
                    .collect(),
                ..Request::default()
            },
        }
    }
}

fn names(names: Vec<String>) -> Vec<Name> {
    names.into_iter().map(Name::from).collect()
}

/// Codec of a state-of-the-world stream.
pub(super) type SotwCodec = DiscoveryCodec<DiscoveryRequest>;
/// Codec of an incremental stream.
pub(super) type DeltaCodec = DiscoveryCodec<DeltaDiscoveryRequest>;

/// Codec of a stream whose requests are `M`.
#[derive(Debug)]
pub(super) struct DiscoveryCodec<M>(PhantomData<fn() -> M>);

impl<M> Default for DiscoveryCodec<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M> Codec for DiscoveryCodec<M>
where
    M: Message + Default + 'static,
    Inbound: From<M>,
{
    type Encode = Response;
    type Decode = Inbound;
    type Encoder = PieceEncoder;
    type Decoder = RequestDecoder<M>;

    fn encoder(&mut self) -> PieceEncoder {
        PieceEncoder
    }

    fn decoder(&mut self) -> RequestDecoder<M> {
        RequestDecoder(PhantomData)
    }
}

/// Copies the pieces of a response, one after the other.
#[derive(Debug)]
pub(super) struct PieceEncoder;

impl Encoder for PieceEncoder {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, response: Response, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(response.size_bytes());
        for piece in response.pieces {
            out.put_slice(&piece);
        }
        Ok(())
    }
}

/// Decodes one request.
#[derive(Debug)]
pub(super) struct RequestDecoder<M>(PhantomData<fn() -> M>);

impl<M> Decoder for RequestDecoder<M>
where
    M: Message + Default,
    Inbound: From<M>,
{
    type Item = Inbound;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Inbound>, Status> {
        let message = M::decode(bytes).map_err(|error| {
            Status::invalid_argument(format!("the request is not one: {error}"))
        })?;
        Ok(Some(Inbound::from(message)))
    }
}
