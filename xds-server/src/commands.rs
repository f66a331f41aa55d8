//! What `isthmus-xds` does besides serving: questions about a directory or a running server, answered once.

mod diff;
mod history;
mod nacks;
mod rollback;
mod running;
mod table;
mod validate;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

/// A question about a directory or a running server.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows what a change of a directory would send to one client.
    Diff(diff::Diff),
    /// Lists the last generations of a running server, or compares two.
    History(history::History),
    /// Lists what clients of a running server refused, and where that is written.
    Nacks(nacks::Nacks),
    /// Puts an earlier generation of a running server in force again.
    Rollback(rollback::Rollback),
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

/// How a list is printed. JSON is that of the admin endpoint, and stable across minor versions.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Layout {
    /// For people.
    Table,
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
            Self::History(history) => history.run(out, err)?,
            Self::Nacks(nacks) => nacks.run(out, err)?,
            Self::Rollback(rollback) => rollback.run(out, err)?,
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
