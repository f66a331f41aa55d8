//! `isthmus-bench xds`: what a change costs, ours beside go-control-plane and the floor.
//!
//! One program in several processes: `xds` runs the benchmark and starts the others (`serve`,
//! `client`, `floor`, and the Go program in `gcp/`), talks to them by lines and measures them
//! from outside.
#![forbid(unsafe_code)]

mod client;
mod clock;
mod contender;
mod floor;
mod plot;
mod process;
mod report;
mod resources;
mod run;
mod server;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

// As isthmus-xds has it: what it costs is part of what is measured.
#[global_allocator]
static HEAP: isthmus_heap::CountingAllocator = isthmus_heap::CountingAllocator;

/// The xDS benchmark.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  cargo xtask bench xds --quick\n  cargo xtask bench xds --streams 10000 --clusters 100"
)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Runs the benchmark: prints a table and writes it, with plots, to a directory.
    Xds(run::Options),
    /// Our server; used by `xds`.
    #[command(hide = true)]
    Serve,
    /// The clients; used by `xds`.
    #[command(hide = true)]
    Client(client::ClientArgs),
    /// A server that only writes; used by `xds`.
    #[command(hide = true)]
    Floor,
}

fn main() -> ExitCode {
    let ran = match Cli::parse().role {
        Role::Xds(options) => run::run(&options),
        Role::Serve => server::run(),
        Role::Client(args) => client::run(args),
        Role::Floor => floor::run(),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isthmus-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
