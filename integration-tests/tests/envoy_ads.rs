//! A real Envoy gets everything from `isthmus-xds`, over each protocol, and no change of it costs a request.

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::control_plane::ControlPlane;
use isthmus_integration_tests::envoy::{Protocol, RealEnvoy};
use isthmus_integration_tests::load::{Load, LoadReport};
use isthmus_integration_tests::mesh::{CLIENT, FIRST_REVISION, Mesh, SERVER};
use isthmus_integration_tests::sidecar::{OUTBOUND_ROUTES, SERVICE_CLUSTER};
use isthmus_integration_tests::wait;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// Requests that a change must not cost one of.
const REQUESTS: u64 = 20_000;

/// Connections of the load.
const CONNECTIONS: usize = 16;

/// How long a program may take to notice something.
const DEADLINE: Duration = Duration::from_secs(15);

#[test]
fn envoy_gets_everything_over_ads_sotw() -> Result<()> {
    gets_everything(Protocol::Sotw)
}

#[test]
fn envoy_gets_everything_over_ads_delta() -> Result<()> {
    gets_everything(Protocol::Delta)
}

#[test]
fn envoy_gets_everything_over_a_stream_for_each_type() -> Result<()> {
    gets_everything(Protocol::PerType)
}

fn gets_everything(protocol: Protocol) -> Result<()> {
    let mesh = Mesh::start(protocol)?;
    let server = mesh.pod(SERVER)?.address;

    let outbound = mesh.trace(CLIENT, "outbound")?;
    assert_eq!(
        outbound["local"], "198.19.0.10:80",
        "the sidecar sees what the application dialled: {outbound}"
    );
    assert_eq!(outbound["upstream"], format!("{server}:8080"), "{outbound}");
    let inbound = mesh.trace(SERVER, "inbound")?;
    assert_eq!(inbound["local"], format!("{server}:8080"), "{inbound}");
    assert_eq!(
        mesh.request("")?.text(),
        "server\n",
        "the application answers"
    );

    for pod in [CLIENT, SERVER] {
        let sidecar = mesh.sidecar(pod)?;
        let dump = sidecar.config_dump()?;
        for (section, names) in [
            (
                "ListenersConfigDump",
                &["virtualInbound", "virtualOutbound"][..],
            ),
            (
                "ClustersConfigDump",
                &["InboundPassthroughCluster", SERVICE_CLUSTER],
            ),
            ("RoutesConfigDump", &[OUTBOUND_ROUTES]),
            ("EndpointsConfigDump", &[SERVICE_CLUSTER]),
        ] {
            expect_names(&dump, section, names)
                .with_context(|| format!("{pod} over {protocol:?}"))?;
        }
        assert_eq!(rejected(sidecar)?, 0, "{pod} refuses nothing");
    }
    Ok(())
}

#[test]
fn a_route_change_under_load_fails_no_request_over_sotw() -> Result<()> {
    changes_route_under_load(Protocol::Sotw)
}

#[test]
fn a_route_change_under_load_fails_no_request_over_delta() -> Result<()> {
    changes_route_under_load(Protocol::Delta)
}

fn changes_route_under_load(protocol: Protocol) -> Result<()> {
    let mesh = Mesh::start(protocol)?;
    let report = under_load(&mesh, |load| {
        mesh.publish_route("r2")?;
        mesh.wait_revision("r2")?;
        load.wait_for(REQUESTS / 3)
    })?;
    assert!(
        report
            .by_revision
            .get("r2")
            .is_some_and(|&answers| answers > REQUESTS / 4),
        "{report:?}"
    );
    assert_eq!(
        report.reversals, 0,
        "no connection sees the old route after the new one: {report:?}"
    );
    Ok(())
}

#[test]
fn an_endpoint_joins_and_leaves_under_load() -> Result<()> {
    let mut mesh = Mesh::start(Protocol::Delta)?;
    let load = Load::start(&mesh.load_plan(CONNECTIONS)?);
    load.wait_for(REQUESTS / 4)?;

    mesh.add_server("server-2")?;
    wait_answers(&mesh, &["server\n", "server-2\n"])?;
    load.wait_for(REQUESTS / 4)?;

    mesh.withdraw_server(SERVER)?;
    wait_answers(&mesh, &["server-2\n"])?;
    load.wait_for(REQUESTS / 2)?;
    load.finish()?.expect_no_failure(REQUESTS)
}

/// Waits until a row of requests is answered by all of these applications and no other.
fn wait_answers(mesh: &Mesh, expected: &[&str]) -> Result<()> {
    wait::until(&format!("answers by {expected:?}"), DEADLINE, || {
        let answers: Result<BTreeSet<String>> =
            (0..20).map(|_| Ok(mesh.request("")?.text())).collect();
        let answers = answers?;
        ensure!(answers.iter().eq(expected), "answers come from {answers:?}");
        Ok(())
    })
}

