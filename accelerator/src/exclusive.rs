//! One agent at a time: two would give one connection two answers.
//!
//! Three locks, because each sees what the others do not: the one on the pin directory holds whatever
//! `--runtime-dir` says; the one on the root of the cgroup tree holds whatever `--pin-dir` says; and the
//! one in the runtime directory is what agents of version 1 hold.

use std::{
    io,
    path::{Path, PathBuf},
};

use isthmus_accel_datapath::{
    DatapathError,
    linux::{ensure_bpffs, pin_dirs, pin_root},
};

use crate::{
    cli::Places,
    dir_lock::{DirLock, DirLockError},
    runtime_dir::{AgentLock, RuntimeDir, RuntimeDirError},
};

/// Why this agent may not run.
#[derive(Debug, thiserror::Error)]
pub enum ExclusiveError {
    /// Somebody else keeps these pins.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// Somebody else uses the hooks.
    #[error(
        "another agent{} uses the hooks of {}: stop it first; or, if its pods are others, start this one \
         with --share-hooks and its own --pin-dir",
        render_pid(*pid),
        cgroup_root.display()
    )]
    Hooks {
        /// Its process, if it can be seen from here.
        pid: Option<u32>,
        /// The cgroup tree.
        cgroup_root: PathBuf,
    },
    /// A directory cannot be locked.
    #[error("{} cannot be locked", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no place for pins.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// Held as long as the agent lives.
#[derive(Debug)]
pub struct Exclusive {
    _hooks: Option<DirLock>,
    _pins: Option<DirLock>,
    _runtime_dir: AgentLock,
}

impl Exclusive {
    /// Becomes the one agent of the pins, and of the hooks of `cgroup_root` if that is given.
    ///
    /// # Errors
    ///
    /// Returns [`ExclusiveError`] while another agent lives, and says which.
    pub fn acquire(places: &Places, cgroup_root: Option<&Path>) -> Result<Self, ExclusiveError> {
        let root = pin_root(&places.pin_dir);
        ensure_bpffs(root)?;
        let exclusive = Self {
            _pins: Some(lock(root, |pid| locked(pid, root).into())?),
            ..Self::without_pins(places)?
        };
        let Some(cgroup_root) = cgroup_root else {
            return Ok(exclusive);
        };
        let hooks = lock(cgroup_root, |pid| ExclusiveError::Hooks {
            pid,
            cgroup_root: cgroup_root.to_owned(),
        })?;
        Ok(Self {
            _hooks: Some(hooks),
            ..exclusive
        })
    }

    /// Makes sure that no agent runs on the pins, which may be there or not.
    ///
    /// # Errors
    ///
    /// Returns [`ExclusiveError`] while an agent lives, and says which.
    pub fn of_pins(places: &Places) -> Result<Self, ExclusiveError> {
        let root = pin_root(&places.pin_dir);
        let pins = if root.exists() {
            Some(lock(root, |pid| locked(pid, root).into())?)
        } else {
            None
        };
        Ok(Self {
            _pins: pins,
            ..Self::without_pins(places)?
        })
    }

    fn without_pins(places: &Places) -> Result<Self, ExclusiveError> {
        for pin_dir in pin_dirs(&places.pin_dir) {
            if let Some(pid) = RuntimeDir::new(&places.runtime_dir, &pin_dir).running() {
                return Err(locked(pid, &pin_dir).into());
            }
        }
        let runtime_dir = RuntimeDir::new(&places.runtime_dir, &places.pin_dir);
        Ok(Self {
            _hooks: None,
            _pins: None,
            _runtime_dir: runtime_dir.lock()?,
        })
    }
}

fn lock(
    path: &Path,
    held: impl FnOnce(Option<u32>) -> ExclusiveError,
) -> Result<DirLock, ExclusiveError> {
    DirLock::acquire(path).map_err(|error| match error {
        DirLockError::Held { pid } => held(pid),
        DirLockError::Io(source) => ExclusiveError::Io {
            path: path.to_owned(),
            source,
        },
    })
}

fn locked(pid: Option<u32>, pin_dir: &Path) -> RuntimeDirError {
    RuntimeDirError::Locked {
        pid,
        pin_dir: pin_dir.to_owned(),
    }
}

fn render_pid(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}
