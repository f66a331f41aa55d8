//! gRPC's libraries for the languages whose xDS clients the lab runs, and Istio's rule maker. What is fetched is pinned
//! by the files beside the programs: pip, npm and go refuse anything of another hash.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::debian::{DebianPackage, ensure_debian};
use super::scratch::Scratch;
use super::wheels::ensure_pip;
use crate::workspace::{Workspace, is_installed, run};

const NODE: [DebianPackage; 2] = [
    DebianPackage {
        program: "node",
        package: "nodejs",
        why: "runs gRPC's JavaScript client",
    },
    DebianPackage {
        program: "npm",
        package: "npm",
        why: "fetches gRPC's JavaScript client",
    },
];

/// Go, for the programs in it; each module's own toolchain line picks the version.
const GO: DebianPackage = DebianPackage {
    program: "go",
    package: "golang-go",
    why: "builds gRPC's Go client and Istio's rule maker",
};

/// A program in Go, in `peers/DIR` with its `main.go`, `go.mod` and `go.sum`.
struct GoProgram {
    /// Directory of its source.
    dir: &'static str,
    /// Name of its directory among the tools.
    name: &'static str,
    /// Name of the program in that directory.
    program: &'static str,
    /// What it is, for the line that setup prints.
    what: &'static str,
}

const GO_PROGRAMS: [GoProgram; 4] = [
    GoProgram {
        dir: "go-splice",
        name: "go-splice",
        program: "go-splice",
        what: "a TCP proxy in Go (an application that reads by splice)",
    },
    GoProgram {
        dir: "go",
        name: "grpc-go",
        program: "peer",
        what: "google.golang.org/grpc (a gRPC client of isthmus-xds in Go)",
    },
    GoProgram {
        dir: "istio-iptables",
        name: "istio-iptables",
        program: "istio-iptables",
        what: "istio.io/istio (its redirection rules, which the accelerator is compared with)",
    },
    GoProgram {
        dir: "go-resolver",
        name: "go-resolver",
        program: "go-resolver",
        what: "Go's resolver (a DNS client of a pod)",
    },
];

const MUSL: DebianPackage = DebianPackage {
    program: "musl-gcc",
    package: "musl-tools",
    why: "builds a DNS client of a pod with musl's resolver",
};

/// Name of the file that says what a directory of libraries was made from.
const STAMP: &str = "isthmus-setup";

/// Makes sure that the libraries of all languages are there.
///
/// # Errors
///
/// When an interpreter or a library cannot be had.
pub(crate) fn ensure(workspace: &Workspace) -> anyhow::Result<()> {
    let peers = workspace.root().join("integration-tests/peers");
    python(&workspace.tools(), &peers.join("python"))?;
    javascript(&workspace.tools(), &peers.join("javascript"))?;
    musl(&workspace.tools(), &peers.join("musl-resolver/resolver.c"))?;
    ensure_debian(&[GO])?;
    GO_PROGRAMS
        .iter()
        .try_for_each(|program| go(&workspace.tools(), &peers, program))
}

fn go(tools: &Path, peers: &Path, program: &GoProgram) -> anyhow::Result<()> {
    let source = peers.join(program.dir);
    // The program is made from its source as well as from its libraries.
    let mut stamp = stamp("go", "version", &source.join("go.sum"))?;
    stamp.push_str(&fs::read_to_string(source.join("main.go"))?);
    install(tools, program.name, &stamp, |dir| {
        println!("setup: building {}", program.what);
        run(Command::new("go")
            .args(["build", "-mod=readonly", "-o"])
            .arg(dir.join(program.program))
            .current_dir(&source))
        .with_context(|| {
            format!(
                "{} could not be built: is the Go module proxy reachable, and do go.mod and go.sum agree?",
                source.display()
            )
        })
    })
}

fn musl(tools: &Path, source: &Path) -> anyhow::Result<()> {
    ensure_debian(&[MUSL])?;
    let stamp = stamp("musl-gcc", "--version", source)?;
    install(tools, "musl-resolver", &stamp, |dir| {
        println!("setup: building musl's resolver (a DNS client of a pod)");
        run(Command::new("musl-gcc")
            .args(["-static", "-O2", "-Wall", "-o"])
            .arg(dir.join("musl-resolver"))
            .arg(source))
        .with_context(|| format!("{} could not be built", source.display()))
    })
}

fn python(tools: &Path, peer: &Path) -> anyhow::Result<()> {
    // pip takes a second to say that it is there: asked only when it is needed.
    if !is_installed("python3") {
        ensure_pip()?;
    }
    let requirements = peer.join("requirements.txt");
    let stamp = stamp("python3", "--version", &requirements)?;
    install(tools, "grpc-python", &stamp, |dir| {
        ensure_pip()?;
        println!("setup: installing grpcio (a gRPC client of isthmus-xds in Python)");
        run(Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"])
            .args(["--root-user-action=ignore", "--only-binary=:all:", "--require-hashes", "--target"])
            .arg(dir)
            .arg("--requirement")
            .arg(&requirements))
        .context("grpcio could not be installed: is the Python package registry reachable, and is this CPython 3.11 to 3.14 on x86_64 or aarch64 with glibc?")
    })
}

fn javascript(tools: &Path, peer: &Path) -> anyhow::Result<()> {
    ensure_debian(&NODE)?;
    let lock = peer.join("package-lock.json");
    let stamp = stamp("node", "--version", &lock)?;
    install(tools, "grpc-javascript", &stamp, |dir| {
        println!(
            "setup: installing @grpc/grpc-js-xds (a gRPC client of isthmus-xds in JavaScript)"
        );
        fs::copy(&lock, dir.join("package-lock.json"))?;
        fs::copy(peer.join("package.json"), dir.join("package.json"))?;
        run(Command::new("npm")
            .args(["ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(dir))
        .context("@grpc/grpc-js-xds could not be installed: is the npm package registry reachable, and do package.json and package-lock.json agree?")
    })
}

/// Fills `tools/NAME`, unless it was made from the same.
fn install(
    tools: &Path,
    name: &str,
    stamp: &str,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let place = tools.join(name);
    if fs::read_to_string(place.join(STAMP)).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    // Prepared aside and moved into place whole: a setup that was interrupted leaves nothing that looks complete.
    let scratch = Scratch::create(tools.join(format!("{name}.{}", std::process::id())))?;
    let fresh = scratch.path().join(name);
    fs::create_dir_all(&fresh)?;
    fill(&fresh)?;
    fs::write(fresh.join(STAMP), stamp)?;
    if place.exists() {
        fs::rename(&place, scratch.path().join("old"))
            .with_context(|| format!("{} could not be replaced", place.display()))?;
    }
    fs::rename(&fresh, &place)
        .with_context(|| format!("{} could not be put in place", place.display()))
}

/// What the libraries depend on: the interpreter, for which they may be compiled, and the pinned versions.
fn stamp(interpreter: &str, ask_version: &str, pins: &Path) -> anyhow::Result<String> {
    let output = Command::new(interpreter)
        .arg(ask_version)
        .output()
        .with_context(|| format!("{interpreter} could not be started"))?;
    ensure!(
        output.status.success(),
        "{interpreter} {ask_version} failed"
    );
    let pins_text = fs::read_to_string(pins)
        .with_context(|| format!("{} could not be read", pins.display()))?;
    Ok(format!(
        "{interpreter} {}\n{pins_text}",
        String::from_utf8_lossy(&output.stdout).trim()
    ))
}
