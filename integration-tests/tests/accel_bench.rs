//! The accelerator's benchmark, as small as it gets: every workload by every path, and what it writes about them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::{programs, shell};
use serde_json::Value;

const WORKLOADS: usize = 6;
const PATHS: [&str; 6] = [
    "no-mesh", "iptables", "redirect", "default", "flows", "full",
];

#[test]
fn every_workload_goes_by_every_path() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut command = Command::new(programs::own("isthmus-bench")?);
    command.args([
        "accel",
        "--rounds",
        "1",
        "--seconds",
        "0.2",
        "--connections",
        "2",
        "--out",
    ]);
    let text = shell::capture(command.arg(out.path()))?;
    ensure!(
        text.contains("Not judged"),
        "one round shows no noise: {text}"
    );

    let json = fs::read(out.path().join("accel.json")).context("the rows")?;
    let rows: Vec<Value> = serde_json::from_slice(&json)?;
    // A round lies between two measurements of iptables.
    let expected = WORKLOADS * (PATHS.len() + 1);
    ensure!(rows.len() == expected, "{} rows", rows.len());
    let key = |row: &Value| ["workload", "path", "round"].map(|field| row[field].to_string());
    let keys: BTreeSet<_> = rows.iter().map(key).collect();
    ensure!(keys.len() == rows.len(), "a row stands twice: {keys:?}");
    for row in &rows {
        for field in ["requests_per_s", "p50_us", "p99_us"] {
            ensure!(
                row[field].as_f64().is_some_and(|it| it > 0.0),
                "{field}: {row}"
            );
        }
        let share = row["sockmap_share"].as_f64().context("a share")?;
        let is_small = matches!(
            row["workload"].as_str(),
            Some("http1-keepalive" | "grpc-unary" | "grpc-streaming")
        );
        let path = row["path"].as_str().unwrap_or_default();
        // Of the six legs of a small exchange two are between sidecars, and two more begin at an application.
        let least = match path {
            "default" | "flows" if is_small => 0.15,
            "full" if is_small => 0.3,
            _ => 0.0,
        };
        ensure!(share >= least, "{row}");
        ensure!(
            matches!(path, "default" | "flows" | "full") || share == 0.0,
            "{row}"
        );
    }
    for name in ["requests", "p50", "p99", "cpu"] {
        let drawing = fs::read_to_string(out.path().join(format!("accel-{name}.svg")))?;
        ensure!(drawing.starts_with("<svg"), "{name}");
    }
    Ok(())
}
