//! The agent's program, with a directory of its own in which versions lie side by side.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result, ensure};
use isthmus_accel_abi::ABI_VERSION;
use isthmus_accel_datapath::linux::{DEFAULT_BPFFS, Patience, detach, pin_dirs};
use isthmus_integration_tests::{
    process::{Process, Program, User},
    programs, shell, wait,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::mesh::{Mesh, PATIENCE};

/// An agent that runs, or does not. Dropping it takes everything out.
#[derive(Debug)]
pub(crate) struct Agent {
    dir: TempDir,
    pin_root: PathBuf,
    pods: usize,
    process: Option<Process>,
}

impl Agent {
    /// Prepares an agent of both pods.
    pub(crate) fn prepare(mesh: &Mesh) -> Result<Self> {
        let agent = Self {
            dir: tempfile::tempdir()?,
            pin_root: Path::new(DEFAULT_BPFFS).join(&mesh.name),
            pods: 2,
            process: None,
        };
        agent.write_pods(mesh)?;
        Ok(agent)
    }

    /// Writes the agent's file anew, with so many of the pods, and waits until it is followed.
    pub(crate) fn follow(&mut self, mesh: &Mesh, pods: usize) -> Result<()> {
        self.pods = pods;
        self.write_pods(mesh)?;
        wait::until("the pods of the file", PATIENCE, || self.check_loaded())
    }

    fn write_pods(&self, mesh: &Mesh) -> Result<()> {
        let pods = [
            ("default/client", mesh.client.path()),
            ("default/server", mesh.server.path()),
        ];
        let pods = pods.into_iter().take(self.pods);
        let pod = |(name, path): (&str, PathBuf)| json!({"name": name, "netns": path});
        let document = json!({
            "apiVersion": "isthmus.io/v1alpha1",
            "kind": "NodeConfig",
            "pods": pods.map(pod).collect::<Vec<_>>(),
        });
        let draft = self.dir.path().join("node.yaml.draft");
        fs::write(&draft, serde_json::to_vec(&document)?)?;
        Ok(fs::rename(draft, self.config())?)
    }

    pub(crate) fn pin_root(&self) -> &Path {
        &self.pin_root
    }

    /// Where a version pins what it loads.
    pub(crate) fn version_dir(&self, version: u32) -> PathBuf {
        self.pin_root.join(format!("v{version}"))
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("node.yaml")
    }

    fn places(&self) -> Vec<OsString> {
        vec![
            "--pin-dir".into(),
            self.version_dir(ABI_VERSION).into(),
            "--runtime-dir".into(),
            self.dir.path().join("run").into(),
        ]
    }

    /// The arguments of `run`.
    pub(crate) fn run_args(&self) -> Vec<OsString> {
        let mut args = vec!["run".into(), "--config".into(), self.config().into()];
        args.push("--share-hooks".into());
        args.extend(self.places());
        args
    }

    /// The arguments of `detach`, which waits for no reader.
    pub(crate) fn detach_args(&self) -> Vec<OsString> {
        let mut args = vec!["detach".into(), "--timeout".into(), "0".into()];
        args.extend(self.places());
        args
    }

    /// Starts the agent and waits until it has said that it is ready.
    pub(crate) fn start(&mut self) -> Result<()> {
        let log = self.dir.path().join("agent.log");
        fs::write(&log, "")?;
        let mut process = Process::start(&Program {
            args: self.run_args(),
            log_dir: self.dir.path(),
            name: "agent",
            netns: None,
            path: &programs::own("isthmus-accelerator")?,
            user: User::Caller,
        })?;
        wait::until("the agent to be ready", PATIENCE, || {
            process.check_running()?;
            ensure!(process.log()?.contains("ready: "), "it has not said so");
            Ok(())
        })?;
        self.process = Some(process);
        self.check_loaded()
    }

    /// Fails unless every program is attached and every pod loaded.
    pub(crate) fn check_loaded(&self) -> Result<()> {
        let status = self.status()?;
        let programs = status["programs"].as_array().context("a list")?;
        let is_loose = |row: &&Value| row["is_attached"] != json!(true);
        let loose: Vec<&Value> = programs.iter().filter(is_loose).collect();
        ensure!(loose.is_empty(), "not attached: {loose:?}");
        let pods = status["pods"].as_array().context("a list")?.len();
        ensure!(pods == self.pods, "{pods} pods are loaded");
        Ok(())
    }

    pub(crate) fn status(&self) -> Result<Value> {
        let mut command = Command::new(programs::own("isthmus-accelerator")?);
        command
            .arg("status")
            .args(self.places())
            .args(["-o", "json"]);
        Ok(serde_json::from_str(&shell::capture(&mut command)?)?)
    }

    /// Waits until no other version is left.
    pub(crate) fn wait_alone(&self) -> Result<()> {
        wait::until("the end of other versions", PATIENCE, || {
            let status = self.status()?;
            let others = status["other_versions"].as_array().context("a list")?;
            ensure!(others.is_empty(), "{others:?}");
            Ok(())
        })
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    pub(crate) fn kill(&mut self) -> Result<ExitStatus> {
        self.process.take().context("it runs")?.kill()
    }

    pub(crate) fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.take().context("it runs")?.terminate()
    }

    /// Runs `detach` to its end; returns what it printed.
    pub(crate) fn detach(&self) -> Result<String> {
        let mut command = Command::new(programs::own("isthmus-accelerator")?);
        shell::capture(command.args(self.detach_args()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.take());
        take_out(&self.pin_root);
    }
}

/// Takes every version out that is pinned below a directory.
pub(crate) fn take_out(pin_root: &Path) {
    for dir in pin_dirs(&pin_root.join(format!("v{ABI_VERSION}"))) {
        if let Err(error) = detach(&dir, &Patience::NONE, &mut |_| {}) {
            eprintln!("{} is left behind: {error}", dir.display());
        }
    }
}
