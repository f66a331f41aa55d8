//! Reading the FILE: bounded, and never while somebody is still writing to it.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use isthmus_api::node_config::{MAX_DOCUMENT_BYTES, NodeConfig, NodeConfigError};
use nix::fcntl::OFlag;

use crate::error::render_chain;

/// A file that was changed less than this ago may still be in the middle of a write. Whoever replaces
/// it by rename (as Kubernetes does) only pays this delay.
pub const SETTLE: Duration = Duration::from_millis(100);
/// A file that changes all the time is read nevertheless after this many looks.
const MAX_POSTPONED: u32 = 20;

/// Why the FILE could not be used. What was read before stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// Its content.
    #[error("{}: {error}", path.display())]
    Content {
        /// What is wrong with it; part of this message.
        error: Box<NodeConfigError>,
        /// The FILE.
        path: PathBuf,
    },
    /// A directory, a device, a pipe.
    #[error("{} is no regular file", path.display())]
    NotFile {
        /// The FILE.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The FILE.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What a look at the FILE brought.
#[derive(Debug)]
pub enum Look {
    /// Another document than the last time.
    Changed(NodeConfig),
    /// Somebody is writing: look again after [`SETTLE`].
    Unsettled,
    /// The same bytes, or the same error, as the last time.
    Unchanged,
}

/// The FILE, and what it said last.
#[derive(Debug)]
pub struct ConfigFile {
    last: Option<Last>,
    path: PathBuf,
    postponed: u32,
}

#[derive(Debug, Eq, PartialEq)]
enum Last {
    Bytes(Vec<u8>),
    Error(String),
}

impl ConfigFile {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            last: None,
            path,
            postponed: 0,
        }
    }

    /// Returns the path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets what was read, so that the next look reports the file whether it changed or not.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Reads the file and says what is new. `now` decides whether it has settled.
    ///
    /// # Errors
    ///
    /// Returns [`ConfigFileError`] once; the same error again is [`Look::Unchanged`].
    pub fn look_at(&mut self, now: SystemTime) -> Result<Look, ConfigFileError> {
        match self.read(now) {
            Ok(Some(bytes)) => self.parse(bytes),
            Ok(None) => Ok(Look::Unsettled),
            Err(error) => self.report(error),
        }
    }

    fn parse(&mut self, bytes: Vec<u8>) -> Result<Look, ConfigFileError> {
        if matches!(&self.last, Some(Last::Bytes(last)) if *last == bytes) {
            return Ok(Look::Unchanged);
        }
        let parsed = NodeConfig::parse(&bytes);
        self.last = Some(Last::Bytes(bytes));
        let content = |error| ConfigFileError::Content {
            error: Box::new(error),
            path: self.path.clone(),
        };
        parsed.map(Look::Changed).map_err(content)
    }

    fn report(&mut self, error: ConfigFileError) -> Result<Look, ConfigFileError> {
        let last = Some(Last::Error(render_chain(&error)));
        if self.last == last {
            return Ok(Look::Unchanged);
        }
        self.last = last;
        Err(error)
    }

    fn read(&mut self, now: SystemTime) -> Result<Option<Vec<u8>>, ConfigFileError> {
        let unreadable = |source| ConfigFileError::Unreadable {
            path: self.path.clone(),
            source,
        };
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .custom_flags(flags.bits())
            .open(&self.path);
        let file = file.map_err(unreadable)?;
        let before = file.metadata().map_err(unreadable)?;
        if !before.is_file() {
            return Err(ConfigFileError::NotFile {
                path: self.path.clone(),
            });
        }

        let bytes = read_bounded(&file).map_err(unreadable)?;
        let after = file.metadata().map_err(unreadable)?;
        let is_settled = is_settled(&before, &after, now);
        if !is_settled && self.postponed < MAX_POSTPONED {
            self.postponed += 1;
            return Ok(None);
        }
        self.postponed = 0;
        Ok(Some(bytes))
    }
}

// One byte more than allowed, so that the parser says what is wrong.
fn read_bounded(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_DOCUMENT_BYTES).unwrap_or(u64::MAX);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_settled(before: &Metadata, after: &Metadata, now: SystemTime) -> bool {
    let modified = (before.modified().ok(), after.modified().ok());
    let (Some(before), Some(after)) = modified else {
        return true;
    };
    // A time in the future comes from a clock that was set back: waiting would not help.
    let is_fresh = now.duration_since(after).is_ok_and(|age| age < SETTLE);
    before == after && !is_fresh
}

#[cfg(test)]
mod tests;
