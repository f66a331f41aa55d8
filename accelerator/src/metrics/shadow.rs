//! What shadow mode has found, as counters.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::pod_label;
use crate::shadow::Report;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DifferenceLabels {
    pod: String,
    rows: String,
    difference: String,
}

/// Registers what a scrape shall see.
pub(super) fn register(registry: &mut Registry, report: &Report) {
    let calls = Family::<ResultLabels, Counter>::default();
    for (result, count) in [
        ("agreed", report.agreed),
        ("disagreed", report.disagreed),
        ("unobserved", report.unobserved),
    ] {
        calls.get_or_create(&ResultLabels { result }).inc_by(count);
    }
    registry.register(
        "shadow_calls",
        "Connect calls, by whether iptables did what the programs would have done",
        calls,
    );

    let disagreements = Family::<DifferenceLabels, Counter>::default();
    for row in &report.disagreements {
        let labels = DifferenceLabels {
            pod: pod_label(row.pod.as_deref(), row.netns_cookie),
            rows: row.rows.clone(),
            difference: row.difference.clone(),
        };
        disagreements.get_or_create(&labels).inc_by(row.calls);
    }
    registry.register(
        "shadow_disagreements",
        "Connect calls that iptables treated otherwise, by the rule and by what it did",
        disagreements,
    );
}
