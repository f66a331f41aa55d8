//! `isthmus-xds validate`: everything that is wrong with a directory, and an exit code for CI.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Format, Outcome, count};
use crate::config_dir::limits::{MAX_ERRORS, MAX_WARNINGS};
use crate::config_dir::{self, ConfigError, ConfigWarning, LoadedConfig, Place, Problem};

const EXAMPLES: &str = "\
Examples:
  Check a directory before it is merged:
    isthmus-xds validate ./config

  In CI, where a name that nothing answers to is a mistake too:
    isthmus-xds validate --strict -o json ./config

Errors are what keeps the server from serving the directory: text that does not parse, unknown fields,
what Envoy's own validation rules refuse, names given twice. Warnings are what Envoy accepts and still
fails at, such as a route to a cluster that no document gives to the same clients; they are looked for
when there are no errors. Nothing is contacted and nothing is changed.

Exits 0 if the directory is right, 1 if it is not, 2 if it cannot be read.";

/// Checks a directory as the server does, without serving it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Validate {
    /// Directory of `EnvoyResources` documents.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// How to print the answer.
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,

    /// Take warnings for errors.
    #[arg(long)]
    strict: bool,
}

impl Validate {
    pub(super) fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Outcome> {
        let (config, errors) = match config_dir::load(&self.dir) {
            Ok(config) => (config, Vec::new()),
            Err(errors) => (LoadedConfig::default(), errors),
        };
        let unreadable = errors
            .iter()
            .find(|error| matches!(error.problem, Problem::Directory(_)));
        if let Some(error) = unreadable {
            writeln!(err, "isthmus-xds: {error}")?;
            return Ok(Outcome::Unanswered);
        }
        match self.output {
            Format::Json => json(out, &config, &errors)?,
            Format::Text => text(out, &config, &errors)?,
        }
        let is_bad = !errors.is_empty() || (self.strict && !config.warnings.is_empty());
        Ok(if is_bad { Outcome::Bad } else { Outcome::Good })
    }
}

fn text(out: &mut dyn Write, config: &LoadedConfig, errors: &[ConfigError]) -> io::Result<()> {
    for error in errors {
        writeln!(out, "error: {error}")?;
    }
    for warning in &config.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    if !errors.is_empty() {
        let more = if errors.len() >= MAX_ERRORS {
            "; there may be more"
        } else {
            ""
        };
        return writeln!(out, "{}{more}", count(errors.len(), "error"));
    }
    let warnings = count(config.warnings.len(), "warning");
    let more = if config.warnings.len() >= MAX_WARNINGS {
        "; there may be more"
    } else {
        ""
    };
    writeln!(
        out,
        "ok: {}, {}, {warnings}{more}",
        count(config.documents.len(), "document"),
        count(resources(config), "resource"),
    )
}

fn json(out: &mut dyn Write, config: &LoadedConfig, errors: &[ConfigError]) -> io::Result<()> {
    let of_error = |error: &ConfigError| finding(&error.place, &error.problem.to_string());
    let of_warning =
        |warning: &ConfigWarning| finding(&warning.place, &warning.concern.to_string());
    let answer = json!({
        "documents": config.documents.len(),
        "resources": resources(config),
        "errors": errors.iter().map(of_error).collect::<Vec<_>>(),
        "warnings": config.warnings.iter().map(of_warning).collect::<Vec<_>>(),
    });
    writeln!(out, "{answer:#}")
}

fn finding(place: &Place, problem: &str) -> Value {
    let resource = place.resource.as_ref();
    json!({
        "file": &*place.file,
        "line": place.line,
        "column": place.column,
        "document": place.document,
        "documentName": place.document_name.as_deref(),
        "resource": resource.map(|it| json!({ "type": &*it.message, "name": it.name.as_deref() })),
        "path": place.path,
        "problem": problem,
    })
}

fn resources(config: &LoadedConfig) -> usize {
    config
        .documents
        .iter()
        .map(|document| document.resources.len())
        .sum()
}
