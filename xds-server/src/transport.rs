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
pub(crate) use refusal::{Refusal, RefusalLog};
pub use tls::TlsError;

use crate::api::Access;
use crate::cli::Cli;
use crate::metrics::RefusedConnections;
use tls::{TlsFiles, TlsPaths};
use unix::SocketFile;

/// Why the xDS services cannot be reached as asked.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address could not be bound.
    #[error("cannot listen on {addr}; choose another with {flag}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The option that names it.
        flag: &'static str,
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
    /// Who rules the fleet must be known, beyond this machine.
    #[error(
        "will not serve the API in plaintext on {addr}, where other machines can change what all clients get: give a loopback \
         address with --api-listen, or --tls-cert, --tls-key, --tls-client-ca and --api-allow"
    )]
    PlaintextApi {
        /// The address.
        addr: SocketAddr,
    },
    /// Over TLS nobody may call who is not named.
    #[error(
        "the API on {addr} is served over TLS, so say who may call it: give --tls-client-ca, and the callers' SPIFFE IDs with \
         --api-allow; or use --api-socket instead"
    )]
    NobodyAllowed {
        /// The address.
        addr: SocketAddr,
    },
    /// Something that is no socket has the socket's name.
    #[error("{} exists and is not a socket; remove it, or choose another path with {flag}", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// The option that names it.
        flag: &'static str,
    },
    /// Another process answers on the socket.
    #[error("another process serves {}; stop it, or choose another path with {flag}", path.display())]
    SocketInUse {
        /// The path.
        path: PathBuf,
        /// The option that names it.
        flag: &'static str,
    },
    /// The Unix socket could not be made.
    #[error("cannot make the socket {}; choose a short path in a directory that can be written, with {flag}", path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// The option that names it.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The bound listeners of some services, which accept nothing yet.
#[derive(Debug)]
pub struct Listeners {
    tcp: Option<TcpListener>,
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
        let tcp = Some(bind_tcp(addr, "--xds-listen").await?);
        let socket = cli.xds_socket.as_deref();
        let socket = socket
            .map(|path| SocketFile::bind(path, unix::OWNER_AND_GROUP, "--xds-socket"))
            .transpose()?;
        Ok(Self { tcp, tls, socket })
    }

    /// As [`Listeners::bind`], for the programmatic API; `None` if it is not asked for. Says who may call.
    ///
    /// # Errors
    ///
    /// Returns [`TransportError`] as that does, and if it would not be known who calls.
    pub async fn bind_api(cli: &Cli) -> Result<Option<(Self, Access)>, TransportError> {
        if cli.api_listen.is_none() && cli.api_socket.is_none() {
            return Ok(None);
        }
        let mut access = Access {
            allowed: cli.api_allow.clone(),
            ..Access::default()
        };
        let (mut tcp, mut tls) = (None, None);
        if let Some(addr) = cli.api_listen {
            tls = TlsPaths::of(cli).map(TlsFiles::open).transpose()?;
            match &tls {
                None if !addr.ip().to_canonical().is_loopback() => {
                    return Err(TransportError::PlaintextApi { addr });
                }
                None => access.is_loopback_open = true,
                Some(tls) if !tls.verifies_clients() || access.allowed.is_empty() => {
                    return Err(TransportError::NobodyAllowed { addr });
                }
                Some(_) => {}
            }
            tcp = Some(bind_tcp(addr, "--api-listen").await?);
        }
        let mut socket = None;
        if let Some(path) = &cli.api_socket {
            let bound = SocketFile::bind(path, unix::OWNER, "--api-socket")?;
            access.socket_owner = Some(bound.owner);
            socket = Some(bound);
        }
        Ok(Some((Self { tcp, tls, socket }, access)))
    }

    /// Address of the TCP listener.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error, or that there is no such listener.
    pub fn addr(&self) -> io::Result<SocketAddr> {
        let none = || io::Error::from(io::ErrorKind::NotFound);
        self.tcp.as_ref().ok_or_else(none)?.local_addr()
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

async fn bind_tcp(addr: SocketAddr, flag: &'static str) -> Result<TcpListener, TransportError> {
    let bound = TcpListener::bind(addr).await;
    bound.map_err(|source| TransportError::Bind { addr, flag, source })
}
