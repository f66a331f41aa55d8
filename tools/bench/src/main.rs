//! `isthmus-bench xds`: what a change costs, ours beside go-control-plane and the floor.
//! `isthmus-bench accel`: what a request costs, by the accelerator beside iptables.
//!
//! One program in several processes: `xds` runs the benchmark and starts the others (`serve`,
//! `client`, `floor`, and the Go program in `gcp/`), talks to them by lines and measures them
//! from outside. `accel` makes a lab and starts the load and the applications in its pods.
#![forbid(unsafe_code)]

mod accel;
mod client;
mod clock;
mod contender;
mod doubled;
mod floor;
mod perf;
mod plot;
mod process;
mod profile;
mod report;
mod resources;
mod run;
mod server;
mod soak;
mod statistics;
mod turns;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

// As isthmus-xds has it: what it costs is part of what is measured.
#[global_allocator]
static HEAP: isthmus_heap::CountingAllocator = isthmus_heap::CountingAllocator;

/// The benchmarks.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  cargo xtask bench xds --quick\n  cargo xtask bench xds --streams 10000 --clusters 100 --scenario one-endpoint"
)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Runs the benchmark: prints a table and writes it, with plots, to a directory.
    Xds(run::Options),
    /// Many streams, many changes, some clients that never read: fails if the server does not hold.
    Soak(soak::Options),
    /// The clients of half a soak; used by `soak`.
    #[command(hide = true)]
    SoakClients(soak::clients::ClientsArgs),
    /// Pod to pod by iptables and by the accelerator: fails if the accelerator is worse somewhere.
    Accel(accel::Options),
    /// Load from inside a pod; used by `accel`.
    #[command(hide = true)]
    AccelLoad(accel::LoadArgs),
    /// The application in a pod; used by `accel`.
    #[command(hide = true)]
    AccelApplication(accel::ApplicationArgs),
    /// Our server; used by `xds` and `soak`.
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
        Role::Soak(options) => soak::run(&options),
        Role::SoakClients(args) => soak::clients::run(args),
        Role::Accel(options) => accel::run(&options),
        Role::AccelLoad(args) => accel::run_load(&args),
        Role::AccelApplication(args) => accel::run_application(&args),
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
