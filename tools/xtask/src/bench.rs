//! `cargo xtask bench`: measurements for humans.

use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::demo::Demo;
use crate::setup::{DebianPackage, ensure_debian};
use crate::workspace::{Workspace, run};

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Two pods with sidecars, iptables against the accelerator, in interleaved rounds.
    #[command(after_help = "Examples:\n  cargo xtask bench accel --rounds 5 --seconds 10")]
    Accel {
        /// Times that each path is measured; the table shows medians.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=20))]
        rounds: u32,

        /// Seconds of load for each measurement.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
    },

    /// What a change costs an xDS server: ours, go-control-plane and a floor under one client.
    ///
    /// Builds both servers and writes a table, plots and `xds.json` to `bench/` of the target directory.
    #[command(
        after_help = "Examples:\n  cargo xtask bench xds --quick\n  cargo xtask bench xds --streams 10000 --clusters 100"
    )]
    Xds(Xds),
}

#[derive(Debug, Args)]
struct Xds {
    /// Numbers of streams, each with a connection of its own.
    #[arg(long, default_value = "100,1000,10000")]
    streams: String,

    /// Numbers of clusters, each with its endpoints.
    #[arg(long, default_value = "100,5000")]
    clusters: String,

    /// What the clients speak.
    #[arg(long, default_value = "delta,sotw")]
    clients: String,

    /// A few minutes: at most 1,000 streams and 100 clusters, fewer changes, nothing doubled.
    #[arg(long)]
    quick: bool,
}

/// Go, for the program that serves with go-control-plane; the module's own toolchain line picks the version.
const GO: DebianPackage = DebianPackage {
    program: "go",
    package: "golang-go",
    why: "builds go-control-plane, which ours is measured against",
};

impl Xds {
    fn run(&self, workspace: &Workspace) -> anyhow::Result<ExitCode> {
        ensure_debian(&[GO])?;
        let out = workspace.target().join("bench");
        std::fs::create_dir_all(&out)
            .with_context(|| format!("{} cannot be made", out.display()))?;
        let peer = out.join("go-control-plane");
        let mut go = Command::new("go");
        go.args(["build", "-mod=readonly", "-o"])
            .arg(&peer)
            .arg(".");
        run(go.current_dir(workspace.root().join("tools/bench/gcp")))?;
        run(&mut workspace.cargo(["build", "--release", "--locked", "-p", "isthmus-bench"]))?;
        let mut bench = Command::new(workspace.target().join("release/isthmus-bench"));
        bench
            .arg("xds")
            .arg("--out")
            .arg(&out)
            .arg("--go-control-plane")
            .arg(&peer);
        bench.args(["--streams", &self.streams, "--clusters", &self.clusters]);
        bench.args(["--clients", &self.clients]);
        if self.quick {
            bench.arg("--quick");
        }
        run(&mut bench)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Bench {
    /// Measures and prints a table.
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<ExitCode> {
        match &self.subject {
            Subject::Accel { rounds, seconds } => Demo {
                rounds: *rounds,
                seconds: *seconds,
                control_plane: false,
            }
            .run(workspace),
            Subject::Xds(xds) => xds.run(workspace),
        }
    }
}
