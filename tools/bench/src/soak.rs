//! Hours in minutes: thousands of streams, a change ten times a second that one stream in twenty
//! needs, one client in ten that never reads. Fails if memory grows, if a healthy client is late,
//! or if streams that need nothing cost something.

pub(crate) mod clients;

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use nix::unistd::getpid;

use crate::process::Process;
use crate::statistics::{float, percentile};
use crate::{clock, resources};

/// Groups that streams are in: a change concerns one of them.
const GROUPS: usize = 20;

/// Clusters of each group. A stream asks for the endpoints of its group's.
const CLUSTERS_PER_GROUP: usize = 20;

/// One client in so many never reads.
const DEAF_ONE_IN: usize = 10;

/// How late a healthy client may have a change.
const CONVERGENCE: Duration = Duration::from_secs(2);

/// The same where the machine is not ours: a stalled client is still found.
const LENIENT_CONVERGENCE: Duration = Duration::from_mins(1);

/// Growth of resident memory that is noise of the allocator: over the last four fifths of the
/// run, in bytes, and as a share of what is resident.
const GROWTH_BYTES: f64 = 8.0 * MIB;
const GROWTH_SHARE: f64 = 0.03;

const MIB: f64 = 1024.0 * 1024.0;

/// CPU that streams may cost that need nothing, as a share of what a change costs those that need
/// it: their keepalives. (With as many idle streams as a push loop would wake, it is 900 %.)
const IDLE_CPU_SHARE: f64 = 0.2;

/// How long the machine is looked at with all idle streams, and with half of them.
const COMPARISON: Duration = Duration::from_secs(20);

/// How long starting, connecting and answering may take.
const PATIENCE: Duration = Duration::from_mins(6);

/// From planning changes to the first.
const LEAD: Duration = Duration::from_millis(500);

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Size and length of a soak.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Streams, each with a connection of its own; one in ten never reads.
    #[arg(long, default_value_t = 10_000)]
    streams: usize,

    /// How long changes come.
    #[arg(long, default_value_t = 600)]
    seconds: u32,

    /// From one change to the next.
    #[arg(long, default_value_t = 100)]
    interval_ms: u32,

    /// For a machine that does other things: no bound on time but a minute, none on CPU.
    #[arg(long, hide = true)]
    lenient: bool,
}

/// Runs it; an error if the server did not hold what it should.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut soak = Soak::start(options)?;
    soak.changes()?;
    soak.idle_streams()?;
    println!("{}", soak.findings);
    if !soak.violations.is_empty() {
        bail!("the soak failed: {}", soak.violations.join("; "));
    }
    Ok(())
}

struct Soak<'a> {
    options: &'a Options,
    server: Process,
    // Half of the groups each, so that one half can go.
    clients: [Process; 2],
    last_change: u32,
    findings: String,
    violations: Vec<String>,
}

/// Changes that are under way.
struct Planned {
    first: u32,
    count: u32,
    start: Duration,
    interval: Duration,
    groups: usize,
}

impl Planned {
    fn ends(&self) -> Duration {
        self.start + self.interval * self.count
    }

    fn words(&self) -> String {
        let (start, interval) = (self.start.as_nanos(), self.interval.as_nanos());
        let Self {
            first,
            count,
            groups,
            ..
        } = self;
        format!("{start} {interval} {first} {count} {groups}")
    }
}

impl<'a> Soak<'a> {
    fn start(options: &'a Options) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let mut server = Process::start("server", Command::new(&program).arg("serve"))?;
        let port = server.port()?;
        let file = std::env::temp_dir().join(format!("isthmus-soak-{}.pb", getpid()));
        let all = resources::all(clients::SCOPE, GROUPS * CLUSTERS_PER_GROUP, 0);
        resources::write(&file, all)?;
        let loaded = server.ask(
            &format!("load {} {}", clients::SCOPE, file.display()),
            PATIENCE,
        );
        std::fs::remove_file(&file).ok();
        loaded?;
        let deaf = options.streams / DEAF_ONE_IN;
        let healthy = options.streams - deaf;
        let start = |half: usize| {
            let groups = half * GROUPS / 2..(half + 1) * GROUPS / 2;
            let mut command = Command::new(&program);
            command.args(["soak-clients", "--port", &port.to_string()]);
            command.args(["--groups", &format!("{}..{}", groups.start, groups.end)]);
            command.args(["--clusters-per-group", &CLUSTERS_PER_GROUP.to_string()]);
            command.args(["--healthy", &half_of(healthy, half).to_string()]);
            command.args(["--deaf", &half_of(deaf, half).to_string()]);
            Process::start("clients", &mut command)
        };
        let mut clients = [start(0)?, start(1)?];
        println!("# {healthy} clients that read and {deaf} that never do connect");
        for client in &mut clients {
            client.ask("connect", PATIENCE)?;
        }
        Ok(Self {
            options,
            server,
            clients,
            last_change: 0,
            findings: String::new(),
            violations: Vec::new(),
        })
    }

