//! What was read from the sources, and what is in force.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Metrics, add, clamp};

#[derive(Debug)]
pub(super) struct ConfigMetrics {
    reloads: Family<ResultLabel, Counter>,
    errors: Gauge,
    generation: Gauge<u64, AtomicU64>,
    documents: Gauge,
    scopes: Gauge,
    rollbacks: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResultLabel {
    result: &'static str,
}

impl ConfigMetrics {
    pub(super) fn registered(r: &mut Registry) -> Self {
        Self {
            reloads: add(
                r,
                "config_reloads",
                "Times that configuration was read",
                Family::default(),
            ),
            errors: add(
                r,
                "config_errors",
                "Errors in the configuration as it is",
                Gauge::default(),
            ),
            generation: add(
                r,
                "config_generation",
                "Number of the commit in force",
                Gauge::default(),
            ),
            documents: add(
                r,
                "config_documents",
                "Documents in force",
                Gauge::default(),
            ),
            scopes: add(r, "xds_scopes", "Distinct views in use", Gauge::default()),
            rollbacks: add(
                r,
                "config_rollbacks",
                "Times that an earlier generation was put in force again",
                Counter::default(),
            ),
        }
    }
}

impl Metrics {
    pub(crate) fn observe_publish(&self, generation: u64, documents: usize, scopes: usize) {
        self.config
            .reloads
            .get_or_create(&ResultLabel { result: "accepted" })
            .inc();
        self.config.errors.set(0);
        self.config.generation.set(generation);
        self.config.documents.set(clamp(documents));
        self.config.scopes.set(clamp(scopes));
    }

    // Read again and found as it was; errors that were there are mended.
    pub(crate) fn observe_unchanged(&self) {
        self.config
            .reloads
            .get_or_create(&ResultLabel {
                result: "unchanged",
            })
            .inc();
        self.config.errors.set(0);
    }

    pub(crate) fn observe_refusal(&self, errors: usize) {
        self.config
            .reloads
            .get_or_create(&ResultLabel { result: "refused" })
            .inc();
        self.config.errors.set(clamp(errors));
    }

    pub(crate) fn count_rollback(&self) {
        self.config.rollbacks.inc();
    }
}
