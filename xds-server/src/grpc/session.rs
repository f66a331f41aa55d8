//! One stream of one client: feeds the state machine and writes out what it says.

use std::sync::Arc;
use std::time::Duration;

use isthmus_xds_core::stream::{Event, RequestError, StreamOptions};
use isthmus_xds_core::{Response, Stream, TypeUrl, Variant};
use tokio::sync::mpsc::{self, Sender};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::codec::Inbound;
use super::node::ClientNode;
use crate::clients::{Client, Membership};
use crate::plane::{Plane, Subscriber};

/// How long a client may hold a stream open without saying who it is.
const FIRST_REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// Responses that were rendered but not written. One, so that what is not written yet can still
/// be merged with what changes next: a slow reader costs no queue.
const RENDERED_RESPONSES: usize = 1;

/// What differs between the methods.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) variant: Variant,
    pub(super) only_type: Option<TypeUrl>,
    pub(super) identifier: Arc<str>,
}

type Outbound = Sender<Result<Response, Status>>;

/// Starts a session; it ends with the stream, in either direction, or with the server.
pub(super) fn spawn(
    plane: Arc<Plane>,
    settings: Settings,
    request: tonic::Request<Streaming<Inbound>>,
    mut shutdown: watch::Receiver<bool>,
) -> mpsc::Receiver<Result<Response, Status>> {
    let (outbound, receiver) = mpsc::channel(RENDERED_RESPONSES);
    let peer = request
        .remote_addr()
        .map_or_else(String::new, |addr| addr.to_string());
    let inbound = request.into_inner();
    tokio::spawn(async move {
        let metrics = Arc::clone(&plane);
        let session = run(plane, settings, peer, inbound, &outbound);
        let ended = tokio::select! {
            ended = session => ended,
            _ = shutdown.wait_for(|is_down| *is_down) => Err(Ended::Shutdown),
        };
        if let Err(ended) = ended {
            metrics.metrics.refuse_stream(ended.reason());
            // Fails only if the client is gone, which is what it would have been told.
            let _ = outbound.send(Err(ended.into_status())).await;
        }
    });
    receiver
}

async fn run(
    plane: Arc<Plane>,
    settings: Settings,
    peer: String,
    mut inbound: Streaming<Inbound>,
    outbound: &Outbound,
) -> Result<(), Ended> {
    let first = tokio::time::timeout(FIRST_REQUEST_PATIENCE, inbound.message()).await;
    let Ok(first) = first else {
        return Err(Ended::Silent);
    };
    let Some(Inbound { node, request }) = first.map_err(Ended::Broken)? else {
        return Ok(());
    };
    let node = ClientNode::parse(node).map_err(Ended::NoNode)?;
    let mut moved = plane.scopes_moved();
    let mut subscriber = plane.subscribe(&node.view());
    let id = plane.next_stream_id();
    let options = StreamOptions {
        variant: settings.variant,
        only_type: settings.only_type,
        peer: node.peer(),
        id,
        identifier: settings.identifier,
    };
    let view = Arc::clone(&subscriber.view.borrow_and_update());
    let mut session = Session {
        stream: Stream::new(options, view),
        _membership: Membership::new(
            Arc::clone(&plane),
            id,
            client(&node, peer, settings.variant, &subscriber),
        ),
        plane,
        node,
        id,
        opened: Instant::now(),
    };
    info!(node = session.node.id, stream = id, variant = ?settings.variant, "stream opened");
    session.handle(&request)?;

    loop {
        let wake = session.wake();
        let is_due = wake.is_some_and(|at| at <= Instant::now());
        tokio::select! {
            biased;
            message = inbound.message() => match message {
                Ok(Some(Inbound { request, .. })) => session.handle(&request)?,
                Ok(None) => break,
                // A client that goes away is not worth a complaint.
                Err(status) => {
                    debug!(stream = id, %status, "the client broke the stream");
                    break;
                }
            },
            changed = moved.changed() => {
                if changed.is_err() {
                    break;
                }
                subscriber = session.plane.subscribe(&session.node.view());
                session.move_to(&mut subscriber);
            }
            changed = subscriber.view.changed() => {
                if changed.is_err() {
                    break;
                }
                session.move_to(&mut subscriber);
            }
            permit = outbound.reserve(), if is_due => {
                let Ok(permit) = permit else { break };
                if let Some(response) = session.poll() {
                    permit.send(Ok(response));
                }
            }
            () = outbound.closed() => break,
            () = sleep_until(wake), if wake.is_some() && !is_due => {}
        }
    }
    info!(node = session.node.id, stream = id, "stream closed");
    Ok(())
}

struct Session {
    stream: Stream,
    plane: Arc<Plane>,
    node: ClientNode,
    id: u64,
    opened: Instant,
    _membership: Membership,
}

impl Session {
    fn handle(&mut self, request: &isthmus_xds_core::Request) -> Result<(), Ended> {
        let now = self.opened.elapsed();
        let is_answer = !request.nonce.is_empty();
        self.stream.handle_request(request, now)?;
        if !is_answer {
            self.plane.metrics.count_subscription(&request.type_url);
        }
        let events = self.stream.take_events();
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
        let types = self.stream.status();
        self.plane
            .clients
            .update(self.id, |client| client.types = types);
        Ok(())
    }

    fn move_to(&mut self, subscriber: &mut Subscriber) {
        let view = Arc::clone(&subscriber.view.borrow_and_update());
        self.stream.handle_view(view, self.opened.elapsed());
        let scope = subscriber.scope.clone();
        self.plane
            .clients
            .update(self.id, |client| client.scope = scope);
    }

    fn poll(&mut self) -> Option<Response> {
        let response = self.stream.poll(self.opened.elapsed())?;
        self.plane.metrics.count_response(&response);
        let types = self.stream.status();
        self.plane
            .clients
            .update(self.id, |client| client.types = types);
        Some(response)
    }

    fn wake(&self) -> Option<Instant> {
        self.stream.next_wake().map(|at| self.opened + at)
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

fn client(node: &ClientNode, peer: String, variant: Variant, subscriber: &Subscriber) -> Client {
    Client {
        node_id: node.id.clone(),
        node_cluster: node.cluster.clone(),
        user_agent: node.user_agent.clone(),
        peer,
        variant,
        scope: subscriber.scope.clone(),
        types: Vec::new(),
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
