//! What each subcommand does, up to its exit code.

use std::{
    fmt::Write as _,
    fs,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use isthmus_accel_abi::{FlowMode, PassCause, SettingsMode, VerdictCode, program};
use isthmus_accel_datapath::{
    Datapath, DatapathError, Mechanism,
    linux::{self, DetachReport, LinuxDatapath, LoadOptions, Patience, Unread},
    probe as datapath_probe,
};
use serde::Serialize;
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::{
    admin,
    cli::{
        Cli, Command, Detach, FlowVerdict, Flows, FlowsWhen, LogFormat, Output, ReportArgs, Run,
        Sockmap,
    },
    error::{CommandError, EXIT_FAILED, EXIT_MISSING, render_chain},
    exclusive::Exclusive,
    flows::{
        filter::Filter,
        hub::{FlowsRequest, Hub, Telling},
        view,
    },
    probe::{self, Report},
    rights,
    run::{self, Home},
    runtime_dir::RuntimeDir,
    shadow,
    status::{self, AgentStatus, Origin},
};

/// Does what the command line says and prints the answer to `out`.
///
/// # Errors
///
/// Returns [`CommandError`], which knows its exit code.
pub fn execute(cli: Cli, out: &mut (dyn Write + Send)) -> Result<ExitCode, CommandError> {
    match cli.command {
        Command::Detach(args) => detach(&args, out),
        Command::Flows(args) => show_flows(args, out),
        Command::Probe(args) => show_probe(&args, out),
        Command::Run(args) => run(args, out),
        Command::Shadow(args) => show_shadow(&args, out),
        Command::Status(args) => show_status(args, out),
    }
}

fn run(args: Run, out: &mut (dyn Write + Send)) -> Result<ExitCode, CommandError> {
    start_logging(args.log_format);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?;
    runtime.block_on(follow(args, out))?;
    Ok(ExitCode::SUCCESS)
}

async fn follow(args: Run, out: &mut (dyn Write + Send)) -> Result<(), CommandError> {
    // A bad file, or a missing right, is found before anything is touched.
    rights::require()?;
    let file = run::read_first(args.config).await?;
    let found = datapath_probe(&args.places.pin_dir);
    probe::require(&found)?;
    let cgroup_root = linux::cgroup_root()?;
    let runtime_dir = RuntimeDir::new(&args.places.runtime_dir, &args.places.pin_dir);
    let hooks = (!args.share_hooks).then_some(cgroup_root.as_path());
    let _exclusive = Exclusive::acquire(&args.places, hooks)?;

    let telling = match args.flows {
        _ if args.shadow => Some(Telling::Shadow),
        FlowsWhen::Auto => Some(Telling::Auto),
        FlowsWhen::Off => None,
        FlowsWhen::On => Some(Telling::Always),
    };
    let options = LoadOptions {
        mode: match args.sockmap {
            _ if args.shadow => SettingsMode::SHADOW,
            Sockmap::Auto => SettingsMode::SOCKMAP,
            Sockmap::Off => SettingsMode::REDIRECT_ONLY,
        },
        flows: match telling {
            Some(Telling::Always | Telling::Shadow) => FlowMode::ON,
            Some(Telling::Auto) | None => FlowMode::OFF,
        },
        ..LoadOptions::default()
    };
    let datapath = load(&args.places.pin_dir, &cgroup_root, &options)?;
    if datapath.mode()? != options.mode
        && let Some(row) = found.first_missing(Mechanism::Sockmap)
    {
        let (feature, detail, remedy) = (row.feature, &row.detail, row.remedy);
        tracing::warn!(
            "connections are redirected, but no message skips TCP/IP: {feature}: {detail}; {remedy}"
        );
    }
    let adopted = datapath.loaded()?.pods.len();
    if adopted > 0 {
        tracing::info!(pods = adopted, "taken over from an earlier agent");
    }
    let names = watch::Sender::new(Arc::default());
    let (found, shadow) = watch::channel(None);
    if let Some(telling) = telling {
        let socket = runtime_dir.flows();
        let hub = Hub::new(
            datapath.flow_reader()?,
            socket,
            names.subscribe(),
            telling,
            found,
        );
        tell_flows(hub, socket, telling)?;
    }
    let home = Home {
        mode: datapath.mode()?.into(),
        names,
        pin_dir: args.places.pin_dir,
        runtime_dir,
        shadow,
    };
    let questions = match args.admin_listen {
        Some(addr) => Some(admin::serve(addr).await?),
        None => None,
    };
    let socket = home.runtime_dir.flows().to_owned();
    let ended = run::run(datapath, file, home, questions, out).await;
    // As long as the lock is held, it is ours.
    let _was_there = fs::remove_file(socket);
    ended
}

// Without it traffic is what it was, and the agent too: only the shadow would be for nothing.
fn tell_flows(hub: io::Result<Hub>, socket: &Path, telling: Telling) -> Result<(), CommandError> {
    match hub {
        Ok(hub) => drop(tokio::spawn(hub.run())),
        Err(source) if telling == Telling::Shadow => {
            let socket = socket.to_owned();
            return Err(CommandError::Flows { socket, source });
        }
        Err(error) => {
            let socket = socket.display();
            tracing::warn!(%error, "flows cannot be told: {socket} cannot be listened on");
        }
    }
    Ok(())
}

// A half-loaded first attempt serves nobody, and must not be found by `status`. What an earlier agent
// has loaded is not touched.
fn load(
    pin_dir: &Path,
    cgroup_root: &Path,
    options: &LoadOptions,
) -> Result<LinuxDatapath, DatapathError> {
    let before = LinuxDatapath::open_pinned(pin_dir);
    let is_first = matches!(before, Err(DatapathError::NotLoaded { .. }));
    LinuxDatapath::open_or_load(pin_dir, cgroup_root, options).inspect_err(|_| {
        if is_first && let Err(error) = linux::detach(pin_dir, &Patience::NONE, &mut |_| {}) {
            tracing::warn!("{}", render_chain(&error));
        }
    })
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Json => logs.json().flatten_event(true).init(),
        LogFormat::Text => logs.with_target(false).init(),
    }
}

