//! Keeps a configuration directory read: a thread that hears of changes and reads when it is quiet.
//!
//! The thread is the shell around a state machine: it has the clock, the file-system events and the blocking
//! reads. Events come for the directory and, so that it may be deleted and made again, for its parent. A
//! reading that fails leaves the last good configuration in force.
//!
//! What is guaranteed about half-written files: one that a writer keeps open is not read within
//! [`Timing::writer_patience`] of its last write; one that changes while it is read, or a directory whose set
//! of files does, is read again. A writer that closes a file halfway at a point where its text is well-formed
//! and comes back later than [`Timing::quiet`] cannot be told from one that is done. Renaming a finished
//! file into place, as `ConfigMap` volumes and most editors do, leaves nothing to chance.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Instant;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;

use super::debounce::{Change, Debounce};
use super::read::{Fingerprint, is_configuration};
use super::{ConfigError, LoadedConfig, load_with_fingerprint};

pub use super::debounce::Timing;

/// Events that wait for the thread while it reads. When there are more, what they say does not matter.
const MAX_QUEUED_EVENTS: usize = 1024;

/// How often a directory that changes under the reader is read again before that is reported.
const MAX_SILENT_RETRIES: usize = 5;

/// What is known of the directory after a reading.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Counts readings; 0 before the first.
    pub number: u64,
    /// The last configuration that loaded, which is the one in force. The same `Arc` as long as its content
    /// is equal.
    pub config: Option<Arc<LoadedConfig>>,
    /// What is wrong with the directory as last read; empty if `config` is what it has.
    pub errors: Arc<[ConfigError]>,
}

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel gives no more inotify instances.
    #[error("file-system events are not available; raise fs.inotify.max_user_instances")]
    Events(#[source] notify::Error),

    /// The path is relative and the working directory is gone, or it is empty.
    #[error("the configuration directory cannot be named absolutely; give an absolute path")]
    Path(#[source] io::Error),

    /// The thread cannot be started.
    #[error("the thread that reads the configuration directory cannot be started")]
    Thread(#[source] io::Error),
}

/// A directory that is being kept read, until this is dropped.
#[derive(Debug)]
pub struct DirectoryWatch {
    messages: SyncSender<Message>,
    readings: watch::Receiver<Reading>,
    signals: Arc<Signals>,
}

/// What must get through even when the queue is full.
#[derive(Debug, Default)]
struct Signals {
    is_overflown: AtomicBool,
    is_stopped: AtomicBool,
}

/// Reads `dir` and keeps reading it when it changes.
///
/// The first reading is on its way when this returns. The directory need not exist yet.
///
/// # Errors
///
/// Returns [`WatchError`] if the path cannot be made absolute, or if the system has no thread or no
/// file-system events left.
pub fn watch(dir: &Path, timing: Timing) -> Result<DirectoryWatch, WatchError> {
    // Events name what they are about absolutely.
    let dir = &path::absolute(dir).map_err(WatchError::Path)?;
    let (messages, inbox) = sync_channel(MAX_QUEUED_EVENTS);
    let signals = Arc::new(Signals::default());
    let handler = Handler {
        dir_name: dir.file_name().map(OsStr::to_owned),
        dir: dir.to_owned(),
        signals: Arc::clone(&signals),
        messages: messages.clone(),
    };
    let watcher = notify::recommended_watcher(move |event| handler.handle(event))
        .map_err(WatchError::Events)?;
    let (publisher, readings) = watch::channel(Reading::default());
    let reader = Reader {
        debounce: Debounce::new(timing),
        dir: dir.to_owned(),
        fingerprint: None,
        inbox,
        signals: Arc::clone(&signals),
        publisher,
        retries: 0,
        timing,
        watched: Vec::new(),
        watcher,
    };
    thread::Builder::new()
        .name("config-dir".to_owned())
        .spawn(move || reader.run())
        .map_err(WatchError::Thread)?;
    Ok(DirectoryWatch {
        messages,
        readings,
        signals,
    })
}

impl DirectoryWatch {
    /// Returns a receiver of the readings; it has the latest at any time.
    #[must_use]
    pub fn readings(&self) -> watch::Receiver<Reading> {
        self.readings.clone()
    }
}

impl Drop for DirectoryWatch {
    fn drop(&mut self) {
        // Does not wait for a reading that is under way: this may run on a thread that serves streams.
        self.signals.is_stopped.store(true, Ordering::Release);
        // A full queue wakes the thread as well.
        let _ = self.messages.try_send(Message::Wake);
    }
}

#[derive(Debug)]
enum Message {
    Change(Change),
    Wake,
}

/// Runs on the thread of the event source: tells what matters and never blocks.
#[derive(Debug)]
struct Handler {
    dir: PathBuf,
    dir_name: Option<OsString>,
    signals: Arc<Signals>,
    messages: SyncSender<Message>,
}

impl Handler {
    fn handle(&self, event: notify::Result<Event>) {
        let Ok(event) = event else {
            return self.send(Change::Unknown);
        };
        if event.need_rescan() {
            return self.send(Change::Unknown);
        }
        for path in &event.paths {
            if let Some(change) = self.change(event.kind, path) {
                self.send(change);
            }
        }
    }

    fn change(&self, kind: EventKind, path: &Path) -> Option<Change> {
        let name = path.file_name()?;
        if path == self.dir || path.parent() != Some(self.dir.as_path()) {
            // The parent's other children are nobody's business.
            let is_entry =
                self.dir_name.as_deref() == Some(name) && !matches!(kind, EventKind::Access(_));
            return is_entry.then_some(Change::Unknown);
        }
        // `..data` and what it points to.
        let is_layout = name.as_encoded_bytes().starts_with(b"..");
        if !is_layout && !is_configuration(Path::new(name)) {
            return None;
        }
        let name = name.to_owned();
        match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Change::Closed(name)),
            // Opening and reading, which this program does itself.
            EventKind::Access(_) => None,
            EventKind::Modify(ModifyKind::Data(_)) => Some(Change::Written(name)),
            EventKind::Modify(ModifyKind::Metadata(_)) => Some(Change::Unknown),
            EventKind::Any
            | EventKind::Create(_)
            | EventKind::Modify(ModifyKind::Any | ModifyKind::Name(_) | ModifyKind::Other)
            | EventKind::Remove(_)
            | EventKind::Other => Some(Change::Replaced(name)),
        }
    }

    fn send(&self, change: Change) {
        if let Err(TrySendError::Full(_)) = self.messages.try_send(Message::Change(change)) {
            self.signals.is_overflown.store(true, Ordering::Release);
        }
    }
}

