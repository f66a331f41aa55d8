//! What clients report of the load that they put on clusters: summed up over clients, kept within
//! bounds, shown, exported (R59).
//!
//! [`LoadTable`] is the sum and performs no I/O; [`Loads`] is the one of a server.

mod export;
mod table;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use isthmus_proto::pb::envoy::config::endpoint::v3::ClusterStats;

pub(crate) use export::LoadCollector;
pub use table::{
    ClusterKey, ClusterLoad, Counts, LOADS_KEPT, LoadMetric, LoadTable, Locality, LocalityLoad,
};

/// The load reports of all clients of a server, since it started.
#[derive(Debug, Default)]
pub struct Loads {
    table: Mutex<LoadTable>,
    is_exported: AtomicBool,
}

impl Loads {
    /// Adds one report of one client.
    pub fn record(&self, report: Vec<ClusterStats>, now: SystemTime) {
        self.lock().record(report, now);
    }

    /// Calls `read` with all that was reported; reports wait meanwhile.
    pub fn with_table<T>(&self, read: impl FnOnce(&LoadTable) -> T) -> T {
        read(&self.lock())
    }

    /// Makes the counts of each cluster and locality part of the metrics from here on.
    pub fn export(&self) {
        self.is_exported.store(true, Ordering::Relaxed);
    }

    // A panic in the middle of a sum leaves a table that is whole and lacks a part of one report.
    fn lock(&self) -> MutexGuard<'_, LoadTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
