//! Two pods, real HTTP through both sidecars: with Istio's iptables rules, and with the accelerator on top.
//!
//! The paths take turns, so that a noisy machine disturbs both alike, and medians are shown.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use isthmus_integration_tests::accelerator::{Accelerator, HopBytes};
use isthmus_integration_tests::envoy::Protocol;
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
    /// By hop, over all rounds of the accelerated path.
    pub(crate) hops: BTreeMap<String, HopBytes>,
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
    let mut accelerator = Accelerator::prepare(mesh.lab().dir())?;
    let mut measurements = Measurements::default();
    for round in 1..=plan.rounds {
        progress.step(&format!("round {round}: iptables, new connections"), || {
            if accelerator.pin_dir().exists() {
                accelerator.detach()?;
            }
            mesh.wait_idle()
        })?;
        measure(plan, Path::Iptables, &mesh, &mut measurements, progress)?;

        progress.step(&format!("round {round}: attaching the accelerator"), || {
            accelerator.write_pods(&[mesh.pod(CLIENT)?, mesh.pod(SERVER)?])?;
            mesh.wait_idle()?;
            accelerator.start(2)
        })?;
        let before = accelerator.status()?.by_hop();
        measure(plan, Path::Isthmus, &mesh, &mut measurements, progress)?;
        for (hop, bytes) in accelerator.status()?.by_hop() {
            let added = bytes.since(before.get(&hop).copied().unwrap_or_default());
            let sum = measurements.hops.entry(hop).or_default();
            sum.redirected += added.redirected;
            sum.total += added.total;
        }
    }

    let change = route_change::run(&mesh.load_plan(CHANGE_CONNECTIONS)?, progress, || {
        mesh.publish_route("r2")?;
        mesh.wait_revision("r2")
    })?;
    accelerator.detach()?;
    process::declare_success();
    progress.finish();
    print!(
        "{}\n{}",
        report::render(&measurements),
        route_change::render(&change)
    );
    Ok(())
}

fn measure(
    plan: &Plan,
    path: Path,
    mesh: &Mesh,
    measurements: &mut Measurements,
    progress: &Progress,
) -> Result<()> {
    for connections in CONNECTIONS {
        let report = progress.step(
            &format!("{}: {connections} connections", path.name()),
            || {
                let load = WrkPlan {
                    connections,
                    seconds: plan.seconds,
                };
                let report = wrk::measure(mesh.pod(CLIENT)?, &mesh.url(), load)?;
                ensure!(
                    report.failed == 0,
                    "{} of {} requests failed",
                    report.failed,
                    report.requests
                );
                Ok(report)
            },
        )?;
        measurements
            .wrk
            .entry((connections, path))
            .or_default()
            .push(report);
    }
    Ok(())
}