fn show_status(args: ReportArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    rights::require()?;
    let runtime_dir = RuntimeDir::new(&args.places.runtime_dir, &args.places.pin_dir);
    let datapath = LinuxDatapath::open_pinned(&args.places.pin_dir)?;
    let running = runtime_dir.running();
    let origin = Origin {
        agent: AgentStatus {
            is_running: running.is_some(),
            pid: running.flatten(),
        },
        mode: datapath.mode()?.into(),
        pin_dir: args.places.pin_dir,
    };
    let status = status::collect(&datapath, &runtime_dir.read_roster(), origin)?;
    match args.output {
        Output::Json => print_json(out, &status)?,
        Output::Table => print(out, &status::render_table(&status))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show_flows(args: Flows, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let runtime_dir = RuntimeDir::new(&args.places.runtime_dir, &args.places.pin_dir);
    let verdict = args.verdict.map(|verdict| match verdict {
        FlowVerdict::Followed => VerdictCode::FOLLOWED.name(),
        FlowVerdict::NoRoom => VerdictCode::NO_ROOM.name(),
        FlowVerdict::Passed => VerdictCode::passed(PassCause::NotInPod).name(),
        FlowVerdict::Redirected => VerdictCode::REDIRECTED.name(),
    });
    let request = FlowsRequest {
        filter: Filter {
            pod: args.pod,
            port: args.port,
            verdict: verdict.map(str::to_owned),
        },
        last: args.last,
        is_following: args.follow,
    };
    view::view(runtime_dir.flows(), request, args.output, out)?;
    Ok(ExitCode::SUCCESS)
}

// Exits 1 if iptables does not do what the programs would do.
fn show_shadow(args: &ReportArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let runtime_dir = RuntimeDir::new(&args.places.runtime_dir, &args.places.pin_dir);
    let report = view::shadow(runtime_dir.flows())?;
    match args.output {
        Output::Json => print_json(out, &report)?,
        Output::Table => print(out, &shadow::render_table(&report))?,
    }
    Ok(if report.disagreed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILED)
    })
}

