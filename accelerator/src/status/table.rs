//! `status` for people.

use std::fmt::Write as _;

use super::{Hop, Mode, Status};

/// Reasons shown per hop: the rest is in the JSON.
const MAX_SHOWN_REASONS: usize = 3;
/// Sockets shown: enough to see what kind there are.
const MAX_SHOWN_SOCKETS: usize = 20;

/// Renders the status as sections of columns. Ends with a newline.
#[must_use]
pub fn render_table(status: &Status) -> String {
    let mut text = String::new();
    let agent = match (status.agent.is_running, status.agent.pid) {
        (true, Some(pid)) => format!("running (process {pid})"),
        (true, None) => "running".to_owned(),
        (false, _) => "not running; what is loaded goes on to work".to_owned(),
    };
    // Writing to a string cannot fail.
    let mode = match status.mode {
        Mode::RedirectOnly => "redirect only: every message goes by TCP",
        Mode::Sockmap => "sockmap: messages towards proxies may skip TCP/IP",
        Mode::Shadow => "shadow: verdicts are recorded, iptables acts",
    };
    let _ = writeln!(
        text,
        "Agent: {agent}\nMode:  {mode}\nPins:  {}",
        status.pin_dir.display()
    );

    if !status.other_versions.is_empty() {
        section(
            &mut text,
            "Other versions, until their sockets close",
            &["VERSION", "SOCKETS", "PINS"],
            other_versions(status),
        );
    }
    section(
        &mut text,
        "Programs",
        &["NAME", "HOOK", "ID", "ATTACHED"],
        programs(status),
    );
    section(
        &mut text,
        "Pods",
        &["NAME", "NETNS", "ADDRESSES", "PROXY", "RULES"],
        pods(status),
    );
    let idle = status.pods_left_to_iptables.iter().map(|pod| {
        vec![
            pod.name.clone(),
            pod.condition.clone(),
            pod.reason.clone().unwrap_or_default(),
        ]
    });
    if idle.len() > 0 {
        section(
            &mut text,
            "Left to iptables",
            &["NAME", "CONDITION", "REASON"],
            idle.collect(),
        );
    }
    traffic(&mut text, status);
    section(
        &mut text,
        "Sockets",
        &["NETNS", "LOCAL", "PEER", "HOP"],
        sockets(status),
    );
    section(
        &mut text,
        "Maps",
        &["NAME", "ENTRIES", "LIMIT"],
        maps(status),
    );
    let counters = status
        .counters
        .iter()
        .map(|(name, count)| vec![(*name).to_owned(), count.to_string()]);
    section(&mut text, "Node", &["EVENT", "COUNT"], counters.collect());
    text
}

fn traffic(text: &mut String, status: &Status) {
    let columns = [
        "POD",
        "HOP",
        "CONNECTIONS",
        "BYTES",
        "BY SOCKMAP",
        "SHARE",
        "ON TCP BECAUSE",
    ];
    section(
        text,
        "Hops",
        &columns,
        status.hops.iter().map(hop).collect(),
    );
    section(
        text,
        "Connect calls",
        &["POD", "VERDICT", "ROWS", "REASON", "CONNECTIONS"],
        verdicts(status),
    );
    section(
        text,
        "Latency",
        &[
            "POD",
            "HOP",
            "MEASURE",
            "COUNT",
            "MEAN",
            "P50 UP TO",
            "P99 UP TO",
        ],
        latencies(status),
    );
}

fn other_versions(status: &Status) -> Vec<Vec<String>> {
    let row = |other: &super::OtherVersion| {
        vec![
            other.version.to_string(),
            other.sockets.to_string(),
            other.pin_dir.display().to_string(),
        ]
    };
    status.other_versions.iter().map(row).collect()
}

fn programs(status: &Status) -> Vec<Vec<String>> {
    let row = |program: &super::Program| {
        let id = program
            .id
            .map_or_else(|| "-".to_owned(), |id| id.to_string());
        let is_attached = if program.is_attached { "yes" } else { "NO" };
        vec![
            program.name.to_owned(),
            program.hook.to_owned(),
            id,
            is_attached.to_owned(),
        ]
    };
    status.programs.iter().map(row).collect()
}

