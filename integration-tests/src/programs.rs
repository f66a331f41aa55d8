//! Where the programs are: our own beside the test's binary, fetched ones in `tools` of the target directory,
//! Debian's in the system.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Directories of the system that may not be in a user's `PATH`.
const SYSTEM_DIRS: [&str; 3] = ["/usr/sbin", "/usr/bin", "/sbin"];

/// One of the workspace's own programs, in the profile of the caller.
///
/// # Errors
///
/// When it is not built: cargo builds programs of other packages for no test.
pub fn own(name: &str) -> Result<PathBuf> {
    let path = profile_dir()?.join(name);
    if path.is_file() {
        return Ok(path);
    }
    bail!(
        "{} is not built: run `cargo build --workspace --bins` (`cargo xtask test` does)",
        path.display()
    );
}

/// A program that `cargo xtask setup` fetches.
///
/// # Errors
///
/// When setup has not run for this target directory.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = tools_dir()?.join("bin").join(name);
    if path.is_file() {
        return Ok(path);
    }
    bail!("{} is missing: run `cargo xtask setup`", path.display());
}

/// A directory of libraries for an interpreter, which `cargo xtask setup` fetches.
///
/// # Errors
///
/// When setup has not run for this target directory.
pub fn library(name: &str) -> Result<PathBuf> {
    let path = tools_dir()?.join(name);
    if path.is_dir() {
        return Ok(path);
    }
    bail!("{} is missing: run `cargo xtask setup`", path.display());
}

/// A program of the system.
///
/// # Errors
///
/// When it is not installed.
pub fn system(name: &str) -> Result<PathBuf> {
    SYSTEM_DIRS
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed: run `cargo xtask setup`"))
}

/// Where `cargo xtask setup` puts things.
fn tools_dir() -> Result<PathBuf> {
    let profile = profile_dir()?;
    let target = profile
        .parent()
        .context("a profile directory is inside a target directory")?;
    Ok(target.join("tools"))
}

/// `target/PROFILE`, from `target/PROFILE/deps/TEST` or `target/PROFILE/PROGRAM`.
fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("this program has no path")?;
    let dir = exe.parent().context("a program is in a directory")?;
    let dir = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    Ok(dir.to_owned())
}
