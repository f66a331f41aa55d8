//! Debian packages, installed only when a program of theirs is missing.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::workspace::{is_installed, run};

/// Debian's hook that says whether an installed service may start.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// A program that must be there and the package that brings it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DebianPackage {
    /// Debian's name.
    pub(crate) package: &'static str,
    /// The program that proves that it is installed.
    pub(crate) program: &'static str,
    /// What the project does with it, for the line that is printed.
    pub(crate) why: &'static str,
}

/// Installs the packages whose program is missing.
///
/// # Errors
///
/// When something is missing and this is not root, there is no apt-get, or apt-get fails; the message names the
/// packages.
pub(crate) fn ensure_debian(wanted: &[DebianPackage]) -> anyhow::Result<()> {
    let missing: Vec<&DebianPackage> = wanted
        .iter()
        .filter(|package| !is_installed(package.program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.package).collect();
    for package in &missing {
        println!("setup: installing {} ({})", package.package, package.why);
    }

    if !is_installed("apt-get") {
        bail!(
            "this system has no apt-get: install the programs of {} by hand",
            names.join(", ")
        );
    }
    if !is_root() {
        bail!(
            "installing {} needs root: run `cargo xtask setup` as root once",
            names.join(", ")
        );
    }

    let _policy = ServicePolicy::deny()?;
    run(apt_get().args(["-qq", "update"]))
        .context("the Debian package lists could not be fetched: is a Debian mirror configured and reachable?")?;
    run(apt_get()
        .args([
            "-qq",
            "-y",
            "-o",
            "Dpkg::Use-Pty=0",
            "--no-install-recommends",
            "install",
        ])
        .args(&names))
    .with_context(|| format!("apt-get could not install {}", names.join(", ")))?;

    if let Some(absent) = missing
        .iter()
        .find(|package| !is_installed(package.program))
    {
        bail!(
            "package {} is installed but has no program {}",
            absent.package,
            absent.program
        );
    }
    Ok(())
}

/// Whether this process may install packages and make network namespaces.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1))
        .is_some_and(|effective| effective == "0")
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// While it lives, a package that is installed does not start its service: the lab runs nginx itself.
#[derive(Debug)]
struct ServicePolicy {
    is_ours: bool,
}

impl ServicePolicy {
    fn deny() -> anyhow::Result<Self> {
        // A machine that has a policy keeps it.
        if Path::new(SERVICE_POLICY).exists() {
            return Ok(Self { is_ours: false });
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(SERVICE_POLICY)
            .with_context(|| format!("{SERVICE_POLICY} could not be written"))?;
        file.write_all(
            b"#!/bin/sh\n# Written by `cargo xtask setup` and removed at its end.\nexit 101\n",
        )?;
        file.set_permissions(PermissionsExt::from_mode(0o755))?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.is_ours {
            // Left behind, it would keep services of other packages from starting: say so.
            if let Err(error) = std::fs::remove_file(SERVICE_POLICY) {
                eprintln!(
                    "setup: {SERVICE_POLICY} could not be removed, remove it by hand: {error}"
                );
            }
        }
    }
}
