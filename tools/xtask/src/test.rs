//! `cargo xtask test`: the tiers of checks, in the order in which they are cheap.
//!
//! A tier that cannot run has failed, with its reason; a failing tier does not keep the later ones from running. The
//! last line is `N passed, N failed`.

mod libtest;
mod tier;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

pub(crate) use self::libtest::Counts;
use self::tier::Tier;
use crate::setup;
use crate::workspace::Workspace;

/// Which tiers to run.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Tier to run; may be given more than once. All of them if left out.
    #[arg(long = "tier", value_name = "NAME", value_enum)]
    tiers: Vec<Tier>,
}

impl Test {
    /// Runs the tiers and sums up.
    pub(crate) fn run(&self, workspace: &Workspace) -> ExitCode {
        let tiers = if self.tiers.is_empty() {
            Tier::value_variants()
        } else {
            &self.tiers
        };
        let ready = prepare(workspace, tiers);

        let mut outcomes = Vec::new();
        for tier in tiers {
            println!("\n=== {} ===", tier.name());
            let start = Instant::now();
            let result = match &ready {
                Err(reason) if tier.needs_setup() => Err(anyhow::anyhow!("setup failed: {reason}")),
                _ => tier.run(workspace),
            };
            if let Err(error) = &result {
                eprintln!("tier {} failed: {error:#}", tier.name());
            }
            outcomes.push(Outcome::of(*tier, &result, start.elapsed()));
        }

        summarise(&outcomes)
    }
}

fn prepare(workspace: &Workspace, tiers: &[Tier]) -> Result<(), String> {
    if !tiers.iter().any(|tier| tier.needs_setup()) {
        return Ok(());
    }
    setup::run(workspace).map_err(|error| {
        let reason = format!("{error:#}");
        eprintln!("setup failed: {reason}");
        reason
    })
}

struct Outcome {
    counts: Counts,
    has_passed: bool,
    took: Duration,
    tier: Tier,
}

impl Outcome {
    fn of(tier: Tier, result: &anyhow::Result<Counts>, took: Duration) -> Self {
        // A tier that failed without a failing test (it could not run, or is no test run at all) is one failure.
        let whole_tier_failed = Counts {
            passed: 0,
            failed: 1,
        };
        let counts = result.as_ref().map_or(whole_tier_failed, |counts| *counts);
        Self {
            counts,
            has_passed: counts.failed == 0,
            took,
            tier,
        }
    }
}

fn summarise(outcomes: &[Outcome]) -> ExitCode {
    println!(
        "\n{:<8} {:>7} {:>8} {:>8}",
        "tier", "passed", "failed", "seconds"
    );
    for Outcome {
        counts,
        has_passed,
        took,
        tier,
    } in outcomes
    {
        let verdict = if *has_passed { "" } else { "  FAILED" };
        let seconds = took.as_secs_f64();
        println!(
            "{:<8} {:>7} {:>8} {seconds:>8.1}{verdict}",
            tier.name(),
            counts.passed,
            counts.failed
        );
    }
    let total = outcomes
        .iter()
        .fold(Counts::default(), |sum, outcome| sum + outcome.counts);
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
