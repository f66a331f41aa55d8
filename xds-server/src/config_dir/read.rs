//! The files of a configuration directory: which ones count, and their text, read whole or not at all.
//!
//! A file counts if its name ends in `.yaml`, `.yml` or `.json` and does not start with a dot. There is no
//! recursion: `ConfigMap` volumes keep old copies of every file in dotted directories beside the links to
//! the current ones, and a deeper tree would need a rule for which copies count. Symbolic links are followed.
//!
//! Three things keep a half-written state out. A file's size and times must be equal before and after it is
//! read, and equal to what was read. All files' identities must be equal before and after the whole
//! directory is read, so that a `..data` link that is swapped midway does not mix two generations. And a file
//! with no document is an error, because truncating is how most writers start. What this cannot see is a
//! writer that pauses at a point where the text so far is well-formed; the watcher waits for quiet, and
//! renaming a finished file into place is the way that needs no luck.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::error::{Io, Problem};
use super::limits::{MAX_FILE_BYTES, MAX_FILES, MAX_TOTAL_BYTES};

const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];

/// How often a file that changes while it is read is tried again before that is an error.
const READ_ATTEMPTS: usize = 3;

/// Identity of every configuration file of a directory at one moment, in the order of their names.
///
/// Equal fingerprints mean equal content, as far as a file system tells without reading.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Fingerprint {
    files: BTreeMap<OsString, Option<Identity>>,
}

/// What changes when a file's content does; `None` in a [`Fingerprint`] if it cannot be had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Identity {
    changed: (i64, i64),
    device: u64,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl Fingerprint {
    /// Lists the configuration files of `dir`, if they are few and small enough to be read.
    pub(super) fn take(dir: &Path) -> Result<Self, Problem> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(|error| Problem::Directory(Io(error)))? {
            let entry = entry.map_err(|error| Problem::Directory(Io(error)))?;
            let name = entry.file_name();
            if is_configuration(Path::new(&name)) {
                let identity = fs::metadata(entry.path())
                    .ok()
                    .map(|metadata| Identity::of(&metadata));
                files.insert(name, identity);
            }
        }
        let bytes = files
            .values()
            .flatten()
            .map(|identity: &Identity| identity.size)
            .sum();
        match (files.len(), bytes) {
            (0, _) => Err(Problem::NoFiles),
            (found, _) if found > MAX_FILES => Err(Problem::TooManyFiles { found }),
            (_, found) if found > MAX_TOTAL_BYTES => Err(Problem::TotalTooLarge { found }),
            _ => Ok(Self { files }),
        }
    }

    /// Names of the files, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &OsString> {
        self.files.keys()
    }
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.len(),
        }
    }
}

/// Reads a file whole, as text without a byte order mark.
pub(super) fn read_file(path: &Path) -> Result<String, Problem> {
    for _ in 0..READ_ATTEMPTS {
        if let Some(bytes) = read_stable(path)? {
            let text = String::from_utf8(bytes).map_err(|error| Problem::NotUtf8 {
                offset: error.utf8_error().valid_up_to(),
            })?;
            return Ok(text);
        }
    }
    Err(Problem::FileChanging)
}

/// Reads a file; `None` if it changed meanwhile.
fn read_stable(path: &Path) -> Result<Option<Vec<u8>>, Problem> {
    let io = |error| Problem::File(Io(error));
    // Before opening: a device may act on being opened.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(Problem::NotAFile);
    }
    // If a pipe took the name since, opening it must not wait for a writer.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(io)?;
    let before = file.metadata().map_err(io)?;
    if !before.is_file() {
        return Err(Problem::NotAFile);
    }
    if before.len() > MAX_FILE_BYTES {
        return Err(Problem::FileTooLarge {
            found: before.len(),
        });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(before.len()).unwrap_or_default());
    Read::by_ref(&mut file)
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    let is_stable = is_unchanged(&file, &before).map_err(io)? && bytes.len() as u64 == before.len();
    Ok(is_stable.then_some(bytes))
}

fn is_unchanged(file: &File, before: &Metadata) -> std::io::Result<bool> {
    Ok(Identity::of(&file.metadata()?) == Identity::of(before))
}

/// Whether a file of that name is read.
pub(super) fn is_configuration(name: &Path) -> bool {
    let is_hidden = name.as_os_str().as_encoded_bytes().starts_with(b".");
    let extension = name.extension().and_then(|extension| extension.to_str());
    !is_hidden && extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
}
