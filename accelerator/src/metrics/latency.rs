//! The kernel's histograms as Prometheus histograms: they come filled, so that nothing is observed here.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::pod_label;
use crate::status::Latency;

/// What each measure of [`Latency::measure`] is called and means.
const FAMILIES: [(&str, &str, &str); 2] = [
    (
        "connect",
        "connect_duration",
        "Time from SYN to established, of connections that a pod has dialled",
    ),
    (
        "srtt",
        "tcp_srtt",
        "Smoothed round-trip time by TCP, of connections that were closed",
    ),
];

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    pod: String,
    hop: &'static str,
}

#[derive(Debug)]
struct Latencies(Vec<Latency>);

/// Registers what a scrape shall see.
pub(super) fn register(registry: &mut Registry, latencies: &[Latency]) {
    registry.register_collector(Box::new(Latencies(latencies.to_vec())));
}

impl Collector for Latencies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (measure, name, help) in FAMILIES {
            let kind = MetricType::Histogram;
            let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), kind)?;
            for latency in self.0.iter().filter(|latency| latency.measure == measure) {
                let labels = Labels {
                    pod: pod_label(latency.pod.as_deref(), latency.netns_cookie),
                    hop: latency.hop,
                };
                let buckets: Vec<(f64, u64)> = latency
                    .buckets
                    .iter()
                    .map(|bucket| {
                        let bound = bucket
                            .up_to_us
                            .map_or(f64::INFINITY, |us| f64::from(us) / 1e6);
                        (bound, bucket.count)
                    })
                    .collect();
                family
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(
                        seconds(latency.sum_us),
                        latency.count,
                        &buckets,
                        None,
                    )?;
            }
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 microseconds are 285 years"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
