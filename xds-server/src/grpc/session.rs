//! One stream of one client: feeds the state machine and writes out what it says.

use std::sync::Arc;
use std::time::Duration;

use isthmus_xds_core::stream::{Event, RequestError, StreamOptions};
use isthmus_xds_core::{Request, Response, Stream};
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::Opening;
use super::node::ClientNode;
use super::requests::{Inbound, Requests};
use super::responses::{SessionBody, Slot};
use crate::clients::{Introduction, Membership};
use crate::plane::{Plane, Subscriber};

/// How long a client may hold a stream open without saying who it is.
const FIRST_REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// Over how long the streams of a stopping server end. Below the time that the server gives them.
const DRAIN_SPREAD: Duration = Duration::from_secs(4);

/// Makes the response body that runs a session; it ends with the stream, in either direction, or
/// with the server.
pub(super) fn body<M>(opening: Opening, requests: Requests<M>) -> SessionBody
where
    M: Message + Default + 'static,
    Inbound: From<M>,
{
    let slot = Slot::default();
    let outbound = slot.clone();
    let driver = async move {
        let plane = Arc::clone(&opening.plane);
        let mut shutdown = opening.shutdown.clone();
        let opened_as = opening.id;
        let ended = tokio::select! {
            ended = run(opening, requests, &outbound) => ended,
            () = drained(&mut shutdown, opened_as) => Err(Ended::Shutdown),
        };
        match ended {
            Ok(()) => Status::ok(""),
            Err(ended) => {
                plane.metrics.refuse_stream(ended.reason());
                ended.into_status()
            }
        }
    };
    SessionBody::new(slot, driver)
}

async fn run<M>(opening: Opening, mut requests: Requests<M>, outbound: &Slot) -> Result<(), Ended>
where
    M: Message + Default,
    Inbound: From<M>,
{
    let first = tokio::time::timeout(FIRST_REQUEST_PATIENCE, requests.next()).await;
    let Ok(first) = first else {
        return Err(Ended::Silent);
    };
    let Some(Inbound { node, request }) = first.map_err(Ended::Broken)? else {
        return Ok(());
    };
    let node = ClientNode::parse(node, opening.peer.clone()).map_err(Ended::NoNode)?;
    let mut moved = opening.plane.scopes_moved();
    let mut subscriber = opening.plane.subscribe(&node.view());
    let mut session = Session::open(opening, node, &mut subscriber);
    session.handle(&request)?;

    loop {
        let wake = session.wake();
        let is_due = wake.is_some_and(|at| at <= Instant::now());
        tokio::select! {
            biased;
            message = requests.next() => match message {
                Ok(Some(Inbound { request, .. })) => session.handle(&request)?,
                Ok(None) => break,
                // A client that goes away is not worth a complaint; one that talks nonsense is.
                Err(status) if status.code() == Code::Unknown => {
                    debug!(stream = session.id, %status, "the client broke the stream");
                    break;
                }
                Err(status) => return Err(Ended::Broken(status)),
            },
            changed = moved.changed() => {
                if changed.is_err() {
                    break;
                }
                subscriber = session.plane.subscribe(&session.node.view());
                session.membership.client().move_to(&subscriber.scope);
                session.move_to(&mut subscriber);
            }
            changed = subscriber.view.changed() => {
                if changed.is_err() {
                    break;
                }
                session.move_to(&mut subscriber);
            }
            () = outbound.vacant(), if is_due => {
                if let Some(response) = session.poll() {
                    outbound.put(response);
                }
            }
            () = sleep_until(wake), if wake.is_some() && !is_due => {}
        }
    }
    Ok(())
}

struct Session {
    plane: Arc<Plane>,
    node: ClientNode,
    id: u64,
    opened: Instant,
    membership: Membership,
}

impl Drop for Session {
    fn drop(&mut self) {
        info!(node = self.node.id, stream = self.id, "stream closed");
    }
}

impl Session {
    fn open(opening: Opening, node: ClientNode, subscriber: &mut Subscriber) -> Self {
        let id = opening.id;
        let variant = opening.variant;
        let options = StreamOptions {
            variant,
            only_type: opening.only_type,
            peer: node.peer(),
            id,
            identifier: opening.identifier,
        };
        let view = Arc::clone(&subscriber.view.borrow_and_update());
        let introduction = Introduction {
            node_id: node.id.clone(),
            node_cluster: node.cluster.clone(),
            user_agent: node.user_agent.clone(),
            peer: opening.peer,
            variant,
            scope: subscriber.scope.clone(),
            stream: Stream::new(options, view),
        };
        info!(node = node.id, stream = id, ?variant, "stream opened");
        Self {
            membership: Membership::new(Arc::clone(&opening.plane), id, introduction),
            plane: opening.plane,
            node,
            id,
            opened: Instant::now(),
        }
    }

