//! The tables that the demo ends with.

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
            "to iptables",
        ],
        &rows,
    )
}

fn render_hops(measurements: &Measurements) -> String {
    let row = |(hop, words): &(&str, &str)| {
        let bytes = measurements.hops.get(*hop).copied().unwrap_or_default();
        let share = bytes
            .share()
            .map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0));
        vec![(*words).to_owned(), bytes.total.to_string(), share]
    };
    table::render(
        &["hop", "payload bytes", "skipped TCP/IP"],
        &HOPS.iter().map(row).collect::<Vec<_>>(),
    )
}

fn median(reports: &[WrkReport], value: impl Fn(&WrkReport) -> f64) -> f64 {
    let mut values: Vec<f64> = reports.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_integration_tests::accelerator::HopBytes;

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
        measurements.hops.insert(
            "app_to_proxy".to_owned(),
            HopBytes {
                redirected: 990,
                total: 1000,
            },
        );

        let text = render(&measurements);
        assert!(text.contains("1000 us  2000 us        1.00x"), "{text}");
        assert!(
            text.contains("1500   667 us  1333 us        1.50x"),
            "{text}"
        );
        assert!(text.contains("1000          99.0 %"), "{text}");
        assert!(
            text.contains("sidecar -> sidecar"),
            "a hop without bytes is shown: {text}"
        );
    }
}
