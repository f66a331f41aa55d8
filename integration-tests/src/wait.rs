//! Waiting for a condition, with a deadline: what tests do instead of sleeping for a guessed time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks at a condition: short against what is waited for, long against what a look costs.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Calls `probe` until it returns something, and returns that.
///
/// # Errors
///
/// Once `deadline` has passed, with `what` and the last reason that `probe` gave.
pub fn until<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        let error = match probe() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if start.elapsed() >= deadline {
            bail!("{what} did not happen within {deadline:?}: {error:#}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
