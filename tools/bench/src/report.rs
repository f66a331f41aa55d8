//! What was measured: rows, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::contender::{Outcome, Server};
use crate::statistics::{float, percentile};

/// Name of the metric that the floor is held to.
pub(crate) const BYTES_SENT: &str = "bytes sent per change";

/// Name of the metric that must be zero when clients come back with equal versions.
pub(crate) const RESOURCE_BYTES: &str = "resource bytes sent";

/// One metric of one scenario, of each server that has it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) scenario: &'static str,
    pub(crate) streams: usize,
    pub(crate) clusters: usize,
    pub(crate) client: &'static str,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) isthmus: Option<f64>,
    pub(crate) go_control_plane: Option<f64>,
    pub(crate) go_control_plane_linear: Option<f64>,
    pub(crate) floor: Option<f64>,
}

impl Row {
    /// How many times the better of go-control-plane's caches has what ours has.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let peers = [self.go_control_plane, self.go_control_plane_linear];
        let peer = peers.into_iter().flatten().reduce(f64::min)?;
        self.isthmus.map(|ours| ours / peer)
    }

    fn of(&self, server: Server) -> Option<f64> {
        match server {
            Server::Isthmus => self.isthmus,
            Server::GoControlPlane => self.go_control_plane,
            Server::GoControlPlaneLinear => self.go_control_plane_linear,
            Server::Floor => self.floor,
        }
    }

    /// Ours as a multiple of the floor.
    pub(crate) fn over_floor(&self) -> Option<f64> {
        Some(self.isthmus? / self.floor?)
    }
}

/// Where in the table a value belongs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Cell {
    pub(crate) scenario: &'static str,
    pub(crate) streams: usize,
    pub(crate) clusters: usize,
    pub(crate) client: &'static str,
}

impl fmt::Display for Cell {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            scenario,
            streams,
            clusters,
            client,
        } = self;
        write!(
            out,
            "{scenario}: {streams} streams, {clusters} clusters, {client}"
        )
    }
}

/// All rows, in the order in which they came.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: BTreeMap<&'static str, String>,
    pub(crate) rows: Vec<Row>,
    /// Lists that are no rows.
    pub(crate) notes: Vec<String>,
    /// What could not be measured, and claims that do not hold.
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// Puts one value in.
    pub(crate) fn put(
        &mut self,
        cell: Cell,
        metric: &'static str,
        unit: &'static str,
        server: Server,
        value: f64,
    ) {
        let Cell {
            scenario,
            streams,
            clusters,
            client,
        } = cell;
        let found = self.rows.iter().position(|row| {
            (
                row.scenario,
                row.streams,
                row.clusters,
                row.client,
                row.metric,
            ) == (scenario, streams, clusters, client, metric)
        });
        let index = found.unwrap_or_else(|| {
            self.rows.push(Row {
                scenario,
                streams,
                clusters,
                client,
                metric,
                unit,
                isthmus: None,
                go_control_plane: None,
                go_control_plane_linear: None,
                floor: None,
            });
            self.rows.len() - 1
        });
        let row = &mut self.rows[index];
        let column = match server {
            Server::Isthmus => &mut row.isthmus,
            Server::GoControlPlane => &mut row.go_control_plane,
            Server::GoControlPlaneLinear => &mut row.go_control_plane_linear,
            Server::Floor => &mut row.floor,
        };
        *column = Some(value);
    }

    /// What ours had, if it was measured.
    pub(crate) fn isthmus(&self, cell: Cell, metric: &str) -> Option<f64> {
        self.rows_of(cell).find(|row| row.metric == metric)?.isthmus
    }

    /// Whether anything was measured of a server there.
    pub(crate) fn has(&self, cell: Cell, server: Server) -> bool {
        self.rows_of(cell).any(|row| row.of(server).is_some())
    }

    fn rows_of(&self, cell: Cell) -> impl Iterator<Item = &Row> {
        let place = (cell.scenario, cell.streams, cell.clusters, cell.client);
        let rows = self.rows.iter();
        rows.filter(move |row| (row.scenario, row.streams, row.clusters, row.client) == place)
    }

    /// Puts in what a series of changes cost.
    pub(crate) fn put_outcome(&mut self, cell: Cell, server: Server, it: &Outcome) {
        let mut micros = it.micros.clone();
        micros.sort_unstable();
        for (metric, quantile) in [
            ("change to client p50", 0.5),
            ("change to client p99", 0.99),
            ("change to client p99.9", 0.999),
            ("change to client max", 1.0),
        ] {
            if let Some(value) = percentile(&micros, quantile) {
                self.put(cell, metric, "ms", server, f64::from(value) / 1000.0);
            }
        }
        let per_change = 1.0 / f64::from(it.changes);
        let cpu = it.cpu.as_secs_f64();
        self.put(cell, "server CPU", "s", server, cpu);
        self.put(
            cell,
            "server CPU per change",
            "ms",
            server,
            cpu * 1000.0 * per_change,
        );
        let (bytes, missing) = (float(it.bytes_out), float(it.missing));
        self.put(cell, BYTES_SENT, "B", server, bytes * per_change);
        if it.missing > 0 {
            self.put(cell, "streams without the last change", "", server, missing);
        }
    }

    /// Writes the rows as JSON.
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(file, json).with_context(|| format!("{} is not writable", file.display()))
    }

    /// The rows as a table.
    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        let mut last = None;
        for row in &self.rows {
            let cell = Cell {
                scenario: row.scenario,
                streams: row.streams,
                clusters: row.clusters,
                client: row.client,
            };
            if last != Some(cell) {
                let _ = writeln!(
                    out,
                    "\n{cell}\n{:<52} {:>12} {:>12} {:>12} {:>12} {:>9} {:>9}",
                    "", "isthmus", "gcp", "gcp linear", "floor", "x gcp", "x floor"
                );
                last = Some(cell);
            }
            // Percentages of two servers have no ratio.
            let (ratio, over_floor) = match row.unit {
                "%" => (None, None),
                _ => (row.ratio(), row.over_floor()),
            };
            let label = match row.unit {
                "" => row.metric.to_owned(),
                unit => format!("{} ({unit})", row.metric),
            };
            let _ = writeln!(
                out,
                "{label:<52} {:>12} {:>12} {:>12} {:>12} {:>9} {:>9}",
                shown(row.isthmus),
                shown(row.go_control_plane),
                shown(row.go_control_plane_linear),
                shown(row.floor),
                shown(ratio),
                shown(over_floor),
            );
        }
        for note in &self.notes {
            let _ = writeln!(out, "\n{note}");
        }
        for failure in &self.failures {
            let _ = writeln!(out, "\nFAILED {failure}");
        }
        out
    }
}

fn shown(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if !value.is_finite() => "-".to_owned(),
        Some(value) if value.abs() >= 1000.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_to_the_better_cache() {
        let mut report = Report::default();
        let cell = Cell {
            scenario: "s",
            streams: 1,
            clusters: 1,
            client: "delta",
        };
        for (server, value) in [
            (Server::Isthmus, 2.0),
            (Server::GoControlPlane, 8.0),
            (Server::GoControlPlaneLinear, 4.0),
        ] {
            report.put(cell, "m", "s", server, value);
        }
        assert_eq!(report.rows.len(), 1);
        assert_eq!(report.rows[0].ratio(), Some(0.5));
        assert!(report.render().contains("0.500"));
    }
}
