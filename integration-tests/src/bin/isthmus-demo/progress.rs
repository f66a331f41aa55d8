//! A progress bar for people, lines for logs, and an end that ^C can ask for.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use isthmus_integration_tests::process;

/// How often the spinner moves.
const TICK: Duration = Duration::from_millis(100);

/// Where the demo is.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    is_interrupted: Arc<AtomicBool>,
    is_terminal: bool,
}

impl Progress {
    /// A bar of `steps` steps. From here on, ^C no longer kills: it ends the demo at its next step.
    ///
    /// # Errors
    ///
    /// When the handler cannot be installed.
    pub(crate) fn new(steps: u64) -> Result<Self> {
        let is_interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_interrupted);
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
            .context("^C cannot be handled")?;

        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal {
            ProgressBar::new(steps)
        } else {
            ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::hidden())
        };
        bar.set_style(
            ProgressStyle::with_template("{spinner} [{bar:30}] {pos}/{len} {elapsed} {msg}")
                .context("the template is well formed")?
                .progress_chars("=> "),
        );
        bar.enable_steady_tick(TICK);
        Ok(Self {
            bar,
            is_interrupted,
            is_terminal,
        })
    }

    /// Runs one step.
    ///
    /// # Errors
    ///
    /// What the step returns, or that the user wants to stop.
    pub(crate) fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check()?;
        if self.is_terminal {
            self.bar.set_message(what.to_owned());
        } else {
            eprintln!("demo: {what}");
        }
        let result = work();
        // What ^C broke is not an error of its own.
        self.check()?;
        self.bar.inc(1);
        result.with_context(|| what.to_owned())
    }

    /// Removes the bar, for what is printed next.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn check(&self) -> Result<()> {
        if self.is_interrupted.load(Ordering::Relaxed) {
            self.bar.finish_and_clear();
            // The programs end because the user wants it, not because of what their logs say.
            process::declare_success();
            bail!("interrupted; everything the demo made is removed");
        }
        Ok(())
    }
}
