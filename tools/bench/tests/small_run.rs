//! The whole benchmark at its smallest, without the Go server: every scenario gives its rows, no
//! stream is lost, and what the project claims of bytes holds.

use std::process::Command;

use serde_json::Value;

#[test]
fn a_small_run_measures_every_scenario() {
    let out = tempfile::tempdir().expect("a directory for the report");
    let ran = Command::new(env!("CARGO_BIN_EXE_isthmus-bench"))
        .args([
            "xds",
            "--quick",
            "--streams",
            "5",
            "--clusters",
            "3",
            // No profile: it takes a profiler, which a test can't count on.
            "--scenario",
            "idle,one-endpoint,one-route,everything,reconnect,doubled",
            "--out",
        ])
        .arg(out.path())
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&ran.stdout);
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{text}{errors}");

    let json = std::fs::read(out.path().join("xds.json")).expect("the report");
    let report: Value = serde_json::from_slice(&json).expect("the report is JSON");
    let rows = report["rows"].as_array().expect("rows");
    let value = |scenario: &str, client: &str, metric: &str| {
        let row = rows.iter().find(|row| {
            row["scenario"] == scenario && row["client"] == client && row["metric"] == metric
        });
        let row = row.unwrap_or_else(|| panic!("no row {scenario}, {client}, {metric}"));
        row["isthmus"].as_f64().expect("a number")
    };
    for client in ["delta", "sotw"] {
        for scenario in ["one endpoint", "one route", "everything"] {
            assert!(value(scenario, client, "change to client p50") > 0.0);
            assert!(value(scenario, client, "server CPU per change") > 0.0);
            let lost = |row: &&Value| row["metric"] == "streams without the last change";
            assert_eq!(rows.iter().find(lost), None, "{scenario}, {client}");
        }
        assert!(value("reconnect", client, "streams lost") < 0.5);
        assert!(value("idle", client, "memory per stream") > 0.0);
    }
    let doubled = "one endpoint, unaffected doubled";
    for what in [
        "more CPU, streams of another scope doubled",
        "more CPU, streams of other names doubled",
        "more CPU, resources doubled",
    ] {
        assert!(value(doubled, "delta", what).is_finite());
    }
    assert!(value("reconnect", "delta", "resource bytes sent") < 0.5);
}
