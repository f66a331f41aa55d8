//! What was measured, and what it says: rows, ratios to iptables of the same round, and the noise beside them.
//!
//! Each round lies between two measurements of iptables, that of its own number and the next: their mean is what
//! the others are compared with, and their ratio says how much two measurements of one and the same thing differ.

use std::fmt::Write as _;

use serde::Serialize;

use super::path::Path;
use super::workload::Workload;
use crate::statistics::median;

/// One measurement, as it stands in `accel.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) workload: &'static str,
    pub(super) connections: u32,
    pub(super) path: &'static str,
    /// From 1; one more of iptables, which end the last round too.
    pub(super) round: u32,
    pub(super) requests_per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// Of the whole machine: the load, the sidecars, the application, the kernel.
    pub(super) cpu_us_per_request: f64,
    /// Part of the payload bytes of all hops that skipped TCP/IP, 0 to 1.
    pub(super) sockmap_share: f64,
}

/// What is compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Metric {
    Requests,
    P50,
    P99,
    Cpu,
}

impl Metric {
    pub(super) const ALL: [Self; 4] = [Self::Requests, Self::P50, Self::P99, Self::Cpu];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests/s",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Cpu => "CPU per request",
        }
    }

    fn of(self, row: &Row) -> f64 {
        match self {
            Self::Requests => row.requests_per_s,
            Self::P50 => row.p50_us,
            Self::P99 => row.p99_us,
            Self::Cpu => row.cpu_us_per_request,
        }
    }

    /// How much better than 1 a ratio is: positive is better, whichever way the metric goes.
    fn gain(self, ratio: f64) -> f64 {
        match self {
            Self::Requests => ratio - 1.0,
            Self::P50 | Self::P99 | Self::Cpu => 1.0 - ratio,
        }
    }
}

/// A metric of a path beside iptables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Comparison {
    /// Median of the rounds' ratios: a round's paths were measured within seconds of each other.
    pub(super) ratio: f64,
    /// What a ratio must be off by to mean something: half of the range of the rounds' ratios, or of those of
    /// iptables to iptables if they differ more.
    pub(super) noise: f64,
}

impl Comparison {
    fn is_worse(self, metric: Metric) -> bool {
        -metric.gain(self.ratio) > self.noise
    }

    fn is_better(self, metric: Metric) -> bool {
        metric.gain(self.ratio) > self.noise
    }
}

/// All rows of a run.
#[derive(Debug, Default)]
pub(super) struct Rows(pub(super) Vec<Row>);

impl Rows {
    /// What was measured with a workload and a number of connections, in the order of the table.
    pub(super) fn cells(&self) -> Vec<(Workload, u32)> {
        let mut cells: Vec<(Workload, u32)> = Vec::new();
        for workload in Workload::ALL {
            let of_it = self.0.iter().filter(|row| row.workload == workload.name());
            for row in of_it {
                if !cells.contains(&(workload, row.connections)) {
                    cells.push((workload, row.connections));
                }
            }
        }
        cells.sort_unstable();
        cells
    }

    /// Median of a metric over the rounds.
    pub(super) fn median(&self, cell: (Workload, u32), path: Path, metric: Metric) -> Option<f64> {
        median(self.of(cell, path).map(|row| metric.of(row)).collect())
    }

    /// Median of the share that skipped TCP/IP.
    fn share(&self, cell: (Workload, u32), path: Path) -> Option<f64> {
        median(self.of(cell, path).map(|row| row.sockmap_share).collect())
    }

    /// A path beside iptables, round by round; iptables beside themselves.
    pub(super) fn compare(
        &self,
        cell: (Workload, u32),
        path: Path,
        metric: Metric,
    ) -> Option<Comparison> {
        let ratios = self.ratios(cell, path, metric);
        let iptables = self.ratios(cell, Path::Iptables, metric);
        Some(Comparison {
            noise: half_range(&ratios).max(half_range(&iptables)),
            ratio: if path == Path::Iptables {
                1.0
            } else {
                median(ratios)?
            },
        })
    }

    // Of a round each: a path to the mean of the iptables before and after it, or the latter two to each other.
    fn ratios(&self, cell: (Workload, u32), path: Path, metric: Metric) -> Vec<f64> {
        let iptables = |round| {
            let found = self.of(cell, Path::Iptables).find(|row| row.round == round);
            found.map(|row| metric.of(row))
        };
        let ratio = |row: &Row| {
            let (before, after) = (iptables(row.round)?, iptables(row.round + 1)?);
            let ratio = if path == Path::Iptables {
                after / before
            } else {
                metric.of(row) / f64::midpoint(before, after)
            };
            ratio.is_finite().then_some(ratio)
        };
        self.of(cell, path).filter_map(ratio).collect()
    }

