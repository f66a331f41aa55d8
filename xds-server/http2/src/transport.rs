//! What the server runs on: sockets, and whatever behaves like one.

use http::Extensions;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A connection that HTTP/2 is spoken on.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Adds what is known of the peer to a request.
    fn describe(&self, request: &mut Extensions) {
        let _ = request;
    }
}

impl Transport for TcpStream {}
impl Transport for UnixStream {}
