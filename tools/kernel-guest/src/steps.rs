//! The steps of the plan.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};

/// Sum of libtest's summary lines.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs one line of the plan.
///
/// # Errors
///
/// When it is not understood or the program cannot be started.
pub(crate) fn run(step: &str) -> anyhow::Result<Counts> {
    let mut words = step.split_whitespace();
    match words.next() {
        Some("test") => test(&mut command(words)?),
        Some("report") => {
            let name = words.next().context("a report has no name")?;
            report(name, &mut command(words)?).map(|()| Counts::default())
        }
        _ => bail!("the plan has a step {step:?}"),
    }
}

/// Sets the loopback device of this machine up.
///
/// # Errors
///
/// When it cannot.
pub(crate) fn loopback_up() -> anyhow::Result<()> {
    let status = command("ip link set lo up".split_whitespace())?.status()?;
    ensure!(status.success(), "lo could not be set up ({status})");
    Ok(())
}

fn command<'a>(mut words: impl Iterator<Item = &'a str>) -> anyhow::Result<Command> {
    let mut command = Command::new(words.next().context("a step has no program")?);
    command
        .args(words)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/tmp")
        .stdin(Stdio::null());
    Ok(command)
}

fn test(command: &mut Command) -> anyhow::Result<Counts> {
    let program = command.get_program().to_owned();
    println!("guest: test {}", program.display());
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} could not be started", program.display()))?;
    let stdout = child.stdout.take().context("a test has no output")?;
    let mut counts = Counts::default();
    let mut last = Instant::now();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        // One test runs at a time: what has passed since the last line is this one's.
        let took = last.elapsed().as_secs_f64();
        if line.starts_with("test ") {
            println!("{line} ({took:.1} s)");
        } else {
            println!("{line}");
        }
        last = Instant::now();
        if let Some(summary) = summary(&line) {
            counts.add(summary);
        }
    }
    let status = child.wait()?;
    if !status.success() && counts.failed == 0 {
        println!("guest: {} ended with {status}", program.display());
        counts.failed += 1;
    }
    Ok(counts)
}

fn report(name: &str, command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{name}: the program could not be started"))?;
    println!("guest: report {name}");
    std::io::stdout().write_all(&output.stdout)?;
    println!("guest: end of {name}, {}", output.status);
    std::io::stdout().write_all(&output.stderr)?;
    Ok(())
}

/// Parses libtest's `test result: ok. 3 passed; 0 failed; 1 ignored; …`. An ignored test counts as failed: one that does
/// not run proves nothing.
fn summary(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?;
    let count = |word: &str| {
        let part = rest
            .split(['.', ';'])
            .find(|part| part.trim_end().ends_with(word))?;
        part.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Counts {
        passed: count(" passed")?,
        failed: count(" failed")? + count(" ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_summaries_count() {
        let cases = [
            (
                "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.01s",
                Some((12, 0)),
            ),
            (
                "test result: FAILED. 1 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.20s",
                Some((1, 3)),
            ),
            ("test a::b ... ok", None),
            ("guest: 3 passed, 4 failed", None),
        ];
        for (line, counts) in cases {
            let expected = counts.map(|(passed, failed)| Counts { passed, failed });
            assert_eq!(summary(line), expected, "{line}");
        }
    }
}
