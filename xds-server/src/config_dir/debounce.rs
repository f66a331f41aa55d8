//! When a directory that changes is read: soon after the last change, not while somebody writes.
//!
//! A state machine without a clock: the caller says what happened and when, and asks when to read.
//!
//! ```text
//!              change                       quiet for `quiet`, or `longest` after the first change,
//!   settled ───────────▶ changed ─────────▶ and no writer heard of in the last `writer_patience`
//!      ▲                    │ ▲             (or `writer_limit` after the first change): due
//!      └──────── taken ─────┘ └── change
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use super::limits::MAX_FILES;

/// What happened in the directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// A writer closed the file: what it has now is meant.
    Closed(OsString),
    /// A name appeared, went or points elsewhere; whatever it has was written before.
    Replaced(OsString),
    /// Something, and nobody knows what.
    Unknown,
    /// A writer has the file open and wrote to it.
    Written(OsString),
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A directory is read when nothing has happened for so long.
    pub quiet: Duration,
    /// It is read so long after the first change even if changes keep coming.
    pub longest: Duration,
    /// A file that was written to and not closed holds the reading up for so long after each write.
    pub writer_patience: Duration,
    /// Such files hold the reading up for no longer than this after the first change.
    pub writer_limit: Duration,
    /// Without any event the directory is compared with what was read this often: what is behind a link out
    /// of the directory, or on a network file system, changes without one.
    pub rescan: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(50),
            longest: Duration::from_secs(1),
            writer_patience: Duration::from_secs(5),
            writer_limit: Duration::from_secs(30),
            rescan: Duration::from_secs(30),
        }
    }
}

#[derive(Debug)]
pub(super) struct Debounce {
    changed: Option<Changed>,
    timing: Timing,
    /// When each file that a writer has open was last written to. Bounded by [`MAX_FILES`].
    writers: BTreeMap<OsString, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Changed {
    first: Instant,
    last: Instant,
}

impl Debounce {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            changed: None,
            timing,
            writers: BTreeMap::new(),
        }
    }

    /// Takes note of a change that was heard of at `now`.
    pub(super) fn handle(&mut self, change: Change, now: Instant) {
        let first = self.changed.map_or(now, |changed| changed.first);
        self.changed = Some(Changed { first, last: now });
        match change {
            Change::Closed(name) | Change::Replaced(name) => {
                self.writers.remove(&name);
            }
            Change::Unknown => {}
            Change::Written(name) => {
                if self.writers.len() < MAX_FILES || self.writers.contains_key(&name) {
                    self.writers.insert(name, now);
                }
            }
        }
    }

    /// Tells when to read the directory, if it changed since it was [taken](Self::take).
    pub(super) fn due_at(&self) -> Option<Instant> {
        let Changed { first, last } = self.changed?;
        let settled = (last + self.timing.quiet).min(first + self.timing.longest);
        let writers = self.writers.values().max().map(|written| {
            (*written + self.timing.writer_patience).min(first + self.timing.writer_limit)
        });
        Some(writers.map_or(settled, |writers| writers.max(settled)))
    }

    /// Forgets the changes so far: the directory is about to be read.
    pub(super) fn take(&mut self) {
        self.changed = None;
        // Whoever still has a file open after all that waiting does not hold up the next reading, unless it
        // writes again.
        self.writers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_after_quiet_and_not_under_a_writer() {
        struct Case {
            name: &'static str,
            /// Milliseconds and what happens then.
            changes: Vec<(u64, Change)>,
            due: Option<u64>,
        }
        let replaced = || Change::Replaced("a.yaml".into());
        let written = |name: &str| Change::Written(name.into());
        let closed = |name: &str| Change::Closed(name.into());
        let cases = [
            Case {
                name: "nothing happened",
                changes: vec![],
                due: None,
            },
            Case {
                name: "one change",
                changes: vec![(0, replaced())],
                due: Some(50),
            },
            Case {
                name: "each change starts the quiet anew",
                changes: vec![(0, replaced()), (40, replaced()), (80, Change::Unknown)],
                due: Some(130),
            },
            Case {
                name: "a stream of changes is read after the longest wait",
                changes: (0..100).map(|step| (step * 20, replaced())).collect(),
                due: Some(1000),
            },
            Case {
                name: "a written file that is closed is as any other change",
                changes: vec![(0, written("a")), (10, written("a")), (20, closed("a"))],
                due: Some(70),
            },
            Case {
                name: "a file that is open holds the reading up",
                changes: vec![(0, written("a")), (10, written("b")), (20, closed("b"))],
                due: Some(5000),
            },
            Case {
                name: "each write extends the wait",
                changes: vec![(0, written("a")), (4000, written("a"))],
                due: Some(9000),
            },
            Case {
                name: "renaming over a file that is open ends the wait for it",
                changes: vec![(0, written("a.yaml")), (10, replaced())],
                due: Some(60),
            },
            Case {
                name: "a writer that never ends is not waited for forever",
                changes: (0..60).map(|step| (step * 1000, written("a"))).collect(),
                due: Some(30_000),
            },
        ];
        for Case { name, changes, due } in cases {
            let start = Instant::now();
            let mut debounce = Debounce::new(Timing::default());
            for (at, change) in changes {
                debounce.handle(change, start + Duration::from_millis(at));
            }
            let due = due.map(|due| start + Duration::from_millis(due));
            assert_eq!(debounce.due_at(), due, "{name}");
            debounce.take();
            assert_eq!(debounce.due_at(), None, "{name}: taken");
        }
    }
}
