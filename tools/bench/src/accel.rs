//! `isthmus-bench accel`: pod to pod through two sidecars, by six paths that take turns.

mod application;
mod drawing;
mod http1;
mod load;
mod path;
mod rows;
mod samples;
mod usage;
mod workload;

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use isthmus_integration_tests::accelerator::{Accelerator, Applications, Flows, HopBytes, Sockmap};
use isthmus_integration_tests::envoy::Protocol;
use isthmus_integration_tests::lab::{Pod, SERVICE_ADDRESS};
use isthmus_integration_tests::mesh::{Application, CLIENT, Mesh, SERVER, SERVICE_PORT};
use isthmus_integration_tests::nginx::APPLICATION_PORT;
use isthmus_integration_tests::process::{self, Process, Program, User, command_as};
use isthmus_integration_tests::{programs, shell, wait};

pub(crate) use self::application::ApplicationArgs;
pub(crate) use self::load::LoadArgs;
use self::load::LoadReport;
use self::path::Path;
use self::rows::{Metric, Row, Rows};
use self::workload::Workload;

/// Pod without a sidecar that sends.
const PLAIN_CLIENT: &str = "plain-client";
/// Pod without a sidecar that answers.
const PLAIN_SERVER: &str = "plain-server";

/// How long the application may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Fewer rounds show no noise, and without noise there is nothing to judge by. Enough for what is only shown.
const ROUNDS_TO_JUDGE: u32 = 3;

/// Load of the machine, in processes that run, from which on a warning is due.
const BUSY: f64 = 0.5;

/// What the profile is of.
const PROFILED: (Workload, u32) = (Workload::Http1Keepalive, 16);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Directory for the table, `accel.json` and the plots.
    #[arg(long)]
    out: PathBuf,
    /// Times that each path is measured; those that are only shown, three times at most.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 0.7)]
    seconds: f64,
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_value = "1,16,256")]
    connections: Vec<u32>,
    /// Kinds of traffic; all of them if left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    workload: Vec<Workload>,
    /// Data paths beside iptables; all of them if left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    path: Vec<Path>,
}

/// Runs the benchmark: prints the table and fails if the full path is worse than iptables somewhere.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "no round, no result");
    // Before the measurement, not after it.
    fs::create_dir_all(&options.out)
        .with_context(|| format!("{} cannot be made", options.out.display()))?;
    warn_if_busy()?;
    let mut course = Course::start(options)?;
    let workloads = Workload::ALL
        .into_iter()
        .filter(|it| options.workload.is_empty() || options.workload.contains(it));
    for workload in workloads {
        for connections in &options.connections {
            course.cell(workload, *connections)?;
        }
    }
    let profiles = course.profiles();
    course.stop()?;
    let rows = course.rows;
    write(&rows, options)?;
    println!("\n{}\n{profiles}", rows.render());
    if options.rounds < ROUNDS_TO_JUDGE {
        println!("Not judged: noise shows from {ROUNDS_TO_JUDGE} rounds on.");
        return Ok(());
    }
    judge(&rows)
}

fn warn_if_busy() -> Result<()> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let load = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse::<f64>().ok());
    if let Some(load) = load.filter(|load| *load > BUSY) {
        eprintln!("warning: the machine is busy (load {load}): what others use is counted, too");
    }
    Ok(())
}

pub(crate) use self::application::run as run_application;
pub(crate) use self::load::run as run_load;

fn judge(rows: &Rows) -> Result<()> {
    println!("Better than iptables by more than the noise:");
    for line in rows.better() {
        println!("  {line}");
    }
    for (path, metric) in rows::judged_metrics() {
        if let Some(mean) = rows.small_messages(path, metric) {
            let (path, metric) = (path.name(), metric.name());
            println!("Small messages, all rows, {path}: {metric} {mean:.3}x");
        }
    }
    let worse = rows.worse();
    if worse.is_empty() {
        println!("Worse than iptables by more than the noise: nothing");
        return Ok(());
    }
    bail!(
        "worse than iptables by more than the noise:\n  {}",
        worse.join("\n  ")
    )
}

fn write(rows: &Rows, options: &Options) -> Result<()> {
    let file = |name: &str, text: &str| {
        let path = options.out.join(name);
        fs::write(&path, text).with_context(|| format!("{} is not writable", path.display()))
    };
    file("accel.json", &serde_json::to_string_pretty(&rows.0)?)?;
    file("accel.txt", &rows.render())?;
    let drawings = [
        (Metric::Requests, "accel-requests.svg"),
        (Metric::P50, "accel-p50.svg"),
        (Metric::P99, "accel-p99.svg"),
        (Metric::Cpu, "accel-cpu.svg"),
    ];
    for (metric, name) in drawings {
        file(name, &drawing::draw(rows, metric))?;
    }
    Ok(())
}

