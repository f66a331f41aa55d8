//! Two agents at once: the second does not start, and says who the first is.

use std::process::Command;

use anyhow::{Result, ensure};
use isthmus_accel_abi::ABI_VERSION;
use isthmus_integration_tests::programs;

use crate::{agent::Agent, mesh::Mesh};

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
