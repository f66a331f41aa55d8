//! The composition root: binds the addresses, starts the parts, and stops them in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isthmus_xds_core::Source;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::admin::{self, Changes};
use crate::api::{self, Access, ResourceApi};
use crate::cli::Cli;
use crate::config_dir::watch::WatchError;
use crate::http2;
use crate::plane::Plane;
use crate::reload;
use crate::services::{Options, Services};
use crate::transport::{Listeners, TransportError};

/// How long streams may take to end when the server stops; each was told to reconnect by then.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the server could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address of the admin endpoint could not be bound.
    #[error("cannot listen on {addr} for the admin endpoint; choose another with --admin-listen")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The process cannot receive signals.
    #[error("cannot watch for SIGTERM")]
    Signal(#[source] io::Error),
    /// The xDS services cannot be reached as asked.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The configuration directory cannot be watched.
    #[error(transparent)]
    Source(#[from] WatchError),
}

/// A server whose addresses are bound and that does not serve yet.
#[derive(Debug)]
pub struct Server {
    xds: Listeners,
    admin: TcpListener,
    changes: Changes,
    api: Option<(Listeners, Access)>,
    config_dir: Option<PathBuf>,
    options: Options,
    plane: Arc<Plane>,
}

impl Server {
    /// Reads the certificates and binds all addresses.
    ///
    /// # Errors
    ///
    /// Returns [`ServerError`] if one is taken or not allowed, or the certificates cannot be used.
    pub async fn bind(cli: &Cli) -> Result<Self, ServerError> {
        let addr = cli.admin_listen;
        let xds = Listeners::bind(cli).await?;
        let api = Listeners::bind_api(cli).await?;
        let admin = TcpListener::bind(addr).await;
        let is_loopback = addr.ip().to_canonical().is_loopback();
        let changes = if is_loopback || cli.admin_changes {
            Changes::Allowed
        } else {
            Changes::Refused
        };
        if !is_loopback {
            warn!(%addr, "everybody who reaches the admin endpoint sees what is served, without secrets");
        }
        let sources = [
            cli.config_dir.as_ref().map(|_| Source::CONFIG_DIR),
            api.as_ref().map(|_| Source::API),
        ];
        let plane = Plane::awaiting(sources.into_iter().flatten());
        plane.limit_stream_openings(cli.max_stream_opens_per_second);
        let patience = Duration::from_secs(cli.canary_timeout.into());
        plane.try_on_canaries(cli.canary as usize, patience);
        Ok(Self {
            xds,
            api,
            plane: Arc::new(plane),
            admin: admin.map_err(|source| ServerError::Bind { addr, source })?,
            changes,
            config_dir: cli.config_dir.clone(),
            options: Options::from(cli),
        })
    }

    /// Address of the xDS services; its port is the real one where the command line had 0.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error.
    pub fn xds_addr(&self) -> io::Result<SocketAddr> {
        self.xds.addr()
    }

    /// What it serves, for a program to change. Serves nothing until all sources of the command line
    /// have spoken, or if there is none, until the first commit.
    pub fn plane(&self) -> Arc<Plane> {
        Arc::clone(&self.plane)
    }

    /// Address of the programmatic API, if it has one.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error, or that there is no such listener.
    pub fn api_addr(&self) -> io::Result<SocketAddr> {
        let none = || io::Error::from(io::ErrorKind::NotFound);
        let (listeners, _) = self.api.as_ref().ok_or_else(none)?;
        listeners.addr()
    }

    /// Address of the admin endpoint.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error.
    pub fn admin_addr(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Serves until `stop` is done, then tells clients to reconnect and returns.
    ///
    /// # Errors
    ///
    /// Returns [`ServerError`] if it cannot go on. Bad configuration is not an error: the server
    /// waits for a good one, not ready.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let plane = Arc::clone(&self.plane);
        let (stopping, stopped) = watch::channel(false);
        let source = match &self.config_dir {
            Some(dir) => Some(reload::spawn(dir, Arc::clone(&plane))?),
            None => None,
        };
        let name =
            |addr: io::Result<SocketAddr>| addr.map_or_else(|_| String::new(), |it| it.to_string());
        let (xds, admin) = (name(self.xds_addr()), name(self.admin_addr()));
        let api = name(self.api_addr());
        let api_server = self.api.map(|(listeners, access)| {
            let service = ResourceApi::new(Arc::clone(&plane), stopped.clone());
            tokio::spawn(api::serve(
                listeners.accept(&plane.metrics.refused_connections()),
                service,
                access,
                stopped.clone(),
            ))
        });
        let tried = Arc::clone(&plane);
        let trials = tokio::spawn(async move { tried.watch_trials().await });
        let admin_server = tokio::spawn(serve_admin(
            self.admin,
            admin::router(Arc::clone(&plane), self.changes),
        ));
        let identifier = format!("isthmus-xds/{}", env!("CARGO_PKG_VERSION"));
        let refused = plane.metrics.refused_connections();
        let services = Services::new(plane, identifier.into(), self.options, stopped.clone());
        let config_dir = self.config_dir.as_deref().map(Path::display);
        let config_dir = config_dir.map(tracing::field::display);
        let security = self.xds.security();
        info!(xds, security, admin, api, config_dir, "serving");

        let mut until_stopped = stopped;
        let server = http2::serve(services, self.xds.accept(&refused), async move {
            // Fails only if the sender is gone, and then it is time to stop as well.
            let _ = until_stopped.wait_for(|is_stopped| *is_stopped).await;
        });
        tokio::pin!(server);
        tokio::select! {
            () = &mut server => {}
            () = stop => {
                info!("stopping: clients are told to reconnect");
                stopping.send_replace(true);
                if tokio::time::timeout(DRAIN, &mut server).await.is_err() {
                    warn!("streams did not end within {DRAIN:?}; closing their connections");
                }
            }
        }
        for task in [source, api_server, Some(admin_server), Some(trials)]
            .into_iter()
            .flatten()
        {
            task.abort();
        }
        Ok(())
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
///
/// Returns [`ServerError`] if it cannot start or go on.
pub async fn run(cli: &Cli) -> Result<(), ServerError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServerError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServerError::Signal)?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Server::bind(cli).await?.serve(stop).await
}

async fn serve_admin(listener: TcpListener, router: axum::Router) {
    if let Err(error) = axum::serve(listener, router).await {
        warn!(%error, "the admin endpoint failed; xDS goes on");
    }
}
