//! Two agents at once: the second does not start, and says who the first is.

use std::{ffi::OsString, fs::File, process::Command};

use anyhow::{Result, ensure};
use isthmus_accel_abi::ABI_VERSION;
use isthmus_accel_datapath::linux::cgroup_root;
use isthmus_integration_tests::programs;

use crate::{agent::Agent, mesh::Mesh};

#[test]
fn hooks_that_another_agent_uses_are_not_taken_without_being_told_to() -> Result<()> {
    let mesh = Mesh::start()?;
    let agent = Agent::prepare(&mesh)?;
    // What an agent does that was not told to share them.
    let hooks = File::open(cgroup_root()?)?;
    hooks.lock()?;
    let is_alone = |arg: &OsString| arg != "--share-hooks";
    let output = Command::new(programs::own("isthmus-accelerator")?)
        .args(agent.run_args().into_iter().filter(is_alone))
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let pid = format!("process {}", std::process::id());
    ensure!(!output.status.success(), "it runs");
    ensure!(
        stderr.contains(&pid) && stderr.contains("--share-hooks"),
        "{stderr}"
    );
    Ok(())
}

#[test]
fn a_second_agent_is_refused_and_learns_who_the_first_is() -> Result<()> {
    let mesh = Mesh::start()?;
    let mut agent = Agent::prepare(&mesh)?;
    agent.start()?;
    let pid = agent.pid().map(|pid| format!("process {pid}"));
    let pid = pid.unwrap_or_default();
    let elsewhere = tempfile::tempdir()?;
    let pins = |version: u32| agent.version_dir(version);
    let own_run = agent.dir().join("run");

    for verb in ["run", "detach"] {
        let cases = [
            ("the same directories", pins(ABI_VERSION), own_run.clone()),
            (
                "another runtime directory",
                pins(ABI_VERSION),
                elsewhere.path().join("run"),
            ),
            (
                "the pins of another version",
                pins(ABI_VERSION + 1),
                elsewhere.path().join("run"),
            ),
        ];
        for (name, pin_dir, runtime_dir) in cases {
            let mut command = Command::new(programs::own("isthmus-accelerator")?);
            command.arg(verb).arg("--pin-dir").arg(pin_dir);
            command.arg("--runtime-dir").arg(runtime_dir);
            if verb == "run" {
                command.arg("--config").arg(agent.dir().join("node.yaml"));
                command.arg("--share-hooks");
            }
            let output = command.output()?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success(), "{verb}, {name}: it works");
            ensure!(
                stderr.contains(&pid) && stderr.contains("stop it first"),
                "{verb}, {name}: {stderr}"
            );
        }
    }
    agent.check_loaded()
}
