//! What the heap holds, per stream too, and what a change allocates on its way to the streams.
//!
//! All of it reads zero in a program without [`isthmus_heap::CountingAllocator`].

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use isthmus_heap::Counts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// What the publication of one change costs, in allocations of the thread that publishes: the
/// part that does not depend on the number of streams.
#[derive(Clone, Debug)]
pub(crate) struct ChangeCost {
    allocations: Histogram,
    allocated_bytes: Histogram,
}

impl Default for ChangeCost {
    fn default() -> Self {
        Self {
            // 16 to about 4 million: from one endpoint to a whole configuration.
            allocations: Histogram::new(exponential_buckets(16.0, 4.0, 10)),
            // 1 KiB to 256 MiB.
            allocated_bytes: Histogram::new(exponential_buckets(1024.0, 4.0, 10)),
        }
    }
}

impl ChangeCost {
    pub(crate) fn registered(registry: &mut Registry) -> Self {
        let cost = Self::default();
        registry.register(
            "xds_change_allocations",
            "Allocations of putting one change in force, without the streams' part",
            cost.allocations.clone(),
        );
        registry.register_with_unit(
            "xds_change_allocated",
            "What those allocations asked for",
            Unit::Bytes,
            cost.allocated_bytes.clone(),
        );
        cost
    }

    /// Notes a change that this thread began when its counts were `before`.
    #[allow(
        clippy::cast_precision_loss,
        reason = "counts of one change are far below 2^52"
    )]
    pub(crate) fn observe_since(&self, before: Counts) {
        let cost = Counts::of_thread() - before;
        self.allocations.observe(cost.allocations as f64);
        self.allocated_bytes.observe(cost.allocated_bytes as f64);
    }
}

/// The heap as it is when somebody asks.
#[derive(Debug)]
pub(crate) struct HeapState {
    // Open streams of each variant.
    streams: [Gauge; 2],
    // What the heap held when there was no stream.
    base_bytes: AtomicU64,
}

impl HeapState {
    pub(crate) fn new(streams: [Gauge; 2]) -> Self {
        Self {
            streams,
            base_bytes: AtomicU64::new(Counts::of_process().live_bytes()),
        }
    }

    fn bytes_per_stream(&self, live_bytes: u64) -> u64 {
        let streams: i64 = self.streams.iter().map(Gauge::get).sum();
        let Ok(streams @ 1..) = u64::try_from(streams) else {
            self.base_bytes.store(live_bytes, Ordering::Relaxed);
            return 0;
        };
        live_bytes.saturating_sub(self.base_bytes.load(Ordering::Relaxed)) / streams
    }
}

impl Collector for HeapState {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = Counts::of_process();
        let live_bytes = counts.live_bytes();
        let gauges = [
            (
                "heap_live",
                "Bytes that are allocated and not freed",
                live_bytes,
            ),
            (
                "heap_per_stream",
                "Bytes that are allocated over what they were without streams, by open stream",
                self.bytes_per_stream(live_bytes),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            let unit = Some(&Unit::Bytes);
            let metric = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        let allocations = ConstCounter::new(counts.allocations);
        let metric = encoder.encode_descriptor(
            "heap_allocations",
            "Allocations and reallocations",
            None,
            allocations.metric_type(),
        )?;
        allocations.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_without_streams_is_not_theirs() {
        let streams = [Gauge::default(), Gauge::default()];
        let heap = HeapState::new(streams.clone());
        assert_eq!(heap.bytes_per_stream(1000), 0, "no stream");
        streams[0].set(3);
        streams[1].set(1);
        assert_eq!(heap.bytes_per_stream(5000), 1000);
        assert_eq!(heap.bytes_per_stream(500), 0, "less than at the start");
    }
}
