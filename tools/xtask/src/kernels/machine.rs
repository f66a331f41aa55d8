//! One virtual machine, from its start to its end.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A machine that takes longer than this hangs. The suite takes one or two minutes; others may use the cores, too.
const PATIENCE: Duration = Duration::from_mins(15);
/// How often to look whether it has ended.
const POLL: Duration = Duration::from_millis(200);
const MEMORY_MIB: &str = "768";

/// How a machine ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Ended {
    /// QEMU's exit status, if no signal ended it.
    pub(super) status: Option<i32>,
    /// What it printed.
    pub(super) log: String,
    pub(super) took: Duration,
}

/// Boots a kernel and waits for its end.
///
/// # Errors
///
/// When QEMU cannot be started, or the machine hangs.
pub(super) fn run(vmlinuz: &Path, initrd: &Path, log: &Path) -> anyhow::Result<Ended> {
    let console =
        File::create(log).with_context(|| format!("{} could not be made", log.display()))?;
    let start = Instant::now();
    let mut child = command(vmlinuz, initrd)
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .spawn()
        .context("QEMU could not be started")?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("the machine hangs: no end after {PATIENCE:?}");
        }
        thread::sleep(POLL);
    };
    let bytes = fs::read(log).with_context(|| format!("{} could not be read", log.display()))?;
    Ok(Ended {
        status: status.code(),
        log: String::from_utf8_lossy(&bytes).replace('\r', ""),
        took: start.elapsed(),
    })
}

/// Everything that could differ between machines is said; one CPU, because two under emulation are many times slower.
fn command(vmlinuz: &Path, initrd: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-machine", "q35"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"])
        .args(["-m", MEMORY_MIB, "-display", "none", "-monitor", "none"])
        .args(["-serial", "stdio", "-no-reboot"])
        // The port that the guest's init writes its verdict to.
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args([
            "-append",
            // `no_timer_check`: on a busy host the ticks that the check waits for may come too late.
            "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check rdinit=/init",
        ])
        .arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(initrd);
    command
}
