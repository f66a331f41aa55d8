//! Everything that happens to an agent in its life, under load and with a thousand connections that hold
//! unread bytes: no request fails, no byte is lost, nothing is left.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use isthmus_accel_abi::{ABI_VERSION, PodConfig, map};
use isthmus_accel_datapath::linux::retire_others;
use isthmus_integration_tests::wait;

use crate::{
    agent::Agent,
    idle::IdleConnections,
    mesh::{Mesh, PATIENCE},
    objects::Objects,
    traffic::Traffic,
    versions::{install, other_versions},
};

/// Connections that send requests all the time.
const WORKERS: usize = 8;
/// Requests between two events.
const REQUESTS: u64 = 5_000;
/// Idle connections that are opened under each of the four regimes.
const IDLE: usize = 250;

#[test]
fn nothing_that_happens_to_an_agent_costs_a_request_or_a_byte() -> Result<()> {
    let mesh = Mesh::start()?;
    let (rules, pods) = (mesh.rules()?, mesh.pods()?);
    let mut agent = Agent::prepare(&mesh)?;
    let mut objects = Objects::default();
    let mut idle = IdleConnections::default();
    let [older, newer] = other_versions();
    let config = PodConfig::istio_default();
    let dir = |version| agent.pin_root().join(format!("v{version}"));
    let (older_dir, own_dir, newer_dir) = (dir(1), dir(ABI_VERSION), dir(newer.abi_version));

    install(&older_dir, &older, config, &pods);
    let traffic = Traffic::start(&mesh, WORKERS, Duration::ZERO);
    let mut events = Vec::new();
    let mut lived_through = |event: &str, agent: &Agent| -> Result<()> {
        traffic
            .wait_for(REQUESTS)
            .with_context(|| event.to_owned())?;
        events.push(event.to_owned());
        objects.note(agent.pin_root())
    };
    idle.open(&mesh, IDLE)?;
    lived_through("the version before", &agent)?;

    agent.start()?;
    idle.open(&mesh, IDLE)?;
    lived_through("upgrade", &agent)?;

    agent.kill()?;
    lived_through("SIGKILL", &agent)?;
    agent.start()?;
    lived_through("restart", &agent)?;

    // Programs of another build: here, because one of their maps is another one.
    agent.terminate()?;
    fs::remove_file(own_dir.join("maps").join(map::COUNTERS))?;
    agent.start()?;
    idle.open(&mesh, IDLE)?;
    lived_through("programs replaced in place", &agent)?;
    agent.terminate()?;

    install(&newer_dir, &newer, config, &pods);
    let retired = retire_others(&newer_dir)?;
    ensure!(retired.len() == 2, "{retired:?}");
    idle.open(&mesh, IDLE)?;
    lived_through("a newer version", &agent)?;
    agent.start()?;
    let others = agent.status()?["other_versions"].clone();
    ensure!(others.as_array().map(Vec::len) == Some(2), "{others}");
    lived_through("downgrade", &agent)?;

    let status = agent.status()?;
    let hops = status["hops"].as_array().context("a list")?;
    let redirected: u64 = hops
        .iter()
        .filter_map(|hop| hop["bytes_redirected"].as_u64())
        .sum();
    ensure!(redirected > 0, "nothing has skipped TCP: {hops:?}");
    agent.terminate()?;
    let answer = agent.detach()?;
    ensure!(!agent.pin_root().exists(), "pins are left");
    let unread = answer
        .lines()
        .find(|line| line.contains("can still be read"));
    let unread = unread.with_context(|| answer.clone())?.to_owned();
    let by_rules = mesh.redirects_by_iptables()?;
    lived_through("detach", &agent)?;
    ensure!(
        mesh.redirects_by_iptables()? > by_rules,
        "the rules are at work"
    );
    agent.start()?;
    lived_through("first start again", &agent)?;
    agent.terminate()?;
    agent.detach()?;
    lived_through("last detach", &agent)?;

    let sent = idle.unread_bytes();
    idle.finish()?;
    let (requests, rate) = traffic.finish()?;
    println!(
        "{requests} requests, {rate}/s, {sent} bytes sent to nobody, through {}; {unread}",
        events.join(", ")
    );
    wait::until("the kernel to let go", PATIENCE, || {
        let left = objects.left()?;
        ensure!(left.is_empty(), "of {}: {left:?}", objects.len());
        Ok(())
    })?;
    ensure!(mesh.rules()? == rules, "the rules are others");
    Ok(())
}

/// The agent sweeps every minute.
const SWEEP_PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn pods_come_and_go_under_load_and_leave_no_entry() -> Result<()> {
    const ROUNDS: u64 = 10;
    let mesh = Mesh::start()?;
    let mut agent = Agent::prepare(&mesh)?;
    agent.start()?;
    agent.follow(&mesh, 0)?;
    let traffic = Traffic::start(&mesh, WORKERS, Duration::from_millis(1));
    for _ in 0..ROUNDS {
        for pods in [2, 1, 2, 0] {
            agent.follow(&mesh, pods)?;
            traffic.wait_for(REQUESTS / 20)?;
        }
    }
    let (requests, rate) = traffic.finish()?;
    println!("{requests} requests, {rate}/s, {ROUNDS} rounds");
    wait::until("the last entry to go", SWEEP_PATIENCE, || {
        let left = entries(&agent)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    agent.terminate()?;
    agent.detach().map(drop)
}

/// The maps that have entries, with their number.
fn entries(agent: &Agent) -> Result<Vec<(String, u64)>> {
    let status = agent.status()?;
    let maps = status["maps"].as_array().context("a list")?.iter();
    let entries: Result<Vec<_>> = maps
        .map(|map| {
            let name = map["name"].as_str().context("a name")?;
            let entries = map["entries"].as_u64().context("a number")?;
            Ok((name.to_owned(), entries))
        })
        .collect();
    let mut entries = entries?;
    ensure!(entries.len() > 10, "{entries:?}");
    entries.retain(|(_, entries)| *entries > 0);
    Ok(entries)
}