/// A mesh, what is attached to it, and what was measured so far.
struct Course<'a> {
    // Dropped before the mesh, whose pods it accelerates.
    accelerator: Accelerator,
    _plain_server: Process,
    mesh: Mesh,
    /// What is attached for, and no connection of another is left; `None` until the first.
    attached: Option<Path>,
    options: &'a Options,
    rows: Rows,
}

impl<'a> Course<'a> {
    fn start(options: &'a Options) -> Result<Self> {
        eprintln!("starting two pods with sidecars and two without");
        let mut mesh = Mesh::start_with(Protocol::Delta, Application::Custom(start_application))?;
        mesh.add_plain_pod(PLAIN_CLIENT)?;
        mesh.add_plain_pod(PLAIN_SERVER)?;
        for name in [CLIENT, PLAIN_CLIENT] {
            // A connection for each request needs more ports than the default has within a minute.
            let netns = &mesh.pod(name)?.netns;
            netns.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
        }
        let plain_server = start_application(mesh.pod(PLAIN_SERVER)?)?;
        let accelerator = Accelerator::prepare(mesh.lab().dir())?;
        Ok(Self {
            accelerator,
            _plain_server: plain_server,
            mesh,
            attached: None,
            options,
            rows: Rows::default(),
        })
    }

    /// All rounds of a workload with a number of connections: in each, every path between two measurements of
    /// iptables, seconds from both.
    fn cell(&mut self, workload: Workload, connections: u32) -> Result<()> {
        self.measure(Path::Iptables, workload, connections, 1)?;
        for round in 1..=self.options.rounds {
            for path in self.paths_of(round) {
                self.measure(path, workload, connections, round)?;
            }
            self.measure(Path::Iptables, workload, connections, round + 1)?;
        }
        Ok(())
    }

    /// What is measured in a round beside iptables: each time another one first, so that what drifts disturbs
    /// all alike.
    fn paths_of(&self, round: u32) -> Vec<Path> {
        let is_due = |path: &Path| {
            let is_judged = Path::OURS.contains(path);
            *path != Path::Iptables
                && self.is_wanted(*path)
                && (is_judged || round <= ROUNDS_TO_JUDGE)
        };
        let mut paths: Vec<Path> = Path::ALL.into_iter().filter(is_due).collect();
        if !paths.is_empty() {
            let first = round as usize % paths.len();
            paths.rotate_left(first);
        }
        paths
    }

    fn is_wanted(&self, path: Path) -> bool {
        path == Path::Iptables || self.options.path.is_empty() || self.options.path.contains(&path)
    }

    /// Takes out what is attached, lets all connections end, and attaches what the path needs.
    fn switch(&mut self, path: Path) -> Result<()> {
        if self.attached == Some(path) {
            return Ok(());
        }
        self.attached = None;
        if self.accelerator.pin_dir().exists() {
            self.accelerator.detach()?;
        }
        self.mesh.wait_idle()?;
        for name in [CLIENT, PLAIN_CLIENT] {
            let netns = &self.mesh.pod(name)?.netns;
            netns.sysctl("net.ipv4.ip_local_port_range", path.source_ports())?;
        }
        match path {
            Path::NoMesh | Path::Iptables => {}
            Path::Redirect => self.attach(Applications::LeftAlone, Sockmap::Off, Flows::Auto)?,
            Path::Default => self.attach(Applications::LeftAlone, Sockmap::Auto, Flows::Auto)?,
            Path::Flows => self.attach(Applications::LeftAlone, Sockmap::Auto, Flows::On)?,
            Path::Full => self.attach(Applications::Write, Sockmap::Auto, Flows::Auto)?,
        }
        self.attached = Some(path);
        Ok(())
    }

    fn attach(&mut self, applications: Applications, sockmap: Sockmap, flows: Flows) -> Result<()> {
        let pods = [self.mesh.pod(CLIENT)?, self.mesh.pod(SERVER)?];
        self.accelerator.write_pods_as(&pods, applications)?;
        self.accelerator.start_with(pods.len(), sockmap, flows)
    }

    fn measure(
        &mut self,
        path: Path,
        workload: Workload,
        connections: u32,
        round: u32,
    ) -> Result<()> {
        self.switch(path)?;
        let before = self.moved(path)?;
        let report = self.load(path, workload, connections)?;
        let moved = self.moved(path)?.since(before);
        eprintln!(
            "{:<16} {connections:>4} connections, round {round}: {:<9} {:>9.0} requests/s",
            workload.name(),
            path.name(),
            report.requests_per_s,
        );
        self.rows.0.push(Row {
            workload: workload.name(),
            connections,
            path: path.name(),
            round,
            requests_per_s: report.requests_per_s,
            p50_us: report.p50_us,
            p99_us: report.p99_us,
            cpu_us_per_request: report.cpu_us_per_request,
            sockmap_share: moved.share().unwrap_or(0.0),
        });
        Ok(())
    }

