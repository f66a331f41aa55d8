//! What is loaded in the kernel, by somebody else's account.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{programs, shell};

/// Programs, maps and links, by the kernel's ids with their names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Loaded {
    /// Links.
    pub links: BTreeSet<String>,
    /// Maps.
    pub maps: BTreeSet<String>,
    /// Programs.
    pub programs: BTreeSet<String>,
}

impl Loaded {
    /// Asks bpftool.
    ///
    /// # Errors
    ///
    /// When it is not installed, or this is not root.
    pub fn read() -> Result<Self> {
        Ok(Self {
            links: list("link")?,
            maps: list("map")?,
            programs: list("prog")?,
        })
    }

    /// What is there and was not there `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let added = |now: &BTreeSet<String>, before: &BTreeSet<String>| {
            now.difference(before).cloned().collect()
        };
        Self {
            links: added(&self.links, &earlier.links),
            maps: added(&self.maps, &earlier.maps),
            programs: added(&self.programs, &earlier.programs),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.maps.is_empty() && self.programs.is_empty()
    }
}

fn list(object: &str) -> Result<BTreeSet<String>> {
    let text = shell::capture(
        Command::new(programs::system("bpftool")?).args(["--json", object, "list"]),
    )?;
    let rows: Vec<Value> =
        serde_json::from_str(&text).with_context(|| format!("bpftool {object} printed {text}"))?;
    Ok(rows
        .iter()
        .map(|row| format!("{} {}", row["id"], row["name"].as_str().unwrap_or(object)))
        .collect())
}