#[test]
fn a_bad_file_under_load_changes_nothing_until_it_is_repaired() -> Result<()> {
    let mesh = Mesh::start(Protocol::Sotw)?;
    let report = under_load(&mesh, |load| {
        mesh.control_plane.publish_text(
            "routes.yaml",
            "apiVersion: isthmus.io/v1alpha1\nkind: EnvoyResources\n  broken",
        )?;
        wait_log(&mesh.control_plane, "routes.yaml")?;
        load.wait_for(REQUESTS / 4)?;
        mesh.wait_revision(FIRST_REVISION)?;

        mesh.publish_route("r2")?;
        mesh.wait_revision("r2")?;
        load.wait_for(REQUESTS / 4)
    })?;
    let seen: Vec<&str> = report.by_revision.keys().map(String::as_str).collect();
    assert_eq!(seen, [FIRST_REVISION, "r2"], "no third state was served");
    Ok(())
}

#[test]
fn the_control_plane_restarts_under_load_and_nothing_is_applied_anew_over_sotw() -> Result<()> {
    restarts_under_load(Protocol::Sotw)
}

#[test]
fn the_control_plane_restarts_under_load_and_nothing_is_applied_anew_over_delta() -> Result<()> {
    restarts_under_load(Protocol::Delta)
}

fn restarts_under_load(protocol: Protocol) -> Result<()> {
    let mut mesh = Mesh::start(protocol)?;
    let before = applied(mesh.sidecar(CLIENT)?)?;
    let load = Load::start(&mesh.load_plan(CONNECTIONS)?);
    load.wait_for(REQUESTS / 4)?;

    let status = mesh.control_plane.terminate()?;
    assert!(status.success(), "SIGTERM is a clean end: {status}");
    comes_back(&mut mesh)?;
    load.wait_for(REQUESTS / 4)?;

    mesh.control_plane.kill()?;
    comes_back(&mut mesh)?;
    load.wait_for(REQUESTS / 4)?;
    assert_eq!(
        applied(mesh.sidecar(CLIENT)?)?,
        before,
        "the same configuration is not applied again"
    );

    mesh.publish_route("r2")?;
    mesh.wait_revision("r2")?;
    load.wait_for(REQUESTS / 4)?;
    load.finish()?.expect_no_failure(REQUESTS)
}

/// Waits until the sidecars have noticed that the control plane is gone, starts it, and waits until they are back.
fn comes_back(mesh: &mut Mesh) -> Result<()> {
    wait_connected(mesh, 0)?;
    mesh.control_plane.start()?;
    wait_connected(mesh, 1)
}

fn wait_connected(mesh: &Mesh, expected: u64) -> Result<()> {
    for pod in [CLIENT, SERVER] {
        let sidecar = mesh.sidecar(pod)?;
        wait::until(
            &format!("connected state {expected} of {pod}"),
            DEADLINE,
            || {
                let state = sidecar.stat("control_plane.connected_state")?;
                ensure!(state == expected, "it is {state}");
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Runs `change` in the middle of enough load; fails if a request did.
fn under_load(mesh: &Mesh, change: impl FnOnce(&Load) -> Result<()>) -> Result<LoadReport> {
    let load = Load::start(&mesh.load_plan(CONNECTIONS)?);
    load.wait_for(REQUESTS / 3)?;
    change(&load)?;
    load.wait_for(REQUESTS.saturating_sub(load.completed()))?;
    let report = load.finish()?;
    report.expect_no_failure(REQUESTS)?;
    Ok(report)
}

fn wait_log(control_plane: &ControlPlane, text: &str) -> Result<()> {
    wait::until(
        &format!("{text:?} in the log of isthmus-xds"),
        DEADLINE,
        || {
            ensure!(control_plane.log()?.contains(text), "it is not there");
            Ok(())
        },
    )
}

/// How often Envoy has put a configuration in place, by kind.
fn applied(sidecar: &RealEnvoy) -> Result<Vec<(&'static str, u64)>> {
    [
        "cluster_manager.cluster_modified",
        "cluster_manager.cluster_removed",
        "http.virtualOutbound.rds.80.config_reload",
        "listener_manager.listener_modified",
        "listener_manager.listener_removed",
    ]
    .into_iter()
    .map(|name| Ok((name, sidecar.stat(name)?)))
    .collect()
}

fn rejected(sidecar: &RealEnvoy) -> Result<u64> {
    let names = [
        "cluster_manager.cds.update_rejected",
        "listener_manager.lds.update_rejected",
    ];
    names.into_iter().map(|name| sidecar.stat(name)).sum()
}

/// Fails unless the dynamic part of a section of the dump holds resources of these names.
fn expect_names(dump: &Value, section: &str, names: &[&str]) -> Result<()> {
    let sections = dump["configs"]
        .as_array()
        .context("the dump has no sections")?;
    let is_it = |config: &&Value| {
        config["@type"]
            .as_str()
            .is_some_and(|name| name.ends_with(&format!(".{section}")))
    };
    let found = sections
        .iter()
        .find(is_it)
        .with_context(|| format!("the dump has no {section}"))?;
    let mut seen = BTreeSet::new();
    for (_, resources) in found
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with("dynamic_"))
    {
        collect_names(resources, &mut seen);
    }
    for name in names {
        ensure!(
            seen.contains(*name),
            "{section} lacks {name}, it has {seen:?}"
        );
    }
    Ok(())
}

/// Every `name` and `cluster_name` at any depth.
fn collect_names<'a>(value: &'a Value, names: &mut BTreeSet<&'a str>) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        if key == "name" || key == "cluster_name" {
            names.extend(inner.as_str());
        }
        collect_names(inner, names);
    }
    for inner in value.as_array().into_iter().flatten() {
        collect_names(inner, names);
    }
}
