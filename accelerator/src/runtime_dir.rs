//! Files of a running agent: the lock that keeps a second one away, and the names that `status` shows.
//!
//! They lie beside the pins, not among them, since the BPF filesystem holds BPF objects only. Losing
//! them costs names in `status`, never traffic.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    net::IpAddr,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Where the files lie unless `--runtime-dir` says otherwise: gone after a reboot, as the pins are.
pub const DEFAULT_RUNTIME_DIR: &str = "/run/isthmus";
/// A roster that is larger is not one: 1024 pods with 16 addresses each take about 1 MiB.
const MAX_ROSTER_BYTES: u64 = 8 << 20;

/// Why a file of the agent could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// Somebody else keeps these pins.
    #[error(
        "another agent{} runs on {}: stop it first, or give this one its own --pin-dir",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        pin_dir.display()
    )]
    Locked {
        /// Its process, if it said so.
        pid: Option<u32>,
        /// The pins.
        pin_dir: PathBuf,
    },
    /// The directory or a file in it.
    #[error("{} cannot be {action}, --runtime-dir names another directory", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The files that belong to one pin directory.
#[derive(Clone, Debug)]
pub struct RuntimeDir {
    flows: PathBuf,
    lock: PathBuf,
    pin_dir: PathBuf,
    roster: PathBuf,
}

/// Held as long as the agent lives; the kernel frees it however it ends.
#[derive(Debug)]
pub struct AgentLock {
    _file: File,
}

/// What the agent knows of its pods.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Roster {
    /// The FILE.
    pub config: PathBuf,
    /// Pods by name.
    pub pods: BTreeMap<String, RosterPod>,
}

/// What the agent knows of one pod.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RosterPod {
    /// Its addresses, if it is accelerated.
    pub addresses: Vec<IpAddr>,
    /// See [`crate::agent::Condition::word`].
    pub condition: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// The cookie of it, if it is accelerated.
    pub netns_cookie: Option<u64>,
    /// Why it is not accelerated.
    pub reason: Option<String>,
}

impl RuntimeDir {
    /// Names the files of `pin_dir` in `dir`. Touches nothing.
    #[must_use]
    pub fn new(dir: &Path, pin_dir: &Path) -> Self {
        let name = file_name(pin_dir);
        Self {
            flows: dir.join(format!("{name}.flows.sock")),
            lock: dir.join(format!("{name}.lock")),
            pin_dir: pin_dir.to_owned(),
            roster: dir.join(format!("{name}.pods.json")),
        }
    }

    /// Returns the socket at which the agent tells of connections.
    #[must_use]
    pub fn flows(&self) -> &Path {
        &self.flows
    }

