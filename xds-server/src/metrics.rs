//! What is counted, in Prometheus' terms. No label ever holds a node, name or address: the number
//! of series does not grow with the fleet, nor at a client's will.

use std::time::Duration;

use isthmus_xds_core::stream::Event;
use isthmus_xds_core::{Response, Variant, type_rules};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use crate::canary::Outcome;
use crate::heap::{ChangeCost, HeapState};

mod changes;
mod config;

pub(crate) use changes::ChangeMetrics;
use config::ConfigMetrics;

/// All metrics of the server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    streams: Family<VariantLabel, Gauge>,
    requests: Family<RequestLabels, Counter>,
    responses: Family<TypeLabel, Counter>,
    response_bytes: Family<TypeLabel, Counter>,
    resources: Family<TypeLabel, Counter>,
    answer_seconds: Family<TypeLabel, Histogram>,
    streams_refused: Family<ReasonLabel, Counter>,
    connections_refused: RefusedConnections,
    config: ConfigMetrics,
    /// What changes allocate.
    pub(crate) change_cost: ChangeCost,
    /// How long changes take, and what they send.
    pub(crate) changes: ChangeMetrics,
    openings: Family<OutcomeLabel, Counter>,
    trials: Family<OutcomeLabel, Counter>,
    wakes: Counter,
    interest_entries: Gauge,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct VariantLabel {
    variant: VariantValue,
}

#[derive(Clone, Debug, EncodeLabelValue, Eq, Hash, PartialEq)]
enum VariantValue {
    Delta,
    Sotw,
}

