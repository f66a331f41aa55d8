//! The admin endpoint: health and metrics. It asks the loop that owns the agent, so that nothing is
//! shared and a loop that hangs is seen.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{error::CommandError, metrics, shadow::Report, status::Status};

const INDEX: &str = "isthmus-accelerator admin\n\n\
    /livez     does the agent answer\n\
    /readyz    does the kernel hold what the file says\n\
    /metrics   OpenMetrics\n";
/// A round takes milliseconds, on a node full of pods a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions in waiting: a few scrapers and probes.
const MAX_QUESTIONS: usize = 16;

/// A question to the loop.
#[derive(Debug)]
pub struct Question {
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
}

/// What the loop says.
#[derive(Debug)]
pub struct Answer {
    /// Whether the kernel holds what the file says.
    pub is_ready: bool,
    /// What shadow mode has found, `None` outside of it.
    pub shadow: Option<Arc<Report>>,
    /// What is loaded, or why that is not known.
    pub status: Result<Status, String>,
}

/// Serves at `addr`, as long as the runtime lives, and returns where questions arrive.
///
/// # Errors
///
/// Returns [`CommandError::Admin`] if the address cannot be listened on.
pub async fn serve(addr: SocketAddr) -> Result<mpsc::Receiver<Question>, CommandError> {
    let fail = |source| CommandError::Admin { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(fail)?;
    tracing::info!(addr = %listener.local_addr().map_err(fail)?, "admin endpoint");
    let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router(questions)).await {
            tracing::error!(%error, "the admin endpoint ended");
        }
    });
    Ok(asked)
}

fn router(questions: mpsc::Sender<Question>) -> Router {
    Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .with_state(questions)
}

async fn livez(State(questions): State<mpsc::Sender<Question>>) -> Response {
    match ask(&questions).await {
        Some(_) => "ok\n".into_response(),
        None => unavailable("the agent does not answer\n"),
    }
}

async fn readyz(State(questions): State<mpsc::Sender<Question>>) -> Response {
    match ask(&questions).await {
        Some(Answer { is_ready: true, .. }) => "ok\n".into_response(),
        Some(_) => {
            unavailable("not ready: the last change did not reach the kernel; see the log\n")
        }
        None => unavailable("the agent does not answer\n"),
    }
}

async fn render_metrics(State(questions): State<mpsc::Sender<Question>>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let Some(answer) = ask(&questions).await else {
        return unavailable("the agent does not answer\n");
    };
    let text = answer.status.and_then(|status| {
        metrics::render(&status, answer.shadow.as_deref()).map_err(|error| error.to_string())
    });
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn ask(questions: &mpsc::Sender<Question>) -> Option<Answer> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        questions.send(Question { reply }).await.ok()?;
        answer.await.ok()
    };
    timeout(PATIENCE, asked).await.ok()?
}

fn unavailable(text: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}
