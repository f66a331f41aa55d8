//! A flow for people: one line.

use super::{Flow, FlowEnd, hubble};

/// The line above all others.
#[must_use]
pub fn render_head() -> String {
    line(["TIME", "STEP", "VERDICT", "SOURCE", "DESTINATION", "DETAIL"])
}

/// Renders one flow. Without a newline.
#[must_use]
pub fn render(flow: &Flow) -> String {
    let time = hubble::render_time(flow.time_unix_ns);
    // Microseconds: what is below is noise.
    let time = time.get(11..26).unwrap_or(&time);
    let verdict = match (&flow.rows, flow.is_shadow) {
        (Some(rows), _) => format!("{} {rows}", flow.verdict),
        (None, true) => format!("{} (shadow)", flow.verdict),
        (None, false) => flow.verdict.clone(),
    };
    let (source, destination) = (render_end(&flow.source), render_end(&flow.destination));
    let detail = detail(flow);
    line([time, &flow.step, &verdict, &source, &destination, &detail])
}

fn line(cells: [&str; 6]) -> String {
    let [time, step, verdict, source, destination, detail] = cells;
    format!("{time:15}  {step:11}  {verdict:22}  {source:40}  {destination:40}  {detail}")
        .trim_end()
        .to_owned()
}

/// Renders `namespace/name address:port`, without what is not known.
#[must_use]
pub fn render_end(end: &FlowEnd) -> String {
    let addr = match (end.addr, end.port) {
        (Some(addr), port) => Some(std::net::SocketAddr::new(addr, port).to_string()),
        (None, 0) => None,
        (None, port) => Some(format!(":{port}")),
    };
    let words: Vec<&str> = [end.pod.as_deref(), addr.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    words.join(" ")
}

fn detail(flow: &Flow) -> String {
    let mut words = Vec::new();
    match (flow.step.as_str(), &flow.target) {
        ("decided", Some(target)) => words.push(format!("to {}", render_end(target))),
        _ => words.extend(flow.hop.clone()),
    }
    words.extend(flow.reason.clone().filter(|_| flow.step == "decided"));
    if let Some(caller) = flow.caller.filter(|_| flow.step == "decided") {
        words.push(format!("pid {} uid {}", caller.pid, caller.uid));
    }
    words.extend(flow.connect_us.map(|us| format!("after {us} us")));
    if let Some(traffic) = &flow.traffic {
        words.push(format!(
            "sent {} B by TCP, {} B past it, received {} B by TCP",
            traffic.bytes_acked, traffic.bytes_redirected, traffic.bytes_received
        ));
        let reason = traffic.on_tcp_because.as_ref();
        words.extend(reason.map(|reason| format!("on TCP because {reason}")));
        words.extend(traffic.srtt_us.map(|us| format!("srtt {us} us")));
    }
    words.join(", ")
}
