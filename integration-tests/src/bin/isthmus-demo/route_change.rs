//! A route changes under load: how many requests saw which route, and that none failed.

use anyhow::{Context, Result};
use isthmus_integration_tests::load::{Load, LoadPlan, LoadReport};

use crate::progress::Progress;

/// Steps of the progress bar.
pub(crate) const STEPS: u64 = 1;

/// Requests that the change must not cost one of.
const REQUESTS: u64 = 20_000;

/// Sends load, calls `change` in the middle of it, and sums up.
///
/// # Errors
///
/// When a request fails: the point of the demo is that none does.
pub(crate) fn run(
    plan: &LoadPlan,
    progress: &Progress,
    change: impl FnOnce() -> Result<()>,
) -> Result<LoadReport> {
    progress.step("changing a route under load", || {
        let load = Load::start(plan);
        load.wait_for(REQUESTS / 2)?;
        change()?;
        load.wait_for(REQUESTS / 2)?;
        let report = load.finish()?;
        report
            .expect_no_failure(REQUESTS)
            .context("the route change cost requests")?;
        Ok(report)
    })
}

/// Says what happened, in one paragraph.
pub(crate) fn render(report: &LoadReport) -> String {
    let answers: Vec<String> = report
        .by_revision
        .iter()
        .map(|(revision, answers)| format!("{answers} by route {revision}"))
        .collect();
    format!(
        "Route changed in the directory under load: {} requests, {}, {} failed.\n",
        report.requests,
        answers.join(", "),
        report.failed
    )
}
