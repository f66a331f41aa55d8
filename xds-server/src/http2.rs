//! tonic's services on our own HTTP/2 server.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::task::{Context, Poll};

use http::{Request, Response};
use isthmus_http2::{RequestBody, Transport};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tower_service::Service;

/// Serves gRPC on the connections of `incoming` until `shutdown` is done, then tells clients to
/// open no more streams (GOAWAY) and returns when their streams have ended. Connections that are
/// open when the future is dropped are closed.
pub async fn serve<I, S>(
    service: S,
    incoming: impl Stream<Item = io::Result<I>>,
    shutdown: impl Future<Output = ()>,
) where
    I: Transport,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    isthmus_http2::serve(Grpc(service), incoming, shutdown).await;
}

/// The connections of a plaintext listener, which nobody is known on.
pub fn tcp(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    TcpListenerStream::new(listener).map(|accepted| {
        let stream = accepted?;
        // Small responses must not wait for an ACK.
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}

/// A service of tonic's, whose requests have a body of tonic's.
#[derive(Clone, Debug)]
struct Grpc<S>(S);

impl<S> Service<Request<RequestBody>> for Grpc<S>
where
    S: Service<Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<RequestBody>) -> S::Future {
        self.0.call(request.map(Body::new))
    }
}
