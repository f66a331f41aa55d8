//! Two pods, real HTTP through both sidecars: with Istio's iptables rules, and with the accelerator on top.
//!
//! The paths take turns, so that a noisy machine disturbs both alike, and medians are shown.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use isthmus_integration_tests::accelerator::{Accelerator, HopBytes};
use isthmus_integration_tests::envoy::Protocol;
use isthmus_integration_tests::load::LoadReport;
use isthmus_integration_tests::mesh::{CLIENT, Mesh, SERVER};
use isthmus_integration_tests::process;
use isthmus_integration_tests::wrk::{self, WrkPlan, WrkReport};

use crate::progress::Progress;
use crate::{report, route_change};

/// Connections of the load: one shows latency, many show throughput.
pub(crate) const CONNECTIONS: [u32; 2] = [1, 16];

/// Connections of the load under which a route changes.
const CHANGE_CONNECTIONS: usize = 16;

/// How often and how long to measure.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) seconds: u32,
}

impl Plan {
    /// Steps of the progress bar.
    pub(crate) fn steps(&self) -> u64 {
        // The start; and for each round and path a switch and the measurements.
        1 + u64::from(self.rounds) * 2 * (1 + CONNECTIONS.len() as u64)
    }
}

/// How a request gets from pod to pod.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Path {
    Iptables,
    Isthmus,
}

impl Path {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Isthmus => "isthmus",
        }
    }
}

/// All that was measured.
#[derive(Debug, Default)]
pub(crate) struct Measurements {
    /// By connections and path, one entry for each round.
    pub(crate) wrk: BTreeMap<(u32, Path), Vec<WrkReport>>,
    /// By connections and hop, over all rounds of the accelerated path.
    pub(crate) hops: BTreeMap<(u32, String), HopBytes>,
}

/// Runs the demo and prints its tables.
///
/// # Errors
///
/// When a part of the mesh does not start, or a request failed.
pub(crate) fn run(plan: &Plan, progress: &Progress) -> Result<()> {
    let mesh = progress.step(
        "starting two pods, two sidecars and the control plane",
        || Mesh::start(Protocol::Delta),
    )?;
    let accelerator = Accelerator::prepare(mesh.lab().dir())?;
    let mut course = Course {
        accelerator,
        measurements: Measurements::default(),
        mesh,
        plan,
        progress,
    };
    for round in 1..=plan.rounds {
        progress.step(&format!("round {round}: iptables, new connections"), || {
            course.detach()
        })?;
        course.measure(Path::Iptables)?;
        progress.step(&format!("round {round}: attaching the accelerator"), || {
            course.attach()
        })?;
        course.measure(Path::Isthmus)?;
    }
    let change = course.change_route()?;
    course.accelerator.detach()?;

    process::declare_success();
    progress.finish();
    print!(
        "{}\n{}",
        report::render(&course.measurements),
        route_change::render(&change)
    );
    Ok(())
}

/// A run of the demo: the mesh, what is attached to it, and what was measured so far.
struct Course<'a> {
    // Dropped before the mesh, whose pods it accelerates.
    accelerator: Accelerator,
    measurements: Measurements,
    mesh: Mesh,
    plan: &'a Plan,
    progress: &'a Progress,
}

impl Course<'_> {
    fn attach(&mut self) -> Result<()> {
        self.accelerator
            .write_pods(&[self.mesh.pod(CLIENT)?, self.mesh.pod(SERVER)?])?;
        self.mesh.wait_idle()?;
        self.accelerator.start(2)
    }

    fn detach(&mut self) -> Result<()> {
        if self.accelerator.pin_dir().exists() {
            self.accelerator.detach()?;
        }
        self.mesh.wait_idle()
    }

    fn measure(&mut self, path: Path) -> Result<()> {
        for connections in CONNECTIONS {
            let before = self.hops(path)?;
            let report = self.progress.step(
                &format!("{}: {connections} connections", path.name()),
                || {
                    let load = WrkPlan {
                        connections,
                        seconds: self.plan.seconds,
                    };
                    let report = wrk::measure(self.mesh.pod(CLIENT)?, &self.mesh.url(), load)?;
                    ensure!(
                        report.failed == 0,
                        "{} of {} requests failed",
                        report.failed,
                        report.requests
                    );
                    Ok(report)
                },
            )?;
            for (hop, bytes) in self.hops(path)? {
                let added = bytes.since(before.get(&hop).copied().unwrap_or_default());
                self.measurements
                    .hops
                    .entry((connections, hop))
                    .or_default()
                    .add(added);
            }
            self.measurements
                .wrk
                .entry((connections, path))
                .or_default()
                .push(report);
        }
        Ok(())
    }

    fn hops(&self, path: Path) -> Result<BTreeMap<String, HopBytes>> {
        match path {
            Path::Iptables => Ok(BTreeMap::new()),
            Path::Isthmus => Ok(self.accelerator.status()?.by_hop()),
        }
    }

    fn change_route(&self) -> Result<LoadReport> {
        route_change::run(
            &self.mesh.load_plan(CHANGE_CONNECTIONS)?,
            self.progress,
            || {
                self.mesh.publish_route("r2")?;
                self.mesh.wait_revision("r2")
            },
        )
    }
}
