//! One size: the servers are up together and take turns, round by round, so that what else the
//! machine does meets all of them alike.

use std::time::Duration;

use crate::contender::{Contender, Group, MAIN, Outcome, Series, Server};
use crate::profile;
use crate::report::{BYTES_SENT, Cell, RESOURCE_BYTES};
use crate::resources::Touched;
use crate::run::{Run, Scenario};
use crate::statistics::float;

/// Streams, what they speak and what they ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) client: &'static str,
    pub(crate) streams: usize,
    pub(crate) clusters: usize,
}

impl Size {
    fn cell(self, scenario: &'static str) -> Cell {
        Cell {
            scenario,
            streams: self.streams,
            clusters: self.clusters,
            client: self.client,
        }
    }
}

/// Time that the changes of a scenario may take by their schedule, over all rounds.
const SCENARIO: Duration = Duration::from_secs(10);
const QUICK_SCENARIO: Duration = Duration::from_secs(2);

/// Times that each server has its turn.
const ROUNDS: u32 = 4;
const QUICK_ROUNDS: u32 = 2;

/// Changes that take longer than this, each, are made once in each of two rounds, and are not
/// rehearsed.
const LONG_CHANGE: Duration = Duration::from_secs(10);

/// Changes of one scenario at most, over all rounds.
const MAX_CHANGES: u32 = 48;

/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(4);
const QUICK_IDLE: Duration = Duration::from_secs(1);

/// How long a profiler looks, at least.
const PROFILE: Duration = Duration::from_secs(15);
const QUICK_PROFILE: Duration = Duration::from_secs(4);

/// Measures one size.
pub(crate) fn take(
    run: &mut Run<'_>,
    size: Size,
    servers: &[Server],
    is_profiled: bool,
) -> anyhow::Result<()> {
    let is_asked = [
        Scenario::Idle,
        Scenario::OneEndpoint,
        Scenario::OneRoute,
        Scenario::Everything,
        Scenario::Reconnect,
        Scenario::Profile,
    ]
    .into_iter()
    .any(|scenario| run.has(scenario));
    if !is_asked {
        return Ok(());
    }
    let mut contenders = connect(run, size, servers);
    if run.has(Scenario::Idle) {
        idle(run, size.cell("idle"), &mut contenders)?;
    }
    for (scenario, name, touched) in [
        (Scenario::OneEndpoint, "one endpoint", Touched::OneEndpoint),
        (Scenario::OneRoute, "one route", Touched::OneRoute),
        (Scenario::Everything, "everything", Touched::Everything),
    ] {
        if run.has(scenario) {
            changes(run, size.cell(name), touched, &mut contenders);
        }
    }
    if run.has(Scenario::Reconnect) {
        reconnect(run, size.cell("reconnect"), &mut contenders);
    }
    whole_run(run, size, &mut contenders)?;
    if is_profiled && run.has(Scenario::Profile) {
        look(run, size.cell("one endpoint, profiled"), &mut contenders);
    }
    Ok(())
}

/// Measures a mass reconnect and nothing else.
pub(crate) fn reconnect_only(
    run: &mut Run<'_>,
    client: &'static str,
    streams: usize,
    clusters: usize,
) -> anyhow::Result<()> {
    let size = Size {
        client,
        streams,
        clusters,
    };
    // The floor has no versions, and both caches answer from the same one.
    for server in [Server::Isthmus, Server::GoControlPlane] {
        if run.servers().contains(&server) {
            let mut contenders = connect(run, size, &[server]);
            reconnect(run, size.cell("reconnect"), &mut contenders);
            whole_run(run, size, &mut contenders)?;
        }
    }
    run.write()
}

