//! The mesh with the accelerator: what it takes over, that nothing notices when it dies, and that it leaves nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::accelerator::{Accelerator, HopBytes};
use isthmus_integration_tests::bpftool::Loaded;
use isthmus_integration_tests::envoy::Protocol;
use isthmus_integration_tests::iptables;
use isthmus_integration_tests::load::Load;
use isthmus_integration_tests::mesh::{CLIENT, Mesh, SERVER};
use isthmus_integration_tests::netns::{InterfaceBytes, Netns};
use isthmus_integration_tests::shell;
use isthmus_integration_tests::wait;

/// Requests that a change must not cost one of.
const REQUESTS: u64 = 20_000;

/// Connections of the load.
const CONNECTIONS: usize = 16;

/// Hops that end at a proxy, and may therefore skip TCP.
const HOPS_TO_A_PROXY: [&str; 4] = [
    "app_to_proxy",
    "app_to_proxy_return",
    "proxy_to_proxy_request",
    "proxy_to_proxy_response",
];

/// Hops that end at an application, and never skip TCP.
const HOPS_TO_AN_APPLICATION: [&str; 2] = ["proxy_to_app", "proxy_to_app_return"];

/// Part of the payload that must skip TCP on a hop towards a proxy.
const MIN_SHARE: f64 = 0.95;

/// How long a change of the agent's file may take to show.
const DEADLINE: Duration = Duration::from_secs(15);

#[test]
fn outbound_traffic_needs_no_iptables_and_keeps_its_original_destination() -> Result<()> {
    let (mesh, accelerator) = accelerated(&[CLIENT, SERVER])?;
    let client = &mesh.pod(CLIENT)?.netns;
    let before = iptables::outbound_redirects(client)?;

    let outbound = mesh.trace(CLIENT, "outbound")?;
    assert_eq!(
        outbound["local"], "198.19.0.10:80",
        "the sidecar sees what the application dialled: {outbound}"
    );
    let inbound = mesh.trace(SERVER, "inbound")?;
    let server = mesh.pod(SERVER)?.address;
    assert_eq!(inbound["local"], format!("{server}:8080"), "{inbound}");

    requests(&mesh, 1000)?;
    assert_eq!(
        iptables::outbound_redirects(client)?,
        before,
        "no connection of the application met the rule"
    );
    drop(accelerator);
    Ok(())
}

// The client is left to iptables, so that its sidecar dials as one on another node does.
#[test]
fn what_arrives_needs_no_iptables_and_keeps_its_original_destination() -> Result<()> {
    let (mesh, accelerator) = accelerated(&[SERVER])?;
    let links = accelerator.pin_dir().join("links");
    wait::until("a link to the namespace", DEADLINE, || {
        let mut names = std::fs::read_dir(&links)?
            .flatten()
            .map(|file| file.file_name());
        let is_link = |name: std::ffi::OsString| {
            let name = name.to_string_lossy().into_owned();
            name.starts_with("isthmus_sk_lookup-")
        };
        names.any(is_link).then_some(()).context("there is none")
    })?;
    let server = mesh.pod(SERVER)?;
    let mut flush = server.netns.command("iptables");
    shell::capture(flush.args(["--wait", "--table", "nat", "--flush"]))?;
    let rules = iptables::counts(&server.netns)?;
    assert_eq!(rules, [], "nothing is captured by iptables");

    requests(&mesh, 100)?;
    let inbound = mesh.trace(SERVER, "inbound")?;
    let address = server.address;
    assert_eq!(inbound["local"], format!("{address}:8080"), "{inbound}");
    drop(accelerator);
    Ok(())
}

