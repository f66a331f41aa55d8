//! A flow in the field names of Hubble (cilium/cilium, `api/v1/flow/flow.proto`), as its protobuf JSON
//! mapping renders them: 64-bit numbers are strings, what is not known is left out.
//!
//! What Hubble has no field for is in `extensions`, which is an `Any` there, as a `Struct`.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{Flow, FlowEnd};

/// Renders what `hubble observe -o json` prints a line of.
#[must_use]
pub fn render(flow: &Flow, node_name: &str) -> Value {
    let time = render_time(flow.time_unix_ns);
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    put("time", json!(time));
    put("verdict", json!(verdict(flow)));
    put("IP", ip(flow));
    put(
        "l4",
        json!({"TCP": {"source_port": flow.source.port, "destination_port": flow.destination.port}}),
    );
    put("source", endpoint(&flow.source));
    put("destination", endpoint(&flow.destination));
    put("Type", json!("SOCK"));
    put("node_name", json!(node_name));
    let direction = if flow.is_accepting {
        "INGRESS"
    } else {
        "EGRESS"
    };
    put("traffic_direction", json!(direction));
    if flow.step == "decided" {
        put(
            "sock_xlate_point",
            json!("SOCK_XLATE_POINT_PRE_DIRECTION_FWD"),
        );
    }
    if let (Some(target), "REDIRECTED") = (&flow.target, verdict(flow)) {
        put("proxy_port", json!(target.port));
    }
    put("socket_cookie", json!(flow.socket_cookie.to_string()));
    put(
        "cgroup_id",
        json!(flow.cgroup_id.map(|cgroup_id| cgroup_id.to_string())),
    );
    put("extensions", extensions(flow));
    json!({"flow": fields, "node_name": node_name, "time": time})
}

// TRACED is Hubble's word for what is only observed, AUDIT for a verdict that is not carried out.
fn verdict(flow: &Flow) -> &'static str {
    match (flow.step.as_str(), flow.verdict.as_str()) {
        ("decided", _) if flow.is_shadow => "AUDIT",
        ("decided", "redirected") => "REDIRECTED",
        ("decided", _) => "FORWARDED",
        _ => "TRACED",
    }
}

fn ip(flow: &Flow) -> Value {
    let version = match flow.destination.addr {
        Some(IpAddr::V4(_)) => "IPv4",
        Some(IpAddr::V6(_)) => "IPv6",
        None => return Value::Null,
    };
    let mut ip = json!({"destination": flow.destination.addr, "ipVersion": version});
    if flow.source.addr.is_some() {
        ip["source"] = json!(flow.source.addr);
    }
    ip
}

fn endpoint(end: &FlowEnd) -> Value {
    match end.pod.as_deref().and_then(|pod| pod.split_once('/')) {
        Some((namespace, pod_name)) => json!({"namespace": namespace, "pod_name": pod_name}),
        None => json!({}),
    }
}

fn extensions(flow: &Flow) -> Value {
    let mut extra = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            extra.insert(name.to_owned(), value);
        }
    };
    put("step", json!(flow.step));
    put("verdict", json!(flow.verdict));
    put("reason", json!(flow.reason));
    put("rows", json!(flow.rows));
    put("hop", json!(flow.hop));
    put("netns_cookie", json!(flow.netns_cookie.to_string()));
    put(
        "target",
        json!(flow.target.as_ref().map(super::table::render_end)),
    );
    put("pid", json!(flow.caller.map(|caller| caller.pid)));
    put("uid", json!(flow.caller.map(|caller| caller.uid)));
    put("gid", json!(flow.caller.map(|caller| caller.gid)));
    put("connect_us", json!(flow.connect_us));
    if let Some(traffic) = &flow.traffic {
        put("bytes_acked", json!(traffic.bytes_acked.to_string()));
        put("bytes_received", json!(traffic.bytes_received.to_string()));
        put(
            "bytes_redirected",
            json!(traffic.bytes_redirected.to_string()),
        );
        put("on_tcp_because", json!(traffic.on_tcp_because));
        put("srtt_us", json!(traffic.srtt_us));
    }
    json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": extra})
}

/// Renders nanoseconds since 1970 as RFC 3339, in UTC.
#[must_use]
pub fn render_time(unix_ns: u64) -> String {
    const DAY_SECONDS: u64 = 86_400;
    let (seconds, nanos) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
    let (year, month, day) = civil_date(seconds / DAY_SECONDS);
    let second = seconds % DAY_SECONDS;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

// Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`, for days from 1970.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}
