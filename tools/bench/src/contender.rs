//! A server and its clients: brought up, put through changes, measured.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;

use crate::clock;
use crate::process::Process;
use crate::resources::{self, Touched};

/// How long a command that loads or connects may take: longer than the clients themselves wait.
const PATIENCE: Duration = Duration::from_mins(6);

/// How long clients may lag behind the last planned change; those that do are reported.
const LAG: Duration = Duration::from_secs(20);

/// From arming the clients to the first change.
const LEAD: Duration = Duration::from_millis(200);

/// What serves. Neighbours are up at the same time where not all can be.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Server {
    /// Ours.
    Isthmus,
    /// go-control-plane with its snapshot cache.
    GoControlPlane,
    /// Writes the same bytes to as many sockets.
    Floor,
    /// go-control-plane with a `LinearCache` for EDS.
    GoControlPlaneLinear,
}

/// Where files and programs are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) files: PathBuf,
    pub(crate) go_control_plane: Option<PathBuf>,
}

impl Server {
    /// Name of its column.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Isthmus => "isthmus",
            Self::GoControlPlane => "go_control_plane",
            Self::GoControlPlaneLinear => "go_control_plane_linear",
            Self::Floor => "floor",
        }
    }

    /// Whether it is the peer, with either cache.
    pub(crate) fn is_go_control_plane(self) -> bool {
        matches!(self, Self::GoControlPlane | Self::GoControlPlaneLinear)
    }

    fn start(self, places: &Places) -> anyhow::Result<Process> {
        let mut command = match self {
            Self::Isthmus => myself("serve")?,
            Self::Floor => myself("floor")?,
            Self::GoControlPlane | Self::GoControlPlaneLinear => {
                let program = places.go_control_plane.as_ref();
                Command::new(program.context("--go-control-plane names no program")?)
            }
        };
        if self == Self::GoControlPlaneLinear {
            command.arg("-linear");
        }
        Process::start(self.name(), &mut command)
    }
}

fn myself(role: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role);
    Ok(command)
}

/// What clients ask for.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Whose resources.
    pub(crate) name: &'static str,
    /// The endpoints of which clusters; what is beyond the server's clusters is not asked for.
    pub(crate) endpoints: Range<usize>,
}

impl Group {
    /// Everything that a group has.
    pub(crate) fn all_of(name: &'static str) -> Self {
        Self {
            name,
            endpoints: 0..usize::MAX,
        }
    }
}

/// A server under load.
#[derive(Debug)]
pub(crate) struct Contender {
    pub(crate) server: Server,
    process: Process,
    port: u16,
    // Those whose resources change come first.
    clients: Vec<Process>,
    places: Places,
    clusters: usize,
    last_change: u32,
}

/// A series of changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Series {
    pub(crate) touched: Touched,
    pub(crate) changes: u32,
    pub(crate) interval: Duration,
    /// Of the floor: what one client gets of one change. Nothing happens if that is nothing.
    pub(crate) bytes: usize,
}

/// What a series did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) changes: u32,
    pub(crate) cpu: Duration,
    /// Planned change to client, in microseconds, unsorted.
    pub(crate) micros: Vec<u32>,
    /// Clients that lacked the last change at the end.
    pub(crate) missing: u64,
    pub(crate) bytes_out: u64,
}

impl Outcome {
    /// Adds another series to this one.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.changes += other.changes;
        self.cpu += other.cpu;
        self.micros.extend(other.micros);
        self.missing = self.missing.max(other.missing);
        self.bytes_out += other.bytes_out;
    }

    /// Bytes that one stream was sent for one change.
    pub(crate) fn bytes_per_stream(&self, streams: usize) -> usize {
        let pushes = streams * self.changes as usize;
        usize::try_from(self.bytes_out).unwrap_or(usize::MAX) / pushes.max(1)
    }
}

/// What a mass reconnect did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reconnected {
    pub(crate) cpu: Duration,
    pub(crate) took: Duration,
    pub(crate) bytes_out: u64,
    pub(crate) resource_bytes: u64,
}

/// The group whose resources change.
pub(crate) const MAIN: &str = "main";

impl Contender {
    /// Starts a server that has `clusters` clusters for [`MAIN`] clients, and none of those yet.
    pub(crate) fn start(server: Server, places: &Places, clusters: usize) -> anyhow::Result<Self> {
        let process = server.start(places)?;
        let port = process.port()?;
        let mut contender = Self {
            server,
            process,
            port,
            clients: Vec::new(),
            places: places.clone(),
            clusters,
            last_change: 0,
        };
        contender.load(MAIN)?;
        Ok(contender)
    }

    /// Gives the server the resources of a group.
    pub(crate) fn load(&mut self, group: &str) -> anyhow::Result<()> {
        if self.server == Server::Floor {
            return Ok(());
        }
        let file = self.file(&format!("{group}.pb"));
        resources::write(&file, resources::all(group, self.clusters, 0))?;
        let command = format!("load {group} {}", file.display());
        self.process.ask(&command, PATIENCE)?;
        Ok(())
    }

