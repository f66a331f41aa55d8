//! What was pinned at one time or another, and what the kernel still has of it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use isthmus_integration_tests::{bpftool::Loaded, programs, shell};
use serde_json::Value;

/// Programs, maps and links, by kind and the kernel's id and name.
#[derive(Debug, Default)]
pub(crate) struct Objects(BTreeSet<(&'static str, String)>);

impl Objects {
    /// Adds what is pinned below a directory.
    pub(crate) fn note(&mut self, dir: &Path) -> Result<()> {
        for path in files_under(dir) {
            let kind = match path
                .components()
                .rev()
                .nth(1)
                .map(std::path::Component::as_os_str)
            {
                Some(name) if name == "maps" => "map",
                Some(name) if name == "programs" => "prog",
                Some(_) | None => "link",
            };
            // One that goes in between is not there afterwards either.
            let Ok(text) = shell::capture(
                Command::new(programs::system("bpftool")?)
                    .args(["--json", kind, "show", "pinned"])
                    .arg(&path),
            ) else {
                continue;
            };
            let row: Value = serde_json::from_str(&text).context("bpftool printed no JSON")?;
            let name = row["name"].as_str().unwrap_or(kind);
            self.0.insert((kind, format!("{} {name}", row["id"])));
        }
        Ok(())
    }

    /// Those that the kernel still has.
    pub(crate) fn left(&self) -> Result<Vec<&(&'static str, String)>> {
        let loaded = Loaded::read()?;
        let is_left = |(kind, object): &&(&'static str, String)| match *kind {
            "map" => loaded.maps.contains(object),
            "prog" => loaded.programs.contains(object),
            _ => loaded.links.contains(object),
        };
        Ok(self.0.iter().filter(is_left).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_under(&path));
        } else {
            files.push(path);
        }
    }
    files
}
