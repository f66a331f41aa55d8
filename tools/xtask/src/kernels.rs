//! `cargo xtask kernels`: the kernel tier on Debian's kernels, each in a virtual machine of its own.
//!
//! ```text
//!  archive  ─▶ vmlinuz, modules ─┐
//!  cargo    ─▶ test binaries ────┼─▶ image (one initramfs) ─▶ machine (QEMU, TCG) ─▶ serial log ─▶ verdict
//!  programs ─▶ ip, bpftool, … ───┘
//! ```
//!
//! The guest has no disk and no network. It passes only if QEMU ends with the status that its init writes, and its own
//! closing line counts tests that passed and none that failed.

mod archive;
mod budget;
mod cpio;
mod image;
mod machine;
mod modules;
mod suite;
mod table;
mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, ensure};
use clap::Args;

use self::archive::Archive;
use self::table::{CI, KERNELS, Kernel};
use self::verdict::Verdict;
use crate::setup;
use crate::test::Counts;
use crate::workspace::Workspace;

/// The test that measures what the verifier has to do.
const BUDGET_TEST: &str = "budget::";

/// Machines that run at a time: each takes one core.
const AT_A_TIME: usize = 2;

/// Which kernels, and which tests on them.
#[derive(Debug, Args)]
pub(crate) struct Kernels {
    /// Kernel to boot; may be given more than once. Those of CI (6.1, 6.12, 7.3) if left out, `all` for every one.
    #[arg(long = "kernel", value_name = "VERSION", value_parser = parse_kernel)]
    choices: Vec<Choice>,

    /// Measure what the verifier has to do on these kernels, and raise (or lower) the budget to that and a quarter more.
    #[arg(long, conflicts_with = "filters")]
    update_budget: bool,

    /// Run only tests with this in their names; may be given more than once.
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
enum Choice {
    All,
    One(&'static Kernel),
}

fn parse_kernel(name: &str) -> Result<Choice, String> {
    if name == "all" {
        return Ok(Choice::All);
    }
    KERNELS
        .iter()
        .find(|kernel| kernel.name == name)
        .map(Choice::One)
        .ok_or_else(|| {
            let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
            format!("choose one of {} or all", names.join(", "))
        })
}

impl Kernels {
    /// Boots them and prints one row each.
    ///
    /// # Errors
    ///
    /// When something that all of them need cannot be had.
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<ExitCode> {
        setup::run(workspace)?;
        if self.update_budget {
            return self.update_budget(workspace);
        }
        let verdicts = boot(workspace, &self.chosen(), &self.filters)?;
        let counts = sum(&verdicts);
        println!("{} passed, {} failed", counts.passed, counts.failed);
        Ok(if counts.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// The test fails as long as the old budget is too small; what it has measured counts.
    fn update_budget(&self, workspace: &Workspace) -> anyhow::Result<ExitCode> {
        let verdicts = boot(workspace, &self.chosen(), &[BUDGET_TEST.to_owned()])?;
        let logs: Vec<(&str, String)> = verdicts
            .iter()
            .map(|verdict| Ok((verdict.kernel.name, verdict.read_log()?)))
            .collect::<anyhow::Result<_>>()?;
        budget::update(workspace.root(), &logs)?;
        Ok(ExitCode::SUCCESS)
    }

    fn chosen(&self) -> Vec<&'static Kernel> {
        if self.choices.is_empty() {
            return ci();
        }
        let is_chosen = |kernel: &&'static Kernel| {
            self.choices.iter().any(|choice| match choice {
                Choice::All => true,
                Choice::One(one) => one.name == kernel.name,
            })
        };
        KERNELS.iter().filter(is_chosen).collect()
    }
}

/// The tier of `cargo xtask test`.
///
/// # Errors
///
/// When something that all kernels need cannot be had.
pub(crate) fn tier(workspace: &Workspace) -> anyhow::Result<Counts> {
    boot(workspace, &ci(), &[]).map(|verdicts| sum(&verdicts))
}

fn ci() -> Vec<&'static Kernel> {
    KERNELS
        .iter()
        .filter(|kernel| CI.contains(&kernel.name))
        .collect()
}

/// Runs the suite on each kernel, two at a time; prints a row when one is done.
fn boot(
    workspace: &Workspace,
    kernels: &[&'static Kernel],
    filters: &[String],
) -> anyhow::Result<Vec<Verdict>> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the kernels that are booted are for x86_64: run this on such a machine"
    );
    let dir = workspace.target().join("kernels");
    fs::create_dir_all(&dir).with_context(|| format!("{} could not be made", dir.display()))?;
    let archive = Archive::new(&dir)?;
    let programs = suite::build(workspace)?;
    let base = image::base(&programs)?;

    let queue = Mutex::new(kernels.iter().copied());
    let verdicts = Mutex::new(Vec::new());
    println!("{}", Verdict::HEADER);
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(kernels.len()) {
            scope.spawn(|| {
                while let Some(kernel) = next(&queue) {
                    let verdict = boot_one(&archive, &base, kernel, filters, &dir);
                    println!("{verdict}");
                    lock(&verdicts).push(verdict);
                }
            });
        }
    });
    let verdicts = verdicts
        .into_inner()
        .expect("no thread panics while it holds the lock");
    for kernel in kernels {
        kernel.explain_what_is_left_out();
    }
    for (name, why) in suite::LAB_ONLY {
        println!("every kernel: {name} is left out: {why}");
    }
    Ok(verdicts)
}

fn sum(verdicts: &[Verdict]) -> Counts {
    verdicts
        .iter()
        .fold(Counts::default(), |sum, verdict| sum + verdict.counts())
}

fn boot_one(
    archive: &Archive,
    base: &[u8],
    kernel: &'static Kernel,
    filters: &[String],
    dir: &Path,
) -> Verdict {
    let log = log_file(dir, kernel);
    let outcome = archive.fetch(kernel).and_then(|files| {
        let image = image::complete(base, &files, &suite::plan(kernel, filters))?;
        let initrd = dir.join(format!("{}.cpio", kernel.name));
        fs::write(&initrd, image)
            .with_context(|| format!("{} could not be written", initrd.display()))?;
        let ended = machine::run(&files.vmlinuz, &initrd, &log)?;
        Ok((files.version, ended))
    });
    Verdict::of(kernel, outcome, log)
}

fn log_file(dir: &Path, kernel: &Kernel) -> PathBuf {
    dir.join(format!("{}.log", kernel.name))
}

fn next(queue: &Mutex<impl Iterator<Item = &'static Kernel>>) -> Option<&'static Kernel> {
    lock(queue).next()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("no thread panics while it holds the lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ci_boots_the_three_lines_that_users_have() {
        let names: Vec<&str> = ci().iter().map(|kernel| kernel.name).collect();
        assert_eq!(names, CI);
    }

    #[test]
    fn an_unknown_kernel_is_refused_with_the_known_ones() {
        let error = parse_kernel("5.4").expect_err("it is not in the table");
        assert!(error.contains("6.12.100"), "{error}");
    }
}
