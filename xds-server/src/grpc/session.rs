//! One stream of one client: feeds the state machine and writes out what it says.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use isthmus_xds_core::stream::{Event, RequestError, StreamOptions};
use isthmus_xds_core::{Request, Stream};
use prost::Message;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::Opening;
use super::node::ClientNode;
use super::requests::{Inbound, Requests};
use super::responses::{SessionBody, Slot};
use crate::admission::Crowded;
use crate::clients::{Introduction, Membership};
use crate::plane::Plane;

/// How long a client may hold a stream open without saying who it is.
const FIRST_REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// Requests that one turn of a stream serves before it lets responses, and other streams, have
/// theirs: a client that never stops asking must not keep them waiting.
const REQUESTS_PER_TURN: usize = 32;

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
    let plane = Arc::clone(&opening.plane);
    let mut shutdown = opening.shutdown.clone();
    let opened_as = opening.id;
    // Boxed: what only the beginning needs is not held for the length of the stream.
    let beginning = Box::pin(begin(opening, requests));
    let driver = async move {
        let ended = tokio::select! {
            ended = run(beginning, &outbound) => ended,
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

async fn run<M>(
    beginning: impl Future<Output = Result<Option<(Session, Requests<M>)>, Ended>>,
    outbound: &Slot,
) -> Result<(), Ended>
where
    M: Message + Default,
    Inbound: From<M>,
{
    let Some((mut session, mut requests)) = beginning.await? else {
        return Ok(());
    };
    std::future::poll_fn(|context| session.poll(&mut requests, outbound, context)).await
}

// Waits for the first request, which says who the client is. `None` if it says nothing at all.
async fn begin<M>(
    mut opening: Opening,
    mut requests: Requests<M>,
) -> Result<Option<(Session, Requests<M>)>, Ended>
where
    M: Message + Default,
    Inbound: From<M>,
{
    let first = tokio::time::timeout(FIRST_REQUEST_PATIENCE, requests.next()).await;
    let Ok(first) = first else {
        return Err(Ended::Silent);
    };
    let Some(Inbound { node, request }) = first.map_err(Ended::Broken)? else {
        return Ok(None);
    };
    let node = ClientNode::parse(node, opening.peer.clone()).map_err(Ended::NoNode)?;
    let admitted = opening.plane.admission.enter(&opening.plane.metrics).await;
    admitted.map_err(Ended::Crowded)?;
    // Streams are numbered as they begin to be served: what is decided while one waits holds for it.
    opening.id = opening.plane.next_stream_id();
    let mut session = Session::open(opening, node);
    session.handle(&request)?;
    Ok(Some((session, requests)))
}

struct Session {
    plane: Arc<Plane>,
    node: ClientNode,
    id: u64,
    opened: Instant,
    membership: Membership,
    // Only while the stream waits for a time: one that is at rest has none.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        info!(node = self.node.id, stream = self.id, "stream closed");
    }
}

impl Session {
    fn open(opening: Opening, node: ClientNode) -> Self {
        let id = opening.id;
        let variant = opening.variant;
        let options = StreamOptions {
            variant,
            only_type: opening.only_type,
            peer: node.peer(),
            features: node.features(),
            id,
            identifier: opening.identifier,
        };
        let scope = opening.plane.scope_of(&node.view());
        let introduction = Introduction {
            node_id: node.id.as_str().into(),
            node_cluster: node.cluster.clone(),
            node: node.encoded.clone(),
            user_agent: node.user_agent.clone(),
            peer: opening.peer,
            variant,
            stream: Stream::new(options, scope.view()),
            scope,
        };
        info!(node = node.id, stream = id, ?variant, "stream opened");
        let membership = Membership::new(Arc::clone(&opening.plane), id, introduction);
        // Scopes may have moved before the client was in one.
        let client = membership.client();
        opening.plane.place(client, &node.view(), Duration::ZERO);
        Self {
            membership,
            plane: opening.plane,
            node,
            id,
            opened: Instant::now(),
            timer: None,
        }
    }

    // Requests first, so that who asks is served before who is told; then what was rung for; then
    // a response, if there is room for one.
    fn poll<M>(
        &mut self,
        requests: &mut Requests<M>,
        outbound: &Slot,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Ended>>
    where
        M: Message + Default,
        Inbound: From<M>,
    {
        for served in 0.. {
            if served == REQUESTS_PER_TURN {
                context.waker().wake_by_ref();
                break;
            }
            match requests.poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(Inbound { request, .. }))) => self.handle(&request)?,
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(())),
                // A client that goes away is not worth a complaint; one that talks nonsense is.
                Poll::Ready(Err(status)) if status.code() == Code::Unknown => {
                    debug!(stream = self.id, %status, "the client broke the stream");
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(status)) => return Poll::Ready(Err(Ended::Broken(status))),
            }
        }
        let client = self.membership.client();
        client.bell.listen(context);
        if client.bell.take_moved() {
            let now = self.opened.elapsed();
            self.plane.place(client, &self.node.view(), now);
        }
        // Until the body has taken the last response, nothing newer is made: it will merge.
        while outbound.is_vacant() {
            let turn = client.take_turn(&self.plane.convergence, self.opened.elapsed());
            if let Some(response) = turn.response {
                self.plane.metrics.count_response(&response);
                self.note(&turn.events);
                outbound.put(response);
            } else if !poll_timer(
                &mut self.timer,
                turn.wake.map(|at| self.opened + at),
                context,
            ) {
                break;
            }
        }
        self.plane.note_canary(self.id, client);
        Poll::Pending
    }

    fn handle(&mut self, request: &Request) -> Result<(), Ended> {
        let now = self.opened.elapsed();
        let client = self.membership.client();
        let events = client.handle_request(request, &self.plane.convergence, now)?;
        if request.nonce.is_empty() {
            self.plane.metrics.count_subscription(&request.type_url);
        }
        self.note(&events);
        Ok(())
    }

    fn note(&self, events: &[Event]) {
        for event in events {
            self.plane.metrics.count_event(event);
            match event {
                Event::Nacked { type_url, refusal } => {
                    let client = self.membership.client();
                    self.plane.note_refusal(self.id, client, type_url, refusal);
                }
                Event::Isolated {
                    type_url,
                    name,
                    version,
                    ..
                } => {
                    let client = self.membership.client();
                    let plane = &self.plane;
                    plane.note_culprit(self.id, client, type_url, name, *version);
                }
                Event::Oversized {
                    type_url,
                    size_bytes,
                } => warn!(
                    node = self.node.id,
                    stream = self.id,
                    r#type = &**type_url,
                    size_bytes,
                    "a response is over the 4 MiB that gRPC clients take unless told otherwise; \
                     give the client fewer or smaller resources, or raise its limit"
                ),
                Event::Acked { type_url, .. } => {
                    let client = self.membership.client();
                    self.plane.note_acceptance(self.id, client, type_url);
                }
                Event::StaleNonce { .. } => {}
            }
        }
    }
}

