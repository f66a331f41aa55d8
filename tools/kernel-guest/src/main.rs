//! The init process of the virtual machines in which tests meet other kernels: `cargo xtask kernels` puts it into the
//! initramfs as `/init`.
//!
//! ```text
//!  /modules  one path a line, in the order in which they must be loaded
//!  /plan     one step a line:  test PROGRAM ARGS…          libtest's summary lines are added up
//!                              report NAME PROGRAM ARGS…   the output goes to the host, between two marks
//!  console   everything that is printed, and at the end `guest: N passed, N failed`
//! ```
//!
//! QEMU ends with status 33 only if all of it passed and something did. Whatever goes wrong before that is a panic of
//! the kernel or a plain end, for which QEMU has other numbers.

mod exit;
mod kernel;
mod steps;

use std::fs;

use anyhow::Context as _;

use crate::steps::Counts;

fn main() {
    let counts = match prepare().and_then(|()| run_plan()) {
        Ok(counts) => counts,
        Err(error) => {
            println!("guest: {error:#}");
            Counts {
                passed: 0,
                failed: 1,
            }
        }
    };
    println!("guest: {} passed, {} failed", counts.passed, counts.failed);
    exit::leave(counts.failed == 0 && counts.passed > 0);
}

fn prepare() -> anyhow::Result<()> {
    kernel::mount_all()?;
    kernel::load_modules(&read("/modules")?)?;
    steps::loopback_up()
}

fn run_plan() -> anyhow::Result<Counts> {
    let plan = read("/plan")?;
    let mut counts = Counts::default();
    for step in plan.lines() {
        counts.add(steps::run(step)?);
    }
    let complaints = kernel::complaints()?;
    for complaint in &complaints {
        println!("guest: the kernel complains: {complaint}");
        counts.failed += 1;
    }
    Ok(counts)
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("{path} could not be read"))
}
