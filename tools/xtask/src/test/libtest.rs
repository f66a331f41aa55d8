//! Runs `cargo test` and counts, from what libtest prints, what passed and what failed.

use std::io::{BufRead, BufReader, Write};
use std::ops::Add;
use std::process::{Command, Stdio};

use anyhow::Context;

/// What a tier's checks came to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    pub(crate) failed: u64,
    pub(crate) passed: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            failed: self.failed + other.failed,
            passed: self.passed + other.passed,
        }
    }
}

/// Runs a `cargo test` command, lets its output through, and counts.
///
/// It counts as a failure, too, if cargo fails although no test did (the build broke, or a test binary died), and if a
/// test is ignored: a test that does not run proves nothing.
///
/// # Errors
///
/// When cargo cannot be started or read.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<Counts> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test could not be started")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;

    let mut counts = Counts::default();
    let mut ignored = 0;
    let mut shown = std::io::stdout().lock();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("the output of cargo test could not be read")?;
        shown.write_all(&line)?;
        shown.write_all(b"\n")?;
        if let Some(summary) = parse_summary(&String::from_utf8_lossy(&line)) {
            counts = counts + summary.counts;
            ignored += summary.ignored;
        }
    }
    drop(shown);

    let status = child.wait().context("cargo test could not be waited for")?;
    if ignored > 0 {
        eprintln!("{ignored} tests are ignored: a test that does not run proves nothing");
        counts.failed += ignored;
    }
    if !status.success() && counts.failed == 0 {
        eprintln!("cargo test failed, but no test did ({status})");
        counts.failed += 1;
    }
    Ok(counts)
}

#[derive(Debug, Eq, PartialEq)]
struct Summary {
    counts: Counts,
    ignored: u64,
}

/// Parses libtest's `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
fn parse_summary(line: &str) -> Option<Summary> {
    let rest = line.strip_prefix("test result: ")?;
    let count = |word: &str| {
        let part = rest
            .split(['.', ';'])
            .find(|part| part.trim_end().ends_with(word))?;
        part.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Summary {
        counts: Counts {
            failed: count(" failed")?,
            passed: count(" passed")?,
        },
        ignored: count(" ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_from_summary_lines_only() {
        struct Case {
            line: &'static str,
            counts: Option<(u64, u64, u64)>,
        }
        let cases = [
            Case {
                line: "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s",
                counts: Some((12, 0, 1)),
            },
            Case {
                line: "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
                counts: Some((1, 2, 0)),
            },
            Case {
                line: "test a::b ... ok",
                counts: None,
            },
            Case {
                line: "3 passed; 4 failed",
                counts: None,
            },
        ];
        for Case { line, counts } in cases {
            let expected = counts.map(|(passed, failed, ignored)| Summary {
                counts: Counts { failed, passed },
                ignored,
            });
            assert_eq!(parse_summary(line), expected, "{line}");
        }
    }
}
