//! The status as `OpenMetrics`.

mod latency;
mod parked;
mod shadow;

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    shadow::Report,
    status::{Hop, Status, Verdict},
};

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
struct VerdictLabels {
    pod: String,
    verdict: &'static str,
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
pub fn render(status: &Status, shadow: Option<&Report>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("isthmus_accelerator");
    register_verdicts(&mut registry, &status.verdicts);
    register_hops(&mut registry, &status.hops);
    latency::register(&mut registry, &status.latencies);
    parked::register(&mut registry, &status.parked);
    register_node(&mut registry, status);
    if let Some(report) = shadow {
        shadow::register(&mut registry, report);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

// A pod of which no agent has left the name.
fn pod_label(name: Option<&str>, netns_cookie: u64) -> String {
    name.map_or_else(|| format!("netns:{netns_cookie}"), str::to_owned)
}

fn register_verdicts(registry: &mut Registry, verdicts: &[Verdict]) {
    let connections = Family::<VerdictLabels, Counter>::default();
    for row in verdicts {
        let labels = VerdictLabels {
            pod: pod_label(row.pod.as_deref(), row.netns_cookie),
            verdict: row.verdict,
            reason: row.reason.unwrap_or_default(),
        };
        connections.get_or_create(&labels).inc_by(row.connections);
    }
    registry.register(
        "connections",
        "Connect calls of a pod, by what was decided and why",
        connections,
    );
}

fn register_hops(registry: &mut Registry, hops: &[Hop]) {
    let connections = Family::<HopLabels, Counter>::default();
    let messages = Family::<HopLabels, Counter>::default();
    let bytes = Family::<BytesLabels, Counter>::default();
    let passes = Family::<PassLabels, Counter>::default();
    let on_tcp = Family::<PassLabels, Counter>::default();
    for row in hops {
        let pod = pod_label(row.pod.as_deref(), row.netns_cookie);
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
        for (family, counts) in [(&passes, &row.passes), (&on_tcp, &row.connections_on_tcp)] {
            for (reason, count) in counts {
                let pod = pod.clone();
                let labels = PassLabels { pod, hop, reason };
                family.get_or_create(&labels).inc_by(*count);
            }
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
    registry.register(
        "hop_connections_by_tcp",
        "Connections that have gone over to TCP for good, by the first reason",
        on_tcp,
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
    use crate::shadow::Disagreement;
    use crate::status::{AgentStatus, Bucket, IdlePod, Latency, MapUse, Mode, Program};

    use super::*;

    fn report() -> Report {
        let row = Disagreement {
            pod: Some("default/client".to_owned()),
            netns_cookie: 1,
            difference: "let_pass".to_owned(),
            rows: "O12/O13".to_owned(),
            calls: 2,
            ..Disagreement::default()
        };
        Report {
            agreed: 9,
            disagreed: 4,
            disagreements: vec![row.clone(), row],
            ..Report::default()
        }
    }

    fn verdict(verdict: &'static str, reason: Option<&'static str>, connections: u64) -> Verdict {
        Verdict {
            pod: Some("default/client".to_owned()),
            netns_cookie: 1,
            verdict,
            reason,
            rows: None,
            connections,
        }
    }

    fn latency(measure: &'static str) -> Latency {
        let buckets = [(Some(2), 1), (Some(8), 0), (None, 2)];
        Latency {
            pod: Some("default/client".to_owned()),
            netns_cookie: 1,
            hop: "app_to_proxy",
            measure,
            count: 3,
            sum_us: 14,
            buckets: buckets
                .map(|(up_to_us, count)| Bucket { up_to_us, count })
                .into(),
        }
    }

    fn status() -> Status {
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
            connections_on_tcp: [("peer_buffer_full", 1)].into(),
        };
        let unnamed = Hop {
            pod: None,
            netns_cookie: 3,
            ..hop.clone()
        };
        Status {
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
            verdicts: vec![
                verdict("redirected", None, 16),
                verdict("passed", Some("port_excluded"), 4),
            ],
            latencies: vec![latency("connect"), latency("srtt")],
            parked: Vec::new(),
            sockets: Vec::new(),
            maps: vec![MapUse {
                name: "PODS",
                entries: 2,
                max_entries: 1_024,
            }],
            counters: [("redirects", 5)].into(),
        }
    }

    #[test]
    fn renders_every_counter_once() {
        let text = render(&status(), Some(&report())).expect("strings take everything");

        let expected = [
            "isthmus_accelerator_hop_connections_total{pod=\"default/client\",hop=\"app_to_proxy\"} 16",
            "isthmus_accelerator_hop_connections_total{pod=\"netns:3\",hop=\"app_to_proxy\"} 16",
            "isthmus_accelerator_hop_messages_total{pod=\"default/client\",hop=\"app_to_proxy\"} 100",
            "isthmus_accelerator_hop_bytes_total{pod=\"default/client\",hop=\"app_to_proxy\",path=\"sockmap\"} 900",
            "isthmus_accelerator_hop_bytes_total{pod=\"default/client\",hop=\"app_to_proxy\",path=\"tcp\"} 100",
            "isthmus_accelerator_hop_messages_by_tcp_total{pod=\"default/client\",hop=\"app_to_proxy\",reason=\"latched\"} 7",
            "isthmus_accelerator_hop_connections_by_tcp_total{pod=\"default/client\",hop=\"app_to_proxy\",reason=\"peer_buffer_full\"} 1",
            "isthmus_accelerator_connections_total{pod=\"default/client\",verdict=\"redirected\",reason=\"\"} 16",
            "isthmus_accelerator_connections_total{pod=\"default/client\",verdict=\"passed\",reason=\"port_excluded\"} 4",
            "isthmus_accelerator_connect_duration_seconds_sum{pod=\"default/client\",hop=\"app_to_proxy\"} 0.000014",
            "isthmus_accelerator_connect_duration_seconds_count{pod=\"default/client\",hop=\"app_to_proxy\"} 3",
            "isthmus_accelerator_connect_duration_seconds_bucket{le=\"0.000002\",pod=\"default/client\",hop=\"app_to_proxy\"} 1",
            "isthmus_accelerator_connect_duration_seconds_bucket{le=\"+Inf\",pod=\"default/client\",hop=\"app_to_proxy\"} 3",
            "isthmus_accelerator_tcp_srtt_seconds_count{pod=\"default/client\",hop=\"app_to_proxy\"} 3",
            "isthmus_accelerator_shadow_calls_total{result=\"agreed\"} 9",
            "isthmus_accelerator_shadow_calls_total{result=\"disagreed\"} 4",
            "isthmus_accelerator_shadow_calls_total{result=\"unobserved\"} 0",
            "isthmus_accelerator_shadow_disagreements_total{pod=\"default/client\",rows=\"O12/O13\",difference=\"let_pass\"} 4",
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

    #[test]
    fn every_metric_is_in_the_table_and_nothing_else_is() {
        let text = render(&status(), Some(&report())).expect("strings take everything");
        let mut rendered: Vec<(String, String)> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| {
                let suffix = if kind == "counter" { "_total" } else { "" };
                (format!("{name}{suffix}"), kind.to_owned())
            })
            .collect();
        let mut documented: Vec<(String, String)> = include_str!("../METRICS.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            .map(|(name, rest)| {
                let kind = rest.split(' ').next().unwrap_or_default();
                (name.to_owned(), kind.to_owned())
            })
            .collect();
        rendered.sort();
        documented.sort();
        assert_eq!(documented, rendered);
    }
}
