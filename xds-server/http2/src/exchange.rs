//! One stream as the task sees it: a service at work, then the body of its response.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tower_service::Service;
use tracing::debug;

use crate::body::{BodyError, Inbound, RequestBody};
use crate::connection::{Connection, Slot};
use crate::frame::ErrorCode;
use crate::{BoxError, limits};

type Answering<B> = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

/// A request that is being answered.
pub(crate) struct Exchange<B> {
    waker: Waker,
    // Absent if the request has no body.
    inbound: Option<Arc<Inbound>>,
    answer: Answer<B>,
}

enum Answer<B> {
    Awaited(Answering<B>),
    Body {
        body: B,
        // What the body has given and there was no room for.
        data: Bytes,
        trailers: Option<Box<HeaderMap>>,
    },
}

/// What became of a stream's turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Turn {
    /// It waits, and will be woken.
    Waits,
    /// It has more, and there may be no room for it.
    HasMore,
    /// The response has ended.
    Ended,
}

/// Asks `service` once it is ready.
pub(crate) fn call<S, B>(mut service: S, request: Request<RequestBody>) -> Answering<B>
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
{
    Box::pin(async move {
        let ready = poll_fn(|context| service.poll_ready(context)).await;
        ready.map_err(Into::into)?;
        service.call(request).await.map_err(Into::into)
    })
}

impl<B> Exchange<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    pub(crate) fn new(
        waker: Waker,
        inbound: Option<Arc<Inbound>>,
        answering: Answering<B>,
    ) -> Self {
        Self {
            waker,
            inbound,
            answer: Answer::Awaited(answering),
        }
    }

    /// Where the request's body goes.
    pub(crate) fn inbound(&self) -> Option<&Inbound> {
        self.inbound.as_deref()
    }

    /// Moves the stream on, by one piece of its response at most. `is_blocked`: nothing of a
    /// body may be asked for, since earlier bytes have not left.
    pub(crate) fn take_turn(
        &mut self,
        slot: Slot,
        connection: &mut Connection,
        is_blocked: bool,
    ) -> Turn {
        let turn = self.advance(slot, connection, is_blocked);
        if turn != Turn::Ended
            && let Some(inbound) = &self.inbound
        {
            let read_bytes = inbound.take_read();
            if read_bytes > 0 {
                connection.release(slot, read_bytes);
            }
        }
        turn
    }

    fn advance(&mut self, slot: Slot, connection: &mut Connection, is_blocked: bool) -> Turn {
        let mut context = Context::from_waker(&self.waker);
        if let Answer::Awaited(answering) = &mut self.answer {
            let response = match answering.as_mut().poll(&mut context) {
                Poll::Pending => return Turn::Waits,
                Poll::Ready(Ok(response)) => response,
                Poll::Ready(Err(error)) => {
                    debug!(%error, "the service failed");
                    connection.reset(slot, ErrorCode::INTERNAL_ERROR);
                    return Turn::Ended;
                }
            };
            let (head, body) = response.into_parts();
            let is_end = body.is_end_stream();
            connection.send_head(slot, &head, is_end);
            if is_end {
                return Turn::Ended;
            }
            self.answer = Answer::Body {
                body,
                data: Bytes::new(),
                trailers: None,
            };
        }
        let Answer::Body {
            body,
            data,
            trailers,
        } = &mut self.answer
        else {
            return Turn::Waits;
        };
        if is_blocked {
            return Turn::HasMore;
        }
        if data.is_empty() && trailers.is_none() {
            if connection.room(slot) == 0 {
                return Turn::HasMore;
            }
            match Pin::new(&mut *body).poll_frame(&mut context) {
                Poll::Pending => return Turn::Waits,
                Poll::Ready(None) => {
                    connection.send_end(slot);
                    return Turn::Ended;
                }
                Poll::Ready(Some(Err(error))) => {
                    let error: BoxError = error.into();
                    debug!(%error, "the response broke off");
                    connection.reset(slot, ErrorCode::INTERNAL_ERROR);
                    return Turn::Ended;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => *data = bytes,
                    Err(frame) => *trailers = frame.into_trailers().ok().map(Box::new),
                },
            }
        }
        if data.has_remaining() {
            let is_last = body.is_end_stream();
            connection.send_data(slot, data, is_last);
            if data.is_empty() && is_last {
                return Turn::Ended;
            }
            return Turn::HasMore;
        }
        match trailers.take() {
            Some(trailers) => {
                connection.send_trailers(slot, &trailers);
                Turn::Ended
            }
            None => Turn::HasMore,
        }
    }
}

impl<B> Drop for Exchange<B> {
    fn drop(&mut self) {
        if let Some(inbound) = &self.inbound {
            inbound.fail(BodyError::Answered);
        }
    }
}

// The set of streams that are woken has a bit for each.
const _: () = assert!(limits::STREAMS_PER_CONNECTION == 256);
