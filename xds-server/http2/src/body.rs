//! The body of a request, as a service reads it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::frame::ErrorCode;
use crate::limits;

/// Why a request's body has no proper end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// The stream is over: the client has reset it, or its connection has failed.
    #[error("the client's stream was reset with HTTP/2 error code {}", .0.0)]
    Reset(ErrorCode),
    /// The response has ended, and with it the stream.
    #[error("the response has ended before the request")]
    Answered,
}

/// The body of a request. What is not read is not received either, beyond a window.
#[derive(Debug)]
pub struct RequestBody(Option<Arc<Inbound>>);

impl RequestBody {
    pub(crate) fn empty() -> Self {
        Self(None)
    }

    /// A body that `inbound` fills.
    pub(crate) fn of(inbound: &Arc<Inbound>) -> Self {
        Self(Some(Arc::clone(inbound)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &self.0 {
            Some(inbound) => inbound.poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|inbound| {
            let state = inbound.lock();
            state.bytes.is_empty() && state.trailers.is_none() && state.end == End::Complete
        })
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(inbound) = &self.0 {
            inbound.abandon();
        }
    }
}

/// What has come of a body and is not read, between a connection and a reader.
#[derive(Debug)]
pub(crate) struct Inbound {
    // Wakes the connection: its stream has been read.
    connection: Waker,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    // In one piece: a peer that sends single bytes must not cost a list of them.
    bytes: BytesMut,
    trailers: Option<Box<HeaderMap>>,
    end: End,
    reader: Option<Waker>,
    // Since the connection has asked.
    read_bytes: u32,
    is_abandoned: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Open,
    Complete,
    Failed(BodyError),
}

impl Inbound {
    pub(crate) fn new(connection: Waker) -> Arc<Self> {
        Arc::new(Self {
            connection,
            state: Mutex::new(State {
                bytes: BytesMut::new(),
                trailers: None,
                end: End::Open,
                reader: None,
                read_bytes: 0,
                is_abandoned: false,
            }),
        })
    }

    /// Adds what came.
    pub(crate) fn push(&self, bytes: &[u8], is_end: bool) {
        let mut state = self.lock();
        if state.is_abandoned {
            state.note_read(bytes.len());
            drop(state);
            return self.connection.wake_by_ref();
        }
        state.bytes.extend_from_slice(bytes);
        if is_end {
            state.end = End::Complete;
        }
        wake(state);
    }

    /// Ends the body with trailers.
    pub(crate) fn push_trailers(&self, trailers: HeaderMap) {
        let mut state = self.lock();
        state.trailers = Some(Box::new(trailers));
        state.end = End::Complete;
        wake(state);
    }

    /// Ends the body, if it has not ended; what came can still be read.
    pub(crate) fn fail(&self, error: BodyError) {
        let mut state = self.lock();
        if state.end == End::Open {
            state.end = End::Failed(error);
            wake(state);
        }
    }

    /// Bytes that were read since the last call.
    pub(crate) fn take_read(&self) -> u32 {
        std::mem::take(&mut self.lock().read_bytes)
    }

    fn poll_frame(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.lock();
        if !state.bytes.is_empty() {
            let bytes = std::mem::take(&mut state.bytes).freeze();
            let is_worth_telling = state.note_read(bytes.len());
            drop(state);
            if is_worth_telling {
                self.connection.wake_by_ref();
            }
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match state.end {
            End::Open => {
                let reader = context.waker();
                if !state.reader.as_ref().is_some_and(|it| it.will_wake(reader)) {
                    state.reader = Some(reader.clone());
                }
                Poll::Pending
            }
            End::Complete => {
                let trailers = state.trailers.take();
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(*trailers))))
            }
            End::Failed(error) => {
                state.end = End::Complete;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn abandon(&self) {
        let mut state = self.lock();
        state.is_abandoned = true;
        state.reader = None;
        let unread = std::mem::take(&mut state.bytes);
        let is_worth_telling = state.note_read(unread.len());
        drop(state);
        if is_worth_telling {
            self.connection.wake_by_ref();
        }
    }

    // Held for no longer than it takes to move bytes.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    // Tells whether the connection should know.
    fn note_read(&mut self, length: usize) -> bool {
        // At most a window is unread.
        self.read_bytes += u32::try_from(length).unwrap_or(u32::MAX);
        self.read_bytes >= limits::REPORT_READ_AT_BYTES
    }
}

// Without the lock: a reader may look at once.
fn wake(mut state: MutexGuard<'_, State>) {
    let reader = state.reader.take();
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
}
