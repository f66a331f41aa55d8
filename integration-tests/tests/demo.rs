//! The demo, as its users start it: with root it measures, without it shows what it can.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::process::{User, command_as};
use isthmus_integration_tests::{programs, shell};

const DEMO: &str = env!("CARGO_BIN_EXE_isthmus-demo");

#[test]
fn with_root_it_measures_both_paths_and_changes_a_route() -> Result<()> {
    let text = shell::capture(Command::new(DEMO).args(["--rounds", "1", "--seconds", "1"]))?;
    for part in [
        "iptables",
        "isthmus",
        "requests/s",
        "skipped TCP/IP",
        "Route changed",
        " 0 failed",
    ] {
        ensure!(text.contains(part), "no {part:?} in:\n{text}");
    }
    Ok(())
}

#[test]
fn without_root_it_says_so_and_shows_the_control_plane_half() -> Result<()> {
    // That user may not be allowed into the directory where the programs were built: a tree of the same shape.
    let tree = tempfile::tempdir().context("no directory for copies")?;
    let profile = tree.path().join("debug");
    let tools = tree.path().join("tools/bin");
    fs::create_dir_all(&profile)?;
    fs::create_dir_all(&tools)?;
    fs::set_permissions(tree.path(), Permissions::from_mode(0o755))?;
    fs::copy(DEMO, profile.join("isthmus-demo"))?;
    fs::copy(programs::own("isthmus-xds")?, profile.join("isthmus-xds"))?;
    fs::copy(programs::tool("envoy")?, tools.join("envoy"))?;

    let program = profile.join("isthmus-demo");
    let text = shell::capture(&mut command_as(User::Application, None, program))?;
    for part in ["this is not root", "Route changed", " 0 failed"] {
        ensure!(text.contains(part), "no {part:?} in:\n{text}");
    }
    Ok(())
}
