//! Rates and latencies, measured by wrk.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::lab::Pod;
use crate::process::{User, command_as};
use crate::{programs, shell};

/// Makes wrk print its result as one line of JSON.
const REPORT_SCRIPT: &str = include_str!("../testdata/wrk-report.lua");

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct WrkPlan {
    /// Connections, each with one request at a time.
    pub connections: u32,
    /// How long.
    pub seconds: u32,
}

/// What wrk measured.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
pub struct WrkReport {
    /// Socket errors, time-outs, and answers with a status of 400 or more.
    pub failed: u64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the latency in microseconds.
    pub p99_us: f64,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests answered each second.
    pub requests_per_second: f64,
}

/// Sends requests from a pod, as an application, for a bounded time.
///
/// # Errors
///
/// When wrk fails or prints something else.
pub fn measure(client: &Pod, url: &str, plan: WrkPlan) -> Result<WrkReport> {
    let script = client.dir.join("wrk-report.lua");
    fs::write(&script, REPORT_SCRIPT)
        .with_context(|| format!("{} could not be written", script.display()))?;
    let netns = client.netns.path();
    let mut command = command_as(User::Application, Some(&netns), programs::system("wrk")?);
    command
        .args(["--threads", "1", "--timeout", "10s"])
        .args(["--connections", &plan.connections.to_string()])
        .args(["--duration", &format!("{}s", plan.seconds)])
        .arg("--script")
        .arg(&script)
        .arg(url);
    parse(&shell::capture(&mut command)?)
}

fn parse(text: &str) -> Result<WrkReport> {
    let line = text
        .lines()
        .find(|line| line.starts_with('{'))
        .with_context(|| format!("wrk printed {text:?}"))?;
    serde_json::from_str(line).with_context(|| format!("wrk printed {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_found_among_what_wrk_prints() {
        let text = "Running 1s test @ http://198.19.0.10/\n  100 requests in 1.00s\n\
                    {\"requests\":100,\"requests_per_second\":99.5,\"failed\":2,\"p50_us\":510.0,\"p99_us\":900.5}\n";
        let report = parse(text).expect("the text has a report");
        assert_eq!((report.requests, report.failed), (100, 2));
        assert!(
            parse("Running 1s test\nunable to connect\n").is_err(),
            "no report"
        );
    }
}