    /// Every comparison of ours that is worse than iptables by more than the noise.
    pub(super) fn worse(&self) -> Vec<String> {
        self.judged(Comparison::is_worse)
    }

    /// Every comparison of ours that is better than iptables by more than the noise.
    pub(super) fn better(&self) -> Vec<String> {
        self.judged(Comparison::is_better)
    }

    /// Geometric mean of a metric's ratios to iptables over the workloads of small messages.
    pub(super) fn small_messages(&self, path: Path, metric: Metric) -> Option<f64> {
        let ratio = |cell| Some(self.compare(cell, path, metric)?.ratio.ln());
        let cells = self.cells().into_iter().filter(|cell| cell.0.is_small());
        let logarithms: Vec<f64> = cells.filter_map(ratio).collect();
        let count = u32::try_from(logarithms.len()).ok().filter(|it| *it > 0)?;
        Some((logarithms.iter().sum::<f64>() / f64::from(count)).exp())
    }

    fn judged(&self, is_so: impl Fn(Comparison, Metric) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        for cell in self.cells() {
            for (path, metric) in judged_metrics() {
                let Some(it) = self
                    .compare(cell, path, metric)
                    .filter(|it| is_so(*it, metric))
                else {
                    continue;
                };
                let (workload, connections, path) = (cell.0.name(), cell.1, path.name());
                let (name, Comparison { ratio, noise }) = (metric.name(), it);
                found.push(format!(
                    "{workload}, {connections} connections, {path}: {name} {ratio:.2}x (noise {noise:.2})"
                ));
            }
        }
        found
    }

    fn of(
        &self,
        (workload, connections): (Workload, u32),
        path: Path,
    ) -> impl Iterator<Item = &Row> {
        self.0.iter().filter(move |row| {
            row.workload == workload.name()
                && row.connections == connections
                && row.path == path.name()
        })
    }

    /// The table: medians, and in parentheses the ratio to iptables with the noise of that ratio.
    pub(super) fn render(&self) -> String {
        let mut out = format!(
            "{:<16} {:>5} {:<9} {:>24} {:>24} {:>24} {:>24} {:>8}\n",
            "workload",
            "conns",
            "path",
            "requests/s",
            "p50 us",
            "p99 us",
            "CPU us/request",
            "sockmap"
        );
        for cell in self.cells() {
            for path in Path::ALL {
                let values: Vec<String> = Metric::ALL
                    .iter()
                    .map(|metric| self.render_value(cell, path, *metric))
                    .collect();
                if values.iter().all(String::is_empty) {
                    continue;
                }
                let share = self.share(cell, path).unwrap_or(0.0) * 100.0;
                let _ = writeln!(
                    out,
                    "{:<16} {:>5} {:<9} {:>24} {:>24} {:>24} {:>24} {share:>6.1} %",
                    cell.0.name(),
                    cell.1,
                    path.name(),
                    values[0],
                    values[1],
                    values[2],
                    values[3],
                );
            }
        }
        out
    }

    fn render_value(&self, cell: (Workload, u32), path: Path, metric: Metric) -> String {
        let Some(value) = self.median(cell, path, metric) else {
            return String::new();
        };
        let beside = match self.compare(cell, path, metric) {
            Some(Comparison { ratio, noise }) => format!(" ({ratio:.2}x ±{noise:.2})"),
            None => String::new(),
        };
        format!("{value:.0}{beside}")
    }
}

fn half_range(ratios: &[f64]) -> f64 {
    let high = ratios.iter().copied().reduce(f64::max);
    let low = ratios.iter().copied().reduce(f64::min);
    high.zip(low).map_or(0.0, |(high, low)| (high - low) / 2.0)
}

