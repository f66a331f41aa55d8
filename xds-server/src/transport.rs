//! How clients reach the services, and who they are proven to be.
//!
//! ```text
//!  TCP ──accept──▶ [TLS handshake, a task each] ──▶ Connection + ConnectedPeer ──▶ http2
//!  Unix socket ──accept──▶ SO_PEERCRED ─────────────▲
//! ```
//!
//! Invariant: an identity in a [`ConnectedPeer`] was verified here (a client certificate against the CA, or the kernel's word on
//! a Unix peer); what a client says of itself never gets into it. Keys are read by `tls` alone and in no error or log line.

mod accept;
mod connection;
mod peer;
mod refusal;
mod tls;
mod unix;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::TcpListener;

pub use accept::Incoming;
pub use connection::Connection;
pub use peer::ConnectedPeer;
pub use tls::TlsError;

use crate::cli::Cli;
use crate::metrics::RefusedConnections;
use tls::{TlsFiles, TlsPaths};
use unix::SocketFile;

/// Why the xDS services cannot be reached as asked.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address could not be bound.
    #[error("cannot listen on {addr} for xDS; choose another with --xds-listen")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Everybody who reaches the address could read what is served.
    #[error(
        "will not serve xDS in plaintext on {addr}, where other machines can read secrets: give --tls-cert and --tls-key, \
         or a loopback address with --xds-listen; or accept it with --insecure"
    )]
    Plaintext {
        /// The address.
        addr: SocketAddr,
    },
    /// Something that is no socket has the socket's name.
    #[error("{} exists and is not a socket; remove it, or choose another path with --xds-socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process answers on the socket.
    #[error("another process serves {}; stop it, or choose another path with --xds-socket", path.display())]
    SocketInUse {
        /// The path.
        path: PathBuf,
    },
    /// The Unix socket could not be made.
    #[error("cannot make the socket {}; choose a short path in a directory that can be written, with --xds-socket", path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The bound listeners of the xDS services, which accept nothing yet.
#[derive(Debug)]
pub struct Listeners {
    tcp: TcpListener,
    tls: Option<TlsFiles>,
    socket: Option<SocketFile>,
}

impl Listeners {
    /// Reads the certificates and binds what is asked for.
    ///
    /// # Errors
    ///
    /// Returns [`TransportError`] if an address or path cannot be had, the certificates cannot be used, or plaintext would
    /// leave the machine without leave.
    pub async fn bind(cli: &Cli) -> Result<Self, TransportError> {
        let addr = cli.xds_listen;
        let tls = TlsPaths::of(cli).map(TlsFiles::open).transpose()?;
        if tls.is_none() && !addr.ip().to_canonical().is_loopback() && !cli.insecure {
            return Err(TransportError::Plaintext { addr });
        }
        let bound = TcpListener::bind(addr).await;
        let tcp = bound.map_err(|source| TransportError::Bind { addr, source })?;
        let socket = cli
            .xds_socket
            .as_deref()
            .map(SocketFile::bind)
            .transpose()?;
        Ok(Self { tcp, tls, socket })
    }

    /// Address of the TCP listener.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error.
    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// How TCP clients are known, for the log.
    pub fn security(&self) -> &'static str {
        match &self.tls {
            None => "plaintext",
            Some(tls) if tls.verifies_clients() => "mTLS",
            Some(_) => "TLS",
        }
    }

    /// Begins to accept, and counts whom it refuses; the tasks, and the socket file, end with the value that is returned.
    pub fn accept(self, refused: &RefusedConnections) -> Incoming {
        accept::spawn(self.tcp, self.tls, self.socket, refused)
    }
}
