//! The composition root: binds the addresses, starts the parts, and stops them in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use crate::admin;
use crate::cli::Cli;
use crate::config_dir::watch::WatchError;
use crate::grpc::DiscoveryService;
use crate::plane::Plane;
use crate::reload;

/// Streams of one connection. Envoy opens one for ADS, or one per type.
const STREAMS_PER_CONNECTION: u32 = 256;

/// How often a silent connection is asked whether it lives, and how long it may think about it:
/// a proxy that vanished without a word is forgotten after their sum.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long streams may take to end when the server stops; each was told to reconnect by then.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the server could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address could not be bound.
    #[error("cannot listen on {addr} for {purpose}; choose another with {flag}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What it was for.
        purpose: &'static str,
        /// The option that sets it.
        flag: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The process cannot receive signals.
    #[error("cannot watch for SIGTERM")]
    Signal(#[source] std::io::Error),
    /// The gRPC server failed.
    #[error("the xDS server failed")]
    Xds(#[source] tonic::transport::Error),
    /// The configuration directory cannot be watched.
    #[error(transparent)]
    Source(#[from] WatchError),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
///
/// Returns [`ServerError`] if it cannot start. Bad configuration is not an error: the server
/// waits for a good one, not ready.
pub async fn run(cli: Cli) -> Result<(), ServerError> {
    let xds = bind(cli.xds_listen, "xDS", "--xds-listen").await?;
    let admin = bind(cli.admin_listen, "the admin endpoint", "--admin-listen").await?;
    let plane = Arc::new(Plane::new());
    let (stop, stopped) = watch::channel(false);

    let source = reload::spawn(&cli.config_dir, Arc::clone(&plane))?;
    let admin_server = tokio::spawn(serve_admin(admin, Arc::clone(&plane)));
    let identifier = format!("isthmus-xds/{}", env!("CARGO_PKG_VERSION"));
    let service = DiscoveryService::new(plane, identifier.into(), stopped.clone());
    info!(
        xds = %cli.xds_listen,
        admin = %cli.admin_listen,
        config_dir = %cli.config_dir.display(),
        "serving"
    );

    let mut until_stopped = stopped.clone();
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .serve_with_incoming_shutdown(
            service,
            TcpIncoming::from(xds).with_nodelay(Some(true)),
            async move {
                // Fails only if the sender is gone, and then it is time to stop as well.
                let _ = until_stopped.wait_for(|is_stopped| *is_stopped).await;
            },
        );
    tokio::pin!(server);
    let ended = tokio::select! {
        ended = &mut server => ended.map_err(ServerError::Xds),
        ended = wait_for_stop() => match ended {
            Ok(name) => {
                info!(signal = name, "stopping: clients are told to reconnect");
                stop.send_replace(true);
                if tokio::time::timeout(DRAIN, &mut server).await.is_err() {
                    warn!("streams did not end within {DRAIN:?}; closing their connections");
                }
                Ok(())
            }
            Err(error) => Err(error),
        },
    };
    source.abort();
    admin_server.abort();
    ended
}

async fn bind(
    addr: SocketAddr,
    purpose: &'static str,
    flag: &'static str,
) -> Result<TcpListener, ServerError> {
    let bound = TcpListener::bind(addr).await;
    bound.map_err(|source| ServerError::Bind {
        addr,
        purpose,
        flag,
        source,
    })
}

async fn serve_admin(listener: TcpListener, plane: Arc<Plane>) {
    if let Err(error) = axum::serve(listener, admin::router(plane)).await {
        warn!(%error, "the admin endpoint failed; xDS goes on");
    }
}

async fn wait_for_stop() -> Result<&'static str, ServerError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServerError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServerError::Signal)?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}
