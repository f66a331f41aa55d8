//! The task of one connection: reads, gives each stream its turn, writes.

use std::cell::RefCell;
use std::future::Future;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep};
use tower_service::Service;
use tracing::debug;

use crate::body::{BodyError, Inbound, RequestBody};
use crate::connection::{Connection, Event};
use crate::exchange::{Exchange, Turn, call};
use crate::signals::{Phase, Signals, SlotSet, stream_waker};
use crate::{BoxError, Transport, limits};

thread_local! {
    // What is read goes into frames at once: all connections of a thread share the buffer.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A connection and its streams, as a future that ends with it.
pub(crate) struct Driver<I, S, B> {
    transport: I,
    service: S,
    connection: Connection,
    exchanges: Vec<Option<Exchange<B>>>,
    signals: Arc<Signals>,
    // Streams that were woken, or had more than there was room for.
    ready: SlotSet,
    // Where the next round of turns begins.
    next_turn: usize,
    // Whether some of what was written has not left.
    is_blocked: bool,
    opened: Instant,
    timer: Pin<Box<Sleep>>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Open,
    /// The last bytes leave.
    Leaving,
    /// Nothing more is written; the peer closes, or patience ends.
    Lingering,
}

/// What was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reading {
    Waits,
    Ended,
}

impl<I, S, B> Driver<I, S, B>
where
    I: Transport,
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    pub(crate) fn new(transport: I, service: S, signals: Arc<Signals>) -> Self {
        let opened = Instant::now();
        let connection = Connection::new();
        Self {
            transport,
            service,
            exchanges: Vec::new(),
            signals,
            ready: SlotSet::default(),
            next_turn: 0,
            is_blocked: false,
            opened,
            timer: Box::pin(tokio::time::sleep_until(opened + connection.next_wake())),
            connection,
            stage: Stage::Open,
        }
    }

    // Reads, serves and writes until there is nothing left to do.
    fn advance(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for _ in 0..limits::ROUNDS {
            match self.signals.phase() {
                Phase::Serve => {}
                Phase::Drain => self.connection.shut_down(),
                Phase::Close => return Poll::Ready(()),
            }
            let was_clogged = self.connection.is_clogged();
            if !was_clogged && self.read(context) == Reading::Ended {
                return Poll::Ready(());
            }
            if self.is_blocked && self.write(context).is_err() {
                return Poll::Ready(());
            }
            self.watch_time(context);
            if self.connection.is_done() {
                return self.leave(context);
            }
            let has_more = self.serve();
            if self.write(context).is_err() {
                return Poll::Ready(());
            }
            if self.connection.is_done() {
                return self.leave(context);
            }
            let is_unclogged = was_clogged && !self.connection.is_clogged();
            let goes_on = is_unclogged || (has_more && !self.is_blocked);
            if !goes_on && self.signals.leave() {
                return Poll::Pending;
            }
        }
        // Others have waited long enough.
        context.waker().wake_by_ref();
        self.signals.leave();
        Poll::Pending
    }

    fn read(&mut self, context: &mut Context<'_>) -> Reading {
        READ_BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(limits::READ_BYTES, 0);
            loop {
                let mut into = ReadBuf::new(buffer);
                match Pin::new(&mut self.transport).poll_read(context, &mut into) {
                    Poll::Pending => return Reading::Waits,
                    Poll::Ready(Ok(())) if !into.filled().is_empty() => {}
                    Poll::Ready(Ok(())) => return Reading::Ended,
                    Poll::Ready(Err(error)) => {
                        debug!(%error, "the connection broke");
                        return Reading::Ended;
                    }
                }
                if self.stage == Stage::Open {
                    self.handle_bytes(into.filled());
                    if self.connection.is_clogged() || self.connection.is_done() {
                        return Reading::Waits;
                    }
                }
            }
        })
    }

    fn handle_bytes(&mut self, bytes: &[u8]) {
        let Self {
            transport,
            service,
            connection,
            exchanges,
            signals,
            ready,
            ..
        } = self;
        let now = self.opened.elapsed();
        connection.handle_bytes(bytes, now, &mut |event| match event {
            Event::Request { slot, head, is_end } => {
                let waker = stream_waker(signals, slot);
                let inbound = (!is_end).then(|| Inbound::new(waker.clone()));
                let body = inbound
                    .as_ref()
                    .map_or_else(RequestBody::empty, RequestBody::of);
                let mut request = Request::from_parts(*head, body);
                transport.describe(request.extensions_mut());
                let answering = call(service.clone(), request);
                if exchanges.len() <= slot.index() {
                    exchanges.reserve_exact(1);
                    exchanges.push(None);
                }
                exchanges[slot.index()] = Some(Exchange::new(waker, inbound, answering));
                ready.insert(slot);
            }
            Event::Data {
                slot,
                bytes,
                is_end,
            } => {
                let exchange = exchanges.get(slot.index()).and_then(Option::as_ref);
                if let Some(inbound) = exchange.and_then(Exchange::inbound) {
                    inbound.push(bytes, is_end);
                }
            }
            Event::Trailers { slot, fields } => {
                let exchange = exchanges.get(slot.index()).and_then(Option::as_ref);
                if let Some(inbound) = exchange.and_then(Exchange::inbound) {
                    inbound.push_trailers(fields);
                }
            }
            Event::Reset { slot, code } => {
                let exchange = exchanges.get_mut(slot.index()).and_then(Option::take);
                if let Some(inbound) = exchange.as_ref().and_then(Exchange::inbound) {
                    inbound.fail(BodyError::Reset(code));
                }
                ready.remove(slot);
            }
        });
    }

    // Gives each ready stream a turn, and another, until all wait or enough is to be written.
    // Tells whether some have more.
    fn serve(&mut self) -> bool {
        self.signals.take_ready(&mut self.ready);
        let mut stuck = SlotSet::default();
        while !self.ready.is_empty() {
            if self.connection.outbox_len() >= limits::WRITE_BYTES && !self.is_blocked {
                break;
            }
            let from_here = self.ready.first_from(self.next_turn);
            let Some(slot) = from_here.or_else(|| self.ready.first_from(0)) else {
                break;
            };
            self.next_turn = slot.index() + 1;
            self.ready.remove(slot);
            let Some(exchange) = self
                .exchanges
                .get_mut(slot.index())
                .and_then(Option::as_mut)
            else {
                continue;
            };
            match exchange.take_turn(slot, &mut self.connection, self.is_blocked) {
                Turn::Waits => {}
                Turn::Ended => self.exchanges[slot.index()] = None,
                Turn::HasMore if self.is_blocked || self.connection.room(slot) == 0 => {
                    stuck.insert(slot);
                }
                Turn::HasMore => self.ready.insert(slot),
            }
        }
        let has_more = !self.ready.is_empty();
        self.ready.insert_all(&stuck);
        has_more
    }

    fn write(&mut self, context: &mut Context<'_>) -> Result<(), ()> {
        let mut transport = Pin::new(&mut self.transport);
        if self.connection.outbox_len() == 0 && !self.is_blocked {
            return Ok(());
        }
        while self.connection.outbox_len() > 0 {
            let mut slices = [IoSlice::new(&[]); limits::WRITE_SLICES];
            let count = self.connection.slices(&mut slices);
            let written = match &slices[..count] {
                [slice] => transport.as_mut().poll_write(context, slice),
                slices => transport.as_mut().poll_write_vectored(context, slices),
            };
            match written {
                Poll::Pending => {
                    self.is_blocked = true;
                    return Ok(());
                }
                Poll::Ready(Ok(written)) if written > 0 => self.connection.advance(written),
                Poll::Ready(Ok(_)) => return Err(()),
                Poll::Ready(Err(error)) => {
                    debug!(%error, "the connection broke");
                    return Err(());
                }
            }
        }
        // Of TLS, some may still be inside.
        let flushed = transport.poll_flush(context);
        self.is_blocked = flushed.is_pending();
        match flushed {
            Poll::Ready(Err(error)) => {
                debug!(%error, "the connection broke");
                Err(())
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn watch_time(&mut self, context: &mut Context<'_>) {
        while self.timer.as_mut().poll(context).is_ready() {
            self.connection.handle_time(self.opened.elapsed());
            let next = if self.connection.is_done() {
                self.opened.elapsed() + limits::LINGER
            } else {
                self.connection.next_wake()
            };
            self.timer.as_mut().reset(self.opened + next);
        }
    }

    // Writes the last bytes, says that they are the last, and waits for the peer to close: what
    // it has under way would otherwise make the kernel throw our GOAWAY away.
    fn leave(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.stage == Stage::Open {
            self.stage = Stage::Leaving;
            self.exchanges = Vec::new();
            self.timer.as_mut().reset(Instant::now() + limits::LINGER);
        }
        if self.timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if self.stage == Stage::Leaving {
            if self.write(context).is_err() {
                return Poll::Ready(());
            }
            if self.is_blocked {
                self.signals.leave();
                return Poll::Pending;
            }
            match Pin::new(&mut self.transport).poll_shutdown(context) {
                Poll::Ready(Ok(())) => self.stage = Stage::Lingering,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        match self.read(context) {
            Reading::Ended => Poll::Ready(()),
            Reading::Waits => {
                self.signals.leave();
                Poll::Pending
            }
        }
    }
}

// Nothing in it is pinned in place.
impl<I, S, B> Unpin for Driver<I, S, B> {}

impl<I, S, B> Future for Driver<I, S, B>
where
    I: Transport,
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let driver = self.get_mut();
        driver.signals.enter(context.waker());
        if driver.stage == Stage::Open {
            return driver.advance(context);
        }
        match driver.signals.phase() {
            Phase::Close => Poll::Ready(()),
            Phase::Serve | Phase::Drain => driver.leave(context),
        }
    }
}
