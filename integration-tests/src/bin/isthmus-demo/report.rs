//! The tables that the demo ends with.

use isthmus_integration_tests::accelerator::HopBytes;
use isthmus_integration_tests::wrk::WrkReport;

use crate::data_path::{CONNECTIONS, Measurements, Path};
use crate::table;

/// The hops in the order of a request and its answer, with words for people.
const HOPS: [(&str, &str); 6] = [
    ("app_to_proxy", "client app -> its sidecar"),
    ("proxy_to_proxy_request", "sidecar -> sidecar"),
    ("proxy_to_app", "sidecar -> server app (always TCP)"),
    ("app_to_proxy_return", "server app -> its sidecar"),
    ("proxy_to_proxy_response", "sidecar <- sidecar"),
    ("proxy_to_app_return", "client app <- sidecar (always TCP)"),
];

/// Renders both tables.
pub(crate) fn render(measurements: &Measurements) -> String {
    format!(
        "{}\n{}",
        render_paths(measurements),
        render_hops(measurements)
    )
}

fn render_paths(measurements: &Measurements) -> String {
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        let reports = |path| {
            measurements
                .wrk
                .get(&(connections, path))
                .map_or(&[][..], Vec::as_slice)
        };
        let baseline = median(reports(Path::Iptables), |report| report.requests_per_second);
        for path in [Path::Iptables, Path::Isthmus] {
            let reports = reports(path);
            let rate = median(reports, |report| report.requests_per_second);
            rows.push(vec![
                path.name().to_owned(),
                connections.to_string(),
                format!("{rate:.0}"),
                format!("{:.0} us", median(reports, |report| report.p50_us)),
                format!("{:.0} us", median(reports, |report| report.p99_us)),
                match path {
                    Path::Iptables => percent(HopBytes {
                        redirected: 0,
                        total: 1,
                    }),
                    Path::Isthmus => percent(sum(measurements, |known, _| known == connections)),
                },
                format!("{:.2}x", rate / baseline),
            ]);
        }
    }
    table::render(
        &[
            "path",
            "connections",
            "requests/s",
            "p50",
            "p99",
            "skipped TCP/IP",
            "to iptables",
        ],
        &rows,
    )
}

fn render_hops(measurements: &Measurements) -> String {
    let row = |(hop, words): &(&str, &str)| {
        let bytes = sum(measurements, |_, known| known == *hop);
        vec![(*words).to_owned(), bytes.total.to_string(), percent(bytes)]
    };
    table::render(
        &["hop", "payload bytes", "skipped TCP/IP"],
        &HOPS.iter().map(row).collect::<Vec<_>>(),
    )
}

/// The bytes of all hops that `belongs` picks.
fn sum(measurements: &Measurements, belongs: impl Fn(u32, &str) -> bool) -> HopBytes {
    let mut sum = HopBytes::default();
    for ((connections, hop), bytes) in &measurements.hops {
        if belongs(*connections, hop) {
            sum.add(*bytes);
        }
    }
    sum
}

fn percent(bytes: HopBytes) -> String {
    bytes
        .share()
        .map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn median(reports: &[WrkReport], value: impl Fn(&WrkReport) -> f64) -> f64 {
    let mut values: Vec<f64> = reports.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_show_medians_ratios_and_shares() {
        let report = |requests_per_second| WrkReport {
            failed: 0,
            p50_us: 1e6 / requests_per_second,
            p99_us: 2e6 / requests_per_second,
            requests: 1000,
            requests_per_second,
        };
        let mut measurements = Measurements::default();
        for connections in CONNECTIONS {
            measurements.wrk.insert(
                (connections, Path::Iptables),
                [900.0, 1000.0, 5000.0].map(report).to_vec(),
            );
            measurements
                .wrk
                .insert((connections, Path::Isthmus), [1500.0].map(report).to_vec());
        }
        let bytes = HopBytes {
            redirected: 990,
            total: 1000,
        };
        measurements
            .hops
            .insert((1, "app_to_proxy".to_owned()), bytes);
        measurements
            .hops
            .insert((16, "app_to_proxy".to_owned()), bytes);

        let text = render(&measurements);
        let line = |start: &str| {
            text.lines()
                .find(|line| line.starts_with(start))
                .unwrap_or_default()
        };
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            words(line("iptables")),
            "iptables 1 1000 1000 us 2000 us 0.0 % 1.00x",
            "{text}"
        );
        assert_eq!(
            words(line("isthmus")),
            "isthmus 1 1500 667 us 1333 us 99.0 % 1.50x",
            "{text}"
        );
        assert_eq!(
            words(line("client app -> its sidecar")),
            "client app -> its sidecar 2000 99.0 %",
            "{text}"
        );
        assert_eq!(
            words(line("sidecar -> sidecar")),
            "sidecar -> sidecar 0 -",
            "a hop without bytes is shown: {text}"
        );
    }
}