    /// Connects clients of a group and waits until each has all resources.
    pub(crate) fn connect(
        &mut self,
        variant: &str,
        group: &Group,
        streams: usize,
    ) -> anyhow::Result<()> {
        let variant = match self.server {
            Server::Floor => "floor",
            Server::Isthmus | Server::GoControlPlane | Server::GoControlPlaneLinear => variant,
        };
        let mut command = myself("client")?;
        let Range { start, end } = group.endpoints;
        let end = end.min(self.clusters);
        command.args(["--variant", variant, "--group", group.name]);
        command.args(["--port", &self.port.to_string()]);
        command.args(["--endpoints", &format!("{start}..{end}")]);
        let name = format!("clients of {}", self.server.name());
        let mut process = Process::start(&name, &mut command)?;
        process.ask(&format!("connect {streams}"), PATIENCE)?;
        self.clients.push(process);
        Ok(())
    }

    /// Resident and peak memory of the server, in bytes, without garbage where it can drop it.
    pub(crate) fn memory(&mut self) -> anyhow::Result<(u64, u64)> {
        if self.server != Server::Floor {
            self.process.ask("settle", PATIENCE)?;
        }
        self.process.memory()
    }

    /// Processor time that the server used so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.process.cpu()
    }

    /// Number of the server's process, for a profiler.
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Puts the server through a series of changes.
    pub(crate) fn change(&mut self, series: &Series) -> anyhow::Result<Outcome> {
        if self.server == Server::Floor && series.bytes == 0 {
            return Ok(Outcome::default());
        }
        let first = self.last_change + 1;
        self.last_change += series.changes;
        let ids = self.prepare(series, first)?;
        let start = clock::now() + LEAD;
        let (interval, count) = (series.interval.as_nanos(), series.changes);
        let (start, mask) = (start.as_nanos(), series.touched.mask());
        let expect = format!(
            "expect {start} {interval} {first} {count} {mask} {}",
            series.bytes
        );
        let file = self.file("samples.u32");
        let before = self.cpu()?;
        let schedule = if self.server == Server::Floor {
            format!("schedule {start} {interval} {count} {}", series.bytes)
        } else {
            format!("schedule {start} {interval} {ids}")
        };
        let planned = LEAD + series.interval * series.changes;
        let millis = (planned + LAG).as_millis();
        let main = &mut self.clients[0];
        main.ask(&expect, PATIENCE)?;
        self.process.send(&schedule)?;
        let wait = format!("wait {millis} {}", file.display());
        let counts = main.ask(&wait, planned + LAG + PATIENCE)?;
        self.process.answer(planned + PATIENCE)?;
        let cpu = self.cpu()?.saturating_sub(before);
        let [missing, bytes_out, ..]: [u64; 5] = numbers(&counts)?;
        Ok(Outcome {
            changes: series.changes,
            cpu,
            micros: read_samples(&file)?,
            missing,
            bytes_out,
        })
    }

    /// Breaks all connections at once; the clients come back with the versions they hold.
    pub(crate) fn reconnect(&mut self) -> anyhow::Result<Reconnected> {
        let before = self.cpu()?;
        let counts = self.clients[0].ask("reconnect", PATIENCE)?;
        let [took, bytes_out, _, resource_bytes, _] = numbers(&counts)?;
        Ok(Reconnected {
            cpu: self.cpu()?.saturating_sub(before),
            took: Duration::from_micros(took),
            bytes_out,
            resource_bytes,
        })
    }

    // Lets the server read each change before it is due, so that reading is not measured.
    fn prepare(&mut self, series: &Series, first: u32) -> anyhow::Result<String> {
        let mut ids = Vec::new();
        if self.server == Server::Floor {
            return Ok(String::new());
        }
        for change in first..first + series.changes {
            let file = self.file("change.pb");
            let changed = resources::changed(MAIN, self.clusters, series.touched, change);
            resources::write(&file, changed)?;
            let command = format!("prepare {change} {MAIN} {}", file.display());
            self.process.ask(&command, PATIENCE)?;
            ids.push(change.to_string());
        }
        Ok(ids.join(" "))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.places.files.join(format!(
            "{}-{}-{name}",
            self.server.name(),
            self.process.pid()
        ))
    }
}

fn numbers<const N: usize>(line: &str) -> anyhow::Result<[u64; N]> {
    let numbers: Result<Vec<u64>, _> = line.split_whitespace().map(str::parse).collect();
    let numbers = numbers.with_context(|| line.to_owned())?;
    <[u64; N]>::try_from(numbers)
        .ok()
        .with_context(|| format!("{N} numbers, not {line}"))
}

fn read_samples(file: &Path) -> anyhow::Result<Vec<u32>> {
    let bytes = std::fs::read(file)?;
    let samples = bytes.as_chunks::<4>().0;
    Ok(samples.iter().map(|it| u32::from_le_bytes(*it)).collect())
}
