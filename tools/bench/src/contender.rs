//! A server and its clients: brought up, put through changes, measured.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::clock;
use crate::process::Process;
use crate::resources::{self, Touched};

/// How long a command that loads or connects may take.
const PATIENCE: Duration = Duration::from_secs(100);

/// How long clients may lag behind the last planned change; those that do are reported.
const LAG: Duration = Duration::from_secs(20);

/// From arming the clients to the first change.
const LEAD: Duration = Duration::from_millis(200);

/// What serves.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Server {
    Isthmus,
    GoControlPlane,
    /// go-control-plane with a `LinearCache` for EDS.
    GoControlPlaneLinear,
    Floor,
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

/// Clients that asked for the resources of one group.
#[derive(Debug)]
struct Clients {
    process: Process,
    streams: usize,
}

/// A server under load.
#[derive(Debug)]
pub(crate) struct Contender {
    pub(crate) server: Server,
    process: Process,
    port: u16,
    clients: Vec<Clients>,
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
    // Of the floor: what one client gets of one change.
    pub(crate) bytes: usize,
}

/// What a series did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) cpu: Duration,
    /// Planned change to client, in microseconds, unsorted.
    pub(crate) micros: Vec<u32>,
    /// Clients that lacked the last change at the end.
    pub(crate) missing: u64,
    pub(crate) bytes_out: u64,
    pub(crate) responses: u64,
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
        group: &str,
        streams: usize,
    ) -> anyhow::Result<()> {
        let variant = match self.server {
            Server::Floor => "floor",
            Server::Isthmus | Server::GoControlPlane | Server::GoControlPlaneLinear => variant,
        };
        let mut command = myself("client")?;
        command.args(["--variant", variant, "--group", group]);
        command.args(["--port", &self.port.to_string()]);
        command.args(["--clusters", &self.clusters.to_string()]);
        let name = format!("clients of {}", self.server.name());
        let mut process = Process::start(&name, &mut command)?;
        process.ask(&format!("connect {streams}"), PATIENCE)?;
        self.clients.push(Clients { process, streams });
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
        let main = &mut self.clients[0].process;
        main.ask(&expect, PATIENCE)?;
        self.process.send(&schedule)?;
        let wait = format!("wait {millis} {}", file.display());
        let counts = main.ask(&wait, planned + LAG + PATIENCE)?;
        self.process.answer(planned + PATIENCE)?;
        let cpu = self.cpu()?.saturating_sub(before);
        let [missing, bytes_out, _, _, responses] = numbers(&counts)?;
        Ok(Outcome {
            cpu,
            micros: read_samples(&file)?,
            missing,
            bytes_out,
            responses,
        })
    }

    /// Breaks all connections at once; the clients come back with the versions they hold.
    pub(crate) fn reconnect(&mut self) -> anyhow::Result<Reconnected> {
        let before = self.cpu()?;
        let counts = self.clients[0].process.ask("reconnect", PATIENCE)?;
        let [took, bytes_out, _, resource_bytes, _] = numbers(&counts)?;
        Ok(Reconnected {
            cpu: self.cpu()?.saturating_sub(before),
            took: Duration::from_micros(took),
            bytes_out,
            resource_bytes,
        })
    }

    /// Streams whose resources change.
    pub(crate) fn streams(&self) -> usize {
        self.clients.first().map_or(0, |clients| clients.streams)
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