    fn handle(&mut self, request: &Request) -> Result<(), Ended> {
        let now = self.opened.elapsed();
        let events = self.membership.client().with_stream(|stream| {
            stream.handle_request(request, now)?;
            Ok::<_, RequestError>(stream.take_events())
        })?;
        if request.nonce.is_empty() {
            self.plane.metrics.count_subscription(&request.type_url);
        }
        for event in &events {
            self.plane.metrics.count_event(event);
            if let Event::Nacked { type_url, refusal } = event {
                warn!(
                    node = self.node.id,
                    stream = self.id,
                    r#type = &**type_url,
                    generation = refusal.generation,
                    reason = refusal.message,
                    "the client refused its configuration and keeps what it had"
                );
            }
        }
        Ok(())
    }

    fn move_to(&mut self, subscriber: &mut Subscriber) {
        let view = Arc::clone(&subscriber.view.borrow_and_update());
        let now = self.opened.elapsed();
        let client = self.membership.client();
        client.with_stream(|stream| stream.handle_view(view, now));
    }

    fn poll(&mut self) -> Option<Response> {
        let now = self.opened.elapsed();
        let client = self.membership.client();
        let response = client.with_stream(|stream| stream.poll(now))?;
        self.plane.metrics.count_response(&response);
        Some(response)
    }

    fn wake(&self) -> Option<Instant> {
        let client = self.membership.client();
        let at = client.with_stream(|stream| stream.next_wake())?;
        Some(self.opened + at)
    }
}

// When the server stops, streams end one after the other, so that their clients do not all knock
// at the next instance in the same moment. Until then they are served.
async fn drained(shutdown: &mut watch::Receiver<bool>, id: u64) {
    // Fails only if the sender is gone, and then it is time to stop as well.
    let _ = shutdown.wait_for(|is_down| *is_down).await;
    tokio::time::sleep(DRAIN_SPREAD.mul_f64(fraction_of(id))).await;
}

// Multiples of the golden ratio: however many streams there are, they are spread evenly.
fn fraction_of(id: u64) -> f64 {
    let high = u32::try_from(id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32).unwrap_or(u32::MAX);
    f64::from(high) / f64::from(u32::MAX)
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// Why the server ends a stream. The client is told, and it is counted.
#[derive(Debug)]
enum Ended {
    /// The first request did not come.
    Silent,
    /// The first request does not say who asks.
    NoNode(Status),
    /// A request breaks the protocol, or a bound.
    Refused(RequestError),
    /// The first message could not be read.
    Broken(Status),
    /// The server stops.
    Shutdown,
}

impl From<RequestError> for Ended {
    fn from(error: RequestError) -> Self {
        Self::Refused(error)
    }
}

impl Ended {
    fn reason(&self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::NoNode(_) => "no_node",
            Self::Refused(RequestError::NoTypeUrl | RequestError::WrongType { .. }) => "wrong_type",
            Self::Refused(_) => "over_limit",
            Self::Broken(_) => "broken",
            Self::Shutdown => "shutdown",
        }
    }

    fn into_status(self) -> Status {
        match self {
            Self::Silent => Status::deadline_exceeded(format!(
                "no request came within {FIRST_REQUEST_PATIENCE:?} of opening the stream"
            )),
            Self::NoNode(status) | Self::Broken(status) => status,
            Self::Refused(error) => match error {
                RequestError::NoTypeUrl | RequestError::WrongType { .. } => {
                    Status::invalid_argument(error.to_string())
                }
                RequestError::LongName { .. }
                | RequestError::TooManyNames { .. }
                | RequestError::TooManyTypes => Status::resource_exhausted(error.to_string()),
            },
            Self::Shutdown => Status::unavailable("the server is shutting down; reconnect"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_a_stopping_server_end_evenly_spread() {
        let mut ends: Vec<f64> = (1..=1000).map(fraction_of).collect();
        ends.sort_by(f64::total_cmp);
        let gaps = ends.windows(2).map(|pair| pair[1] - pair[0]);
        let widest = gaps.fold(0.0, f64::max);
        assert!(widest < 0.005, "{widest}: no gap is five times the average");
        assert!(ends[0] >= 0.0 && ends[999] <= 1.0);
    }
}
