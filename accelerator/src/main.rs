//! `isthmus-accelerator`: reads the command line, exits with the right code.

#![forbid(unsafe_code)]

use std::{io, process::ExitCode};

use clap::Parser;
use isthmus_accelerator::{cli::Cli, commands, error::render_chain};

fn main() -> ExitCode {
    match commands::execute(Cli::parse(), &mut io::stdout()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", render_chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
