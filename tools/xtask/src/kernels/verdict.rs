//! What the end of a machine means.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::machine::Ended;
use super::table::{Kernel, MECHANISMS};
use crate::test::Counts;

/// What QEMU ends with when init wrote that all passed; see `tools/kernel-guest`.
const PASSED: i32 = 33;
/// Lines of the log that are shown for a machine that failed.
const SHOWN: usize = 60;

/// One row of the table.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) kernel: &'static Kernel,
    version: String,
    took: Duration,
    outcome: anyhow::Result<Counts>,
    log: PathBuf,
    tail: Vec<String>,
}

impl Verdict {
    pub(super) const HEADER: &'static str =
        "kernel    version                        passed   failed  seconds";

    pub(super) fn of(
        kernel: &'static Kernel,
        ended: anyhow::Result<(String, Ended)>,
        log: PathBuf,
    ) -> Self {
        match ended {
            Ok((version, ended)) => Self {
                kernel,
                version,
                took: ended.took,
                outcome: judge(kernel, &ended),
                log,
                tail: tail(&ended.log),
            },
            Err(error) => Self {
                kernel,
                version: String::new(),
                took: Duration::ZERO,
                outcome: Err(error),
                log,
                tail: Vec::new(),
            },
        }
    }

    /// Everything that the machine printed.
    pub(super) fn read_log(&self) -> anyhow::Result<String> {
        let bytes = fs::read(&self.log)
            .with_context(|| format!("{} could not be read", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    }

    /// A machine that failed without a failing test is one failure.
    pub(super) fn counts(&self) -> Counts {
        self.outcome.as_ref().copied().unwrap_or(Counts {
            passed: 0,
            failed: 1,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts();
        write!(
            f,
            "{:<9} {:<30} {:>6} {:>8} {:>8.1}",
            self.kernel.name,
            self.version,
            counts.passed,
            counts.failed,
            self.took.as_secs_f64()
        )?;
        if counts.failed == 0 {
            return Ok(());
        }
        if let Err(error) = &self.outcome {
            write!(f, "\n  {error:#}")?;
        }
        for line in &self.tail {
            write!(f, "\n  | {line}")?;
        }
        write!(f, "\n  all of it: {}", self.log.display())
    }
}

fn tail(log: &str) -> Vec<String> {
    let tests = log.rfind("guest: test ").unwrap_or(0);
    let lines: Vec<&str> = log[tests..].lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

/// Passed: the probe found what this kernel must and must not have, and the guest says by both of its ways that tests
/// ran and none failed.
fn judge(kernel: &Kernel, ended: &Ended) -> anyhow::Result<Counts> {
    let probe = report(&ended.log, "probe")?;
    let probe: Value =
        serde_json::from_str(&probe).context("the report of the probe is no JSON")?;
    check_mechanisms(kernel, &probe)?;
    let probed = Counts {
        passed: 1,
        failed: 0,
    };
    if kernel.has_no_tests() {
        return Ok(probed);
    }
    let counts = closing(&ended.log)
        .context("the guest printed no closing line: it died, or the kernel did")?;
    ensure!(
        (ended.status == Some(PASSED)) == (counts.failed == 0 && counts.passed > 0),
        "QEMU ended with {:?}, and the guest counts {counts:?}",
        ended.status
    );
    ensure!(counts.passed + counts.failed > 0, "no test ran");
    Ok(counts + probed)
}

/// Holds what the probe has found against the table.
fn check_mechanisms(kernel: &Kernel, probe: &Value) -> anyhow::Result<()> {
    let rows = probe["mechanisms"]
        .as_array()
        .context("the probe says nothing of mechanisms")?;
    for name in MECHANISMS {
        let row = rows
            .iter()
            .find(|row| row["mechanism"] == name)
            .with_context(|| format!("the probe says nothing of {name}"))?;
        let (must_be_on, reason) = (
            !kernel.off.contains(&name),
            row["reason"].as_str().unwrap_or_default(),
        );
        ensure!(
            row["is_enabled"] == must_be_on,
            "by the table, is_enabled of {name} is {must_be_on}; the probe finds otherwise: {reason}"
        );
        ensure!(
            must_be_on || reason.contains(kernel.why),
            "{name} must be off for {}; the probe says: {reason}",
            kernel.why
        );
    }
    Ok(())
}

/// What stands between the marks of a report.
fn report(log: &str, name: &str) -> anyhow::Result<String> {
    let begin = format!("guest: report {name}");
    let end = format!("guest: end of {name}");
    let lines: Vec<&str> = log
        .lines()
        .skip_while(|line| *line != begin)
        .skip(1)
        .take_while(|line| !line.starts_with(&end))
        .collect();
    ensure!(
        !lines.is_empty(),
        "the guest gave no report of its {name}: it did not come so far"
    );
    Ok(lines.join("\n"))
}

/// The guest's last line: `guest: 3 passed, 0 failed`.
fn closing(log: &str) -> Option<Counts> {
    let line = log.lines().rev().find_map(|line| {
        line.strip_prefix("guest: ")
            .filter(|rest| rest.ends_with(" failed"))
    })?;
    let (passed, failed) = line.split_once(" passed, ")?;
    Some(Counts {
        passed: passed.parse().ok()?,
        failed: failed.strip_suffix(" failed")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::table::KERNELS;
    use super::*;

    /// A log that begins with the report of a probe which finds everything on.
    fn log(end: &str) -> String {
        let rows = MECHANISMS.map(
            |name| serde_json::json!({"mechanism": name, "is_enabled": true, "reason": "it works"}),
        );
        let probe = serde_json::json!({"mechanisms": rows});
        format!("guest: report probe\n{probe:#}\nguest: end of probe, exit status: 0\n{end}")
    }

    #[test]
    fn a_machine_passes_by_both_of_its_ways_or_not_at_all() {
        struct Case {
            name: &'static str,
            status: Option<i32>,
            end: &'static str,
            counts: Option<(u64, u64)>,
        }
        let cases = [
            Case {
                name: "all passed",
                status: Some(33),
                end: "guest: 12 passed, 0 failed\n",
                counts: Some((13, 0)),
            },
            Case {
                name: "one failed",
                status: Some(35),
                end: "guest: 12 passed, 1 failed\n",
                counts: Some((13, 1)),
            },
            Case {
                name: "the count does not match the status",
                status: Some(0),
                end: "guest: 12 passed, 0 failed\n",
                counts: None,
            },
            Case {
                name: "nothing ran",
                status: Some(35),
                end: "guest: 0 passed, 0 failed\n",
                counts: None,
            },
            Case {
                name: "the kernel died",
                status: Some(0),
                end: "Kernel panic - not syncing",
                counts: None,
            },
            Case {
                name: "the status alone",
                status: Some(33),
                end: "",
                counts: None,
            },
        ];
        let kernel = KERNELS
            .iter()
            .find(|kernel| kernel.off.is_empty())
            .expect("one of them can");
        for Case {
            name,
            status,
            end,
            counts,
        } in cases
        {
            let ended = Ended {
                status,
                log: log(end),
                took: Duration::ZERO,
            };
            let expected = counts.map(|(passed, failed)| Counts { failed, passed });
            assert_eq!(judge(kernel, &ended).ok(), expected, "{name}");
        }
    }

    #[test]
    fn a_probe_that_finds_another_kernel_than_the_table_fails() {
        let kernel = KERNELS
            .iter()
            .find(|kernel| kernel.off == ["sockmap"])
            .expect("one is below its floor");
        let ended = Ended {
            status: Some(33),
            log: log("guest: 1 passed, 0 failed\n"),
            took: Duration::ZERO,
        };
        let error = judge(kernel, &ended).expect_err("it must refuse the sockmap");
        assert!(
            error.to_string().contains("is_enabled of sockmap is false"),
            "{error:#}"
        );
    }
}
