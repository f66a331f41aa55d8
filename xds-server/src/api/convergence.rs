//! A generation on its way to the clients, as a caller follows it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use isthmus_proto::control::client_outcome::Verdict;
use isthmus_proto::control::convergence_event::Event;
use isthmus_proto::control::{ClientOutcome, ConvergenceEvent, Totals};
use isthmus_proto::pb::google::protobuf;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::limits::{EVENTS_BUFFERED, FOLLOWABLE_COMMITS};
use crate::convergence::{Answered, Outcome, Progress};
use crate::plane::Plane;

/// How often totals are told at most while answers come in.
const TOTALS_INTERVAL: Duration = Duration::from_millis(100);

/// The answers to the last commits from their first on, each for who follows it first.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent(Arc<Mutex<VecDeque<Kept>>>);

/// A generation, and the answers since before it.
type Kept = (u64, broadcast::Receiver<Answered>);

impl Recent {
    /// Keeps what was listened to since before a commit.
    pub(super) fn keep(&self, generation: u64, answers: broadcast::Receiver<Answered>) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == FOLLOWABLE_COMMITS {
            recent.pop_front();
        }
        recent.push_back((generation, answers));
    }

    fn take(&self, generation: u64) -> Option<broadcast::Receiver<Answered>> {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = recent.iter().position(|(it, _)| *it == generation)?;
        recent.remove(index).map(|(_, answers)| answers)
    }
}

/// Follows a generation until nobody is waited for, the caller goes, or the server stops.
pub(super) fn follow(
    plane: &Plane,
    recent: &Recent,
    generation: u64,
    mut shutdown: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) -> Result<ReceiverStream<Result<ConvergenceEvent, Status>>, Status> {
    let generation = match generation {
        0 => plane.snapshot().0,
        generation => generation,
    };
    // Listened to before the totals are read: no answer falls between.
    let replayed = recent.take(generation);
    let is_replayed = replayed.is_some();
    let answers = replayed.unwrap_or_else(|| plane.convergence.answers());
    let Some(progress) = plane.convergence.watch(generation) else {
        return Err(Status::not_found(format!(
            "generation {generation} is not among the last that are followed; 0 stands for the newest"
        )));
    };
    let (events, outbound) = mpsc::channel(EVENTS_BUFFERED);
    let follower = Follower {
        generation,
        answers,
        progress,
        events,
    };
    tokio::spawn(async move {
        let _permit = permit;
        tokio::select! {
            ended = follower.run(is_replayed) => {
                // Fails when the caller is gone, which is an end too.
                let _: Result<(), Gone> = ended;
            }
            // Fails only if the sender is gone, and then it is time to stop as well.
            _ = shutdown.wait_for(|is_stopped| *is_stopped) => {}
        }
    });
    Ok(ReceiverStream::new(outbound))
}

struct Follower {
    generation: u64,
    answers: broadcast::Receiver<Answered>,
    progress: watch::Receiver<Progress>,
    events: mpsc::Sender<Result<ConvergenceEvent, Status>>,
}

/// The caller is not there any more.
struct Gone;

impl Follower {
    async fn run(mut self, is_replayed: bool) -> Result<(), Gone> {
        let first = self.progress.borrow_and_update().clone();
        self.tell(totals(&first)).await?;
        if !is_replayed {
            for refused in &first.refused {
                let outcome = ClientOutcome {
                    stream: refused.stream,
                    node_id: refused.node_id.to_string(),
                    type_url: refused.type_url.to_string(),
                    verdict: Verdict::Refused as i32,
                    error: refused.message.to_string(),
                    resources: refused.resources.iter().map(ToString::to_string).collect(),
                    change_to_ack: None,
                };
                self.tell(Event::Client(outcome)).await?;
            }
        }
        let mut told = Instant::now();
        let mut pending = first.pending;
        while pending > 0 {
            tokio::select! {
                answer = self.answers.recv() => match answer {
                    Ok(answer) => self.answer(answer).await?,
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break,
                },
                changed = self.progress.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let progress = self.progress.borrow_and_update().clone();
                    pending = progress.pending;
                    if pending > 0 && told.elapsed() >= TOTALS_INTERVAL {
                        told = Instant::now();
                        self.tell(totals(&progress)).await?;
                    }
                }
            }
        }
        loop {
            match self.answers.try_recv() {
                Ok(answer) => self.answer(answer).await?,
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let last = self.progress.borrow().clone();
        self.tell(totals(&last)).await
    }

    async fn answer(&self, answer: Answered) -> Result<(), Gone> {
        if answer.generation != self.generation {
            return Ok(());
        }
        let (verdict, error) = match &answer.outcome {
            Outcome::Accepted => (Verdict::Accepted, String::new()),
            Outcome::Refused(words) => (Verdict::Refused, words.to_string()),
            Outcome::Left => (Verdict::Left, String::new()),
        };
        let blamed = if verdict == Verdict::Refused {
            self.blamed(&answer)
        } else {
            Vec::new()
        };
        let outcome = ClientOutcome {
            stream: answer.stream,
            node_id: answer.node_id.to_string(),
            type_url: answer.type_url.as_deref().unwrap_or_default().to_owned(),
            verdict: verdict as i32,
            error,
            resources: blamed,
            change_to_ack: Some(duration(answer.after)),
        };
        self.tell(Event::Client(outcome)).await
    }

    fn blamed(&self, answer: &Answered) -> Vec<String> {
        let progress = self.progress.borrow();
        let refused = progress.refused.iter().find(|it| {
            it.stream == answer.stream && Some(&it.type_url) == answer.type_url.as_ref()
        });
        let names = refused.map(|it| it.resources.iter().map(ToString::to_string));
        names.into_iter().flatten().collect()
    }

    async fn tell(&self, event: Event) -> Result<(), Gone> {
        let event = ConvergenceEvent { event: Some(event) };
        self.events.send(Ok(event)).await.map_err(|_| Gone)
    }
}

fn totals(progress: &Progress) -> Event {
    Event::Totals(Totals {
        generation: progress.generation,
        clients: progress.needed,
        accepted: progress.accepted,
        refused: progress.refusals,
        waiting: progress.pending,
        is_converged: progress.is_converged,
    })
}

fn duration(duration: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}