impl From<Variant> for VariantLabel {
    fn from(variant: Variant) -> Self {
        let variant = match variant {
            Variant::Delta => VariantValue::Delta,
            Variant::Sotw => VariantValue::Sotw,
        };
        Self { variant }
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TypeLabel {
    r#type: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    r#type: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Connections that were refused, by reason.
#[derive(Clone, Debug, Default)]
pub struct RefusedConnections(Family<ReasonLabel, Counter>);

impl RefusedConnections {
    pub(crate) fn count(&self, reason: &'static str) {
        self.0.get_or_create(&ReasonLabel { reason }).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers every metric, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("isthmus");
        // 1 ms to about 16 s: from a local proxy to Envoy's initial fetch timeout.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let answers = Family::new_with_constructor(seconds as fn() -> Histogram);
        let refused_connections = RefusedConnections::default();
        let r = &mut registry;
        Self {
            streams: streams(r),
            requests: add(
                r,
                "xds_requests",
                "Requests, by what they were",
                Family::default(),
            ),
            responses: add(r, "xds_responses", "Responses sent", Family::default()),
            response_bytes: add(
                r,
                "xds_response_bytes",
                "Bytes of responses sent",
                Family::default(),
            ),
            resources: add(
                r,
                "xds_resources_sent",
                "Resources in responses sent",
                Family::default(),
            ),
            answer_seconds: add(
                r,
                "xds_answer_seconds",
                "From a response to its ACK",
                answers,
            ),
            wakes: add(
                r,
                "xds_wakes",
                "Streams woken because something changed that they want",
                Counter::default(),
            ),
            interest_entries: add(
                r,
                "xds_interest_entries",
                "Names and wildcards that streams ask for, each stream counted",
                Gauge::default(),
            ),
            openings: add(
                r,
                "xds_stream_openings",
                "Streams that asked to be let in, by how long that took",
                Family::default(),
            ),
            trials: add(
                r,
                "xds_canary_trials",
                "Changes that were tried on some clients of a scope first, by what came of it",
                Family::default(),
            ),
            streams_refused: add(
                r,
                "xds_streams_refused",
                "Streams ended for cause",
                Family::default(),
            ),
            connections_refused: {
                let metric = refused_connections.0.clone();
                add(
                    r,
                    "xds_connections_refused",
                    "Connections that never carried a stream, for cause",
                    metric,
                );
                refused_connections
            },
            change_cost: ChangeCost::registered(r),
            changes: ChangeMetrics::registered(r),
            config: ConfigMetrics::registered(r),
            registry,
        }
    }

    /// Adds metrics that are read where they are kept, each time that somebody asks.
    pub(crate) fn register(&mut self, collector: Box<dyn Collector>) {
        self.registry.register_collector(collector);
    }

    /// Writes all metrics in the `OpenMetrics` text format.
    ///
    /// # Errors
    ///
    /// Returns the formatting error, which a `String` never gives.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    pub(crate) fn open_stream(&self, variant: Variant) {
        self.streams.get_or_create(&variant.into()).inc();
    }

    pub(crate) fn close_stream(&self, variant: Variant) {
        self.streams.get_or_create(&variant.into()).dec();
    }

    /// The counter of refused connections, for those who refuse them.
    pub fn refused_connections(&self) -> RefusedConnections {
        self.connections_refused.clone()
    }

    pub(crate) fn refuse_stream(&self, reason: &'static str) {
        self.streams_refused
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    pub(crate) fn count_event(&self, event: &Event) {
        let (type_url, kind) = match event {
            Event::Acked {
                type_url, after, ..
            } => {
                self.observe_answer(type_url, *after);
                (type_url, "ack")
            }
            Event::Nacked { type_url, .. } => (type_url, "nack"),
            Event::Isolated { type_url, .. } => (type_url, "isolated"),
            Event::Oversized { type_url, .. } => (type_url, "oversized"),
            Event::StaleNonce { type_url } => (type_url, "stale"),
        };
        let r#type = short_name(type_url);
        self.requests
            .get_or_create(&RequestLabels { r#type, kind })
            .inc();
    }

    pub(crate) fn count_subscription(&self, type_url: &str) {
        let r#type = short_name(type_url);
        let kind = "subscribe";
        self.requests
            .get_or_create(&RequestLabels { r#type, kind })
            .inc();
    }

    pub(crate) fn count_response(&self, response: &Response) {
        let label = TypeLabel {
            r#type: short_name(&response.type_url),
        };
        self.responses.get_or_create(&label).inc();
        self.response_bytes
            .get_or_create(&label)
            .inc_by(response.size_bytes() as u64);
        self.resources
            .get_or_create(&label)
            .inc_by(response.resources as u64);
    }

    pub(crate) fn count_opening(&self, outcome: &'static str) {
        self.openings.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn count_trial(&self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Passed => "passed",
            Outcome::Refused => "refused",
            Outcome::Unanswered => "timed_out",
        };
        self.trials.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn count_wakes(&self, streams: usize) {
        self.wakes.inc_by(streams as u64);
    }

    pub(crate) fn observe_interest(&self, entries: usize) {
        self.interest_entries.set(clamp(entries));
    }

    fn observe_answer(&self, type_url: &str, after: Duration) {
        let r#type = short_name(type_url);
        let histogram = self.answer_seconds.get_or_create(&TypeLabel { r#type });
        histogram.observe(after.as_secs_f64());
    }
}

// Registers a metric and returns it.
fn add<M: Metric + Clone>(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

// Open streams, which the heap is divided by as well.
fn streams(registry: &mut Registry) -> Family<VariantLabel, Gauge> {
    let streams = Family::default();
    let by_variant = [Variant::Delta, Variant::Sotw]
        .map(|variant| streams.get_or_create_owned(&VariantLabel::from(variant)));
    registry.register_collector(Box::new(HeapState::new(by_variant)));
    add(registry, "xds_streams", "Open streams", streams)
}

/// The field's short name of a type, or `other`: clients choose type URLs, and must not choose
/// the number of series.
pub(crate) fn short_name(type_url: &str) -> &'static str {
    match type_url {
        type_rules::CLUSTER => "cds",
        type_rules::ENDPOINT => "eds",
        type_rules::LOCALITY_ENDPOINT => "leds",
        type_rules::LISTENER => "lds",
        type_rules::ROUTE => "rds",
        type_rules::SCOPED_ROUTE => "srds",
        type_rules::VIRTUAL_HOST => "vhds",
        type_rules::SECRET => "sds",
        type_rules::RUNTIME => "rtds",
        type_rules::EXTENSION_CONFIG => "ecds",
        _ => "other",
    }
}

fn clamp(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
