//! The report of shadow mode for people.

use std::fmt::Write as _;

use super::Report;
use crate::status::section;

/// Renders the report. Ends with a newline.
#[must_use]
pub fn render_table(report: &Report) -> String {
    let mut text = String::new();
    let Report {
        since,
        agreed,
        disagreed,
        unobserved,
        lost_events,
        unlisted,
        disagreements,
    } = report;
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "Since:      {since}\nAgreed:     {agreed} calls\nDisagreed:  {disagreed} calls\n\
         Unobserved: {unobserved} calls, most often connections that did not come about"
    );
    if *lost_events > 0 {
        let _ = writeln!(
            text,
            "Lost:       {lost_events} events, more than the agent could read: their calls may be misjudged"
        );
    }
    let columns = [
        "POD",
        "CALLS",
        "ROWS",
        "THE PROGRAMS WOULD",
        "BUT",
        "LAST DIALLED",
        "BY",
        "AT",
    ];
    let rows = disagreements.iter().map(|row| {
        let pod = row.pod.clone();
        let caller = row.last_caller;
        vec![
            pod.unwrap_or_else(|| format!("netns:{}", row.netns_cookie)),
            row.calls.to_string(),
            row.rows.clone(),
            row.expected.clone(),
            row.observed.clone(),
            row.last_dialled.clone(),
            format!("pid {} uid {} gid {}", caller.pid, caller.uid, caller.gid),
            row.last_time.clone(),
        ]
    });
    section(&mut text, "Disagreements", &columns, rows.collect());
    if *unlisted > 0 {
        let _ = writeln!(text, "  and {unlisted} calls of other kinds");
    }
    text
}
