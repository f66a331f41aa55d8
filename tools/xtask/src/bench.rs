//! `cargo xtask bench`: measurements for humans.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::setup::{self, DebianPackage, ensure_debian};
use crate::workspace::{Workspace, run};

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Pod to pod through two sidecars: iptables against the accelerator, in interleaved rounds.
    ///
    /// Writes a table, plots and `accel.json` to `bench/` of the target directory; fails if the accelerator is worse than
    /// iptables anywhere by more than the noise of the run. Needs root, and a machine on which nothing else runs.
    #[command(
        after_help = "Examples:\n  cargo xtask bench accel\n  cargo xtask bench accel --rounds 3 --seconds 1 --connections 16 --workload http1-keepalive,grpc-unary"
    )]
    Accel(Accel),

    /// What a change costs an xDS server: ours, go-control-plane and a floor under one client.
    ///
    /// Builds both servers and writes a table, plots and `xds.json` to `bench/` of the target directory.
    #[command(
        after_help = "Examples:\n  cargo xtask bench xds --quick\n  cargo xtask bench xds --streams 10000 --clusters 100 --clients delta --scenario one-endpoint,profile"
    )]
    Xds(Xds),

    /// Ten minutes of changes that one stream in twenty needs, while one in ten never reads.
    ///
    /// Fails if memory grows, a healthy client converges late, or streams that need nothing cost something.
    #[command(
        after_help = "Examples:\n  cargo xtask bench soak\n  cargo xtask bench soak --streams 1000 --seconds 60"
    )]
    Soak(Soak),
}

#[derive(Debug, Args)]
struct Accel {
    /// Times that each path is measured; the table shows medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,

    /// Seconds of load for each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,

    /// Numbers of connections.
    #[arg(long, default_value = "1,16,256")]
    connections: String,

    /// What is sent: http1-keepalive, http1-new, grpc-unary, grpc-streaming, bulk-down, bulk-up; all of it if left out.
    #[arg(long)]
    workload: Option<String>,

    /// Data paths beside iptables: no-mesh, redirect, default, flows, full; all of them if left out.
    #[arg(long)]
    path: Option<String>,

    /// Where the table, the plots and the rows go, in place of `bench/` of the target directory.
    #[arg(long)]
    out: Option<PathBuf>,
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

    /// What happens: idle, one-endpoint, one-route, everything, reconnect, doubled, profile; all of it if left out.
    #[arg(long)]
    scenario: Option<String>,

    /// Who serves: isthmus, go-control-plane, go-control-plane-linear, floor; all of them if left out.
    #[arg(long)]
    server: Option<String>,

    /// Where the table, the plots and the rows go, in place of `bench/` of the target directory.
    #[arg(long)]
    out: Option<PathBuf>,

    /// A few minutes: at most 1,000 streams and 100 clusters, and fewer changes.
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Args)]
struct Soak {
    /// Streams, each with a connection of its own; one in ten never reads.
    #[arg(long, default_value_t = 10_000)]
    streams: u32,

    /// How long changes come.
    #[arg(long, default_value_t = 600)]
    seconds: u32,

    /// From one change to the next.
    #[arg(long, default_value_t = 100)]
    interval_ms: u32,
}

/// Go, for the program that serves with go-control-plane; the module's own toolchain line picks the version.
const GO: DebianPackage = DebianPackage {
    program: "go",
    package: "golang-go",
    why: "builds go-control-plane, which ours is measured against",
};

/// Without it there is no profile of the kernel's part.
const PERF: DebianPackage = DebianPackage {
    program: "perf",
    package: "linux-perf",
    why: "says where the rest of the time goes",
};

impl Accel {
    fn run(&self, workspace: &Workspace) -> anyhow::Result<ExitCode> {
        setup::run(workspace)?;
        ensure_debian(&[PERF])?;
        let directory = workspace.target().join("bench");
        let out = self.out.as_ref().unwrap_or(&directory);
        std::fs::create_dir_all(out)
            .with_context(|| format!("{} cannot be made", out.display()))?;
        run(&mut workspace.cargo([
            "build",
            "--release",
            "--locked",
            "--package=isthmus-xds",
            "--package=isthmus-accelerator",
        ]))?;
        let mut bench = built(workspace)?;
        bench.arg("accel").arg("--out").arg(out);
        bench.args(["--rounds", &self.rounds.to_string()]);
        bench.args(["--seconds", &self.seconds.to_string()]);
        bench.args(["--connections", &self.connections]);
        for (flag, value) in [("--workload", &self.workload), ("--path", &self.path)] {
            if let Some(value) = value {
                bench.args([flag, value]);
            }
        }
        run(&mut bench)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Xds {
    fn run(&self, workspace: &Workspace) -> anyhow::Result<ExitCode> {
        ensure_debian(&[GO])?;
        let directory = workspace.target().join("bench");
        let out = self.out.as_ref().unwrap_or(&directory);
        for directory in [&directory, out] {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("{} cannot be made", directory.display()))?;
        }
        let peer = directory.join("go-control-plane");
        let mut go = Command::new("go");
        go.args(["build", "-mod=readonly", "-o"])
            .arg(&peer)
            .arg(".");
        run(go.current_dir(workspace.root().join("tools/bench/gcp")))?;
        let mut bench = built(workspace)?;
        bench
            .arg("xds")
            .arg("--out")
            .arg(out)
            .arg("--go-control-plane")
            .arg(&peer);
        bench.args(["--streams", &self.streams, "--clusters", &self.clusters]);
        bench.args(["--clients", &self.clients]);
        for (flag, value) in [("--scenario", &self.scenario), ("--server", &self.server)] {
            if let Some(value) = value {
                bench.args([flag, value]);
            }
        }
        if self.quick {
            bench.arg("--quick");
        }
        run(&mut bench)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Soak {
    fn run(&self, workspace: &Workspace) -> anyhow::Result<ExitCode> {
        let mut soak = built(workspace)?;
        soak.arg("soak");
        for (flag, value) in [
            ("--streams", self.streams),
            ("--seconds", self.seconds),
            ("--interval-ms", self.interval_ms),
        ] {
            soak.args([flag, &value.to_string()]);
        }
        run(&mut soak)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The benchmark, built in release mode.
fn built(workspace: &Workspace) -> anyhow::Result<Command> {
    run(&mut workspace.cargo(["build", "--release", "--locked", "-p", "isthmus-bench"]))?;
    Ok(Command::new(
        workspace.target().join("release/isthmus-bench"),
    ))
}

impl Bench {
    /// Measures and prints a table.
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<ExitCode> {
        match &self.subject {
            Subject::Accel(accel) => accel.run(workspace),
            Subject::Xds(xds) => xds.run(workspace),
            Subject::Soak(soak) => soak.run(workspace),
        }
    }
}
