//! One clock for all processes of a run.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the machine started: the same in every process.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    Duration::from(now)
}

/// Sleeps until a time of [`now`]; returns at once if it has passed.
pub(crate) fn sleep_until(at: Duration) {
    std::thread::sleep(at.saturating_sub(now()));
}
