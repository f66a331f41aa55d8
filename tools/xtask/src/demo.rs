//! `cargo xtask demo`: setup, a release build, and the demo itself.

use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::setup;
use crate::workspace::{Workspace, run};

/// Arguments of the demo; they are handed on to its binary.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Demo {
    /// Times that each path is measured; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(crate) rounds: u32,

    /// Seconds of load for each measurement.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub(crate) seconds: u32,

    /// Show the control-plane half only, as if this were not root.
    #[arg(long)]
    pub(crate) control_plane: bool,
}

impl Demo {
    /// Builds, then runs the demo in the foreground.
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<ExitCode> {
        if self.control_plane || !setup::is_root() {
            setup::envoy(workspace)?;
        } else {
            setup::run(workspace)?;
        }
        println!("demo: building the programs in release mode (minutes the first time)");
        run(&mut workspace.cargo([
            "build",
            "--release",
            "--package=isthmus-xds",
            "--package=isthmus-accelerator",
            "--package=isthmus-integration-tests",
            "--bins",
        ]))?;

        let mut demo = Command::new(workspace.target().join("release/isthmus-demo"));
        demo.args([
            "--rounds",
            &self.rounds.to_string(),
            "--seconds",
            &self.seconds.to_string(),
        ]);
        if self.control_plane {
            demo.arg("--control-plane");
        }
        let status = demo.status().context("the demo could not be started")?;
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
