//! Whether this machine can show the data path.

use std::process::Command;

use anyhow::{Context, Result};
use isthmus_integration_tests::programs;

/// What keeps the data path from being shown, in words for the user; `None` if nothing does.
///
/// # Errors
///
/// When the accelerator's program is not built.
pub(crate) fn obstacle() -> Result<Option<String>> {
    if !is_root()? {
        return Ok(Some(
            "network namespaces and BPF need root, and this is not root".to_owned(),
        ));
    }
    // The accelerator knows best what it needs; its answer is one line that names the remedy.
    let output = Command::new(programs::own("isthmus-accelerator")?)
        .arg("probe")
        .output()
        .context("isthmus-accelerator could not be started")?;
    if output.status.success() {
        return Ok(None);
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(Some(format!("the accelerator cannot run here: {reason}")))
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc is not mounted")?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0"))
}
