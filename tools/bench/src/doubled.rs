//! Does a change of one endpoint cost more when there is twice as much that it does not concern?
//!
//! Four servers of one kind are up at once and take turns: one with as much as the change
//! concerns, and one each with twice the streams (of another scope; of the same scope, but of
//! other names) and twice the resources.

use anyhow::Context;

use crate::contender::{Contender, Group, MAIN, Series, Server};
use crate::report::Cell;
use crate::resources::Touched;
use crate::run::Run;
use crate::statistics::median;
use crate::turns::interval_of;

/// Streams that double at most: seven times as many are open at once.
const MAX_STREAMS: usize = 1500;
const QUICK_STREAMS: usize = 300;

/// Rounds, whose median counts, and changes in each.
const ROUNDS: usize = 7;
const QUICK_ROUNDS: usize = 3;
const CHANGES: u32 = 10;
const QUICK_CHANGES: u32 = 4;

/// What is doubled, and what its row is called.
const VARIANTS: [(&str, Extra); 3] = [
    (
        "more CPU, streams of another scope doubled",
        Extra::OtherScope,
    ),
    (
        "more CPU, streams of other names doubled",
        Extra::OtherNames,
    ),
    ("more CPU, resources doubled", Extra::Resources),
];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Extra {
    Nothing,
    OtherScope,
    OtherNames,
    Resources,
}

/// Measures ours and, in a full run, go-control-plane.
pub(crate) fn measure(run: &mut Run<'_>, streams: usize, clusters: usize) {
    let most = if run.options.quick {
        QUICK_STREAMS
    } else {
        MAX_STREAMS
    };
    let cell = Cell {
        scenario: "one endpoint, unaffected doubled",
        streams: streams.min(most),
        clusters,
        client: "delta",
    };
    for server in [Server::Isthmus, Server::GoControlPlane] {
        let is_left_out = run.options.quick && server != Server::Isthmus;
        if !run.servers().contains(&server) || is_left_out || run.report.has(cell, server) {
            continue;
        }
        let name = server.name();
        run.say(&format!(
            "what is not affected doubles: {} streams of {name}",
            cell.streams
        ));
        if let Err(error) = one_server(run, cell, server) {
            run.fail(cell, server, &error);
        }
    }
}

fn one_server(run: &mut Run<'_>, cell: Cell, server: Server) -> anyhow::Result<()> {
    let mut all = vec![start(run, cell, server, Extra::Nothing)?];
    for (_, extra) in VARIANTS {
        all.push(start(run, cell, server, extra)?);
    }
    let (rounds, changes) = if run.options.quick {
        (QUICK_ROUNDS, QUICK_CHANGES)
    } else {
        (ROUNDS, CHANGES)
    };
    let series = Series {
        touched: Touched::OneEndpoint,
        changes,
        interval: interval_of(cell, Touched::OneEndpoint),
        bytes: 0,
    };
    let mut spent = vec![Vec::new(); all.len()];
    // The first round makes caches and buffers.
    for round in 0..=rounds {
        for (contender, spent) in all.iter_mut().zip(&mut spent) {
            let cpu = contender.change(&series)?.cpu;
            if round > 0 {
                spent.push(cpu.as_secs_f64() * 1000.0 / f64::from(changes));
            }
        }
    }
    let mut medians = spent.into_iter().filter_map(median);
    let base = medians.next().context("no round was measured")?;
    let report = &mut run.report;
    report.put(cell, "server CPU per change", "ms", server, base);
    for ((name, _), median) in VARIANTS.into_iter().zip(medians) {
        let percent = (median / base - 1.0) * 100.0;
        report.put(cell, name, "%", server, percent);
    }
    Ok(())
}

fn start(run: &Run<'_>, cell: Cell, server: Server, extra: Extra) -> anyhow::Result<Contender> {
    let clusters = match extra {
        Extra::Resources => 2 * cell.clusters,
        Extra::Nothing | Extra::OtherScope | Extra::OtherNames => cell.clusters,
    };
    let mut contender = Contender::start(server, &run.places, clusters)?;
    let main = Group {
        // As many names in any case: what doubles are resources that no client asked for.
        endpoints: 0..cell.clusters,
        ..Group::all_of(MAIN)
    };
    contender.connect("delta", &main, cell.streams)?;
    match extra {
        Extra::Nothing | Extra::Resources => {}
        Extra::OtherScope => {
            contender.load("other")?;
            contender.connect("delta", &Group::all_of("other"), cell.streams)?;
        }
        Extra::OtherNames => {
            let others = Group {
                endpoints: 1..cell.clusters,
                ..Group::all_of(MAIN)
            };
            contender.connect("delta", &others, cell.streams)?;
        }
    }
    Ok(contender)
}
