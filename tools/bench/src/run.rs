//! The order of a run: for each size, all servers are up at once and take turns, as long as so
//! many connections do not disturb each other; beyond that they run one after the other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use crate::contender::{Contender, MAIN, Outcome, Places, Series, Server};
use crate::plot;
use crate::report::{BYTES_SENT, Cell, Report};
use crate::resources::Touched;

/// Sizes and bounds of a run.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Numbers of streams, each with a connection of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    streams: Vec<usize>,

    /// Numbers of clusters, each with its endpoints.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 5000])]
    clusters: Vec<usize>,

    /// What the clients speak.
    #[arg(long, value_delimiter = ',', default_values_t = ["delta".to_owned(), "sotw".to_owned()], value_parser = ["delta", "sotw"])]
    clients: Vec<String>,

    /// A few minutes: at most 1,000 streams and 100 clusters, fewer changes, nothing doubled.
    #[arg(long)]
    quick: bool,

    /// The built program of `tools/bench/gcp`; without it only ours and the floor are measured.
    #[arg(long)]
    go_control_plane: Option<PathBuf>,

    /// Where the table, the plots and scratch files go.
    #[arg(long)]
    out: PathBuf,

    /// Keeps the servers up after the first size and prints their process ids, for a profiler:
    /// one endpoint changes for this many seconds.
    #[arg(long, hide = true)]
    profile_seconds: Option<u32>,
}

/// Streams times clusters at most: the first state of all clients is about 500 bytes for each.
const MAX_SUBSCRIPTIONS: usize = 6_000_000;

/// Streams of each server at most while the others are up as well. Four times 10,000 connections
/// that mostly wait are 80,000 sockets, and the kernel then breaks idle ones of go-control-plane
/// (`TCP_USER_TIMEOUT`, which grpc-go sets).
const MAX_TOGETHER: usize = 4000;

/// Time that the changes of a scenario may take by their schedule.
const SCENARIO: Duration = Duration::from_secs(12);
const QUICK_SCENARIO: Duration = Duration::from_secs(2);

/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(4);
const QUICK_IDLE: Duration = Duration::from_secs(1);

/// Streams that double at most: both halves are connections of one server.
const MAX_DOUBLED: usize = 2_000;

/// Changes of each of its series at most: there are five for each server.
const MAX_DOUBLED_CHANGES: u32 = 20;

/// Runs everything and writes the report.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let files = options.out.join("scratch");
    std::fs::create_dir_all(&files)
        .with_context(|| format!("{} cannot be made", files.display()))?;
    let run = Run {
        options,
        places: Places {
            files: files.clone(),
            go_control_plane: options.go_control_plane.clone(),
        },
        started: Instant::now(),
    };
    let mut report = Report {
        machine: machine(),
        rows: Vec::new(),
    };
    for client in &options.clients {
        let client = if client == "delta" { "delta" } else { "sotw" };
        for &streams in options
            .streams
            .iter()
            .filter(|it| !options.quick || **it <= 1000)
        {
            for &clusters in options
                .clusters
                .iter()
                .filter(|it| !options.quick || **it <= 100)
            {
                if streams * clusters > MAX_SUBSCRIPTIONS {
                    println!(
                        "# {streams} streams x {clusters} clusters left out: the first state of all is too much for one machine"
                    );
                    continue;
                }
                run.one_size(client, streams, clusters, &mut report)?;
                run.write(&report)?;
            }
        }
    }
    std::fs::remove_dir_all(&files).ok();
    plot::write_all(&report, &options.out)?;
    run.write(&report)?;
    println!("{}", report.render());
    println!("load at the end: {}", load());
    println!("written to {}", options.out.display());
    Ok(())
}

struct Run<'a> {
    options: &'a Options,
    places: Places,
    started: Instant,
}