fn pods(status: &Status) -> Vec<Vec<String>> {
    let row = |pod: &super::Pod| {
        vec![
            name(pod.name.as_deref(), pod.netns_cookie),
            pod.netns_cookie.to_string(),
            pod.addresses.join(","),
            format!("{}:{}", pod.proxy_uid, pod.proxy_gid),
            (pod.port_rules + pod.cidr_rules + pod.group_rules).to_string(),
        ]
    };
    status.pods.iter().map(row).collect()
}

fn hop(hop: &Hop) -> Vec<String> {
    let mut reasons: Vec<(&str, u64)> = hop
        .passes
        .iter()
        .map(|(name, count)| (*name, *count))
        .collect();
    reasons.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let shown: Vec<String> = reasons
        .iter()
        .take(MAX_SHOWN_REASONS)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let share = hop.redirected_basis_points.map_or_else(
        || "-".to_owned(),
        |points| format!("{}.{:02} %", points / 100, points % 100),
    );
    vec![
        name(hop.pod.as_deref(), hop.netns_cookie),
        hop.hop.to_owned(),
        hop.connections.to_string(),
        render_bytes(hop.bytes_total),
        render_bytes(hop.bytes_redirected),
        share,
        shown.join(", "),
    ]
}

fn verdicts(status: &Status) -> Vec<Vec<String>> {
    let row = |verdict: &super::Verdict| {
        vec![
            name(verdict.pod.as_deref(), verdict.netns_cookie),
            verdict.verdict.to_owned(),
            verdict.rows.unwrap_or("-").to_owned(),
            verdict.reason.unwrap_or("-").to_owned(),
            verdict.connections.to_string(),
        ]
    };
    status.verdicts.iter().map(row).collect()
}

fn latencies(status: &Status) -> Vec<Vec<String>> {
    let row = |latency: &super::Latency| {
        let mean = latency.sum_us.checked_div(latency.count);
        let bound = |percent| match latency.quantile_bound_us(percent) {
            Some(Some(us)) => format!("{us} us"),
            Some(None) => "longer".to_owned(),
            None => "-".to_owned(),
        };
        vec![
            name(latency.pod.as_deref(), latency.netns_cookie),
            latency.hop.to_owned(),
            latency.measure.to_owned(),
            latency.count.to_string(),
            mean.map_or_else(|| "-".to_owned(), |us| format!("{us} us")),
            bound(50),
            bound(99),
        ]
    };
    status.latencies.iter().map(row).collect()
}

fn sockets(status: &Status) -> Vec<Vec<String>> {
    let row = |socket: &super::Socket| {
        let netns = socket.netns_cookie.to_string();
        vec![
            netns,
            socket.local.clone(),
            socket.peer.clone(),
            socket.hop.to_owned(),
        ]
    };
    let mut rows: Vec<Vec<String>> = status
        .sockets
        .iter()
        .take(MAX_SHOWN_SOCKETS)
        .map(row)
        .collect();
    let hidden = status.sockets.len().saturating_sub(MAX_SHOWN_SOCKETS);
    if hidden > 0 {
        rows.push(vec![
            "…".to_owned(),
            format!("and {hidden} more, see -o json"),
        ]);
    }
    rows
}

fn maps(status: &Status) -> Vec<Vec<String>> {
    let row = |map: &super::MapUse| {
        vec![
            map.name.to_owned(),
            map.entries.to_string(),
            map.max_entries.to_string(),
        ]
    };
    status.maps.iter().map(row).collect()
}

fn name(name: Option<&str>, netns_cookie: u64) -> String {
    name.map_or_else(|| format!("netns:{netns_cookie}"), str::to_owned)
}

// Exact below 10 KiB, then three digits or more.
fn render_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut scaled = (bytes, "B");
    for unit in UNITS {
        if scaled.0 < 10_240 {
            break;
        }
        scaled = (scaled.0 / 1_024, unit);
    }
    format!("{} {}", scaled.0, scaled.1)
}

pub(crate) fn section(text: &mut String, title: &str, columns: &[&str], rows: Vec<Vec<String>>) {
    let _ = writeln!(text, "\n{title}");
    if rows.is_empty() {
        let _ = writeln!(text, "  none");
        return;
    }
    let head = columns.iter().map(|column| (*column).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "  {}", line.trim_end());
    }
}