#[derive(Debug)]
struct Reader {
    debounce: Debounce,
    dir: PathBuf,
    /// Of the last reading that got far enough to have one.
    fingerprint: Option<Fingerprint>,
    inbox: Receiver<Message>,
    signals: Arc<Signals>,
    publisher: watch::Sender<Reading>,
    retries: usize,
    timing: Timing,
    /// What the kernel watches, as far as it exists.
    watched: Vec<Watched>,
    watcher: RecommendedWatcher,
}

/// A watch belongs to what a path led to, not to the path.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Watched {
    device: u64,
    inode: u64,
    path: PathBuf,
}

impl Reader {
    fn run(mut self) {
        self.read();
        let mut looked_at = Instant::now();
        while !self.signals.is_stopped.load(Ordering::Acquire) {
            let now = Instant::now();
            if self.signals.is_overflown.swap(false, Ordering::AcqRel) {
                self.debounce.handle(Change::Unknown, now);
            }
            let due = self.debounce.due_at();
            if due.is_some_and(|due| due <= now) {
                self.read();
                looked_at = Instant::now();
                continue;
            }
            let next = due.unwrap_or(looked_at + self.timing.rescan);
            match self.inbox.recv_timeout(next.saturating_duration_since(now)) {
                Ok(Message::Change(change)) => self.debounce.handle(change, Instant::now()),
                Err(RecvTimeoutError::Timeout) if due.is_none() => {
                    self.rescan();
                    looked_at = Instant::now();
                }
                Ok(Message::Wake) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn read(&mut self) {
        self.debounce.take();
        // Before reading: what changes from here on makes an event.
        self.keep_watched();
        match load_with_fingerprint(&self.dir) {
            Ok((config, fingerprint)) => {
                self.retries = 0;
                self.fingerprint = Some(fingerprint);
                self.publisher.send_modify(|reading| {
                    reading.number += 1;
                    reading.errors = Arc::default();
                    if reading.config.as_deref() != Some(&config) {
                        reading.config = Some(Arc::new(config));
                    }
                });
            }
            Err(errors) if self.retries < MAX_SILENT_RETRIES && errors.iter().all(is_passing) => {
                self.retries += 1;
                self.debounce.handle(Change::Unknown, Instant::now());
            }
            Err(errors) => {
                self.retries = 0;
                self.fingerprint = Fingerprint::take(&self.dir).ok();
                self.publisher.send_modify(|reading| {
                    reading.number += 1;
                    reading.errors = errors.into();
                });
            }
        }
    }

    /// Looks for changes that made no event.
    fn rescan(&mut self) {
        self.keep_watched();
        if Fingerprint::take(&self.dir).ok() != self.fingerprint {
            self.debounce.handle(Change::Unknown, Instant::now());
        }
    }

    /// Watches what the paths lead to now, which may not be what they led to before.
    fn keep_watched(&mut self) {
        let parent = match self.dir.parent() {
            Some(parent) => parent,
            None => &self.dir,
        };
        let mut watched = Vec::new();
        for path in [parent, &self.dir] {
            let Ok(metadata) = fs::metadata(path) else {
                continue;
            };
            let target = Watched {
                device: metadata.dev(),
                inode: metadata.ino(),
                path: path.to_owned(),
            };
            if !self.watched.contains(&target) {
                // Fails if there is none, which is as good.
                let _ = self.watcher.unwatch(path);
                if self
                    .watcher
                    .watch(path, RecursiveMode::NonRecursive)
                    .is_err()
                {
                    // Tried again at the next look; until then there is only the looking.
                    continue;
                }
            }
            watched.push(target);
        }
        self.watched = watched;
    }
}

fn is_passing(error: &ConfigError) -> bool {
    error.problem.is_passing()
}