    fn changes(&mut self) -> anyhow::Result<()> {
        let length = Duration::from_secs(self.options.seconds.into());
        println!("# {GROUPS} groups change in turn for {length:?}");
        let before = self.server.cpu()?;
        let planned = self.plan(length, GROUPS)?;
        let mut memory = Vec::new();
        while clock::now() < planned.ends() {
            clock::sleep_until((clock::now() + LOOK).min(planned.ends()));
            let at = clock::now().saturating_sub(planned.start).as_secs_f64();
            let heap: u64 = self.server.ask("heap", PATIENCE)?.parse()?;
            memory.push((at, float(self.server.memory()?.0), float(heap)));
        }
        self.server.ask("join", PATIENCE)?;
        let bound = if self.options.lenient {
            LENIENT_CONVERGENCE
        } else {
            CONVERGENCE
        };
        let mut samples = Vec::new();
        for half in 0..self.clients.len() {
            samples.extend(self.converged(half, bound)?);
        }
        let cpu = self.server.cpu()?.saturating_sub(before).as_secs_f64();
        let each = cpu * 1000.0 / f64::from(planned.count);
        self.find(format_args!(
            "{} changes, {cpu:.1} s of server CPU, {each:.2} ms each",
            planned.count
        ));
        self.judge_lateness(&mut samples, bound);
        self.judge_memory(&memory);
        Ok(())
    }

    // Plans changes, tells clients and server, and does not wait.
    fn plan(&mut self, length: Duration, groups: usize) -> anyhow::Result<Planned> {
        let interval = Duration::from_millis(self.options.interval_ms.into());
        let count = length.as_millis() / interval.as_millis().max(1);
        let planned = Planned {
            first: self.last_change + 1,
            count: u32::try_from(count)?.max(1),
            start: clock::now() + LEAD,
            interval,
            groups,
        };
        self.last_change += planned.count;
        let words = planned.words();
        for client in &mut self.clients {
            if client.is_running() {
                client.ask(&format!("expect {words}"), PATIENCE)?;
            }
        }
        let command = format!("rotate {words} {CLUSTERS_PER_GROUP}");
        self.server.ask(&command, PATIENCE)?;
        Ok(planned)
    }

    // Waits until the clients of one half have all changes; in microseconds, how late each was.
    fn converged(&mut self, half: usize, patience: Duration) -> anyhow::Result<Vec<u32>> {
        let name = format!("isthmus-soak-{}-{half}.u32", getpid());
        let file = std::env::temp_dir().join(name);
        let millis = patience.as_millis();
        let command = format!("wait {millis} {}", file.display());
        let missing = self.clients[half].ask(&command, PATIENCE)?;
        let samples = std::fs::read(&file).context("how late clients were")?;
        std::fs::remove_file(&file).ok();
        if missing != "0" {
            self.violations
                .push(format!("{missing} healthy clients lack the last change"));
        }
        let samples = samples.as_chunks::<4>().0;
        Ok(samples.iter().map(|it| u32::from_le_bytes(*it)).collect())
    }

    fn judge_lateness(&mut self, micros: &mut [u32], bound: Duration) {
        micros.sort_unstable();
        let at = |quantile| f64::from(percentile(micros, quantile).unwrap_or(0)) / 1000.0;
        let late = micros
            .iter()
            .filter(|it| u128::from(**it) > bound.as_micros())
            .count();
        let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
        self.find(format_args!(
            "change to healthy client: p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms; \
             {late} of {} over {bound:?}",
            micros.len()
        ));
        if late > 0 {
            self.violations.push(format!(
                "{late} times a healthy client was later than {bound:?}"
            ));
        }
        if micros.is_empty() {
            self.violations.push("no client had a change".to_owned());
        }
    }

