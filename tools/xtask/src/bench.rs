//! `cargo xtask bench`: measurements for humans.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::demo::Demo;
use crate::workspace::Workspace;

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
}

impl Bench {
    /// Measures and prints a table.
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<ExitCode> {
        match self.subject {
            Subject::Accel { rounds, seconds } => Demo {
                rounds,
                seconds,
                control_plane: false,
            }
            .run(workspace),
        }
    }
}
