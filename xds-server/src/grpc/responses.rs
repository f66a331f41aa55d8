//! The body of a stream: polls the session for a response when there is room for one, and hands
//! its bytes on as they are, shared with every other stream.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use isthmus_xds_core::Response;
use tonic::Status;

/// Pieces below this are copied together: a frame of their own would cost more than the copy.
const SHARED_FROM_BYTES: usize = 4096;

/// Bytes of one frame of copied pieces.
const COPIED_BYTES: usize = 32 * 1024;

/// Where a session puts its response. It holds one, so that what is not on its way yet can still
/// merge with what changes next: a slow reader costs no queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot(Arc<Mutex<Option<Response>>>);

impl Slot {
    /// Whether the body has taken the last response. Only the body's own poll brings this
    /// forward, and it polls the session each time.
    pub(super) fn is_vacant(&self) -> bool {
        self.lock().is_none()
    }

    /// Puts in a response; the slot was seen vacant.
    pub(super) fn put(&self, response: Response) {
        *self.lock() = Some(response);
    }

    fn take(&self) -> Option<Response> {
        self.lock().take()
    }

    // Both ends are polled by one task: the lock is never waited for.
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Response>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Driver = Pin<Box<dyn Future<Output = Status> + Send>>;

/// A response body that runs the session as it is polled.
pub(super) struct SessionBody {
    driver: Option<Driver>,
    slot: Slot,
    frames: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
}

impl SessionBody {
    /// `driver` fills `slot` until the stream ends, and says with what status.
    pub(super) fn new(slot: Slot, driver: impl Future<Output = Status> + Send + 'static) -> Self {
        Self {
            driver: Some(Box::pin(driver)),
            slot,
            frames: VecDeque::new(),
            trailers: None,
        }
    }
}

impl Body for SessionBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.frames.is_empty()
            && let Some(driver) = &mut self.driver
        {
            let ended = driver.as_mut().poll(context);
            if let Some(response) = self.slot.take() {
                self.frames = frames(response);
            }
            if let Poll::Ready(status) = ended {
                self.driver = None;
                self.trailers = Some(trailers(&status));
            }
        }
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        match self.driver {
            Some(_) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

// The gRPC prefix and the pieces, small ones copied together and large ones as they are.
fn frames(response: Response) -> VecDeque<Bytes> {
    let size_bytes = response.size_bytes();
    let mut frames = VecDeque::new();
    let mut copied = BytesMut::with_capacity(COPIED_BYTES.min(size_bytes + 5));
    copied.put_u8(0);
    // A response is far below 4 GiB: one resource comes out of one document.
    copied.put_u32(u32::try_from(size_bytes).unwrap_or(u32::MAX));
    for piece in response.pieces {
        if piece.len() < SHARED_FROM_BYTES {
            if copied.len() + piece.len() > COPIED_BYTES {
                frames.push_back(copied.split().freeze());
            }
            copied.extend_from_slice(&piece);
            continue;
        }
        if !copied.is_empty() {
            frames.push_back(copied.split().freeze());
        }
        frames.push_back(piece);
    }
    if !copied.is_empty() {
        frames.push_back(copied.freeze());
    }
    frames
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // A message that no header can carry: the code has to do.
        trailers.clear();
        trailers.insert(
            Status::GRPC_STATUS,
            HeaderValue::from(i32::from(status.code())),
        );
    }
    trailers
}

#[cfg(test)]
mod tests {
    use isthmus_xds_core::TypeUrl;

    use super::*;

    fn response(pieces: &[usize]) -> Response {
        Response {
            type_url: TypeUrl::from("t"),
            resources: pieces.len(),
            removed: 0,
            pieces: pieces
                .iter()
                .map(|len| Bytes::from(vec![7; *len]))
                .collect(),
        }
    }

    #[test]
    fn large_pieces_are_shared_and_small_ones_travel_together() {
        let response = response(&[10, 100_000, 20, 30, 5000]);
        let (total, large) = (response.size_bytes(), response.pieces[1].clone());
        let frames = frames(response);
        assert_eq!(
            frames.iter().map(Bytes::len).collect::<Vec<_>>(),
            [15, 100_000, 50, 5000]
        );
        assert_eq!(frames[1].as_ptr(), large.as_ptr(), "no copy");
        let prefix = [&[0][..], &u32::try_from(total).unwrap().to_be_bytes()].concat();
        assert_eq!(frames[0][..5], prefix);
    }

    #[test]
    fn many_small_pieces_make_frames_of_bounded_size() {
        let frames = frames(response(&vec![1000; 100]));
        assert_eq!(frames.iter().map(Bytes::len).sum::<usize>(), 100_005);
        assert!(frames.iter().all(|frame| frame.len() <= COPIED_BYTES));
    }
}
