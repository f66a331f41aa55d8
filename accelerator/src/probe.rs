//! `probe`: what the datapath finds on this machine, for people and scripts.

use std::fmt::Write as _;

use isthmus_accel_datapath::{DatapathError, NeededBy, Probe, ProbeRow};
use serde::Serialize;

use crate::status::{FORMAT_VERSION, section};

/// The answer of `probe`; the JSON has these names.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Whether connections can be redirected, without which nothing works.
    pub can_redirect: bool,
    /// Whether messages can skip TCP/IP.
    pub can_sockmap: bool,
    /// What was looked at.
    pub features: Vec<Feature<'a>>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Feature<'a> {
    /// What.
    pub feature: &'a str,
    /// `redirect` or `sockmap`.
    pub needed_by: &'static str,
    /// Whether it is there.
    pub is_present: bool,
    /// What was found.
    pub detail: &'a str,
    /// What to do, if it is missing.
    pub remedy: Option<&'a str>,
}

impl<'a> From<&'a Probe> for Report<'a> {
    fn from(probe: &'a Probe) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            can_redirect: probe.first_missing(NeededBy::Redirect).is_none(),
            can_sockmap: probe.first_missing(NeededBy::Sockmap).is_none(),
            features: probe.rows.iter().map(Feature::from).collect(),
        }
    }
}

impl<'a> From<&'a ProbeRow> for Feature<'a> {
    fn from(row: &'a ProbeRow) -> Self {
        Self {
            feature: row.feature,
            needed_by: row.needed_by.name(),
            is_present: row.is_present,
            detail: &row.detail,
            remedy: (!row.is_present).then_some(row.remedy),
        }
    }
}

/// Renders the report as columns. Ends with a newline.
#[must_use]
pub fn render_table(report: &Report<'_>) -> String {
    let answer = |can: bool| if can { "yes" } else { "NO" };
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "Redirect connections:  {}",
        answer(report.can_redirect)
    );
    let _ = writeln!(
        text,
        "Skip TCP/IP (sockmap): {}",
        answer(report.can_sockmap)
    );
    let row = |feature: &Feature<'_>| {
        let state = if feature.is_present { "ok" } else { "MISSING" };
        let detail = match feature.remedy {
            Some(remedy) => format!("{}; {remedy}", feature.detail),
            None => feature.detail.to_owned(),
        };
        vec![
            feature.feature.to_owned(),
            feature.needed_by.to_owned(),
            state.to_owned(),
            detail,
        ]
    };
    let rows = report.features.iter().map(row).collect();
    section(
        &mut text,
        "Features",
        &["FEATURE", "NEEDED BY", "STATE", "DETAIL"],
        rows,
    );
    text
}

/// Turns the first thing without which nothing works into an error.
///
/// # Errors
///
/// Returns [`DatapathError::Missing`] if there is one.
pub fn require(probe: &Probe) -> Result<(), DatapathError> {
    probe
        .first_missing(NeededBy::Redirect)
        .map_or(Ok(()), |row| {
            Err(DatapathError::Missing {
                feature: row.feature,
                detail: row.detail.clone(),
                remedy: row.remedy,
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_missing_and_what_to_do() {
        let probe = Probe {
            rows: vec![
                row("cgroup v2", NeededBy::Redirect, true),
                row("safe sockmap", NeededBy::Sockmap, false),
            ],
        };
        let table = render_table(&Report::from(&probe));
        let expected = "\
Redirect connections:  yes
Skip TCP/IP (sockmap): NO

Features
  FEATURE       NEEDED BY  STATE    DETAIL
  cgroup v2     redirect   ok       found
  safe sockmap  sockmap    MISSING  found; get it
";
        assert_eq!(table, expected);
        assert!(
            require(&probe).is_ok(),
            "connections can be redirected without a sockmap"
        );
        let json = serde_json::to_value(Report::from(&probe)).expect("it is plain");
        assert_eq!(json["can_sockmap"], false);
        assert_eq!(json["features"][0]["remedy"], serde_json::Value::Null);
        assert_eq!(json["features"][1]["remedy"], "get it");
    }

    #[test]
    fn one_error_names_the_first_missing_thing() {
        let probe = Probe {
            rows: vec![
                row("rights", NeededBy::Redirect, false),
                row("cgroup v2", NeededBy::Redirect, false),
            ],
        };
        let error = require(&probe).expect_err("two are missing").to_string();
        assert_eq!(error, "rights is missing: found; get it");
    }

    fn row(feature: &'static str, needed_by: NeededBy, is_present: bool) -> ProbeRow {
        ProbeRow {
            feature,
            needed_by,
            is_present,
            detail: "found".to_owned(),
            remedy: "get it",
        }
    }
}
