//! Which flows a viewer wants.

use serde::{Deserialize, Serialize};

use super::Flow;

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Filter {
    /// `namespace/name` of the pod at either end; `namespace/` stands for all of a namespace.
    pub pod: Option<String>,
    /// Port at either end, as dialled or as rewritten.
    pub port: Option<u16>,
    /// See [`Flow::verdict`].
    pub verdict: Option<String>,
}

impl Filter {
    /// Tells whether the flow meets every condition.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let ends = [
            Some(&flow.source),
            Some(&flow.destination),
            flow.target.as_ref(),
        ];
        let mut ends = ends.into_iter().flatten();
        let has_pod = |wanted: &String| {
            ends.clone().filter_map(|end| end.pod.as_ref()).any(|pod| {
                pod == wanted || (wanted.ends_with('/') && pod.starts_with(wanted.as_str()))
            })
        };
        let is_of_pod = self.pod.as_ref().is_none_or(has_pod);
        let is_of_verdict = self
            .verdict
            .as_ref()
            .is_none_or(|verdict| *verdict == flow.verdict);
        let is_of_port = self
            .port
            .is_none_or(|port| ends.any(|end| end.port == port));
        is_of_pod && is_of_verdict && is_of_port
    }
}
