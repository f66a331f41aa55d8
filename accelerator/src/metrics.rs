//! The status as `OpenMetrics`.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::status::{Hop, Status};

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct HopLabels {
    pod: String,
    hop: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct BytesLabels {
    pod: String,
    hop: &'static str,
    path: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PassLabels {
    pod: String,
    hop: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PodLabels {
    condition: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct MapLabels {
    map: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EventLabels {
    event: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ProgramLabels {
    program: &'static str,
}

/// Renders one answer to a scrape. The kernel counts; nothing is kept between scrapes.
///
/// # Errors
///
/// Returns [`fmt::Error`] as the encoder does, which it has no reason to.
pub fn render(status: &Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("isthmus_accelerator");
    register_hops(&mut registry, &status.hops);
    register_node(&mut registry, status);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn register_hops(registry: &mut Registry, hops: &[Hop]) {
    let connections = Family::<HopLabels, Counter>::default();
    let messages = Family::<HopLabels, Counter>::default();
    let bytes = Family::<BytesLabels, Counter>::default();
    let passes = Family::<PassLabels, Counter>::default();
    for row in hops {
        let pod = row
            .pod
            .clone()
            .unwrap_or_else(|| format!("netns:{}", row.netns_cookie));
        let hop = row.hop;
        let labels = HopLabels {
            pod: pod.clone(),
            hop,
        };
        connections.get_or_create(&labels).inc_by(row.connections);
        messages.get_or_create(&labels).inc_by(row.messages);
        let by_tcp = row.bytes_total.saturating_sub(row.bytes_redirected);
        for (path, count) in [("sockmap", row.bytes_redirected), ("tcp", by_tcp)] {
            bytes
                .get_or_create(&BytesLabels {
                    pod: pod.clone(),
                    hop,
                    path,
                })
                .inc_by(count);
        }
        for (reason, count) in &row.passes {
            passes
                .get_or_create(&PassLabels {
                    pod: pod.clone(),
                    hop,
                    reason,
                })
                .inc_by(*count);
        }
    }
    registry.register(
        "hop_connections",
        "Connections whose sending end is followed",
        connections,
    );
    registry.register(
        "hop_messages",
        "Messages sent, roughly one per write call",
        messages,
    );
    registry.register(
        "hop_bytes",
        "Payload bytes sent, by the path they took",
        bytes,
    );
    registry.register(
        "hop_messages_by_tcp",
        "Messages left to TCP, by reason",
        passes,
    );
}

fn register_node(registry: &mut Registry, status: &Status) {
    let pods = Family::<PodLabels, Gauge>::default();
    let idle = status
        .pods_left_to_iptables
        .iter()
        .map(|pod| pod.condition.clone());
    for condition in status
        .pods
        .iter()
        .map(|_| "accelerated".to_owned())
        .chain(idle)
    {
        pods.get_or_create(&PodLabels { condition }).inc();
    }
    registry.register("pods", "Pods of the file, by what became of them", pods);

    let attached = Family::<ProgramLabels, Gauge>::default();
    for program in &status.programs {
        let labels = ProgramLabels {
            program: program.name,
        };
        attached
            .get_or_create(&labels)
            .set(i64::from(program.is_attached));
    }
    registry.register("program_attached", "Whether a BPF program runs", attached);

    let entries = Family::<MapLabels, Gauge>::default();
    let limits = Family::<MapLabels, Gauge>::default();
    for map in &status.maps {
        let labels = MapLabels { map: map.name };
        entries.get_or_create(&labels).set(i64::from(map.entries));
        limits
            .get_or_create(&labels)
            .set(i64::from(map.max_entries));
    }
    registry.register("map_entries", "Entries in a map", entries);
    registry.register("map_limit_entries", "Entries that fit into a map", limits);

    let events = Family::<EventLabels, Counter>::default();
    for (event, count) in &status.counters {
        events.get_or_create(&EventLabels { event }).inc_by(*count);
    }
    registry.register(
        "events",
        "Events of the node, as the programs count them",
        events,
    );
}

#[cfg(test)]
mod tests {
    use crate::status::{AgentStatus, IdlePod, MapUse, Mode, Program};

    use super::*;

    #[test]
    fn renders_every_counter_once() {
        let hop = Hop {
            pod: Some("default/client".to_owned()),
            netns_cookie: 1,
            hop: "app_to_proxy",
            is_read_by_proxy: true,
            connections: 16,
            messages: 100,
            bytes_total: 1_000,
            bytes_redirected: 900,
            redirected_basis_points: Some(9_000),
            passes: [("latched", 7)].into(),
        };
        let unnamed = Hop {
            pod: None,
            netns_cookie: 3,
            ..hop.clone()
        };
        let status = Status {
            format_version: 1,
            agent: AgentStatus {
                is_running: true,
                pid: None,
            },
            pin_dir: "/pins".into(),
            mode: Mode::Sockmap,
            other_versions: Vec::new(),
            programs: vec![Program {
                name: "isthmus_skmsg",
                hook: "sk_msg",
                id: None,
                is_attached: false,
            }],
            pods: Vec::new(),
            pods_left_to_iptables: vec![IdlePod {
                name: "default/late".to_owned(),
                condition: "waiting".to_owned(),
                reason: None,
            }],
            hops: vec![hop, unnamed],
            sockets: Vec::new(),
            maps: vec![MapUse {
                name: "PODS",
                entries: 2,
                max_entries: 1_024,
            }],
            counters: [("redirects", 5)].into(),
        };
        let text = render(&status).expect("strings take everything");

        let expected = [
            "isthmus_accelerator_hop_connections_total{pod=\"default/client\",hop=\"app_to_proxy\"} 16",
            "isthmus_accelerator_hop_connections_total{pod=\"netns:3\",hop=\"app_to_proxy\"} 16",
            "isthmus_accelerator_hop_messages_total{pod=\"default/client\",hop=\"app_to_proxy\"} 100",
            "isthmus_accelerator_hop_bytes_total{pod=\"default/client\",hop=\"app_to_proxy\",path=\"sockmap\"} 900",
            "isthmus_accelerator_hop_bytes_total{pod=\"default/client\",hop=\"app_to_proxy\",path=\"tcp\"} 100",
            "isthmus_accelerator_hop_messages_by_tcp_total{pod=\"default/client\",hop=\"app_to_proxy\",reason=\"latched\"} 7",
            "isthmus_accelerator_pods{condition=\"waiting\"} 1",
            "isthmus_accelerator_program_attached{program=\"isthmus_skmsg\"} 0",
            "isthmus_accelerator_map_entries{map=\"PODS\"} 2",
            "isthmus_accelerator_map_limit_entries{map=\"PODS\"} 1024",
            "isthmus_accelerator_events_total{event=\"redirects\"} 5",
        ];
        for line in expected {
            assert_eq!(
                text.lines().filter(|found| *found == line).count(),
                1,
                "{line}\nin:\n{text}"
            );
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
