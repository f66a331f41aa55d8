//! Requests out of a gRPC body: five bytes of prefix, then a message.
//!
//! While no message is under way the buffer is given back: an idle stream holds no bytes.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body as _;
use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use isthmus_proto::pb::google::rpc;
use isthmus_xds_core::{Name, Request};
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use crate::redact::without_secrets;

/// Bytes of one request. A reconnecting client lists every name and version that it holds: 32 MiB
/// are about 300,000 of them.
const REQUEST_BYTES: usize = 32 * 1024 * 1024;

/// Compressed flag and big-endian length, before every message.
const PREFIX_BYTES: usize = 5;

/// A request of either variant, and the node if the client sent it.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) node: Option<Node>,
    pub(super) request: Request,
}

/// The requests of one stream, whose messages are `M`.
#[derive(Debug)]
pub(super) struct Requests<M> {
    body: Body,
    buffer: BytesMut,
    messages: PhantomData<fn() -> M>,
}

impl<M> Requests<M>
where
    M: Message + Default,
    Inbound: From<M>,
{
    pub(super) fn new(body: Body) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            messages: PhantomData,
        }
    }

    /// Waits for the next request; `None` when the client has no more. Nothing is lost if the
    /// future is dropped before it is done.
    pub(super) async fn next(&mut self) -> Result<Option<Inbound>, Status> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Polls for the next request; `None` when the client has no more.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Inbound>, Status>> {
        loop {
            if let Some(message) = self.take_message()? {
                let message = M::decode(message).map_err(|error| {
                    Status::invalid_argument(format!("the request is not one: {error}"))
                })?;
                return Poll::Ready(Ok(Some(Inbound::from(message))));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(status)) => return Poll::Ready(Err(status)),
                None if self.buffer.is_empty() => return Poll::Ready(Ok(None)),
                None => {
                    let message = "the request ends in the middle";
                    return Poll::Ready(Err(Status::invalid_argument(message)));
                }
            }
        }
    }

    fn take_message(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((&prefix, _)) = self.buffer.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let [is_compressed, length @ ..] = prefix;
        if is_compressed != 0 {
            let message = "compressed requests are not supported; send them as they are";
            return Err(Status::unimplemented(message));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > REQUEST_BYTES {
            let message =
                format!("a request of {length} bytes is over the limit of {REQUEST_BYTES}");
            return Err(Status::resource_exhausted(message));
        }
        if self.buffer.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        let message = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Ok(Some(message))
    }
}

impl From<DiscoveryRequest> for Inbound {
    fn from(message: DiscoveryRequest) -> Self {
        Self {
            node: message.node,
            request: Request {
                type_url: message.type_url,
                version: message.version_info,
                nonce: message.response_nonce,
                error: words(message.error_detail),
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
                error: words(message.error_detail),
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

// Here and nowhere else, so that no log, dump, report or API call has the client's own words.
fn words(error: Option<rpc::Status>) -> Option<String> {
    error.map(|status| without_secrets(&status.message))
}

fn names(names: Vec<String>) -> Vec<Name> {
    names.into_iter().map(Name::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(request: &DiscoveryRequest) -> Vec<u8> {
        let message = request.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap();
        [&[0][..], &length.to_be_bytes(), &message].concat()
    }

    fn requests(bytes: &[u8]) -> Requests<DiscoveryRequest> {
        let mut requests = Requests::new(Body::empty());
        requests.buffer.extend_from_slice(bytes);
        requests
    }

    fn request(type_url: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: type_url.to_owned(),
            ..DiscoveryRequest::default()
        }
    }

    #[tokio::test]
    async fn messages_are_cut_where_they_end() {
        let bytes = [framed(&request("a")), framed(&request("b"))].concat();
        let mut requests = requests(&bytes);
        assert_eq!(
            requests.next().await.unwrap().unwrap().request.type_url,
            "a"
        );
        assert_eq!(
            requests.next().await.unwrap().unwrap().request.type_url,
            "b"
        );
        assert_eq!(requests.buffer.capacity(), 0, "nothing is held");
        assert!(requests.next().await.unwrap().is_none());
    }

    #[test]
    fn what_a_client_says_has_no_secret_from_here_on() {
        let error_detail = Some(rpc::Status {
            message: r#"bad {"inline_string": "TOP-SECRET"}"#.to_owned(),
            ..rpc::Status::default()
        });
        let delta = Inbound::from(DeltaDiscoveryRequest {
            error_detail: error_detail.clone(),
            ..DeltaDiscoveryRequest::default()
        });
        let sotw = Inbound::from(DiscoveryRequest {
            error_detail,
            ..DiscoveryRequest::default()
        });
        for inbound in [delta, sotw] {
            let words = inbound.request.error.unwrap();
            assert_eq!(words, r#"bad {"inline_string": "[redacted]"}"#);
        }
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        struct Case {
            name: &'static str,
            bytes: Vec<u8>,
            code: tonic::Code,
        }
        let cases = [
            Case {
                name: "cut in the middle",
                bytes: framed(&request("abc"))[..7].to_vec(),
                code: tonic::Code::InvalidArgument,
            },
            Case {
                name: "compressed",
                bytes: vec![1, 0, 0, 0, 0],
                code: tonic::Code::Unimplemented,
            },
            Case {
                name: "too long",
                bytes: vec![0, 0xff, 0xff, 0xff, 0xff],
                code: tonic::Code::ResourceExhausted,
            },
            Case {
                name: "not protobuf",
                bytes: vec![0, 0, 0, 0, 1, 0xff],
                code: tonic::Code::InvalidArgument,
            },
        ];
        for Case { name, bytes, code } in cases {
            let refused = requests(&bytes).next().await.unwrap_err();
            assert_eq!(refused.code(), code, "{name}");
        }
    }
}