#[test]
fn small_requests_skip_tcp_towards_proxies_and_interfaces_confirm_it() -> Result<()> {
    let (mesh, accelerator) = accelerated(&[CLIENT, SERVER])?;
    // Connections are made and their first bytes sent before the measurement.
    let load = Load::start(&mesh.load_plan(CONNECTIONS)?);
    load.wait_for(REQUESTS / 10)?;

    let before = accelerator.status()?.by_hop();
    let wire_before = Wire::read(&mesh)?;
    load.wait_for(REQUESTS)?;
    let wire = Wire::read(&mesh)?.since(wire_before);
    let after = accelerator.status()?.by_hop();
    load.finish()?.expect_no_failure(REQUESTS)?;

    let moved = |hop: &str| -> Result<HopBytes> {
        let bytes = after
            .get(hop)
            .with_context(|| format!("status has no hop {hop}: {after:?}"))?;
        Ok(bytes.since(before.get(hop).copied().unwrap_or_default()))
    };
    let mut on_veth = 0;
    for hop in HOPS_TO_A_PROXY {
        let bytes = moved(hop)?;
        ensure!(
            bytes.total > REQUESTS * 30,
            "{hop} carried {} bytes: too few to tell",
            bytes.total
        );
        let share = bytes.share().context("bytes were sent")?;
        ensure!(
            share >= MIN_SHARE,
            "{hop}: only {:.1} % of {} bytes skipped TCP",
            share * 100.0,
            bytes.total
        );
        if hop.starts_with("proxy_to_proxy") {
            on_veth += bytes.total;
        }
    }
    let mut on_loopback = 0;
    for hop in HOPS_TO_AN_APPLICATION {
        let bytes = moved(hop)?;
        assert_eq!(bytes.redirected, 0, "{hop} ends at an application");
        on_loopback += bytes.total;
    }

    // Interfaces count headers too: with TCP, the wire would carry more than the payload.
    ensure!(
        wire.veth < on_veth / 10,
        "{} bytes on the veth for {on_veth} of payload",
        wire.veth
    );
    ensure!(
        wire.loopback >= on_loopback,
        "{} bytes on loopback, {on_loopback} of payload",
        wire.loopback
    );
    Ok(())
}

#[test]
fn a_killed_agent_costs_no_request_and_its_successor_adopts_what_it_left() -> Result<()> {
    let (mesh, mut accelerator) = accelerated(&[CLIENT, SERVER])?;
    let programs = Loaded::read()?;
    let client = &mesh.pod(CLIENT)?.netns;
    let before = iptables::outbound_redirects(client)?;
    let load = Load::start(&mesh.load_plan(CONNECTIONS)?);
    load.wait_for(REQUESTS / 4)?;

    accelerator.kill()?;
    load.wait_for(REQUESTS / 4)?;
    requests(&mesh, 100)?;
    assert_eq!(
        iptables::outbound_redirects(client)?,
        before,
        "connections are accelerated while no agent runs"
    );
    let orphaned = accelerator.status()?;
    assert_eq!(orphaned.pods.len(), 2, "status works while no agent runs");

    accelerator.start(2)?;
    load.wait_for(REQUESTS / 4)?;
    requests(&mesh, 100)?;
    assert_eq!(
        iptables::outbound_redirects(client)?,
        before,
        "connections are accelerated by what was adopted"
    );
    assert_eq!(
        Loaded::read()?.programs,
        programs.programs,
        "the same programs serve, not new ones"
    );
    load.wait_for(REQUESTS / 4)?;
    load.finish()?.expect_no_failure(REQUESTS)
}

#[test]
fn pods_come_and_go_with_the_file_under_load() -> Result<()> {
    let (mesh, accelerator) = accelerated(&[])?;
    let client = mesh.pod(CLIENT)?;
    let load = Load::start(&mesh.load_plan(CONNECTIONS)?);
    load.wait_for(REQUESTS / 4)?;

    accelerator.write_pods(&[client, mesh.pod(SERVER)?])?;
    accelerator.wait_loaded(2)?;
    let before = iptables::outbound_redirects(&client.netns)?;
    requests(&mesh, 100)?;
    assert_eq!(
        iptables::outbound_redirects(&client.netns)?,
        before,
        "the pod that was added is accelerated"
    );
    load.wait_for(REQUESTS / 4)?;

    accelerator.write_pods(&[mesh.pod(SERVER)?])?;
    accelerator.wait_loaded(1)?;
    requests(&mesh, 100)?;
    assert_eq!(
        iptables::outbound_redirects(&client.netns)?,
        before + 100,
        "the pod that was removed uses its rules"
    );
    load.wait_for(REQUESTS / 2)?;
    load.finish()?.expect_no_failure(REQUESTS)
}

