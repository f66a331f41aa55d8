//! What `isthmus-xds` does besides serving: questions about a directory, answered once.

mod diff;
mod running;
mod validate;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

/// A question about a directory.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows what a change of a directory would send to one client.
    Diff(diff::Diff),
    /// Checks a directory as the server does, without serving it.
    Validate(validate::Validate),
}

/// How an answer is printed. JSON is stable across minor versions.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// How the process ends; the numbers are part of the command line's contract.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// 0
    Good,
    /// 1: the directory is not right.
    Bad,
    /// 2: the question cannot be answered.
    Unanswered,
}

impl Command {
    /// Answers on `out`; why it cannot be answered goes to `err`.
    ///
    /// # Errors
    ///
    /// Returns the error of writing.
    pub fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<ExitCode> {
        let outcome = match self {
            Self::Diff(diff) => diff.run(out, err)?,
            Self::Validate(validate) => validate.run(out, err)?,
        };
        Ok(ExitCode::from(match outcome {
            Outcome::Good => 0,
            Outcome::Bad => 1,
            Outcome::Unanswered => 2,
        }))
    }
}

/// "1 error", "2 errors".
fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