/// Changes that any server can keep up with on two cores that it shares with its clients.
pub(crate) fn interval_of(cell: Cell, touched: Touched) -> Duration {
    let bytes = match (cell.client, touched) {
        // Some servers restate the whole type.
        ("sotw", Touched::OneEndpoint) => 250 * cell.clusters,
        (_, Touched::OneEndpoint) => 300,
        (_, Touched::OneRoute) => 12_000.min(130 * cell.clusters + 300),
        (_, Touched::Everything) => 600 * cell.clusters,
    };
    // 100 us a push, 15 ns a byte, and 1 us a subscribed name: some servers look at all of them.
    let nanos = cell.streams * (100_000 + 15 * bytes + 1_000 * cell.clusters);
    Duration::from_nanos(nanos as u64).max(Duration::from_millis(100))
}

fn connect(run: &mut Run<'_>, size: Size, servers: &[Server]) -> Vec<Contender> {
    let mut contenders = Vec::new();
    for &server in servers {
        let Size {
            client,
            streams,
            clusters,
        } = size;
        run.say(&format!(
            "{streams} {client} streams of {clusters} clusters to {}",
            server.name()
        ));
        match connect_one(run, size, server) {
            Ok(contender) => contenders.push(contender),
            Err(error) => run.fail(size.cell("first state"), server, &error),
        }
    }
    contenders
}

fn connect_one(run: &mut Run<'_>, size: Size, server: Server) -> anyhow::Result<Contender> {
    let mut contender = Contender::start(server, &run.places, size.clusters)?;
    let before = contender.memory()?.0;
    let cpu = contender.cpu()?;
    contender.connect(size.client, &Group::all_of(MAIN), size.streams)?;
    let cpu = contender.cpu()?.saturating_sub(cpu).as_secs_f64();
    let report = &mut run.report;
    if server != Server::Floor {
        report.put(size.cell("first state"), "server CPU", "s", server, cpu);
    }
    let after = contender.memory()?.0;
    let per_stream = (float(after) - float(before)) / float(size.streams as u64);
    let cell = size.cell("idle");
    report.put(cell, "memory per stream", "B", server, per_stream);
    Ok(contender)
}

fn idle(run: &mut Run<'_>, cell: Cell, contenders: &mut [Contender]) -> anyhow::Result<()> {
    run.say("idle");
    let before: Vec<Duration> = contenders
        .iter()
        .map(Contender::cpu)
        .collect::<Result<_, _>>()?;
    let idle = if run.options.quick { QUICK_IDLE } else { IDLE };
    std::thread::sleep(idle);
    for (contender, before) in contenders.iter().zip(before) {
        if contender.server != Server::Floor {
            let cpu = contender.cpu()?.saturating_sub(before).as_secs_f64();
            let ms = cpu * 1000.0 / idle.as_secs_f64();
            let report = &mut run.report;
            report.put(cell, "server CPU in a second", "ms", contender.server, ms);
        }
    }
    Ok(())
}

// One round of each in turn. A server that fails is out; what it did is not counted.
fn changes(run: &mut Run<'_>, cell: Cell, touched: Touched, contenders: &mut Vec<Contender>) {
    let interval = interval_of(cell, touched);
    let is_long = interval > LONG_CHANGE;
    let (rounds, whole) = match run.options.quick {
        true => (QUICK_ROUNDS, QUICK_SCENARIO),
        false if is_long => (2, SCENARIO),
        false => (ROUNDS, SCENARIO),
    };
    let fitting = whole.as_millis() / interval.as_millis().max(1);
    let fitting = u32::try_from(fitting).unwrap_or(MAX_CHANGES);
    let each = (fitting.min(MAX_CHANGES) / rounds).max(1);
    run.say(&format!(
        "{}, {rounds} rounds of {each} changes, {interval:?} each",
        cell.scenario
    ));
    let mut outcomes = vec![Outcome::default(); contenders.len()];
    let mut bytes = isthmus_bytes(run, cell);
    // The first change makes caches and buffers; it is not counted.
    let first_round = u32::from(is_long);
    for round in first_round..=rounds {
        let mut index = 0;
        while index < contenders.len() {
            let contender = &mut contenders[index];
            let server = contender.server;
            let series = Series {
                touched,
                changes: if round == 0 { 1 } else { each },
                interval,
                bytes,
            };
            match contender.change(&series) {
                Ok(outcome) => {
                    if server == Server::Isthmus {
                        bytes = outcome.bytes_per_stream(cell.streams);
                    }
                    if round > 0 {
                        outcomes[index].absorb(outcome);
                    }
                    index += 1;
                }
                Err(error) => {
                    run.fail(cell, server, &error);
                    contenders.remove(index);
                    outcomes.remove(index);
                }
            }
        }
    }
    for (contender, outcome) in contenders.iter().zip(&outcomes) {
        if outcome.changes > 0 {
            run.report.put_outcome(cell, contender.server, outcome);
        }
    }
}

