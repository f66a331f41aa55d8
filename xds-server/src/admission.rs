//! How many streams may open at once: after a restart or a network's return the whole fleet
//! knocks in the same second, and each first answer is the largest that its stream will ever get.
//!
//! Streams over the rate wait for their turn, first come, first served. Those that are open are
//! not asked: what changes goes to them as ever, since a stream that waits costs no work.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Metrics;

/// How long a stream may wait for its turn: Envoy's first fetch times out after 15 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// Quiet time whose unused turns are kept: a small fleet is let in as it comes.
const BURST: Duration = Duration::from_millis(2500);

/// Lets streams in.
#[derive(Debug)]
pub(crate) struct Admission {
    started: Instant,
    bucket: Mutex<Option<Bucket>>,
}

/// Why a stream was not let in.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "more streams than --max-stream-opens-per-second lets in want to open: the turn of this one \
     would come after {PATIENCE:?}; reconnect with backoff"
)]
pub(crate) struct Crowded;

impl Default for Admission {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            bucket: Mutex::default(),
        }
    }
}

impl Admission {
    /// Sets the rate; 0 is no limit.
    pub(crate) fn limit(&self, per_second: u32) {
        *self.lock() = Bucket::new(per_second);
    }

    /// Waits until the stream may go on. Its turn is used up even if it goes away meanwhile.
    pub(crate) async fn enter(&self, metrics: &Metrics) -> Result<(), Crowded> {
        let now = self.started.elapsed();
        let turn = self.lock().as_mut().map_or(Ok(now), |it| it.turn(now));
        match turn {
            Ok(at) if at <= now => metrics.count_opening("at_once"),
            Ok(at) => {
                metrics.count_opening("waited");
                tokio::time::sleep_until(self.started + at).await;
            }
            Err(crowded) => {
                metrics.count_opening("refused");
                return Err(crowded);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Bucket>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// A token bucket that remembers when it is full again, instead of counting tokens.
#[derive(Debug)]
struct Bucket {
    interval: Duration,
    full_at: Duration,
}

impl Bucket {
    fn new(per_second: u32) -> Option<Self> {
        let interval = Duration::from_secs(1).checked_div(per_second)?;
        Some(Self {
            interval,
            full_at: Duration::ZERO,
        })
    }

    // When the next stream may go on, if that is soon enough; only then its token is taken.
    fn turn(&mut self, now: Duration) -> Result<Duration, Crowded> {
        let full_at = self.full_at.max(now) + self.interval;
        // At a rate below one in the time of a burst, one at a time.
        let turn = full_at.saturating_sub(BURST.max(self.interval));
        if turn > now + PATIENCE {
            return Err(Crowded);
        }
        self.full_at = full_at;
        Ok(turn.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    // How long so many streams wait that come at the same time.
    fn waits(bucket: &mut Bucket, now: Duration, streams: usize) -> Vec<Option<Duration>> {
        let turns = (0..streams).map(|_| bucket.turn(now).ok());
        turns
            .map(|turn| turn.map(|at| at.saturating_sub(now)))
            .collect()
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_one_by_one() {
        let mut bucket = Bucket::new(100).unwrap();
        let now = Duration::from_secs(5);
        let waits = waits(&mut bucket, now, 253);
        assert!(
            waits[..250]
                .iter()
                .all(|wait| *wait == Some(Duration::ZERO))
        );
        assert_eq!(
            waits[250..],
            [Some(millis(10)), Some(millis(20)), Some(millis(30))]
        );
    }

    #[test]
    fn turns_that_nobody_took_are_kept_up_to_a_burst() {
        let mut bucket = Bucket::new(10).unwrap();
        let all_at_once = |bucket: &mut Bucket, now| {
            let waits = waits(bucket, now, 40);
            waits
                .iter()
                .filter(|wait| **wait == Some(Duration::ZERO))
                .count()
        };
        assert_eq!(all_at_once(&mut bucket, Duration::from_secs(100)), 25);
        // 15 waited, for 1.5 s; one second later there are 10 more turns.
        assert_eq!(all_at_once(&mut bucket, millis(102_500)), 10);
        assert_eq!(all_at_once(&mut bucket, Duration::from_secs(1000)), 25);
    }

    #[test]
    fn who_would_wait_too_long_is_refused_and_takes_nobodys_turn() {
        let mut bucket = Bucket::new(10).unwrap();
        let now = Duration::from_secs(5);
        let waits = waits(&mut bucket, now, 200);
        assert_eq!(waits[..125].iter().flatten().count(), 125);
        assert_eq!(waits[124], Some(PATIENCE));
        assert_eq!(waits[125..].iter().flatten().count(), 0);
        assert_eq!(
            bucket.turn(now + millis(100)),
            Ok(now + millis(100) + PATIENCE)
        );
    }

    #[test]
    fn a_rate_of_none_is_no_limit_and_a_small_one_lets_some_in() {
        assert!(Bucket::new(0).is_none());
        let mut bucket = Bucket::new(1).unwrap();
        let waits = waits(&mut bucket, Duration::ZERO, 4);
        assert_eq!(
            waits,
            [millis(0), millis(0), millis(500), millis(1500)].map(Some)
        );
    }
}
