//! Accepts connections, and lets each prove itself without making the others wait.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;

use super::connection::{Connection, Socket};
use super::peer::ConnectedPeer;
use super::refusal::{Refusal, RefusalLog};
use super::tls::TlsFiles;
use super::unix::{OwnFile, SocketFile};
use crate::metrics::RefusedConnections;

/// How long a client may take for its handshake: some round trips, and the server's own queue in a storm.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

/// Handshakes at a time, some 20 KiB each. More wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 2048;

/// Connections that are ready and not yet taken over by the server.
const READY_CONNECTIONS: usize = 64;

/// A pause after a failure to accept, which is for want of descriptors or memory as a rule.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The connections of all listeners, as they come. Dropping it ends the listeners.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<Connection>,
    _tasks: JoinSet<()>,
    // Here and not in its task: a task that is aborted may not end before the process does.
    _file: Option<OwnFile>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|next| next.map(Ok))
    }
}

pub(super) fn spawn(
    tcp: Option<TcpListener>,
    tls: Option<TlsFiles>,
    socket: Option<SocketFile>,
    refused: &RefusedConnections,
) -> Incoming {
    let refusals = || RefusalLog::new(refused.clone());
    let (sender, ready) = mpsc::channel(READY_CONNECTIONS);
    let mut tasks = JoinSet::new();
    match (tcp, tls) {
        (None, _) => {}
        (Some(tcp), None) => {
            tasks.spawn(accept_plain(tcp, refusals(), sender.clone()));
        }
        (Some(tcp), Some(files)) => {
            tasks.spawn(accept_tls(tcp, files.config(), refusals(), sender.clone()));
            tasks.spawn(files.watch());
        }
    }
    let file = socket.map(|SocketFile { listener, file, .. }| {
        tasks.spawn(accept_unix(listener, refusals(), sender));
        file
    });
    Incoming {
        ready,
        _tasks: tasks,
        _file: file,
    }
}

async fn accept_plain(
    listener: TcpListener,
    mut refusals: RefusalLog,
    ready: mpsc::Sender<Connection>,
) {
    loop {
        let accepted = listener.accept().await;
        let Some((stream, addr)) = sift(accepted, &mut refusals).await else {
            continue;
        };
        let connection = Connection {
            socket: Socket::Plain(stream),
            peer: ConnectedPeer::tcp(addr),
        };
        if ready.send(connection).await.is_err() {
            return;
        }
    }
}

async fn accept_tls(
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
    mut refusals: RefusalLog,
    ready: mpsc::Sender<Connection>,
) {
    let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let mut handshakes: JoinSet<Result<(), (SocketAddr, Refusal)>> = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = handshakes.join_next() => {
                if let Ok(Err((addr, refusal))) = ended {
                    refusals.note(&addr, &refusal);
                }
            }
            accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, listener.accept().await)
            } => {
                let (slot, accepted) = accepted;
                let Some((stream, addr)) = sift(accepted, &mut refusals).await else {
                    continue;
                };
                let acceptor = TlsAcceptor::from(Arc::clone(&config.borrow()));
                let ready = ready.clone();
                handshakes.spawn(async move {
                    let _slot = slot;
                    let refused = |refusal| (addr, refusal);
                    let connection = shake_hands(acceptor, stream, addr).await.map_err(refused)?;
                    // Fails only when the server stops.
                    let _ = ready.send(connection).await;
                    Ok(())
                });
            }
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    addr: SocketAddr,
) -> Result<Connection, Refusal> {
    let handshake = tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await;
    let stream = handshake
        .map_err(|_| Refusal::slow(HANDSHAKE_PATIENCE))?
        .map_err(|error| Refusal::handshake(&error))?;
    let peer = ConnectedPeer::tcp(addr);
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let peer = match certificate {
        None => peer,
        Some(certificate) => peer.with_certificate(certificate)?,
    };
    Ok(Connection {
        socket: Socket::Tls(Box::new(stream)),
        peer,
    })
}

async fn accept_unix(
    listener: UnixListener,
    mut refusals: RefusalLog,
    ready: mpsc::Sender<Connection>,
) {
    loop {
        let accepted = listener.accept().await;
        let accepted = accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream)));
        let (process, stream) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                refusals.note(&"unix", &Refusal::accept(&error));
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let connection = Connection {
            socket: Socket::Unix(stream),
            peer: ConnectedPeer::unix(process),
        };
        if ready.send(connection).await.is_err() {
            return;
        }
    }
}

/// Returns a connection that was accepted; notes a failure, and pauses.
async fn sift(
    accepted: io::Result<(TcpStream, SocketAddr)>,
    refusals: &mut RefusalLog,
) -> Option<(TcpStream, SocketAddr)> {
    match accepted {
        Ok((stream, addr)) => {
            // Small responses must not wait for an ACK; a socket that cannot be told so still works.
            let _ = stream.set_nodelay(true);
            Some((stream, addr))
        }
        Err(error) => {
            refusals.note(&"tcp", &Refusal::accept(&error));
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            None
        }
    }
}