impl Run<'_> {
    fn say(&self, text: &str) {
        println!(
            "# {:>4} s, load {}: {text}",
            self.started.elapsed().as_secs(),
            load()
        );
    }

    fn write(&self, report: &Report) -> anyhow::Result<()> {
        report.write(&self.options.out.join("xds.json"))?;
        std::fs::write(self.options.out.join("xds.txt"), report.render())?;
        Ok(())
    }

    fn servers(&self) -> Vec<Server> {
        let mut servers = vec![Server::Isthmus];
        if self.options.go_control_plane.is_some() {
            servers.extend([Server::GoControlPlane, Server::GoControlPlaneLinear]);
        }
        servers.push(Server::Floor);
        servers
    }

    fn one_size(
        &self,
        client: &'static str,
        streams: usize,
        clusters: usize,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let servers = self.servers();
        let together = if streams > MAX_TOGETHER {
            1
        } else {
            servers.len()
        };
        for servers in servers.chunks(together) {
            self.take_turns(servers, client, streams, clusters, report)?;
            // What was measured is kept, whatever comes later.
            self.write(report)?;
        }
        let is_profiled = self.options.profile_seconds.is_some();
        if client == "delta" && clusters <= 100 && !is_profiled && !self.options.quick {
            self.unaffected(streams.min(MAX_DOUBLED), clusters, report)?;
        }
        Ok(())
    }

    fn take_turns(
        &self,
        servers: &[Server],
        client: &'static str,
        streams: usize,
        clusters: usize,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let cell = |scenario| Cell {
            scenario,
            streams,
            clusters,
            client,
        };
        let mut contenders = Vec::new();
        for &server in servers {
            self.say(&format!(
                "{streams} {client} streams of {clusters} clusters to {}",
                server.name()
            ));
            let mut contender = Contender::start(server, &self.places, clusters)?;
            let before = contender.memory()?.0;
            let cpu = contender.cpu()?;
            contender.connect(client, MAIN, streams)?;
            let cpu = contender.cpu()?.saturating_sub(cpu);
            if server != Server::Floor {
                report.put(
                    cell("first state"),
                    "server CPU",
                    "s",
                    server,
                    cpu.as_secs_f64(),
                );
            }
            let after = contender.memory()?.0;
            let per_stream = (float(after) - float(before)) / float(streams as u64);
            report.put(cell("idle"), "memory per stream", "B", server, per_stream);
            contenders.push(contender);
        }
        if let Some(seconds) = self.options.profile_seconds {
            return profile(&mut contenders, seconds);
        }
        self.idle(cell("idle"), &mut contenders, report)?;
        for (name, touched) in [
            ("one endpoint", Touched::OneEndpoint),
            ("one route", Touched::OneRoute),
            ("everything", Touched::Everything),
        ] {
            self.changes(cell(name), touched, &mut contenders, report)?;
        }
        self.reconnect(cell("reconnect"), &mut contenders, report)?;
        for contender in &mut contenders {
            let peak = contender.memory()?.1;
            report.put(
                cell("whole run"),
                "peak memory",
                "B",
                contender.server,
                float(peak),
            );
        }
        Ok(())
    }

    fn idle(
        &self,
        cell: Cell,
        contenders: &mut [Contender],
        report: &mut Report,
    ) -> anyhow::Result<()> {
        self.say("idle");
        let before = contenders.iter().map(Contender::cpu);
        let before: Vec<Duration> = before.collect::<Result<_, _>>()?;
        std::thread::sleep(if self.options.quick { QUICK_IDLE } else { IDLE });
        for (contender, before) in contenders.iter().zip(before) {
            if contender.server != Server::Floor {
                let cpu = contender.cpu()?.saturating_sub(before).as_secs_f64() * 1000.0;
                report.put(cell, "server CPU while idle", "ms", contender.server, cpu);
            }
        }
        Ok(())
    }

    fn changes(
        &self,
        cell: Cell,
        touched: Touched,
        contenders: &mut [Contender],
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let mut series = self.series(cell, touched);
        self.say(&format!(
            "{}, {} changes each {:?}",
            cell.scenario, series.changes, series.interval
        ));
        for contender in contenders {
            if contender.server == Server::Floor {
                // As many as ours sent, to each.
                let bytes = report.isthmus(cell, BYTES_SENT).unwrap_or(0.0);
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_precision_loss,
                    clippy::cast_sign_loss,
                    reason = "bytes of one response"
                )]
                let bytes = (bytes / contender.streams() as f64) as usize;
                if bytes == 0 {
                    continue;
                }
                series.bytes = bytes;
            }
            // The first change makes caches and buffers; it is not counted.
            let warm_up = Series {
                changes: 1,
                ..series
            };
            contender.change(&warm_up)?;
            let outcome = contender.change(&series)?;
            report.put_outcome(cell, contender.server, series.changes, &outcome);
        }
        Ok(())
    }

    // Few enough changes for any server to keep up on two cores that it shares with its clients.
    fn series(&self, cell: Cell, touched: Touched) -> Series {
        let bytes_each = match touched {
            Touched::OneEndpoint => 300,
            Touched::OneRoute => 12_000.min(130 * cell.clusters + 300),
            Touched::Everything => 600 * cell.clusters,
        };
        let bytes_each = match (cell.client, touched) {
            // The whole of a type is restated.
            ("sotw", Touched::OneEndpoint) => 250 * cell.clusters,
            _ => bytes_each,
        };
        // 100 us a push and 15 ns a byte.
        let nanos = cell.streams * (100_000 + 15 * bytes_each);
        let interval = Duration::from_nanos(nanos as u64).max(Duration::from_millis(100));
        let whole = if self.options.quick {
            QUICK_SCENARIO
        } else {
            SCENARIO
        };
        let changes = whole.as_millis() / interval.as_millis().max(1);
        Series {
            touched,
            changes: u32::try_from(changes).unwrap_or(1).clamp(2, 50),
            interval,
            bytes: 0,
        }
    }

    fn reconnect(
        &self,
        cell: Cell,
        contenders: &mut [Contender],
        report: &mut Report,
    ) -> anyhow::Result<()> {
        self.say("reconnect");
        for contender in contenders {
            let server = contender.server;
            if server == Server::Floor {
                continue;
            }
            let it = contender.reconnect()?;
            report.put(
                cell,
                "until the last answer",
                "ms",
                server,
                it.took.as_secs_f64() * 1000.0,
            );
            report.put(cell, "server CPU", "s", server, it.cpu.as_secs_f64());
            report.put(cell, "bytes sent", "B", server, float(it.bytes_out));
            report.put(
                cell,
                "resource bytes sent",
                "B",
                server,
                float(it.resource_bytes),
            );
            // All are back and hear of what comes.
            let probe = Series {
                changes: 1,
                ..self.series(cell, Touched::OneEndpoint)
            };
            let missing = contender.change(&probe)?.missing;
            report.put(cell, "streams lost", "", server, float(missing));
        }
        Ok(())
    }

    // Does a change cost more when what it does not touch doubles?
    fn unaffected(
        &self,
        streams: usize,
        clusters: usize,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        for server in self.servers() {
            if server == Server::Floor {
                continue;
            }
            self.say(&format!(
                "what is not affected doubles: {streams} streams of {}",
                server.name()
            ));
            let cell = Cell {
                scenario: "one endpoint, unaffected doubled",
                streams,
                clusters,
                client: "delta",
            };
            let mut series = self.series(cell, Touched::OneEndpoint);
            series.changes = series.changes.min(MAX_DOUBLED_CHANGES);
            let ms =
                |outcome: &Outcome| outcome.cpu.as_secs_f64() * 1000.0 / f64::from(series.changes);
            let mut contender = Contender::start(server, &self.places, clusters)?;
            contender.connect("delta", MAIN, streams)?;
            contender.change(&series)?;
            let base = contender.change(&series)?;
            report.put(cell, "CPU per change", "ms", server, ms(&base));
            contender.load("other")?;
            contender.connect("delta", "other", streams)?;
            contender.change(&Series {
                changes: 1,
                ..series
            })?;
            let more = contender.change(&series)?;
            report.put(cell, "CPU, streams doubled", "ms", server, ms(&more));
            drop(contender);
            let mut contender = Contender::start(server, &self.places, 2 * clusters)?;
            contender.connect("delta", MAIN, streams)?;
            contender.change(&series)?;
            let more = contender.change(&series)?;
            report.put(cell, "CPU, resources doubled", "ms", server, ms(&more));
        }
        Ok(())
    }
}

// Holds a server under one scenario while somebody looks.
fn profile(contenders: &mut [Contender], seconds: u32) -> anyhow::Result<()> {
    for contender in contenders
        .iter_mut()
        .filter(|it| it.server == Server::Isthmus)
    {
        println!("profile process {} for {seconds} s", contender.pid());
        let interval = Duration::from_secs(1);
        let outcome = contender.change(&Series {
            touched: Touched::OneEndpoint,
            changes: seconds,
            interval,
            bytes: 0,
        })?;
        println!("{:?} of CPU, {} responses", outcome.cpu, outcome.responses);
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "shown with three digits")]
fn float(value: u64) -> f64 {
    value as f64
}

fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().unwrap_or("?").to_owned()
}

// What a reader must know of the machine to believe the numbers.
fn machine() -> BTreeMap<&'static str, String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    BTreeMap::from([
        ("cores", cores.to_string()),
        ("cpu", model.unwrap_or_default()),
        ("kernel", kernel.trim().to_owned()),
        ("load before", load()),
    ])
}
