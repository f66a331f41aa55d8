//! `probe`: what the datapath finds on this machine, for people and scripts.

use std::fmt::Write as _;

use isthmus_accel_datapath::{
    DatapathError, Defect, Exposure, Mechanism, MechanismRow, Probe, ProbeRow,
};
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
    /// The kernel's version with its patch level, `null` if its words are not understood.
    pub kernel: Option<String>,
    /// What will be used, and why or why not.
    pub mechanisms: Vec<MechanismReport>,
    /// What was looked at.
    pub features: Vec<Feature<'a>>,
    /// Known defects of sockmap, and what they mean for this kernel.
    pub defects: Vec<DefectReport>,
}

/// What becomes of one mechanism.
#[derive(Debug, Serialize)]
pub struct MechanismReport {
    /// Which one.
    pub mechanism: &'static str,
    /// Whether it will be used.
    pub is_enabled: bool,
    /// Why, or why not.
    pub reason: String,
}

/// One known defect.
#[derive(Debug, Serialize)]
pub struct DefectReport {
    /// Its CVE, or the commit that mends it.
    pub id: &'static str,
    /// What it does.
    pub effect: &'static str,
    /// `affected`, `fixed`, or `avoided`: the accelerator never does what triggers it.
    pub exposure: &'static str,
    /// The release of this kernel's line that has the fix, if it is affected and there is one.
    pub fixed_in: Option<String>,
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
            can_redirect: probe.first_missing(Mechanism::Redirect).is_none(),
            can_sockmap: probe.first_missing(Mechanism::Sockmap).is_none(),
            kernel: probe.kernel.map(|kernel| kernel.to_string()),
            mechanisms: probe
                .mechanisms()
                .into_iter()
                .map(MechanismReport::from)
                .collect(),
            defects: probe.defects().into_iter().map(DefectReport::of).collect(),
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

impl From<MechanismRow> for MechanismReport {
    fn from(row: MechanismRow) -> Self {
        Self {
            mechanism: row.mechanism.name(),
            is_enabled: row.is_enabled,
            reason: row.reason,
        }
    }
}

impl DefectReport {
    fn of((defect, exposure): (&'static Defect, Exposure)) -> Self {
        Self {
            id: defect.id,
            effect: defect.effect,
            exposure: exposure.name(),
            fixed_in: match exposure {
                Exposure::Affected(release) => release.map(|release| release.to_string()),
                Exposure::Avoided | Exposure::Fixed => None,
            },
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
    section(
        &mut text,
        "Mechanisms",
        &["MECHANISM", "STATE", "WHY"],
        report.mechanisms.iter().map(mechanism_row).collect(),
    );
    section(
        &mut text,
        "Features",
        &["FEATURE", "NEEDED BY", "STATE", "DETAIL"],
        report.features.iter().map(feature_row).collect(),
    );
    let affected = report
        .defects
        .iter()
        .filter(|defect| defect.exposure == Exposure::Affected(None).name());
    section(
        &mut text,
        "Defects of sockmap in this kernel",
        &["DEFECT", "FIXED IN", "EFFECT"],
        affected.map(defect_row).collect(),
    );
    text
}

fn mechanism_row(row: &MechanismReport) -> Vec<String> {
    let state = if row.is_enabled { "on" } else { "OFF" };
    vec![
        row.mechanism.to_owned(),
        state.to_owned(),
        row.reason.clone(),
    ]
}

fn feature_row(feature: &Feature<'_>) -> Vec<String> {
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
}

fn defect_row(defect: &DefectReport) -> Vec<String> {
    vec![
        defect.id.to_owned(),
        defect
            .fixed_in
            .clone()
            .unwrap_or_else(|| "another line".to_owned()),
        defect.effect.to_owned(),
    ]
}

/// Turns the first thing without which nothing works into an error.
///
/// # Errors
///
/// Returns [`DatapathError::Missing`] if there is one.
pub fn require(probe: &Probe) -> Result<(), DatapathError> {
    probe
        .first_missing(Mechanism::Redirect)
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
    fn says_what_will_be_used_and_what_is_missing() {
        let probe = Probe {
            kernel: None,
            rows: vec![
                row("cgroup v2", Mechanism::Redirect, true),
                row("isthmus_getpeername4", Mechanism::PeerName, true),
                row("safe sockmap", Mechanism::Sockmap, false),
            ],
        };
        let table = squeeze(&render_table(&Report::from(&probe)));
        assert!(table.contains("\nredirect on found\n"), "{table}");
        let rest = "\
sockmap OFF safe sockmap: found

Features
FEATURE NEEDED BY STATE DETAIL
cgroup v2 redirect ok found
isthmus_getpeername4 peer-name ok found
safe sockmap sockmap MISSING found; get it

Defects of sockmap in this kernel
none
";
        assert!(table.ends_with(rest), "{table}");
        assert!(
            require(&probe).is_ok(),
            "connections can be redirected without a sockmap"
        );
        let json = serde_json::to_value(Report::from(&probe)).expect("it is plain");
        assert_eq!(json["can_sockmap"], false);
        assert_eq!(json["features"][0]["remedy"], serde_json::Value::Null);
        assert_eq!(json["features"][2]["remedy"], "get it");
    }

    #[test]
    fn one_error_names_the_first_missing_thing() {
        let probe = Probe {
            kernel: None,
            rows: vec![
                row("rights", Mechanism::Redirect, false),
                row("cgroup v2", Mechanism::Redirect, false),
            ],
        };
        let error = require(&probe).expect_err("two are missing").to_string();
        assert_eq!(error, "rights is missing: found; get it");
    }

    fn row(feature: &'static str, needed_by: Mechanism, is_present: bool) -> ProbeRow {
        ProbeRow {
            feature,
            needed_by,
            is_present,
            detail: "found".to_owned(),
            remedy: "get it",
        }
    }

    // How wide a column is depends on what this build is made of.
    fn squeeze(table: &str) -> String {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n";
        table.lines().map(words).collect()
    }
}
