//! What can be shown anywhere: `isthmus-xds` configures a real Envoy on loopback, and a change costs no request.

use anyhow::Result;
use isthmus_integration_tests::envoy::Protocol;
use isthmus_integration_tests::loopback::LoopbackMesh;
use isthmus_integration_tests::process;

use crate::progress::Progress;
use crate::route_change;

/// Steps of the progress bar.
pub(crate) const STEPS: u64 = 1 + route_change::STEPS;

/// Connections of the load.
const CONNECTIONS: usize = 4;

/// Starts both, changes the route, and says what happened.
///
/// # Errors
///
/// When a program does not start, or a request failed.
pub(crate) fn run(progress: &Progress) -> Result<()> {
    let mesh = progress.step("starting isthmus-xds and Envoy", || {
        LoopbackMesh::start(Protocol::Delta, "r1")
    })?;
    let report = route_change::run(&mesh.load_plan(CONNECTIONS), progress, || {
        mesh.publish_route("r2")?;
        mesh.wait_revision("r2")
    })?;
    process::declare_success();
    progress.finish();
    print!(
        "Envoy got its whole configuration over delta ADS.\n{}",
        route_change::render(&report)
    );
    Ok(())
}