// What ours sent to each stream for each change, if it was measured: the floor writes as many.
fn isthmus_bytes(run: &Run<'_>, cell: Cell) -> usize {
    let bytes = run.report.isthmus(cell, BYTES_SENT).unwrap_or(0.0);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "bytes of one response"
    )]
    let bytes = (bytes / cell.streams as f64) as usize;
    bytes
}

fn reconnect(run: &mut Run<'_>, cell: Cell, contenders: &mut Vec<Contender>) {
    run.say("reconnect");
    contenders.retain_mut(|contender| {
        let server = contender.server;
        if server == Server::Floor {
            return true;
        }
        let ended = reconnect_one(run, cell, contender);
        if let Err(error) = &ended {
            run.fail(cell, server, error);
        }
        ended.is_ok()
    });
}

fn reconnect_one(run: &mut Run<'_>, cell: Cell, contender: &mut Contender) -> anyhow::Result<()> {
    let server = contender.server;
    let it = contender.reconnect()?;
    let took = it.took.as_secs_f64() * 1000.0;
    let report = &mut run.report;
    report.put(cell, "until the last answer", "ms", server, took);
    let cpu = it.cpu.as_secs_f64();
    report.put(cell, "server CPU", "s", server, cpu);
    report.put(cell, "bytes sent", "B", server, float(it.bytes_out));
    let bytes = float(it.resource_bytes);
    report.put(cell, RESOURCE_BYTES, "B", server, bytes);
    // All are back and hear of what comes.
    let probe = Series {
        touched: Touched::OneEndpoint,
        changes: 1,
        interval: interval_of(cell, Touched::OneEndpoint),
        bytes: 0,
    };
    let missing = float(contender.change(&probe)?.missing);
    run.report.put(cell, "streams lost", "", server, missing);
    Ok(())
}

fn whole_run(run: &mut Run<'_>, size: Size, contenders: &mut [Contender]) -> anyhow::Result<()> {
    for contender in contenders {
        let peak = float(contender.memory()?.1);
        let cell = size.cell("whole run");
        let report = &mut run.report;
        report.put(cell, "peak memory", "B", contender.server, peak);
    }
    Ok(())
}

// Ours and the floor, so that it shows in what ours is over it.
fn look(run: &mut Run<'_>, cell: Cell, contenders: &mut [Contender]) {
    let interval = interval_of(cell, Touched::OneEndpoint);
    let whole = if run.options.quick {
        QUICK_PROFILE
    } else {
        PROFILE
    };
    let changes = whole.as_millis() / interval.as_millis().max(1);
    let unprofiled = Cell {
        scenario: "one endpoint",
        ..cell
    };
    let series = Series {
        touched: Touched::OneEndpoint,
        changes: u32::try_from(changes).unwrap_or(u32::MAX).clamp(3, 100),
        interval,
        bytes: isthmus_bytes(run, unprofiled),
    };
    for contender in contenders {
        let server = contender.server;
        if server.is_go_control_plane() {
            continue;
        }
        run.say(&format!("{} under a profiler", server.name()));
        let profiled = profile::during(contender, &series, &run.places.files);
        match profiled {
            Ok(profile) => profile.put(&mut run.report, cell, server),
            // Not every machine has a profiler, and none is needed to measure.
            Err(error) => run.say(&format!("no profile: {error:#}")),
        }
    }
}
