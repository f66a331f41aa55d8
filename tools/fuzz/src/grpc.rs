//! Bytes of a request body, cut anywhere, against the discovery service as a whole: framing,
//! decoding, session and core.

use std::convert::Infallible;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http_body::{Body as _, Frame};
use isthmus_api::envoy_resources::Selector;
use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use isthmus_xds::grpc::DiscoveryService;
use isthmus_xds::plane::Plane;
use isthmus_xds_core::catalog::Draft;
use isthmus_xds_core::type_rules::{CLUSTER, ENDPOINT};
use isthmus_xds_core::{Document, Extras, Name, TypeUrl};
use prost::Message;
use tokio::sync::watch;
use tonic::body::Body;
use tower_service::Service as _;

use crate::input::Input;

const METHODS: [&str; 4] = [
    "discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    "discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
    "endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
    "cluster.v3.ClusterDiscoveryService/StreamClusters",
];

/// Times that the response is looked at: each brings a frame, or nothing.
const LOOKS: usize = 2000;

/// Looks that bring nothing before no more is expected: a session may wake itself.
const IDLE_LOOKS: usize = 4;

/// Sends one request whose body is what `data` says; reads what comes back.
///
/// # Panics
///
/// If an invariant is broken.
pub fn grpc(data: &[u8]) {
    let mut input = Input(data);
    let method = usize::from(input.byte()) % METHODS.len();
    let is_delta = method.is_multiple_of(2);
    let mut chunks = Vec::new();
    if input.byte() & 1 == 0 {
        chunks.push(introduction(is_delta));
    }
    while let Some(step) = input.next() {
        let bytes = input.bytes();
        if step & 1 == 0 {
            let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
            chunks.push([&[0][..], &length, bytes].concat().into());
        } else {
            chunks.push(Bytes::copy_from_slice(bytes));
        }
    }
    chunks.reverse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without I/O");
    let _entered = runtime.enter();
    let (_stopping, stopped) = watch::channel(false);
    let mut service = DiscoveryService::new(plane(), "fuzz".into(), stopped);
    let uri = format!("/envoy.service.{}", METHODS[method]);
    let request = http::Request::post(uri).body(Body::new(Chunks(chunks)));
    let calling = service.call(request.expect("a path"));
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(response) = std::pin::pin!(calling).poll(&mut context) else {
        panic!("the service answers at once");
    };
    let mut body = response.expect("it cannot fail").into_body();
    let mut received = Vec::new();
    let mut idle = 0;
    for _ in 0..LOOKS {
        match Pin::new(&mut body).poll_frame(&mut context) {
            Poll::Ready(Some(Ok(frame))) => {
                idle = 0;
                if let Ok(data) = frame.into_data() {
                    received.extend_from_slice(&data);
                }
            }
            Poll::Ready(Some(Err(_)) | None) => break,
            Poll::Pending => idle += 1,
        }
        if idle >= IDLE_LOOKS {
            break;
        }
    }
    check(is_delta, &received);
}

// Whole messages, each of which is a response.
fn check(is_delta: bool, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        assert_eq!(bytes.get_u8(), 0, "nothing is compressed");
        let length = bytes.get_u32() as usize;
        let (message, rest) = bytes.split_at(length);
        if is_delta {
            DeltaDiscoveryResponse::decode(message).expect("a response");
        } else {
            DiscoveryResponse::decode(message).expect("a response");
        }
        bytes = rest;
    }
}

fn introduction(is_delta: bool) -> Bytes {
    let node = Some(Node {
        id: "fuzz".to_owned(),
        ..Node::default()
    });
    let message = if is_delta {
        DeltaDiscoveryRequest {
            node,
            type_url: ENDPOINT.to_owned(),
            resource_names_subscribe: vec!["a".to_owned()],
            ..DeltaDiscoveryRequest::default()
        }
        .encode_to_vec()
    } else {
        DiscoveryRequest {
            node,
            type_url: CLUSTER.to_owned(),
            ..DiscoveryRequest::default()
        }
        .encode_to_vec()
    };
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0][..], &length, &message].concat().into()
}

fn plane() -> Arc<Plane> {
    let plane = Arc::new(Plane::new());
    let draft = |type_url: &str, name: &str| Draft {
        type_url: TypeUrl::from(type_url),
        name: Name::from(name),
        value: Bytes::from_static(b"\x0a\x01a"),
        extras: Extras::default(),
    };
    let published = plane.publish(vec![Document {
        name: Name::from("fuzz"),
        selector: Selector::default(),
        resources: vec![
            draft(CLUSTER, "a"),
            draft(ENDPOINT, "a"),
            draft(ENDPOINT, "b"),
        ],
    }]);
    published.expect("a document that nothing contradicts");
    plane
}

/// A body in pieces, the last first.
struct Chunks(Vec<Bytes>);

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.pop() {
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            // Neither more nor an end.
            None => Poll::Pending,
        }
    }
}