#[test]
fn detaching_under_load_falls_back_to_iptables_and_leaves_nothing() -> Result<()> {
    let before = Loaded::read()?;
    let (mesh, mut accelerator) = accelerated(&[CLIENT, SERVER])?;
    let client = &mesh.pod(CLIENT)?.netns;
    ensure!(
        Loaded::read()?.since(&before).programs.len() >= 4,
        "the programs are loaded"
    );
    let load = Load::start(&mesh.load_plan(CONNECTIONS)?);
    load.wait_for(REQUESTS / 2)?;

    accelerator.detach()?;
    let redirects = iptables::outbound_redirects(client)?;
    requests(&mesh, 100)?;
    assert_eq!(
        iptables::outbound_redirects(client)?,
        redirects + 100,
        "new connections follow the rules"
    );
    load.wait_for(REQUESTS / 2)?;
    load.finish()?.expect_no_failure(REQUESTS)?;

    ensure!(!accelerator.pin_dir().exists(), "the pins are gone");
    // The kernel frees programs and maps once their last user is gone, a moment later.
    wait::until("the end of all programs, maps and links", DEADLINE, || {
        let left = Loaded::read()?.since(&before);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

#[test]
fn an_agent_without_rights_says_what_is_missing_and_exits_with_2() -> Result<()> {
    let (status, stderr) = Accelerator::run_without_rights()?;
    assert_eq!(status.code(), Some(2), "{stderr}");
    let errors: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    assert_eq!(errors.len(), 1, "one error: {stderr}");
    assert!(
        stderr.contains("root") || stderr.contains("CAP_"),
        "it names the right: {stderr}"
    );
    Ok(())
}

/// A mesh and an agent that knows these pods.
fn accelerated(pods: &[&str]) -> Result<(Mesh, Accelerator)> {
    let mesh = Mesh::start(Protocol::Delta)?;
    let mut accelerator = Accelerator::prepare(mesh.lab().dir())?;
    let known: Result<Vec<_>> = pods.iter().map(|name| mesh.pod(name)).collect();
    accelerator.write_pods(&known?)?;
    // Connections that the sidecars made while they started are not accelerated: begin without any.
    mesh.wait_idle()?;
    accelerator.start(pods.len())?;
    Ok((mesh, accelerator))
}

/// Sends requests, each on a connection of its own.
fn requests(mesh: &Mesh, count: u64) -> Result<()> {
    for request in 1..=count {
        let response = mesh
            .request("")
            .with_context(|| format!("request {request} of {count}"))?;
        ensure!(
            response.status == 200,
            "request {request} of {count}: status {}",
            response.status
        );
    }
    Ok(())
}

/// Bytes on the interfaces of both pods.
#[derive(Clone, Copy, Debug)]
struct Wire {
    loopback: u64,
    veth: u64,
}

impl Wire {
    fn read(mesh: &Mesh) -> Result<Self> {
        let (client, server) = (&mesh.pod(CLIENT)?.netns, &mesh.pod(SERVER)?.netns);
        let received = |netns: &Netns| -> Result<u64> {
            let InterfaceBytes { received, .. } = netns.interface_bytes("lo")?;
            Ok(received)
        };
        let veth = client.interface_bytes("eth0")?;
        Ok(Self {
            loopback: received(client)? + received(server)?,
            veth: veth.received + veth.sent,
        })
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            loopback: self.loopback - earlier.loopback,
            veth: self.veth - earlier.veth,
        }
    }
}