/// What ours are judged by.
pub(super) fn judged_metrics() -> impl Iterator<Item = (Path, Metric)> {
    let all = |path| Metric::ALL.map(|metric| (path, metric));
    Path::OURS.into_iter().flat_map(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: (Workload, u32) = (Workload::GrpcUnary, 16);

    fn rows(of: &[(Path, u32, f64)]) -> Rows {
        let row = |(path, round, requests_per_s): &(Path, u32, f64)| Row {
            workload: CELL.0.name(),
            connections: CELL.1,
            path: path.name(),
            round: *round,
            requests_per_s: *requests_per_s,
            p50_us: 1e6 / requests_per_s,
            p99_us: 100.0,
            cpu_us_per_request: 50.0,
            sockmap_share: 0.5,
        };
        Rows(of.iter().map(row).collect())
    }

    #[test]
    fn rounds_are_compared_with_the_iptables_around_them() {
        // The machine becomes half as fast: the ratios do not see it.
        let rows = rows(&[
            (Path::Iptables, 1, 1010.0),
            (Path::Full, 1, 1100.0),
            (Path::Iptables, 2, 990.0),
            (Path::Full, 2, 830.0),
            (Path::Iptables, 3, 510.0),
            (Path::Full, 3, 555.0),
            (Path::Iptables, 4, 490.0),
        ]);
        let ratios = rows.ratios(CELL, Path::Full, Metric::Requests);
        assert!((ratios[0] - 1.1).abs() < 1e-9, "{ratios:?}");
        assert!((ratios[1] - 830.0 / 750.0).abs() < 1e-9, "{ratios:?}");
        assert!((ratios[2] - 1.11).abs() < 1e-9, "{ratios:?}");
        let found = rows
            .compare(CELL, Path::Full, Metric::Requests)
            .expect("rows");
        assert!((found.ratio - 830.0 / 750.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn the_noise_is_that_of_the_path_or_of_iptables_if_they_have_more() {
        let calm = rows(&[
            (Path::Iptables, 1, 1000.0),
            (Path::Full, 1, 1100.0),
            (Path::Iptables, 2, 1000.0),
            (Path::Full, 2, 1140.0),
            (Path::Iptables, 3, 1000.0),
        ]);
        let found = calm
            .compare(CELL, Path::Full, Metric::Requests)
            .expect("rows");
        assert!((found.noise - 0.02).abs() < 1e-9, "{found:?}");
        assert_eq!(calm.worse(), [] as [&str; 0]);
        assert_eq!(
            calm.better(),
            [
                "grpc-unary, 16 connections, full: requests/s 1.12x (noise 0.02)",
                "grpc-unary, 16 connections, full: p50 0.89x (noise 0.02)"
            ]
        );
        assert!(
            calm.render().contains("1120 (1.12x ±0.02)"),
            "{}",
            calm.render()
        );

        // The same for the path; iptables beside themselves: 0.6 and 1.4.
        let mut rough = rows(&[
            (Path::Iptables, 1, 1250.0),
            (Path::Full, 1, 1100.0),
            (Path::Iptables, 2, 750.0),
            (Path::Full, 2, 1026.0),
            (Path::Iptables, 3, 1050.0),
        ]);
        let found = rough
            .compare(CELL, Path::Full, Metric::Requests)
            .expect("rows");
        assert!((found.noise - 0.4).abs() < 1e-9, "{found:?}");
        assert_eq!(rough.better(), [] as [&str; 0]);
        rough.0.retain(|row| row.path == Path::Iptables.name());
        assert!(
            rough.render().contains("1050 (1.00x ±0.40)"),
            "{}",
            rough.render()
        );
    }

    #[test]
    fn worse_is_what_is_worse_by_more_than_the_noise() {
        let within = rows(&[
            (Path::Iptables, 1, 1000.0),
            (Path::Full, 1, 1040.0),
            (Path::Iptables, 2, 1000.0),
            (Path::Full, 2, 940.0),
            (Path::Iptables, 3, 1000.0),
        ]);
        assert_eq!(within.worse(), [] as [&str; 0]);
        let beyond = rows(&[
            (Path::Iptables, 1, 1000.0),
            (Path::Full, 1, 900.0),
            (Path::Iptables, 2, 1000.0),
            (Path::Full, 2, 910.0),
            (Path::Iptables, 3, 1000.0),
        ]);
        assert_eq!(beyond.worse().len(), 2, "{:?}", beyond.worse());
    }

    #[test]
    fn the_mean_of_small_messages_is_geometric() {
        let measured = |full| {
            rows(&[
                (Path::Iptables, 1, 1000.0),
                (Path::Full, 1, full),
                (Path::Iptables, 2, 1000.0),
            ])
        };
        let mut all = measured(2000.0);
        let others = measured(500.0).0;
        all.0.extend(others.into_iter().map(|row| Row {
            connections: 1,
            ..row
        }));
        let mean = all
            .small_messages(Path::Full, Metric::Requests)
            .expect("two ratios");
        assert!((mean - 1.0).abs() < 1e-9, "{mean}");
        assert_eq!(rows(&[]).small_messages(Path::Full, Metric::Cpu), None);
    }

    #[test]
    fn a_path_without_rows_is_left_out() {
        let rows = rows(&[(Path::Iptables, 1, 1000.0)]);
        assert_eq!(rows.compare(CELL, Path::Full, Metric::Cpu), None);
        assert_eq!(rows.render().lines().count(), 2);
    }
}
