//! The files under the pin directory.
//!
//! ```text
//!  <pin dir>/maps/PODS …                  one per map that user space opens
//!  <pin dir>/programs/isthmus_connect4 …  one per program
//!  <pin dir>/links/isthmus_connect4 …     one per cgroup hook: while it is there, the hook runs
//!  <pin dir>/links/isthmus_sk_lookup-7 …  one per namespace of a pod, by cookie
//!  <pin dir>/links/isthmus_virtual-7-3 …  one per interface of virtual machines, by cookie and number
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use isthmus_accel_abi::{InterfaceKey, program};

use crate::DatapathError;

/// Returns what makes the kernel's answer the failure of an action on a file.
pub(super) fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> DatapathError {
    move |source| DatapathError::Kernel {
        action: format!("{action} {}", path.display()),
        source,
    }
}

/// In the order in which they are removed: what is not attached any more needs nothing.
const SUBDIRS: [&str; 3] = ["links", "programs", "maps"];

/// Names of everything under one pin directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pins {
    dir: PathBuf,
}

impl Pins {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.dir.join("maps").join(name)
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.dir.join("programs").join(name)
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Directories that hold links: all but two, whatever a version calls them.
    pub(crate) fn link_dirs(&self) -> Vec<PathBuf> {
        let is_other = |path: &PathBuf| path.ends_with("maps") || path.ends_with("programs");
        fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir() && !is_other(path))
            .collect()
    }

    /// Where this version keeps its links.
    pub(crate) fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    /// The link to one network namespace.
    pub(crate) fn netns_link(&self, cookie: u64) -> PathBuf {
        self.link(&format!("{}-{cookie}", program::SK_LOOKUP))
    }

    /// The inverse of [`Pins::netns_link`] for the name of a file; `None` for other links.
    pub(crate) fn cookie_of_netns_link(name: &str) -> Option<u64> {
        let cookie = name.strip_prefix(program::SK_LOOKUP)?.strip_prefix('-')?;
        cookie.parse().ok()
    }

    /// The link to one interface.
    pub(crate) fn interface_link(&self, key: InterfaceKey) -> PathBuf {
        let (cookie, ifindex) = (key.netns_cookie(), key.ifindex());
        self.link(&format!("{}-{cookie}-{ifindex}", program::VIRTUAL))
    }

    /// The inverse of [`Pins::interface_link`] for the name of a file; `None` for other links.
    pub(crate) fn key_of_interface_link(name: &str) -> Option<InterfaceKey> {
        let numbers = name.strip_prefix(program::VIRTUAL)?.strip_prefix('-')?;
        let (cookie, ifindex) = numbers.split_once('-')?;
        Some(InterfaceKey::new(
            cookie.parse().ok()?,
            ifindex.parse().ok()?,
        ))
    }

    /// Returns what the names of this version's links stand for, of those that `parse` knows.
    pub(crate) fn linked<T: Ord>(
        &self,
        parse: fn(&str) -> Option<T>,
    ) -> Result<BTreeSet<T>, DatapathError> {
        let dir = self.links();
        let files = match fs::read_dir(&dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(failed("reading", &dir)(error)),
        };
        let mut found = BTreeSet::new();
        for file in files {
            let name = file.map_err(failed("reading", &dir))?.file_name();
            found.extend(name.to_str().and_then(parse));
        }
        Ok(found)
    }

    pub(crate) fn make_dirs(&self) -> Result<(), DatapathError> {
        for name in SUBDIRS {
            let dir = self.dir.join(name);
            fs::create_dir_all(&dir).map_err(|source| DatapathError::Kernel {
                action: format!("making {}", dir.display()),
                source,
            })?;
        }
        Ok(())
    }

    /// Removes one pin; absent is fine.
    pub(crate) fn unpin(path: &Path) -> Result<(), DatapathError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DatapathError::Kernel {
                action: format!("removing {}", path.display()),
                source: error,
            }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes every pin and every directory below this one, then the directory, and its parent if that
    /// is empty and ours too.
    pub(crate) fn remove_all(&self) -> Result<(), DatapathError> {
        for name in SUBDIRS {
            remove_dir(&self.dir.join(name))?;
        }
        remove_dir(&self.dir)?;
        // The parent may hold another version's directory.
        if let Some(parent) = self.dir.parent()
            && super::succession::version_of(&self.dir).is_some()
        {
            let _is_still_used = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// Removes a directory with what is in it; absent is fine.
fn remove_dir(dir: &Path) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Kernel {
        action: format!("removing {}", dir.display()),
        source,
    };
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            remove_dir(&path)?;
        } else {
            Pins::unpin(&path)?;
        }
    }
    fs::remove_dir(dir).map_err(failed)
}
