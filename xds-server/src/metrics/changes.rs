//! What a change costs and how long it takes, from the commit to the clients' answers.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::{TypeLabel, short_name};

/// Histograms over all changes.
#[derive(Clone, Debug)]
pub(crate) struct ChangeMetrics {
    to_ack: Family<TypeLabel, Histogram>,
    converged: Histogram,
    bytes: Histogram,
}

impl Default for ChangeMetrics {
    fn default() -> Self {
        Self {
            to_ack: Family::new_with_constructor(seconds),
            converged: seconds(),
            // 64 B to 1 GiB: from one endpoint for one client to everything for ten thousand.
            bytes: Histogram::new(exponential_buckets(64.0, 4.0, 13)),
        }
    }
}

// 0.25 ms to about 65 s: from a local proxy that has nothing to warm to one that waits for its
// initial fetch timeout, and then for the patience of what comes after it.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 19))
}

impl ChangeMetrics {
    pub(crate) fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_with_unit(
            "xds_change_to_ack",
            "From a commit to the ACK of what a client wants of it, for each client and type",
            Unit::Seconds,
            metrics.to_ack.clone(),
        );
        registry.register_with_unit(
            "xds_change_converged",
            "From a commit to the ACK of the last client that needs it; refused ones are left out",
            Unit::Seconds,
            metrics.converged.clone(),
        );
        registry.register_with_unit(
            "xds_change",
            "Sent to all clients because of one commit",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        metrics
    }

    pub(crate) fn observe_answer(&self, type_url: &str, after: Duration) {
        let r#type = short_name(type_url);
        let histogram = self.to_ack.get_or_create(&TypeLabel { r#type });
        histogram.observe(after.as_secs_f64());
    }

    pub(crate) fn observe_converged(&self, after: Duration) {
        self.converged.observe(after.as_secs_f64());
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "no change sends as many as 2^52 bytes"
    )]
    pub(crate) fn observe_bytes(&self, bytes: u64) {
        self.bytes.observe(bytes as f64);
    }
}
