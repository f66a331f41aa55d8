//! Answers that cost the whole configuration to make: away from the threads that serve streams, and
//! few at once.

use std::sync::Arc;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::Semaphore;

/// Answers that are made at once: each may take seconds of CPU, which pushes need.
const ANSWERS_AT_ONCE: usize = 1;

/// Makes answers; clones take turns with each other.
#[derive(Clone, Debug)]
pub(super) struct Answers(Arc<Semaphore>);

impl Default for Answers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ANSWERS_AT_ONCE)))
    }
}

impl Answers {
    /// Waits for its turn, and then for the answer.
    pub(super) async fn make(&self, make: impl FnOnce() -> Value + Send + 'static) -> Response {
        let permit = Arc::clone(&self.0).acquire_owned().await;
        let permit = permit.expect("nobody closes the semaphore");
        let answer = tokio::task::spawn_blocking(move || {
            // With the work, not with who waits for it: that one may go away, and ask again.
            let _permit = permit;
            serde_json::to_vec(&make())
        });
        if let Ok(Ok(json)) = answer.await {
            return ([(header::CONTENT_TYPE, "application/json")], json).into_response();
        }
        let message = "the answer could not be made; see the server's log\n";
        (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::Poll;
    use std::thread;

    use serde_json::json;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn answers_are_made_elsewhere_and_one_at_a_time_even_if_nobody_waits() {
        let answers = Answers::default();
        let here = thread::current().id();
        let (started, has_started) = oneshot::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let first = {
            let answers = answers.clone();
            tokio::spawn(async move {
                let work = move || {
                    let _ = started.send(thread::current().id());
                    let _ = may_go.recv();
                    json!({})
                };
                answers.make(work).await
            })
        };
        assert_ne!(has_started.await.unwrap(), here);
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());

        assert_eq!(answers.0.available_permits(), 0);
        let mut second = Box::pin(answers.make(|| json!({ "made": true })));
        let early = std::future::poll_fn(|it| Poll::Ready(second.as_mut().poll(it).is_ready()));
        assert!(!early.await);
        go.send(()).unwrap();
        let response = second.await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    }
}
