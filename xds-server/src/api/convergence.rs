//! A generation on its way to the clients, as a caller follows it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use isthmus_proto::control::client_outcome::Verdict;
use isthmus_proto::control::convergence_event::Event;
use isthmus_proto::control::{ClientOutcome, ConvergenceEvent, Totals};
use isthmus_proto::pb::google::protobuf;
use isthmus_xds_core::TypeUrl;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::limits::{EVENTS_BUFFERED, FOLLOWABLE_AT_MOST, FOLLOWABLE_COMMITS, FOLLOWABLE_FOR};
use crate::convergence::{Answered, Outcome, Progress, REFUSALS_KEPT, RefusedBy};
use crate::plane::Plane;

/// How often totals are told at most while answers come in.
const TOTALS_INTERVAL: Duration = Duration::from_millis(100);

/// The answers to the last commits from their first on, each for who follows it first.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    // Oldest first.
    kept: VecDeque<Kept>,
    // Whether something will come and put away what nobody asked for.
    is_swept: bool,
}

/// A generation, and the answers since before it.
#[derive(Debug)]
struct Kept {
    generation: u64,
    answers: broadcast::Receiver<Answered>,
    since: Instant,
}

impl Recent {
    /// Keeps what was listened to since before a commit, until nobody is likely to ask for it.
    pub(super) fn keep(
        &self,
        plane: &Arc<Plane>,
        generation: u64,
        answers: broadcast::Receiver<Answered>,
    ) {
        let mut waiting = self.lock();
        if waiting.kept.len() == FOLLOWABLE_COMMITS {
            waiting.kept.pop_front();
        }
        waiting.kept.push_back(Kept {
            generation,
            answers,
            since: Instant::now(),
        });
        if !std::mem::replace(&mut waiting.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0), Arc::downgrade(plane)));
        }
    }

    fn take(&self, generation: u64) -> Option<broadcast::Receiver<Answered>> {
        let mut waiting = self.lock();
        let mut kept = waiting.kept.iter();
        let index = kept.position(|it| it.generation == generation)?;
        waiting.kept.remove(index).map(|it| it.answers)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    // As long as somebody listens, each answer is copied for them.
    fn put_away(&mut self, now: Instant, is_done: impl Fn(u64) -> bool) {
        self.kept.retain(|it| {
            let age = now.saturating_duration_since(it.since);
            age < FOLLOWABLE_FOR || (age < FOLLOWABLE_AT_MOST && !is_done(it.generation))
        });
    }
}

// Ends with what there is to put away, with the service, or with the plane.
async fn sweep(waiting: Weak<Mutex<Waiting>>, plane: Weak<Plane>) {
    loop {
        tokio::time::sleep(FOLLOWABLE_FOR).await;
        let (Some(waiting), Some(plane)) = (waiting.upgrade(), plane.upgrade()) else {
            return;
        };
        let progress = |generation| plane.convergence.progress(generation);
        let is_done = |generation| progress(generation).is_none_or(|it| it.pending == 0);
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.put_away(Instant::now(), is_done);
        if waiting.kept.is_empty() {
            waiting.is_swept = false;
            return;
        }
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
        skipped: 0,
        told: Vec::new(),
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
    // Answers that were lost, since the caller was slower than they came.
    skipped: u64,
    // Of the first refusals: the streams and types of those that were told.
    told: Vec<(u64, TypeUrl)>,
}

/// The caller is not there any more.
struct Gone;

impl Follower {
    async fn run(mut self, is_replayed: bool) -> Result<(), Gone> {
        let first = self.progress.borrow_and_update().clone();
        self.tell(self.totals(&first)).await?;
        if !is_replayed {
            self.tell_refused(&first.refused).await?;
        }
        let mut told = Instant::now();
        let mut pending = first.pending;
        while pending > 0 {
            tokio::select! {
                answer = self.answers.recv() => match answer {
                    Ok(answer) => self.answer(answer).await?,
                    Err(RecvError::Lagged(lost)) => self.make_up_for(lost).await?,
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
                        self.tell(self.totals(&progress)).await?;
                    }
                }
            }
        }
        loop {
            match self.answers.try_recv() {
                Ok(answer) => self.answer(answer).await?,
                Err(TryRecvError::Lagged(lost)) => self.make_up_for(lost).await?,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let last = self.progress.borrow().clone();
        self.tell(self.totals(&last)).await
    }

    // Answers were lost: tells what is still known of them, which is the first refusals.
    async fn make_up_for(&mut self, lost: u64) -> Result<(), Gone> {
        self.skipped += lost;
        let refused = self.progress.borrow().refused.clone();
        self.tell_refused(&refused).await
    }

    async fn tell_refused(&mut self, refused: &[RefusedBy]) -> Result<(), Gone> {
        for refused in refused {
            let what = (refused.stream, TypeUrl::clone(&refused.type_url));
            if self.told.contains(&what) {
                continue;
            }
            self.told.push(what);
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
        Ok(())
    }

    // Whether a refusal was told when answers were lost, and comes now in its turn.
    fn is_told(&mut self, answer: &Answered) -> bool {
        let (Outcome::Refused(_), Some(type_url)) = (&answer.outcome, &answer.type_url) else {
            return false;
        };
        let what = (answer.stream, TypeUrl::clone(type_url));
        if self.told.contains(&what) {
            return self.skipped > 0;
        }
        // Only the first are ever told out of turn.
        if self.told.len() < REFUSALS_KEPT {
            self.told.push(what);
        }
        false
    }

    async fn answer(&mut self, answer: Answered) -> Result<(), Gone> {
        if answer.generation != self.generation || self.is_told(&answer) {
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

    fn totals(&self, progress: &Progress) -> Event {
        Event::Totals(Totals {
            generation: progress.generation,
            clients: progress.needed,
            accepted: progress.accepted,
            refused: progress.refusals,
            waiting: progress.pending,
            is_converged: progress.is_converged,
            skipped: self.skipped,
        })
    }
}

fn duration(duration: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
