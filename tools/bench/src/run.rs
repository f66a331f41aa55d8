//! The order of a run: sizes, and which servers are up at the same time.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::contender::{Places, Server};
use crate::report::{Cell, RESOURCE_BYTES, Report};
use crate::{doubled, plot, turns};

/// What is measured, and how much of it.
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

    /// What happens; all of it if left out.
    #[arg(long = "scenario", value_delimiter = ',', value_enum)]
    scenarios: Vec<Scenario>,

    /// Who serves; all of them if left out.
    #[arg(long = "server", value_delimiter = ',', value_enum)]
    servers: Vec<Server>,

    /// A few minutes: at most 1,000 streams and 100 clusters, and fewer changes.
    #[arg(long)]
    pub(crate) quick: bool,

    /// The built program of `tools/bench/gcp`; without it only ours and the floor are measured.
    #[arg(long)]
    go_control_plane: Option<PathBuf>,

    /// Where the table, the plots and scratch files go.
    #[arg(long)]
    out: PathBuf,
}

/// What can happen to a server and its clients.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Scenario {
    /// Nothing changes.
    Idle,
    /// One endpoint changes, again and again.
    OneEndpoint,
    /// One route changes.
    OneRoute,
    /// Every resource changes.
    Everything,
    /// All clients reconnect at once with the versions they hold; also with 5,000 streams (n20).
    Reconnect,
    /// One endpoint changes while there is twice as much that it does not concern.
    Doubled,
    /// One endpoint changes while a profiler looks.
    Profile,
}

/// Streams times clusters at most: a server's state of a subscription is up to 500 bytes, of four
/// servers together.
const MAX_SUBSCRIPTIONS: usize = 6_000_000;

/// Streams of each server at most while all the others are up as well. Four times 10,000
/// connections that mostly wait are 80,000 sockets, and the kernel then breaks idle ones of
/// go-control-plane (`TCP_USER_TIMEOUT`, which grpc-go sets). Above, ours and go-control-plane
/// take turns, then the floor and go-control-plane's other cache.
const MAX_TOGETHER: usize = 4000;

/// Streams of the mass reconnect that the project's checklist names (n20).
const N20_STREAMS: usize = 5000;

/// The most that `--quick` measures.
const QUICK_STREAMS: usize = 1000;
const QUICK_CLUSTERS: usize = 100;

/// Runs everything and writes the report.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let files = options.out.join("scratch");
    std::fs::create_dir_all(&files)
        .with_context(|| format!("{} cannot be made", files.display()))?;
    let mut run = Run {
        options,
        places: Places {
            files: files.clone(),
            go_control_plane: options.go_control_plane.clone(),
        },
        started: Instant::now(),
        report: Report {
            machine: machine(),
            ..Report::default()
        },
    };
    run.all_sizes()?;
    std::fs::remove_dir_all(&files).ok();
    plot::write_all(&run.report, &options.out)?;
    run.check();
    run.write()?;
    println!("{}", run.report.render());
    println!("load at the end: {}", load());
    println!("written to {}", options.out.display());
    if !run.report.failures.is_empty() {
        bail!("not all went well:\n{}", run.report.failures.join("\n"));
    }
    Ok(())
}

/// A run that is under way.
pub(crate) struct Run<'a> {
    pub(crate) options: &'a Options,
    pub(crate) places: Places,
    pub(crate) report: Report,
    started: Instant,
}

impl Run<'_> {
    /// Tells whoever watches.
    pub(crate) fn say(&self, text: &str) {
        println!(
            "# {:>4} s, load {}: {text}",
            self.started.elapsed().as_secs(),
            load()
        );
    }

    /// Notes that a server could not be measured; the others go on.
    pub(crate) fn fail(&mut self, cell: Cell, server: Server, error: &impl Display) {
        let failure = format!("{cell}: {}: {error:#}", server.name());
        self.say(&failure);
        self.report.failures.push(failure);
    }

    /// Whether a scenario was asked for.
    pub(crate) fn has(&self, scenario: Scenario) -> bool {
        let asked = &self.options.scenarios;
        asked.is_empty() || asked.contains(&scenario)
    }

    /// The servers that were asked for and are there, in the order in which they take turns.
    pub(crate) fn servers(&self) -> Vec<Server> {
        let asked = &self.options.servers;
        let has_peer = self.options.go_control_plane.is_some();
        Server::value_variants()
            .iter()
            .copied()
            .filter(|it| asked.is_empty() || asked.contains(it))
            .filter(|it| has_peer || !it.is_go_control_plane())
            .collect()
    }

    /// Keeps what was measured, whatever comes later.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        self.report.write(&self.options.out.join("xds.json"))?;
        std::fs::write(self.options.out.join("xds.txt"), self.report.render())?;
        Ok(())
    }

    fn all_sizes(&mut self) -> anyhow::Result<()> {
        let is_quick = self.options.quick;
        let within = |sizes: &[usize], most: usize| -> Vec<usize> {
            let sizes = sizes.iter().copied();
            sizes.filter(|it| !is_quick || *it <= most).collect()
        };
        let streams = within(&self.options.streams, QUICK_STREAMS);
        let clusters = within(&self.options.clusters, QUICK_CLUSTERS);
        let (Some(&most_streams), Some(&fewest_clusters)) =
            (streams.iter().max(), clusters.iter().min())
        else {
            bail!("no size is left to measure");
        };
        for client in &self.options.clients {
            let client = if client == "delta" { "delta" } else { "sotw" };
            for &streams in &streams {
                for &clusters in &clusters {
                    let is_profiled =
                        client == "delta" && (streams, clusters) == (most_streams, fewest_clusters);
                    self.one_size(client, streams, clusters, is_profiled)?;
                }
            }
            if client == "delta" && self.has(Scenario::Reconnect) && most_streams > N20_STREAMS {
                turns::reconnect_only(self, client, N20_STREAMS, fewest_clusters)?;
            }
        }
        Ok(())
    }

    fn one_size(
        &mut self,
        client: &'static str,
        streams: usize,
        clusters: usize,
        is_profiled: bool,
    ) -> anyhow::Result<()> {
        if streams * clusters > MAX_SUBSCRIPTIONS {
            self.say(&format!(
                "{streams} streams x {clusters} clusters left out: more than one machine holds four times"
            ));
            return Ok(());
        }
        let servers = self.servers();
        let together = if streams > MAX_TOGETHER {
            2
        } else {
            servers.len().max(1)
        };
        for servers in servers.chunks(together) {
            let size = turns::Size {
                client,
                streams,
                clusters,
            };
            turns::take(self, size, servers, is_profiled)?;
            self.write()?;
        }
        let is_small = clusters <= QUICK_CLUSTERS;
        if client == "delta" && is_small && self.has(Scenario::Doubled) {
            doubled::measure(self, streams, clusters);
            self.write()?;
        }
        Ok(())
    }

    // What the project claims and no noise can excuse.
    fn check(&mut self) {
        let sent: Vec<String> = self
            .report
            .rows
            .iter()
            .filter(|row| (row.metric, row.client) == (RESOURCE_BYTES, "delta"))
            .filter_map(|row| {
                let bytes = row.isthmus.filter(|bytes| *bytes > 0.0)?;
                Some(format!(
                    "{} streams reconnected with equal versions and were sent {bytes} resource bytes",
                    row.streams
                ))
            })
            .collect();
        self.report.failures.extend(sent);
    }
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