    /// Becomes the one agent of the pin directory.
    ///
    /// # Errors
    ///
    /// Returns [`RuntimeDirError::Locked`] while another agent lives.
    pub fn lock(&self) -> Result<AgentLock, RuntimeDirError> {
        let fail = |action| move |source| io_error(action, &self.lock, source);
        if let Some(dir) = self.lock.parent() {
            fs::create_dir_all(dir).map_err(fail("created"))?;
        }
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.lock);
        let mut file = file.map_err(fail("opened"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(self.locked(&mut file)),
            Err(TryLockError::Error(error)) => return Err(fail("locked")(error)),
        }
        // A detach that ended in between has removed the file, and with it what others would lock.
        let is_current = |on_disk: &fs::Metadata| {
            file.metadata()
                .is_ok_and(|held| (held.dev(), held.ino()) == (on_disk.dev(), on_disk.ino()))
        };
        if !fs::metadata(&self.lock).is_ok_and(|on_disk| is_current(&on_disk)) {
            return Err(self.locked(&mut file));
        }

        let pid = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all(pid.as_bytes()))
            .map_err(fail("written"))?;
        Ok(AgentLock { _file: file })
    }

    /// Returns the process of the agent that keeps the pin directory, if one does: `Some(None)` if it
    /// is one that did not say which.
    #[must_use]
    pub fn running(&self) -> Option<Option<u32>> {
        let mut file = File::open(&self.lock).ok()?;
        match file.try_lock_shared() {
            Ok(()) | Err(TryLockError::Error(_)) => None,
            Err(TryLockError::WouldBlock) => Some(read_pid(&mut file)),
        }
    }

    /// Writes what `status` shows, all at once.
    ///
    /// # Errors
    ///
    /// Returns [`RuntimeDirError::Io`], which is no reason to stop.
    pub fn write_roster(&self, roster: &Roster) -> Result<(), RuntimeDirError> {
        let json = serde_json::to_vec_pretty(roster).unwrap_or_default();
        let draft = self.roster.with_extension("json.new");
        fs::write(&draft, json).map_err(|error| io_error("written", &draft, error))?;
        fs::rename(&draft, &self.roster).map_err(|error| io_error("written", &self.roster, error))
    }

    /// Reads what the last agent wrote, or nothing if there is none or it cannot be read.
    #[must_use]
    pub fn read_roster(&self) -> Roster {
        let read = || {
            let mut json = Vec::new();
            File::open(&self.roster)
                .ok()?
                .take(MAX_ROSTER_BYTES)
                .read_to_end(&mut json)
                .ok()?;
            serde_json::from_slice(&json).ok()
        };
        read().unwrap_or_default()
    }

    /// Removes the files, and the directory if it is empty then. Returns what was removed.
    ///
    /// # Errors
    ///
    /// Returns [`RuntimeDirError::Io`] if a file is there but cannot be removed.
    pub fn remove(&self) -> Result<Vec<PathBuf>, RuntimeDirError> {
        let mut removed = Vec::new();
        for path in [&self.flows, &self.roster, &self.lock] {
            match fs::remove_file(path) {
                Ok(()) => removed.push(path.clone()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error("removed", path, error)),
            }
        }
        if let Some(dir) = self.lock.parent() {
            // Other pin directories may have their files there: then it stays.
            let _ = fs::remove_dir(dir);
        }
        Ok(removed)
    }

    fn locked(&self, file: &mut File) -> RuntimeDirError {
        RuntimeDirError::Locked {
            pid: read_pid(file),
            pin_dir: self.pin_dir.clone(),
        }
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> RuntimeDirError {
    RuntimeDirError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

// Two pin directories never share a name: `-` is doubled, and `/` becomes a single one.
fn file_name(pin_dir: &Path) -> String {
    let path = String::from_utf8_lossy(pin_dir.as_os_str().as_bytes()).into_owned();
    path.trim_matches('/').replace('-', "--").replace('/', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let pin_dir = Path::new("/sys/fs/bpf/isthmus/v2");
        let files = RuntimeDir::new(&dir.path().join("isthmus"), pin_dir);
        assert_eq!(files.running(), None);

        let lock = files.lock().expect("nobody has it");
        assert_eq!(files.running(), Some(Some(std::process::id())));
        let error = files.lock().expect_err("somebody has it").to_string();
        let pid = std::process::id();
        assert_eq!(
            error,
            format!(
                "another agent (process {pid}) runs on /sys/fs/bpf/isthmus/v2: stop it first, or give this \
                 one its own --pin-dir"
            )
        );
        let other = RuntimeDir::new(&dir.path().join("isthmus"), Path::new("/sys/fs/bpf/other"));
        other.lock().expect("other pins have another lock");

        drop(lock);
        assert_eq!(files.running(), None);
        files.lock().expect("nobody has it any longer");
    }

    #[test]
    fn rosters_are_read_back_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = RuntimeDir::new(&dir.path().join("isthmus"), Path::new("/sys/fs/bpf/x"));
        assert_eq!(files.read_roster(), Roster::default());
        let _lock = files.lock().expect("nobody has it");
        let pod = RosterPod {
            addresses: vec![IpAddr::from([198, 18, 0, 1])],
            condition: "accelerated".to_owned(),
            netns: PathBuf::from("/run/netns/a"),
            netns_cookie: Some(7),
            reason: None,
        };
        let roster = Roster {
            config: PathBuf::from("/etc/node.yaml"),
            pods: [("default/a".to_owned(), pod)].into(),
        };
        files
            .write_roster(&roster)
            .expect("the directory is writable");
        assert_eq!(files.read_roster(), roster);

        assert_eq!(files.remove().expect("they are there").len(), 2);
        assert_eq!(
            files.remove().expect("twice is no error"),
            Vec::<PathBuf>::new()
        );
        assert!(!dir.path().join("isthmus").exists());
    }

    #[test]
    fn a_damaged_roster_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = RuntimeDir::new(dir.path(), Path::new("/x"));
        fs::write(&files.roster, "{\"config\": ").expect("the directory is writable");
        assert_eq!(files.read_roster(), Roster::default());
    }

    #[test]
    fn pin_directories_do_not_share_files() {
        let names = ["/a/b", "/a-b", "/a--b", "/a/-b"].map(|dir| file_name(Path::new(dir)));
        assert_eq!(names, ["a-b", "a--b", "a----b", "a---b"]);
    }
}
