//! perf: looks at what runs for a while, and its samples as functions that called each other.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Samples a second of each processor or thread; a prime, so as not to beat with timers.
const HERTZ: u32 = 997;

/// Whom it looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whom {
    /// All processors.
    Machine,
    /// All threads of a process.
    Process(i32),
}

/// perf, while it looks.
#[derive(Debug)]
pub(crate) struct Recording {
    perf: Child,
    data: PathBuf,
}

/// Starts to look. `data` is for what perf writes meanwhile.
pub(crate) fn record(whom: Whom, data: PathBuf, duration: Duration) -> Result<Recording> {
    let mut command = Command::new("perf");
    command.args(["record", "--quiet", "-e", "cpu-clock", "-g"]);
    match whom {
        Whom::Machine => command.arg("-a"),
        Whom::Process(pid) => command.args(["-p", &pid.to_string()]),
    };
    let perf = command
        .args(["-F", &HERTZ.to_string(), "-o"])
        .arg(&data)
        .args(["--", "sleep", &format!("{:.1}", duration.as_secs_f64())])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("perf is not there; Debian has it in linux-perf")?;
    Ok(Recording { perf, data })
}

impl Recording {
    /// Waits for its end and returns what [`samples`] reads.
    pub(crate) fn finish(mut self) -> Result<String> {
        ensure!(self.perf.wait()?.success(), "perf may not look here");
        let script = Command::new("perf")
            .args(["script", "--no-inline", "-F", "comm,ip,sym,dso", "-i"])
            .arg(&self.data)
            .stderr(Stdio::null())
            .output()?;
        let _is_gone = std::fs::remove_file(&self.data);
        Ok(String::from_utf8_lossy(&script.stdout).into_owned())
    }
}

/// Reads the text of a recording.
pub(crate) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.split("\n\n").filter_map(Sample::parse)
}

/// What was active at one moment.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Sample<'a> {
    /// Name of the thread.
    pub(crate) thread: &'a str,
    /// The innermost.
    pub(crate) leaf: Frame<'a>,
    /// What called it, from the inside.
    callers: Vec<Frame<'a>>,
}

/// One function of a sample.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Frame<'a> {
    pub(crate) symbol: &'a str,
    pub(crate) is_kernel: bool,
}

impl<'a> Sample<'a> {
    // `envoy\n  ffffffff816bb48a vfs_write ([kernel.kallsyms])\n …`
    fn parse(block: &'a str) -> Option<Self> {
        let mut lines = block.lines().map(str::trim).filter(|line| !line.is_empty());
        let thread = lines.next()?;
        let mut frames = lines.filter_map(Frame::parse);
        Some(Self {
            thread,
            leaf: frames.next()?,
            callers: frames.collect(),
        })
    }

    /// The functions of the kernel, from the inside.
    pub(crate) fn kernel(&self) -> impl Iterator<Item = &'a str> {
        let frames = std::iter::once(&self.leaf).chain(&self.callers);
        frames
            .filter(|frame| frame.is_kernel)
            .map(|frame| frame.symbol)
    }
}

impl<'a> Frame<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (_, rest) = line.split_once(' ')?;
        let (symbol, object) = rest.rsplit_once(" (").unwrap_or((rest, ""));
        let is_kernel = ["[kernel", "[guest.kernel", "bpf_prog"]
            .iter()
            .any(|start| object.starts_with(start));
        Some(Self { symbol, is_kernel })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_from_the_inside() {
        let text = "wrk:worker_0 \n\
                    \t    ffffffff1 bpf_prog_ab_x (bpf_prog_ab_x)\n\
                    \t    ffffffff2 ksys_write ([kernel.kallsyms])\n\
                    \t    12 operator new(unsigned long) (/usr/lib/libc.so.6)\n\n\
                    a thread without frames\n\n\
                    envoy \n\t    7 [unknown] (/tools/envoy)\n";
        let found: Vec<Sample<'_>> = samples(text).collect();
        let threads: Vec<&str> = found.iter().map(|sample| sample.thread).collect();
        assert_eq!(threads, ["wrk:worker_0", "envoy"]);

        let kernel: Vec<&str> = found[0].kernel().collect();
        assert_eq!(kernel, ["bpf_prog_ab_x", "ksys_write"]);
        let outermost = found[0].callers.last().map(|frame| frame.symbol);
        assert_eq!(outermost, Some("operator new(unsigned long)"));
        assert!(!found[1].leaf.is_kernel);
        assert_eq!(found[1].leaf.symbol, "[unknown]");
    }
}
