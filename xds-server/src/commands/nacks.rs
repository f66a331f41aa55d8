//! `isthmus-xds nacks`: what clients refused, and where that is written.

use std::io::{self, Write};

use serde::Deserialize;

use super::history::{Asked, answer};
use super::{Outcome, table};

const EXAMPLES: &str = "\
Examples:
  What do clients refuse, why, and on which line of which file is it:
    isthmus-xds nacks

The last 1024 refusals are kept, until the server restarts.

Exits 0 if the server answered, 2 if it could not be asked.";

/// Lists what clients of a running server refused, and where that is written.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Nacks {
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, Deserialize)]
struct Listed {
    nacks: Vec<Nack>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Nack {
    age_seconds: u64,
    node: String,
    r#type: String,
    generation: u64,
    message: String,
    culprits: Vec<Culprit>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Culprit {
    name: String,
    origin: String,
    is_in_force: bool,
    is_set_aside: bool,
}

impl Nacks {
    pub(super) fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Outcome> {
        answer(&self.asked, "/nacks", list, out, err)
    }
}

fn list(out: &mut dyn Write, listed: &Listed) -> io::Result<()> {
    if listed.nacks.is_empty() {
        return writeln!(out, "no client refused anything");
    }
    let mut rows = Vec::new();
    for nack in &listed.nacks {
        let row = |name: &str, origin: &str, state: &str| {
            [
                table::age(nack.age_seconds),
                nack.node.clone(),
                nack.r#type.clone(),
                name.to_owned(),
                nack.generation.to_string(),
                state.to_owned(),
                origin.to_owned(),
                nack.message
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" "),
            ]
        };
        if nack.culprits.is_empty() {
            rows.push(row("?", "?", "?"));
        }
        for culprit in &nack.culprits {
            let state = match (culprit.is_in_force, culprit.is_set_aside) {
                (true, true) => "in force, set aside",
                (true, false) => "in force",
                (false, _) => "replaced",
            };
            rows.push(row(&culprit.name, &culprit.origin, state));
        }
    }
    let titles = [
        "AGE",
        "NODE",
        "TYPE",
        "RESOURCE",
        "GENERATION",
        "STATE",
        "WRITTEN AT",
        "REASON",
    ];
    table::write(out, titles, &rows)
}