    // Of all hops together.
    fn moved(&self, path: Path) -> Result<HopBytes> {
        let mut sum = HopBytes::default();
        if !matches!(path, Path::NoMesh | Path::Iptables) {
            for bytes in self.accelerator.status()?.by_hop().into_values() {
                sum.add(bytes);
            }
        }
        Ok(sum)
    }

    fn load(&self, path: Path, workload: Workload, connections: u32) -> Result<LoadReport> {
        let (client, target) = match path {
            Path::NoMesh => {
                let address = self.mesh.pod(PLAIN_SERVER)?.address;
                (PLAIN_CLIENT, (address, APPLICATION_PORT))
            }
            Path::Iptables | Path::Redirect | Path::Default | Path::Flows | Path::Full => {
                (CLIENT, (SERVICE_ADDRESS, SERVICE_PORT))
            }
        };
        let netns = self.mesh.pod(client)?.netns.path();
        let program = programs::own("isthmus-bench")?;
        let mut command = command_as(User::Application, Some(&netns), program);
        command
            .args(["accel-load", "--workload", workload.name()])
            .args(["--target", &SocketAddr::from(target).to_string()])
            .args(["--connections", &connections.to_string()])
            .args(["--milliseconds", &self.milliseconds().to_string()]);
        for (name, pod) in [("client's Envoy", CLIENT), ("server's Envoy", SERVER)] {
            let pid = self.mesh.sidecar(pod)?.process().pid();
            command.args(["--watch", &format!("{name}={pid}")]);
        }
        let text = shell::capture(&mut command).with_context(|| {
            let (path, workload) = (path.name(), workload.name());
            format!("{workload} with {connections} connections, {path}")
        })?;
        serde_json::from_str(&text).with_context(|| format!("the load printed {text:?}"))
    }

    fn milliseconds(&self) -> u128 {
        Duration::from_secs_f64(self.options.seconds).as_millis()
    }

    /// Who spends a request's time, by iptables and by the full path.
    fn profiles(&mut self) -> String {
        let mut text = String::new();
        for path in [Path::Iptables, Path::Default, Path::Full] {
            if !self.is_wanted(path) {
                continue;
            }
            let shown = self.switch(path).and_then(|()| self.profile(path));
            let (workload, connections) = (PROFILED.0.name(), PROFILED.1);
            let shown = shown.unwrap_or_else(|error| format!("not known: {error:#}\n"));
            let _ = writeln!(
                text,
                "Processor time of a request, {workload}, {connections} connections, {}:\n{shown}",
                path.name()
            );
        }
        text
    }

    fn profile(&self, path: Path) -> Result<String> {
        // The load warms up for a part of that time, which only adds samples of the same kind.
        let recording = samples::record(&self.options.out, self.options.seconds);
        let report = self.load(path, PROFILED.0, PROFILED.1)?;
        let mut text = match recording.and_then(samples::finish) {
            Ok(profile) => profile.render(report.cpu_us_per_request),
            Err(error) => format!("no samples: {error:#}\n"),
        };
        let rest: f64 = report
            .processes
            .values()
            .map(|(user, system)| user + system)
            .sum();
        for (name, (user, system)) in &report.processes {
            let _ = writeln!(text, "{user:>8.1} us user, {system:>6.1} us system: {name}");
        }
        let rest = (report.cpu_us_per_request - rest).max(0.0);
        let _ = writeln!(
            text,
            "{rest:>8.1} us: the application, and interrupts of no process"
        );
        Ok(text)
    }

    fn stop(&mut self) -> Result<()> {
        if self.accelerator.pin_dir().exists() {
            self.accelerator.detach()?;
        }
        process::declare_success();
        Ok(())
    }
}

fn start_application(pod: &Pod) -> Result<Process> {
    let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, APPLICATION_PORT));
    let mut process = Process::start(&Program {
        args: vec![
            "accel-application".into(),
            "--listen".into(),
            listen.to_string().into(),
        ],
        log_dir: &pod.dir,
        name: "application",
        netns: Some(&pod.netns.path()),
        path: &programs::own("isthmus-bench")?,
        user: User::Application,
    })?;
    wait::until(
        &format!("the application in {}", pod.name),
        START_DEADLINE,
        || {
            process.check_running()?;
            ensure!(
                process.log()?.contains("listening on"),
                "it does not listen"
            );
            Ok(())
        },
    )?;
    Ok(process)
}
