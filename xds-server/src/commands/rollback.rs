//! `isthmus-xds rollback`: an earlier generation in force again.

use std::io::{self, Write};

use serde::Deserialize;

use super::Outcome;
use super::history::{Difference, unanswered, write_difference};
use super::running::{self, DEFAULT_SERVER, Purpose};

const EXAMPLES: &str = "\
Examples:
  See what it would change, then do it:
    isthmus-xds rollback 41 --dry-run
    isthmus-xds rollback 41

  Follow the configuration directory again:
    isthmus-xds rollback --release

The documents of the generation are put in force as a new one. They stay until the configuration directory says
something else than it said when they came (writing the same again does not count), or until --release.

Exits 0 if it is done, 2 if the server could not be asked or refuses.";

/// Puts an earlier generation of a running server in force again.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Rollback {
    /// The generation, as isthmus-xds history lists it.
    #[arg(value_name = "GENERATION", required_unless_present = "release")]
    generation: Option<u64>,

    /// Show what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,

    /// End the rollback: put in force again what it displaced.
    #[arg(long, conflicts_with_all = ["generation", "dry_run"])]
    release: bool,

    /// Admin address of the running server.
    #[arg(long, value_name = "URL", default_value = DEFAULT_SERVER)]
    server: String,
}

#[derive(Debug, Deserialize)]
struct Answer {
    generation: Option<u64>,
    difference: Option<Difference>,
}

impl Rollback {
    pub(super) fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Outcome> {
        let path = match self.generation {
            Some(number) => format!("/rollback?generation={number}&dry_run={}", self.dry_run),
            None => "/rollback/release".to_owned(),
        };
        let answer: Answer = match running::ask(&self.server, Purpose::Change, &path) {
            Ok(answer) => answer,
            Err(error) => return unanswered(&error, err),
        };
        if let Some(difference) = &answer.difference {
            write_difference(out, difference)?;
        }
        match (answer.generation, self.generation) {
            (Some(made), Some(to)) => writeln!(
                out,
                "generation {made} is in force, with the documents of {to}, until the configuration directory says \
                 something new or isthmus-xds rollback --release"
            )?,
            (Some(made), None) => writeln!(
                out,
                "generation {made} is in force; the configuration directory is followed again"
            )?,
            (None, _) => writeln!(out, "nothing was changed")?,
        }
        Ok(Outcome::Good)
    }
}
