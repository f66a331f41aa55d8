//! One lab at a time on a machine: measurements would disturb each other, and whatever another one left is stale.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

use crate::accelerator::{BPF_DIR, remove_pins};
use crate::netns::{self, NETNS_DIR};

/// Held by the process that has a lab; the kernel lets go of it when that process ends, however it ends.
const LOCK_FILE: &str = "/run/isthmus-lab.lock";

/// The right to have a lab.
#[derive(Debug)]
pub(super) struct Exclusive {
    _lock: File,
}

impl Exclusive {
    /// Waits for its turn, then removes every namespace and pin whose name starts with `prefix`: its owner is dead.
    pub(super) fn acquire(prefix: &str) -> Result<Self> {
        let lock = File::create(LOCK_FILE).with_context(|| {
            format!(
                "{LOCK_FILE} could not be opened: the lab makes network namespaces and needs root"
            )
        })?;
        lock.lock()
            .with_context(|| format!("{LOCK_FILE} could not be locked"))?;
        for name in leftovers(Path::new(NETNS_DIR), prefix) {
            netns::remove(&name).with_context(|| {
                format!("the leftover {name} of a killed lab could not be removed")
            })?;
        }
        for name in leftovers(Path::new(BPF_DIR), prefix) {
            remove_pins(&Path::new(BPF_DIR).join(name));
        }
        Ok(Self { _lock: lock })
    }
}

fn leftovers(dir: &Path, prefix: &str) -> Vec<String> {
    // No directory: this machine never had one.
    let entries = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}
