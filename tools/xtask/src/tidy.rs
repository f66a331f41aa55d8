//! `cargo xtask tidy`: the rules of the tree that no compiler knows.
//!
//! Every rule reports all that it finds, so that one run shows all there is to fix.

mod imports;
mod sources;

use anyhow::bail;

use crate::ebpf;
use crate::workspace::Workspace;

/// Checks everything.
///
/// # Errors
///
/// Lists every breach, each with the file or crate and the remedy.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let mut breaches = imports::breaches(workspace);
    let report = sources::inspect(workspace.root(), &workspace.files()?)?;
    breaches.extend(report.breaches);
    if let Err(error) = ebpf::sources_are_current(workspace.root()) {
        breaches.push(format!("{error:#}"));
    }

    for warning in report.warnings {
        println!("tidy: warning: {warning}");
    }
    for breach in &breaches {
        println!("tidy: {breach}");
    }
    if !breaches.is_empty() {
        bail!("{} breaches of the tree's rules", breaches.len());
    }
    Ok(())
}
