//! What runs in the guest: the very binaries that the other tiers run, with the libraries of this machine.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::table::Kernel;
use crate::workspace::{Workspace, run};

/// The test binaries that need a kernel and no proxy.
const TESTS: [&str; 2] = ["kernel_datapath", "sockmap_semantics"];

/// Tests that run in the lab only, and why.
pub(super) const LAB_ONLY: [(&str, &str); 4] = [
    (
        "dns_resolvers::",
        "it runs the resolvers of other languages, which the guest does not have",
    ),
    (
        "case_11_a_reader_that_stalls_for_a_minute",
        "its minute: a shorter stall is tried there",
    ),
    (
        "random_sizes_arrive_whole",
        "its 64 MiB, made byte by byte, take a minute under emulation",
    ),
    (
        "the_kernel_counts_what_is_unread",
        "what FIONREAD says of a socket in the sockmap differs from line to line; the test expects what 6.18 says",
    ),
];

/// Where tests look for it: among the tools beside their own directory, here and in the guest.
pub(super) const ISTIO: &str = "istio-iptables/istio-iptables";

/// The objects of other versions, which tests play the agents of.
const DATA: &str = "integration-tests/testdata/accelerator";

/// Programs of this workspace for the guest.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) init: PathBuf,
    /// What makes Istio's own rules, see [`ISTIO`].
    pub(super) istio: PathBuf,
    /// See [`DATA`]; tests look for it by its absolute path.
    pub(super) data: PathBuf,
    /// Names and files.
    pub(super) others: Vec<(String, PathBuf)>,
}

/// Builds them as the other tiers do (whole workspace, same profile), so that nothing is built twice.
///
/// # Errors
///
/// When the build fails.
pub(super) fn build(workspace: &Workspace) -> anyhow::Result<Programs> {
    run(&mut workspace.cargo([
        "build",
        "--quiet",
        "--workspace",
        "--bin=isthmus-kernel-guest",
        "--bin=isthmus-accelerator",
    ]))?;
    let debug = workspace.target().join("debug");
    let mut others = vec![(
        "isthmus-accelerator".to_owned(),
        debug.join("isthmus-accelerator"),
    )];
    let mut tests = workspace.cargo([
        "test",
        "--quiet",
        "--workspace",
        "--no-run",
        "--message-format=json",
    ]);
    for name in TESTS {
        tests.args(["--test", name]);
    }
    others.extend(executables(&mut tests)?);
    Ok(Programs {
        init: debug.join("isthmus-kernel-guest"),
        istio: workspace.tools().join(ISTIO),
        data: workspace.root().join(DATA),
        others,
    })
}

fn executables(build: &mut Command) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let output = build
        .stderr(Stdio::inherit())
        .output()
        .context("cargo test could not be started")?;
    ensure!(
        output.status.success(),
        "the tests do not build ({})",
        output.status
    );
    let found: Vec<(String, PathBuf)> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(|message| executable(&message))
        .collect();
    ensure!(
        found.len() == TESTS.len(),
        "cargo built {} test binaries, not {}",
        found.len(),
        TESTS.len()
    );
    Ok(found)
}

/// The test binary that a message of cargo speaks of.
fn executable(message: &Value) -> Option<(String, PathBuf)> {
    let name = message["target"]["name"].as_str()?;
    let path = message["executable"].as_str()?;
    TESTS
        .contains(&name)
        .then(|| (name.to_owned(), PathBuf::from(path)))
}

/// The guest's plan for a kernel.
pub(super) fn plan(kernel: &Kernel, filters: &[String]) -> String {
    let mut plan = "report probe /bin/isthmus-accelerator probe -o json\n".to_owned();
    if kernel.has_no_tests() {
        return plan;
    }
    let skips = kernel.left_out.iter().chain(&LAB_ONLY);
    let skips = skips.flat_map(|(name, _)| ["--skip", name]);
    let filters = filters.iter().map(String::as_str);
    let args: Vec<&str> = ["--test-threads=1"]
        .into_iter()
        .chain(skips)
        .chain(filters)
        .collect();
    for test in TESTS {
        plan.extend(["test /bin/", test, " ", &args.join(" "), "\n"]);
    }
    plan
}
