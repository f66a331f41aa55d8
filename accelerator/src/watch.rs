//! Wakes the agent when something changes in the directories that matter.
//!
//! Directories are watched, not files: a `ConfigMap` changes by a rename of `..data` beside the file, an
//! editor replaces the file, and the file of a network namespace is not there yet. What the kernel
//! does not tell, the agent finds on its next round.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::Notify;

/// Directories that are watched; the rest is found on the rounds. Pods of one node share one or a few.
const MAX_DIRS: usize = 256;

/// Watches directories, as far as the kernel allows.
#[derive(Debug)]
pub struct DirWatch {
    changed: Arc<Notify>,
    // The directory that was there when the watch was made: another one may have its name by now.
    dirs: BTreeMap<PathBuf, (u64, u64)>,
    watcher: RecommendedWatcher,
}

impl DirWatch {
    /// Watches nothing yet.
    ///
    /// # Errors
    ///
    /// Returns the kernel's answer, most often that the user has no inotify instance left.
    pub fn new() -> notify::Result<Self> {
        let changed = Arc::new(Notify::new());
        let wake = Arc::clone(&changed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error means that events were lost: then everything may have changed.
            if event.is_ok_and(|event| !is_change(event.kind)) {
                return;
            }
            wake.notify_one();
        })?;
        Ok(Self {
            changed,
            dirs: BTreeMap::new(),
            watcher,
        })
    }

    /// Returns once something has changed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Watches the directories around these files and no others. Those that cannot be watched, since
    /// they do not exist yet, are tried again on the next call.
    pub fn follow<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let mut dirs = BTreeSet::new();
        for file in files {
            dirs.extend(dirs_around(file));
        }
        let wanted: BTreeMap<PathBuf, (u64, u64)> = dirs
            .into_iter()
            .filter_map(|dir| identify(&dir).ok().map(|identity| (dir, identity)))
            .take(MAX_DIRS)
            .collect();

        for (dir, identity) in &self.dirs {
            if wanted.get(dir) != Some(identity) {
                // It may be gone, and the watch with it.
                let _ = self.watcher.unwatch(dir);
            }
        }
        self.dirs
            .retain(|dir, identity| wanted.get(dir) == Some(identity));
        for (dir, identity) in wanted {
            if self.dirs.contains_key(&dir) {
                continue;
            }
            match self.watcher.watch(&dir, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.dirs.insert(dir, identity);
                }
                Err(error) => tracing::debug!(dir = %dir.display(), %error, "cannot be watched"),
            }
        }
    }
}

// Reading is no change, and the agent itself reads.
fn is_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

// The one that holds the name, and the one that holds what a symbolic link leads to.
fn dirs_around(file: &Path) -> BTreeSet<PathBuf> {
    let target = fs::canonicalize(file).ok();
    let dir = |path: &Path| match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => PathBuf::from("."),
        Some(dir) => dir.to_owned(),
        None => PathBuf::from("/"),
    };
    [Some(dir(file)), target.as_deref().map(dir)]
        .into_iter()
        .flatten()
        .collect()
}

fn identify(dir: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(dir)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn tells_of_changes_that_matter() {
        struct Case {
            name: &'static str,
            change: fn(&Path),
        }
        let cases = [
            Case {
                name: "written",
                change: |dir| write(&dir.join("node.yaml")),
            },
            Case {
                name: "replaced",
                change: |dir| {
                    write(&dir.join("draft"));
                    fs::rename(dir.join("draft"), dir.join("node.yaml")).expect("a rename");
                },
            },
            Case {
                name: "removed",
                change: |dir| fs::remove_file(dir.join("node.yaml")).expect("it was there"),
            },
            Case {
                name: "a ConfigMap's data is swapped",
                change: |dir| {
                    symlink("..2", dir.join("..data_tmp")).expect("a link");
                    fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("a rename");
                },
            },
        ];

        for Case { name, change } in cases {
            let dir = tempfile::tempdir().expect("a directory");
            write(&dir.path().join("node.yaml"));
            let mut watch = DirWatch::new().expect("inotify is there");
            watch.follow([dir.path().join("node.yaml").as_path()].into_iter());
            change(dir.path());
            timeout(DEADLINE, watch.changed()).await.expect(name);
        }
    }

    #[tokio::test]
    async fn finds_a_directory_that_appears_and_one_that_is_made_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let netns = dir.path().join("netns");
        let file = netns.join("a");
        let mut watch = DirWatch::new().expect("inotify is there");
        watch.follow([file.as_path()].into_iter());
        assert!(watch.dirs.is_empty());

        for _ in 0..2 {
            fs::create_dir(&netns).expect("a directory");
            watch.follow([file.as_path()].into_iter());
            assert_eq!(watch.dirs.len(), 1);
            write(&file);
            timeout(DEADLINE, watch.changed())
                .await
                .expect("told of the file");
            fs::remove_dir_all(&netns).expect("it was there");
        }
        watch.follow(std::iter::empty());
        assert!(watch.dirs.is_empty());
    }

    #[test]
    fn reading_is_no_change() {
        use notify::event::{CreateKind, RemoveKind};

        let read = [
            AccessKind::Open(AccessMode::Any),
            AccessKind::Close(AccessMode::Read),
            AccessKind::Read,
        ];
        assert!(
            read.into_iter()
                .all(|access| !is_change(EventKind::Access(access)))
        );
        assert!(is_change(EventKind::Access(AccessKind::Close(
            AccessMode::Write
        ))));
        assert!(is_change(EventKind::Create(CreateKind::File)));
        assert!(is_change(EventKind::Remove(RemoveKind::File)));
        assert!(is_change(EventKind::Any));
    }

    fn write(path: &Path) {
        fs::write(path, "x").expect("the directory is writable");
    }
}
