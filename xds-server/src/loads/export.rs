//! Load reports as metrics. The table's own health always; the load of each cluster and locality
//! only if asked for (`--load-metrics`), since these series are named by what clients send.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Loads;
use super::table::{ClusterKey, Counts, LoadTable, Locality};

// The load of localities that are not named has empty labels, which no report has: see the table.
const OTHERS: &str = "";

type Measure = (&'static str, &'static str, fn(&Counts) -> u64);

const MEASURES: [Measure; 3] = [
    (
        "load_requests_issued",
        "Requests to a cluster, as its clients report them",
        |it| it.issued,
    ),
    ("load_requests_successful", "Of these, ended well", |it| {
        it.successful
    }),
    (
        "load_requests_failed",
        "Of these, ended in an error",
        |it| it.errors,
    ),
];

/// Puts a server's load reports among its metrics.
#[derive(Debug)]
pub(crate) struct LoadCollector(pub(crate) Arc<Loads>);

impl Collector for LoadCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let is_exported = self.0.is_exported.load(Ordering::Relaxed);
        self.0.with_table(|table| {
            encode_health(table, &mut encoder)?;
            if is_exported {
                encode_load(table, &mut encoder)?;
            }
            Ok(())
        })
    }
}

fn encode_health(table: &LoadTable, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let counters = [
        ("load_reports", "Load reports received", table.reports()),
        (
            "load_sums_not_kept",
            "Sums of load reports that there was no room for",
            table.not_kept(),
        ),
    ];
    for (name, help, value) in counters {
        let counter = ConstCounter::new(value);
        counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
    }
    let kept = ConstGauge::new(i64::try_from(table.kept()).unwrap_or(i64::MAX));
    let help = "Sums of load reports that are kept";
    kept.encode(encoder.encode_descriptor("load_sums", help, None, MetricType::Gauge)?)
}

fn encode_load(table: &LoadTable, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let others = ClusterKey {
        cluster: OTHERS.to_owned(),
        service: String::new(),
    };
    for (name, help, measure) in MEASURES {
        let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (key, cluster) in table.clusters() {
            let named = cluster.localities.iter().filter(|(_, load)| load.is_named);
            for (locality, load) in named {
                encode_counter(&mut counter, key, locality, measure(&load.counts))?;
            }
        }
        let rest = measure(&table.unnamed());
        encode_counter(&mut counter, &others, &Locality::default(), rest)?;
    }
    Ok(())
}

fn encode_counter(
    counter: &mut MetricEncoder<'_>,
    key: &ClusterKey,
    locality: &Locality,
    value: u64,
) -> fmt::Result {
    let labels = [
        ("cluster", &*key.cluster),
        ("service", &*key.service),
        ("region", &*locality.region),
        ("zone", &*locality.zone),
        ("sub_zone", &*locality.sub_zone),
    ];
    ConstCounter::new(value).encode(counter.encode_family(&labels)?)
}
