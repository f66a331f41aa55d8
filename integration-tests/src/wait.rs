//! Waiting for a condition, with a deadline: what tests do instead of sleeping for a guessed time.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks at a condition: short against what is waited for, long against what a look costs.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A reason for which what is waited for will never happen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hopeless(pub String);

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Hopeless {}

/// Calls `probe` until it returns something, and returns that.
///
/// # Errors
///
/// Once `deadline` has passed, or at once if the error of `probe` is [`Hopeless`], with `what` and that reason.
pub fn until<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        let error = match probe() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if error.is::<Hopeless>() {
            return Err(error.context(format!("{what} will not happen")));
        }
        if start.elapsed() >= deadline {
            bail!("{what} did not happen within {deadline:?}: {error:#}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn waiting_ends_with_a_value_a_deadline_or_no_hope() {
        let long = Duration::from_mins(1);
        let mut looks = 0;
        let third = until("the third look", long, || {
            looks += 1;
            if looks == 3 {
                Ok(looks)
            } else {
                Err(anyhow!("look {looks}"))
            }
        });
        assert_eq!(third.ok(), Some(3));

        let late = until("nothing", Duration::ZERO, || Err::<(), _>(anyhow!("no")));
        assert!(late.is_err_and(|error| error.to_string().contains("did not happen within")));

        let gone = until("a ghost", long, || {
            Err::<(), _>(Hopeless("it ended".to_owned()).into())
        });
        assert!(
            gone.is_err_and(|error| format!("{error:#}") == "a ghost will not happen: it ended")
        );
    }
}
