//! The demo: a mesh of two pods on this machine, first as Istio redirects, then accelerated; and a change under load.
//!
//! `cargo xtask demo` builds what it runs. Everything it starts and makes is gone when it ends, also on ^C.

#![forbid(unsafe_code)]

mod control_plane_half;
mod data_path;
mod preflight;
mod progress;
mod report;
mod route_change;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::preflight::Preflight;
use crate::progress::Progress;

/// A mesh of two pods on this machine, measured.
#[derive(Debug, Parser)]
#[command(
    name = "isthmus-demo",
    after_help = "Examples:\n  cargo xtask demo\n  isthmus-demo --rounds 5 --seconds 10\n  isthmus-demo --control-plane"
)]
struct Cli {
    /// Times that each path is measured; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,

    /// Seconds of load for each measurement.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,

    /// Show the control-plane half only, as if this were not root.
    #[arg(long)]
    control_plane: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let found = if cli.control_plane {
        Preflight {
            obstacle: Some("as asked".to_owned()),
            caveat: None,
        }
    } else {
        preflight::look()?
    };
    if let Some(reason) = found.obstacle {
        println!("Showing the control-plane half only: {reason}\n");
        return control_plane_half::run(&Progress::new(control_plane_half::STEPS)?);
    }
    if let Some(reason) = found.caveat {
        println!("Connections are redirected, but no byte skips TCP here: {reason}\n");
    }

    let plan = data_path::Plan {
        rounds: cli.rounds,
        seconds: cli.seconds,
    };
    let progress = Progress::new(plan.steps() + route_change::STEPS)?;
    data_path::run(&plan, &progress)
}
