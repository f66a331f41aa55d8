//! Runs a short command to its end and says what it printed when it fails.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs the command and returns what it wrote to its standard output.
///
/// # Errors
///
/// When it cannot be started or exits with another code than 0; the message carries its error output.
pub fn capture(command: &mut Command) -> Result<String> {
    finish(command.stdin(Stdio::null()), None)
}

/// As [`capture`], with `input` on the command's standard input.
///
/// # Errors
///
/// As [`capture`].
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    finish(command.stdin(Stdio::piped()), Some(input))
}

fn finish(command: &mut Command, input: Option<&str>) -> Result<String> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{shown} could not be started: has `cargo xtask setup` run?"))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin
            .write_all(text.as_bytes())
            .with_context(|| format!("{shown} does not read its input"))?;
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("{shown} could not be waited for"))?;
    if !output.status.success() {
        bail!(
            "{shown} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
