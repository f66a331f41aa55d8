//! Taking everything out again, without losing a byte.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

pub use super::installation::Unread;
use super::installation::{Duty, Installation};
use crate::DatapathError;

/// How long a message may be on its way to the reader after the sockmap was switched off: many times
/// what a sender needs to get the reader's lock.
const REDIRECT_PATIENCE: Duration = Duration::from_millis(250);
/// How often a condition is looked at while waiting for it.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How often the caller is told what is waited for.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long [`detach`] waits, at the most.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Patience {
    /// For proxies to accept what was redirected to them and to ask where it was going: many times what
    /// that takes on one machine.
    pub accepting: Duration,
    /// For readers to read what was redirected to them.
    pub reading: Duration,
}

impl Patience {
    /// Waits for nobody. No byte is lost, but a connection may be accepted without its destination.
    pub const NONE: Self = Self {
        accepting: Duration::ZERO,
        reading: Duration::ZERO,
    };
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            accepting: Duration::from_secs(2),
            reading: Duration::from_secs(10),
        }
    }
}

/// What [`detach`] found and left.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DetachReport {
    /// Sockets that were in the sockmap.
    pub sockets: usize,
    /// What had not been read in time. These sockets keep the `sk_msg` program and the maps that it
    /// uses, without any pin, until they are closed; what they hold can be read until then. All others
    /// are plain TCP sockets again.
    pub unread: Unread,
}

impl DetachReport {
    /// Adds what was found under another directory.
    pub fn add(&mut self, other: Self) {
        self.sockets += other.sockets;
        self.unread.sockets += other.unread.sockets;
        self.unread.bytes += other.unread.bytes;
    }
}

/// Removes programs, links, maps, pins and directories. With nothing there, it does nothing.
///
/// What was made in the namespaces of pods goes, and new connections are left alone; then nothing skips TCP any more; then, bounded, proxies and
/// readers get the time that they need; then the rest goes. The BPF filesystem stays mounted. `progress`
/// is told once a second what is still to be read.
///
/// # Errors
///
/// Returns [`DatapathError::Kernel`] for what could not be removed; calling it again goes on. What was made in
/// the namespace of a pod and could not be removed is told when everything else is gone.
pub fn detach(
    pin_dir: &Path,
    patience: &Patience,
    progress: &mut dyn FnMut(Unread),
) -> Result<DetachReport, DatapathError> {
    let installation = Installation::at(pin_dir);
    // First, since the namespaces are found by the links. What fails here keeps nothing else from going.
    let withdrawn = installation
        .withdraw_ways_back()
        .and(installation.withdraw_rules());
    installation.unhook(Duty::NewTraffic)?;
    installation.stop_skipping_tcp()?;
    let stopped = Instant::now();
    let sockets = installation.sockets()?;

    if installation.has_pods()? {
        // Whatever is established by then sits in the queue of a listener for a moment.
        wait_until(patience.accepting, || {
            installation.has_handshakes().map(|has_any| !has_any)
        })?;
        thread::sleep(patience.accepting.saturating_sub(stopped.elapsed()));
    }
    let mut unread = Unread::default();
    if sockets > 0 {
        thread::sleep(REDIRECT_PATIENCE.saturating_sub(stopped.elapsed()));
        let mut last_report = Instant::now();
        wait_until(patience.reading, || {
            unread = installation.release_drained()?;
            if last_report.elapsed() >= REPORT_INTERVAL {
                last_report = Instant::now();
                progress(unread);
            }
            Ok(unread == Unread::default())
        })?;
    }
    installation.remove()?;
    withdrawn?;
    Ok(DetachReport { sockets, unread })
}

// Looks at least once, and ends after the patience in any case.
fn wait_until(
    patience: Duration,
    mut is_done: impl FnMut() -> Result<bool, DatapathError>,
) -> Result<(), DatapathError> {
    let deadline = Instant::now() + patience;
    while !is_done()? && Instant::now() < deadline {
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
