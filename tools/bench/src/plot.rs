//! Bars of what was measured, as SVG: one drawing a scenario, on a logarithmic axis.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;

use crate::report::{BYTES_SENT, Report, Row};

const WIDTH: f64 = 720.0;
const LABELS: f64 = 250.0;
const BAR: f64 = 12.0;
const GAP: f64 = 14.0;

/// What is drawn, and its file.
const DRAWINGS: [(&str, &str, &str); 8] = [
    (
        "one endpoint",
        "server CPU per change",
        "cpu-one-endpoint.svg",
    ),
    (
        "one endpoint",
        "change to client p99",
        "p99-one-endpoint.svg",
    ),
    ("everything", "server CPU per change", "cpu-everything.svg"),
    ("one route", "server CPU per change", "cpu-one-route.svg"),
    ("reconnect", "server CPU", "cpu-reconnect.svg"),
    ("idle", "memory per stream", "memory-per-stream.svg"),
    ("whole run", "peak memory", "peak-memory.svg"),
    ("one endpoint", BYTES_SENT, "bytes-one-endpoint.svg"),
];

/// Draws what the report has into `directory`.
pub(crate) fn write_all(report: &Report, directory: &Path) -> anyhow::Result<()> {
    for (scenario, metric, name) in DRAWINGS {
        let is_of = |row: &&Row| row.scenario == scenario && row.metric == metric;
        let rows: Vec<&Row> = report.rows.iter().filter(is_of).collect();
        if rows.is_empty() {
            continue;
        }
        let file = directory.join(name);
        std::fs::write(&file, draw(&rows))
            .with_context(|| format!("{} is not writable", file.display()))?;
    }
    Ok(())
}

fn draw(rows: &[&Row]) -> String {
    let bars: Vec<Vec<(&str, &str, f64)>> = rows.iter().map(|row| bars(row)).collect();
    let values = || bars.iter().flatten().map(|(_, _, value)| *value);
    let high = values().fold(f64::MIN_POSITIVE, f64::max).log10().ceil();
    let low = values()
        .fold(f64::MAX, f64::min)
        .log10()
        .floor()
        .min(high - 1.0);
    let scale = |value: f64| (value.log10() - low) / (high - low) * (WIDTH - LABELS - 90.0);
    let mut body = String::new();
    let mut y = 40.0;
    for (row, bars) in rows.iter().zip(&bars) {
        let label = format!(
            "{} streams, {} clusters, {}",
            row.streams, row.clusters, row.client
        );
        let _ = writeln!(body, r#"<text x="8" y="{}">{label}</text>"#, y + BAR);
        for (name, colour, value) in bars {
            let length = scale(*value).max(1.0);
            let _ = writeln!(
                body,
                r#"<rect x="{LABELS}" y="{y}" width="{length:.1}" height="{BAR}" fill="{colour}"/>
<text x="{:.1}" y="{:.1}">{value:.3} {name}</text>"#,
                LABELS + length + 4.0,
                y + BAR - 2.0
            );
            y += BAR + 2.0;
        }
        y += GAP;
    }
    let title = format!(
        "{}: {} ({})",
        rows[0].scenario, rows[0].metric, rows[0].unit
    );
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="white"/>
<text x="8" y="20" font-size="14">{title}, logarithmic</text>
{body}</svg>
"#
    )
}

fn bars(row: &Row) -> Vec<(&'static str, &'static str, f64)> {
    let bars = [
        ("isthmus", "#1f6f8b", row.isthmus),
        ("go-control-plane", "#d08c3c", row.go_control_plane),
        (
            "go-control-plane, linear",
            "#e3bb87",
            row.go_control_plane_linear,
        ),
        ("floor", "#999999", row.floor),
    ];
    let known = bars.into_iter();
    known
        .filter_map(|(name, colour, value)| Some((name, colour, value.filter(|it| *it > 0.0)?)))
        .collect()
}
