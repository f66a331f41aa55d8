//! `isthmus-xds`: serves Envoy configuration from a directory over xDS.

use std::io;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use isthmus_xds::cli::{Cli, LogFormat, Program};
use isthmus_xds::commands::Command;
use isthmus_xds::server;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static HEAP: isthmus_heap::CountingAllocator = isthmus_heap::CountingAllocator;

fn main() -> ExitCode {
    match Program::parse() {
        Program {
            command: Some(command),
            ..
        } => answer(&command),
        Program {
            serve: Some(cli),
            command: None,
        } if cli.has_source() => serve(&cli),
        Program { command: None, .. } => Program::command()
            .error(
                ErrorKind::MissingRequiredArgument,
                "--config-dir <DIR>, --api-listen <ADDR>, --api-socket <PATH> or a command is required",
            )
            .exit(),
    }
}

fn answer(command: &Command) -> ExitCode {
    match command.run(&mut io::stdout().lock(), &mut io::stderr().lock()) {
        Ok(code) => code,
        // Whoever read the answer has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isthmus-xds: the answer cannot be written: {error}");
            ExitCode::from(2)
        }
    }
}

fn serve(cli: &Cli) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match cli.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isthmus-xds: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(server::run(cli));
    // A reload under way may be reading a slow file system: it is not waited for.
    runtime.shutdown_background();
    Ok(served?)
}
