//! `isthmus-xds history`: the generations that a running server keeps.

use std::io::{self, Write};

use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::running::{self, DEFAULT_SERVER, Purpose, RunningError};
use super::{Layout, Outcome, count, table};

const EXAMPLES: &str = "\
Examples:
  What was put in force when, by whom, and what did it change:
    isthmus-xds history

  What differs between two generations (from the first to the second):
    isthmus-xds history diff 41 42

The last 256 generations are kept, until the server restarts. Names, versions and sizes are shown, and never
the content.

Exits 0 if the server answered, 2 if it could not be asked.";

/// Lists the last generations of a running server, or compares two.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct History {
    #[command(subcommand)]
    question: Option<Question>,

    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Shows what comes, changes and goes from one generation to another.
    Diff {
        /// The generation to start from.
        #[arg(value_name = "GENERATION")]
        from: u64,

        /// The generation to arrive at.
        #[arg(value_name = "GENERATION")]
        to: u64,

        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Asked {
    /// Admin address of the running server.
    #[arg(long, value_name = "URL", default_value = DEFAULT_SERVER)]
    pub(super) server: String,

    /// How to print the answer.
    #[arg(long, short, value_enum, default_value_t = Layout::Table)]
    pub(super) output: Layout,
}

#[derive(Debug, Deserialize)]
struct Listed {
    generations: Vec<Generation>,
    rollback: Option<Pinned>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pinned {
    to: u64,
    generation: u64,
    is_directory_held: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Generation {
    #[serde(rename = "generation")]
    number: u64,
    age_seconds: u64,
    source: String,
    changes: Vec<Change>,
    is_in_force: bool,
    converged: Option<u64>,
    clients: Option<u64>,
    #[serde(default)]
    refused_by: usize,
}

#[derive(Debug, Deserialize)]
struct Change {
    r#type: String,
    added: u64,
    changed: u64,
    removed: u64,
}

/// What differs, as the server says it.
#[derive(Debug, Deserialize)]
pub(super) struct Difference {
    pub(super) resources: Vec<Row>,
    pub(super) selectors: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Row {
    change: String,
    r#type: String,
    name: String,
    document: String,
    bytes: u64,
    origin: String,
}

impl History {
    pub(super) fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Outcome> {
        match &self.question {
            None => answer(&self.asked, "/history", list, out, err),
            Some(Question::Diff { from, to, asked }) => {
                let path = format!("/history/diff?from={from}&to={to}");
                answer(asked, &path, write_difference, out, err)
            }
        }
    }
}

/// Asks and prints, in the layout that is asked for.
pub(super) fn answer<T: serde::de::DeserializeOwned>(
    asked: &Asked,
    path: &str,
    tabulate: impl FnOnce(&mut dyn Write, &T) -> io::Result<()>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Outcome> {
    let (server, look) = (&asked.server, Purpose::Look);
    match asked.output {
        Layout::Table => match running::ask(server, look, path) {
            Ok(listed) => tabulate(out, &listed)?,
            Err(error) => return unanswered(&error, err),
        },
        Layout::Json => match running::ask::<Value>(server, look, path) {
            Ok(value) => writeln!(out, "{value:#}")?,
            Err(error) => return unanswered(&error, err),
        },
    }
    Ok(Outcome::Good)
}

/// Says why there is no answer.
pub(super) fn unanswered(error: &RunningError, err: &mut dyn Write) -> io::Result<Outcome> {
    writeln!(err, "isthmus-xds: {error}")?;
    Ok(Outcome::Unanswered)
}

fn list(out: &mut dyn Write, listed: &Listed) -> io::Result<()> {
    let pinned = listed.rollback.as_ref();
    let rows = listed.generations.iter().map(|it| {
        let is_pinned = pinned.is_some_and(|pin| pin.generation == it.number);
        [
            it.number.to_string(),
            table::age(it.age_seconds),
            it.source.clone(),
            summary(&it.changes),
            state(it, is_pinned),
        ]
    });
    let titles = ["GENERATION", "AGE", "SOURCE", "CHANGES", "STATE"];
    table::write(out, titles, &rows.collect::<Vec<_>>())?;
    if let Some(pin) = pinned {
        let until = if pin.is_directory_held {
            "until the configuration directory says something new, or"
        } else {
            "but for those that were changed since and those of the configuration directory,"
        };
        writeln!(
            out,
            "\nThe documents of generation {} are in force {until} until isthmus-xds rollback --release.",
            pin.to
        )?;
    }
    Ok(())
}

fn summary(changes: &[Change]) -> String {
    let of_type = |it: &Change| {
        let signs = [("+", it.added), ("~", it.changed), ("-", it.removed)];
        let signs = signs.iter().filter(|(_, number)| *number > 0);
        let signs = signs.map(|(sign, number)| format!("{sign}{number}"));
        let words = std::iter::once(it.r#type.clone()).chain(signs);
        words.collect::<Vec<_>>().join(" ")
    };
    if changes.is_empty() {
        return "nothing".to_owned();
    }
    let changes: Vec<String> = changes.iter().map(of_type).collect();
    changes.join(", ")
}

fn state(generation: &Generation, is_pinned: bool) -> String {
    let mut words = Vec::new();
    if generation.is_in_force {
        words.push(
            if is_pinned {
                "in force, pinned"
            } else {
                "in force"
            }
            .to_owned(),
        );
    }
    if let (Some(converged), Some(clients)) = (generation.converged, generation.clients) {
        words.push(format!("converged {converged} of {clients}"));
    }
    if generation.refused_by > 0 {
        words.push(format!(
            "refused by {}",
            count(generation.refused_by, "client")
        ));
    }
    words.join(", ")
}

/// Writes a line for each resource that comes, changes or goes.
pub(super) fn write_difference(out: &mut dyn Write, difference: &Difference) -> io::Result<()> {
    let rows = difference.resources.iter().map(|row| {
        let sign = match row.change.as_str() {
            "added" => "+",
            "changed" => "~",
            _ => "-",
        };
        [
            format!("{sign} {}", row.r#type),
            row.name.clone(),
            row.document.clone(),
            row.bytes.to_string(),
            row.origin.clone(),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if !rows.is_empty() {
        table::write(out, ["TYPE", "NAME", "DOCUMENT", "BYTES", "ORIGIN"], &rows)?;
    }
    for document in &difference.selectors {
        writeln!(out, "document {document} is for other clients")?;
    }
    if rows.is_empty() && difference.selectors.is_empty() {
        writeln!(out, "nothing differs")?;
    }
    Ok(())
}