// Exits 2 if connections cannot be redirected.
fn show_probe(args: &ReportArgs, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    let found = datapath_probe(&args.places.pin_dir);
    let report = Report::from(&found);
    match args.output {
        Output::Json => print_json(out, &report)?,
        Output::Table => print(out, &probe::render_table(&report))?,
    }
    Ok(if report.can_redirect {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_MISSING)
    })
}

fn detach(args: &Detach, out: &mut dyn Write) -> Result<ExitCode, CommandError> {
    rights::require()?;
    let exclusive = Exclusive::of_pins(&args.places)?;
    let pin_dir = &args.places.pin_dir;
    let loaded = match LinuxDatapath::open_pinned(pin_dir) {
        Ok(datapath) => describe(&datapath)?,
        // Whatever else is wrong with it, it goes.
        Err(DatapathError::NotLoaded { .. }) => Vec::new(),
        Err(error) => vec![format!("what could not be read ({})", render_chain(&error))],
    };
    let patience = Patience {
        reading: Duration::from_secs(args.timeout),
        ..Patience::default()
    };
    let pin_dirs = linux::pin_dirs(pin_dir);
    let mut report = DetachReport::default();
    for pin_dir in &pin_dirs {
        report.add(linux::detach(pin_dir, &patience, &mut |unread| {
            eprintln!("waiting for {} to be read", render_unread(unread));
        })?);
        RuntimeDir::new(&args.places.runtime_dir, pin_dir).remove()?;
    }
    RuntimeDir::new(&args.places.runtime_dir, pin_dir).remove()?;
    drop(exclusive);

    // Writing to a string cannot fail.
    let mut answer = String::new();
    if pin_dirs.is_empty() {
        answer.push_str("nothing was loaded\n");
    }
    for line in loaded {
        let _ = writeln!(answer, "removed {line}");
    }
    for pin_dir in pin_dirs {
        let _ = writeln!(answer, "removed {}", pin_dir.display());
    }
    let released = report.sockets.saturating_sub(report.unread.sockets);
    if released > 0 {
        let _ = writeln!(answer, "{released} sockets go on by TCP");
    }
    if report.unread.sockets > 0 {
        let _ = writeln!(
            answer,
            "{} can still be read: until those sockets are closed, they keep program {} and its maps",
            render_unread(report.unread),
            program::SK_MSG,
        );
    }
    print(out, &answer)?;
    Ok(ExitCode::SUCCESS)
}

fn render_unread(unread: Unread) -> String {
    format!("{} bytes at {} sockets", unread.bytes, unread.sockets)
}

fn describe(datapath: &LinuxDatapath) -> Result<Vec<String>, DatapathError> {
    let programs = datapath
        .programs()?
        .into_iter()
        .filter(|program| program.id.is_some());
    let mut lines: Vec<String> = programs
        .map(|program| format!("program {} ({})", program.name, program.hook))
        .collect();
    let maps = datapath.map_usage()?.into_iter();
    lines.extend(maps.map(|map| format!("map {} ({} entries)", map.name, map.entries)));
    Ok(lines)
}

fn print_json(out: &mut dyn Write, value: &impl Serialize) -> Result<(), CommandError> {
    let json = serde_json::to_string_pretty(value).map_err(io::Error::other);
    print(out, &(json.map_err(CommandError::Output)? + "\n"))
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), CommandError> {
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(CommandError::Output)
}
