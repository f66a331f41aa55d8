//! The responses of one streaming call, written by a task that ends with the call or the server.

use std::future::Future;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Responses that wait for the client to read: the writer waits with it.
const WAITING_RESPONSES: usize = 1;

/// The body of a streaming answer.
pub(super) type Outbound<T> = ReceiverStream<Result<T, Status>>;

/// Where the task puts its responses; an error means that nobody reads them any more.
pub(super) type Responses<T> = mpsc::Sender<Result<T, Status>>;

/// Runs `write` until it is done, the client goes away, or the server stops. What it returns is the
/// status of the call.
pub(super) fn spawn<T, F>(
    mut shutdown: watch::Receiver<bool>,
    write: impl FnOnce(Responses<T>) -> F,
) -> Outbound<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (responses, outbound) = mpsc::channel(WAITING_RESPONSES);
    let write = write(responses.clone());
    tokio::spawn(async move {
        let ended = tokio::select! {
            // First, so that it can say its last word about a server that stops.
            biased;
            ended = write => ended,
            () = responses.closed() => return,
            // Fails only if the sender is gone, and then it is time to stop as well.
            _ = shutdown.wait_for(|is_down| *is_down) => {
                Err(Status::unavailable("the server is shutting down; reconnect"))
            }
        };
        if let Err(status) = ended {
            // Fails if the client is gone, and needs no status then.
            let _ = responses.send(Err(status)).await;
        }
    });
    ReceiverStream::new(outbound)
}
