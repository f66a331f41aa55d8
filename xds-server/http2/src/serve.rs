//! Connections as they come, and how they all end.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::sync::Notify;
use tokio_stream::{Stream, StreamExt};
use tower_service::Service;
use tracing::debug;

use crate::body::RequestBody;
use crate::driver::Driver;
use crate::signals::{Phase, Signals};
use crate::{BoxError, Transport};

/// Serves `incoming` with `service` until `shutdown` is done or there are no more connections;
/// then tells all peers to open no more streams, and returns when their streams have ended.
/// Connections are closed at once when the future is dropped.
pub async fn serve<I, S, B>(
    service: S,
    incoming: impl Stream<Item = io::Result<I>>,
    shutdown: impl Future<Output = ()>,
) where
    I: Transport,
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    let connections = Closing(Arc::default());
    let connections = &connections.0;
    {
        let mut incoming = pin!(incoming);
        let mut shutdown = pin!(shutdown);
        loop {
            let next = tokio::select! {
                biased;
                () = &mut shutdown => {
                    connections.advance(Phase::Drain);
                    break;
                }
                next = incoming.next() => next,
            };
            let transport = match next {
                Some(Ok(transport)) => transport,
                Some(Err(error)) => {
                    debug!(%error, "a connection could not be accepted");
                    continue;
                }
                None => break,
            };
            let place = Place::new(connections);
            let signals = Arc::clone(&place.signals);
            let driver = Driver::new(transport, service.clone(), signals);
            tokio::spawn(async move {
                driver.await;
                drop(place);
            });
        }
    }
    connections.emptied().await;
}

/// All connections of a server.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<Open>,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    signals: HashMap<u64, Arc<Signals>>,
}

impl Connections {
    fn advance(&self, phase: Phase) {
        for signals in self.lock().signals.values() {
            signals.advance(phase);
        }
    }

    async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.lock().signals.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    // Held to add, remove and list; each leaves it whole.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes what is open when the server is dropped.
struct Closing(Arc<Connections>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.advance(Phase::Close);
    }
}

/// A connection's place among the others, until it ends.
struct Place {
    connections: Arc<Connections>,
    signals: Arc<Signals>,
    number: u64,
}

impl Place {
    fn new(connections: &Arc<Connections>) -> Self {
        let signals = Arc::new(Signals::default());
        let mut open = connections.lock();
        open.last += 1;
        let number = open.last;
        open.signals.insert(number, Arc::clone(&signals));
        Self {
            connections: Arc::clone(connections),
            signals,
            number,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.signals.remove(&self.number);
        if open.signals.is_empty() {
            self.connections.emptied.notify_one();
        }
    }
}