    fn judge_memory(&mut self, memory: &[(f64, f64, f64)]) {
        let flat = &memory[memory.len() / 5..];
        let Some((first, last)) = flat.first().zip(flat.last()) else {
            return;
        };
        let window = last.0 - first.0;
        let resident: Vec<(f64, f64)> = flat.iter().map(|it| (it.0, it.1)).collect();
        let heap: Vec<(f64, f64)> = flat.iter().map(|it| (it.0, it.2)).collect();
        let growth = slope(&resident) * window;
        let heap_growth = slope(&heap) * window;
        let bound = (last.1 * GROWTH_SHARE).max(GROWTH_BYTES);
        self.find(format_args!(
            "resident {:.1} MiB, grown by {:.2} MiB in the last {window:.0} s (bound {:.2}); \
             heap {:.1} MiB, grown by {:.2}",
            last.1 / MIB,
            growth / MIB,
            bound / MIB,
            last.2 / MIB,
            heap_growth / MIB
        ));
        if growth > bound {
            self.violations
                .push(format!("resident memory grew by {:.1} MiB", growth / MIB));
        }
    }

    // One group changes, with all other streams and with half of them.
    fn idle_streams(&mut self) -> anyhow::Result<()> {
        for client in &mut self.clients {
            client.ask("undeaf", PATIENCE)?;
        }
        let length = COMPARISON.min(Duration::from_secs(self.options.seconds.into()));
        println!("# one group changes for {length:?} among all streams, then among half of them");
        let (all, woken, healthy) = self.one_group(length)?;
        self.clients[1].stop();
        // The server notices that they are gone.
        self.one_group(Duration::from_secs(1))?;
        let (half, ..) = self.one_group(length)?;
        let share = all / half - 1.0;
        self.find(format_args!(
            "CPU of a change that {healthy} streams need: {all:.3} ms among all, {half:.3} ms among \
             half of the idle ones: {:+.1} % (bound {:.0} %)",
            share * 100.0,
            IDLE_CPU_SHARE * 100.0
        ));
        if share > IDLE_CPU_SHARE && !self.options.lenient {
            self.violations
                .push("streams that need nothing cost CPU".to_owned());
        }
        let Some(woken) = woken else {
            self.find(format_args!("the server does not count wakes"));
            return Ok(());
        };
        self.find(format_args!(
            "streams woken for each change: {woken:.2} of {healthy} that need it"
        ));
        if woken > float(healthy) {
            self.violations
                .push("streams that need nothing were woken".to_owned());
        }
        Ok(())
    }

    // Milliseconds of CPU for each change, streams woken for each, and streams that need it.
    fn one_group(&mut self, length: Duration) -> anyhow::Result<(f64, Option<f64>, u64)> {
        let woken = self.woken()?;
        let before = self.server.cpu()?;
        let planned = self.plan(length, 1)?;
        clock::sleep_until(planned.ends());
        self.server.ask("join", PATIENCE)?;
        self.converged(0, LENIENT_CONVERGENCE)?;
        let cpu = self.server.cpu()?.saturating_sub(before).as_secs_f64();
        let count = f64::from(planned.count);
        let woken = self
            .woken()?
            .zip(woken)
            .map(|(after, before)| (after - before) / count);
        let healthy: u64 = self.clients[0].ask("group-size", PATIENCE)?.parse()?;
        Ok((cpu * 1000.0 / count, woken, healthy))
    }

    fn woken(&mut self) -> anyhow::Result<Option<f64>> {
        let answer = self.server.ask("wakes", PATIENCE)?;
        Ok(answer.parse().ok())
    }

    fn find(&mut self, finding: std::fmt::Arguments<'_>) {
        println!("{finding}");
        let _ = writeln!(self.findings, "{finding}");
    }
}

// Of an odd count the second half has one more.
fn half_of(count: usize, half: usize) -> usize {
    let less = count / 2;
    if half == 0 { less } else { count - less }
}

// Least squares: what a second adds.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = float(points.len() as u64);
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (middle, average) = (mean(|it| it.0), mean(|it| it.1));
    let (mut above, mut below) = (0.0, 0.0);
    for (at, value) in points {
        above += (at - middle) * (value - average);
        below += (at - middle) * (at - middle);
    }
    if below > 0.0 { above / below } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_what_a_second_adds() {
        let rising: Vec<(f64, f64)> = (0..10)
            .map(f64::from)
            .map(|at| (at, 5.0 + 3.0 * at))
            .collect();
        assert!((slope(&rising) - 3.0).abs() < 1e-9);
        assert!(slope(&[(1.0, 7.0)]).abs() < 1e-9);
        assert_eq!(half_of(9, 0) + half_of(9, 1), 9);
    }
}
