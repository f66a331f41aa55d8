//! Locks on directories that are there anyway, so that two agents see each other whatever directories
//! they were given for files of their own.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

/// The kernel's list of file locks, proc(5).
const LOCKS: &str = "/proc/locks";

/// Held as long as the agent lives; the kernel frees it however it ends.
#[derive(Debug)]
pub struct DirLock {
    _dir: File,
}

/// Why there is no lock.
#[derive(Debug)]
pub enum DirLockError {
    /// Somebody else has it.
    Held {
        /// Its process, if it can be seen from here.
        pid: Option<u32>,
    },
    /// The directory cannot be opened or locked.
    Io(io::Error),
}

impl From<io::Error> for DirLockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl DirLock {
    /// Locks a directory.
    ///
    /// # Errors
    ///
    /// Returns [`DirLockError::Held`] while another process has it.
    pub fn acquire(path: &Path) -> Result<Self, DirLockError> {
        let dir = File::open(path)?;
        match dir.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = holder(&dir).unwrap_or_default();
                return Err(DirLockError::Held { pid });
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // A detach that ended in between has removed the directory, and others would lock its successor.
        let (held, on_disk) = (dir.metadata()?, fs::metadata(path)?);
        if (held.dev(), held.ino()) != (on_disk.dev(), on_disk.ino()) {
            return Err(DirLockError::Held { pid: None });
        }
        Ok(Self { _dir: dir })
    }
}

fn holder(dir: &File) -> io::Result<Option<u32>> {
    let metadata = dir.metadata()?;
    let locks = fs::read_to_string(LOCKS)?;
    let (dev, ino) = (metadata.dev(), metadata.ino());
    Ok(parse_holder(&locks, major_of(dev), minor_of(dev), ino))
}

// As glibc's `gnu_dev_major` and `gnu_dev_minor`.
fn major_of(dev: u64) -> u64 {
    ((dev >> 8) & 0xfff) | ((dev >> 32) & 0xffff_f000)
}

fn minor_of(dev: u64) -> u64 {
    (dev & 0xff) | ((dev >> 12) & 0xffff_ff00)
}

/// A line is `1: FLOCK  ADVISORY  WRITE 4242 00:1b:815 0 EOF`; those who wait have `->` before FLOCK.
fn parse_holder(locks: &str, major: u64, minor: u64, ino: u64) -> Option<u32> {
    let file = format!("{major:02x}:{minor:02x}:{ino}");
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        if fields.next()? != "FLOCK" {
            return None;
        }
        let mut fields = fields.skip(2);
        let pid: u32 = fields.next()?.parse().ok()?;
        // 0: a process that cannot be seen from here.
        (fields.next()? == file && pid != 0).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_learns_who_the_first_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let lock = DirLock::acquire(dir.path()).expect("nobody has it");
        let error = DirLock::acquire(dir.path()).expect_err("somebody has it");
        let own = std::process::id();
        assert!(
            matches!(error, DirLockError::Held { pid: Some(pid) } if pid == own),
            "{error:?}"
        );
        drop(lock);
        DirLock::acquire(dir.path()).expect("nobody has it any longer");
    }

    #[test]
    fn lists_of_locks_are_read() {
        const LOCKS: &str = "\
1: POSIX  ADVISORY  WRITE 11 00:1b:815 0 EOF
2: FLOCK  ADVISORY  WRITE 12 00:1b:8150 0 EOF
3: FLOCK  ADVISORY  WRITE 13 00:1b:815 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 00:1b:815 0 EOF
4: FLOCK  ADVISORY  WRITE 0 00:1c:815 0 EOF
";
        let cases = [
            ("of many", 0x1b, 815, Some(13)),
            ("of a process in another container", 0x1c, 815, None),
            ("of nobody", 0x1d, 815, None),
        ];
        for (name, minor, ino, pid) in cases {
            assert_eq!(parse_holder(LOCKS, 0, minor, ino), pid, "{name}");
        }
    }
}
