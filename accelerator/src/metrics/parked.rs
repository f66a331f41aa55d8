//! What lies unread past TCP at the readers of each pod, beside what may.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::pod_label;
use crate::status::Parked;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    pod: String,
}

type PodGauge = Family<Labels, Gauge<u64, AtomicU64>>;

/// Name, help, and where the value is.
type Row = (&'static str, &'static str, fn(&Parked) -> u64);

/// Registers what a scrape shall see.
pub(super) fn register(registry: &mut Registry, parked: &[Parked]) {
    let families: [Row; 4] = [
        (
            "parked_bytes",
            "Payload bytes that lie unread at readers of a pod past TCP",
            |row| row.bytes,
        ),
        (
            "parked_limit_bytes",
            "Parked bytes of a pod from which on TCP carries everything",
            |row| row.limit_bytes,
        ),
        (
            "parked_messages",
            "Messages that lie unread at readers of a pod past TCP",
            |row| row.messages,
        ),
        (
            "parked_limit_messages",
            "Parked messages of a pod from which on TCP carries everything",
            |row| row.limit_messages,
        ),
    ];
    for (name, help, value) in families {
        let family = PodGauge::default();
        for row in parked {
            let pod = pod_label(row.pod.as_deref(), row.netns_cookie);
            family.get_or_create(&Labels { pod }).set(value(row));
        }
        registry.register(name, help, family);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn both_what_lies_there_and_what_may_are_shown() {
        let row = Parked {
            pod: Some("default/client".to_owned()),
            netns_cookie: 1,
            bytes: 700,
            limit_bytes: 8 << 20,
            messages: 3,
            limit_messages: 8_192,
        };
        let mut registry = Registry::default();
        register(&mut registry, &[row]);
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string takes everything");
        for line in [
            "parked_bytes{pod=\"default/client\"} 700",
            "parked_limit_bytes{pod=\"default/client\"} 8388608",
            "parked_messages{pod=\"default/client\"} 3",
            "parked_limit_messages{pod=\"default/client\"} 8192",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