// Sets the timer to a time, or ends it; tells whether that time has come.
fn poll_timer(
    timer: &mut Option<Pin<Box<Sleep>>>,
    at: Option<Instant>,
    context: &mut Context<'_>,
) -> bool {
    let Some(at) = at else {
        *timer = None;
        return false;
    };
    let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
    if sleep.deadline() != at {
        sleep.as_mut().reset(at);
    }
    sleep.as_mut().poll(context).is_ready()
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

/// Why the server ends a stream. The client is told, and it is counted.
#[derive(Debug)]
enum Ended {
    /// The first request did not come.
    Silent,
    /// The first request does not say who asks, or in too many words.
    NoNode(Status),
    /// A request breaks the protocol, or a bound.
    Refused(RequestError),
    /// The first message could not be read.
    Broken(Status),
    /// Too many streams open at once.
    Crowded(Crowded),
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
            Self::NoNode(status) if status.code() == Code::ResourceExhausted => "over_limit",
            Self::NoNode(_) => "no_node",
            Self::Refused(RequestError::NoTypeUrl | RequestError::WrongType { .. }) => "wrong_type",
            Self::Refused(_) => "over_limit",
            Self::Broken(_) => "broken",
            Self::Crowded(_) => "crowded",
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
                RequestError::LongTypeUrl { .. }
                | RequestError::LongName { .. }
                | RequestError::TooManyNames { .. }
                | RequestError::TooManyTypes => Status::resource_exhausted(error.to_string()),
            },
            Self::Crowded(crowded) => Status::unavailable(crowded.to_string()),
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
