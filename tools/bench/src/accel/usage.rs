//! Processor time, of the whole machine and of single processes, as the kernel counts it.
//!
//! Most of what the paths differ in is work of the kernel that belongs to no process (interrupts and softirqs), so that
//! the machine's own count is the one that is compared; it is right only while nothing else runs.

use std::fs;

use anyhow::{Context, Result};

/// Length of a tick of `/proc`, in microseconds (`USER_HZ` is 100 on every architecture that Linux has today).
const TICK_US: u64 = 10_000;

/// Processor time used so far, in microseconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Usage {
    pub(super) user_us: u64,
    pub(super) system_us: u64,
}

impl Usage {
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            user_us: self.user_us.saturating_sub(earlier.user_us),
            system_us: self.system_us.saturating_sub(earlier.system_us),
        }
    }

    pub(super) fn total_us(self) -> u64 {
        self.user_us + self.system_us
    }
}

/// Of all processors, without idling, waiting for disks and what the hypervisor took.
pub(super) fn of_machine() -> Result<Usage> {
    parse_machine(&fs::read_to_string("/proc/stat")?)
}

/// Of all threads of a process.
pub(super) fn of_process(pid: u32) -> Result<Usage> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    parse_process(&text)
}

// proc(5): user, nice, system, idle, iowait, irq, softirq, steal.
fn parse_machine(text: &str) -> Result<Usage> {
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        anyhow::bail!("/proc/stat begins with {line:?}");
    };
    Ok(Usage {
        user_us: (user + nice) * TICK_US,
        system_us: (system + irq + softirq) * TICK_US,
    })
}

// proc(5): the name in parentheses may hold blanks; utime and stime are fields 14 and 15 of the line.
fn parse_process(text: &str) -> Result<Usage> {
    let (_, rest) = text.rsplit_once(')').context("a stat line has a name")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || {
        let field = fields.next().and_then(|word| word.parse::<u64>().ok());
        field.with_context(|| format!("{text:?} is no stat line"))
    };
    Ok(Usage {
        user_us: ticks()? * TICK_US,
        system_us: ticks()? * TICK_US,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        let machine = "cpu  100 5 20 9000 7 1 2 30 0 0\ncpu0 50 2 10 4500 3 0 1 15 0 0\n";
        let expected = Usage {
            user_us: 1_050_000,
            system_us: 230_000,
        };
        assert_eq!(parse_machine(machine).expect("a line"), expected);

        let process = "42 (a (b) c) S 1 42 42 0 -1 4194304 1 0 0 0 12 34 0 0 20 0 1 0 5 6 7";
        let expected = Usage {
            user_us: 120_000,
            system_us: 340_000,
        };
        assert_eq!(parse_process(process).expect("a line"), expected);
        assert!(parse_machine("intr 1").is_err());
    }

    #[test]
    fn this_process_has_used_less_than_the_machine() {
        let own = of_process(std::process::id()).expect("it runs");
        let all = of_machine().expect("Linux");
        assert!(own.total_us() <= all.total_us(), "{own:?} {all:?}");
    }
}
