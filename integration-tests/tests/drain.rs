//! A control plane that stops hands its Envoys to another instance: it says so (GOAWAY), ends their streams one after the
//! other, and the other instance sends nothing that they already hold.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use isthmus_integration_tests::control_plane::{ControlPlane, ControlPlanePlan};
use isthmus_integration_tests::envoy::{EnvoyPlan, Protocol, RealEnvoy};
use isthmus_integration_tests::load::{Load, LoadPlan};
use isthmus_integration_tests::loopback::free_ports;
use isthmus_integration_tests::process::User;
use isthmus_integration_tests::sidecar::{edge_document, edge_route_document};
use isthmus_integration_tests::wait;
use serde_json::json;
use tempfile::TempDir;

/// Envoys that move. One more would show nothing more.
const ENVOYS: usize = 3;

const CONNECTIONS: usize = 4;
const REQUESTS: u64 = 6_000;

/// How long a program may take to notice something. A stopping server gives its streams five seconds.
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn envoys_move_to_another_instance_and_receive_nothing_they_hold_over_delta() -> Result<()> {
    moves_to_another_instance(Protocol::Delta)
}

#[test]
fn envoys_move_to_another_instance_and_apply_nothing_anew_over_sotw() -> Result<()> {
    moves_to_another_instance(Protocol::Sotw)
}

fn moves_to_another_instance(protocol: Protocol) -> Result<()> {
    let mut fleet = Fleet::start(protocol)?;
    let before = fleet.applied()?;
    let load = Load::start(&LoadPlan {
        connections: CONNECTIONS,
        host: "edge".to_owned(),
        netns: None,
        target: fleet.envoys[0].address,
    });
    load.wait_for(REQUESTS / 3)?;

    let status = fleet.leaving.terminate()?;
    ensure!(status.success(), "SIGTERM is a clean end: {status}");
    wait::until("all Envoys at the other instance", DEADLINE, || {
        fleet
            .envoys
            .iter()
            .try_for_each(|envoy| fleet.expect_settled(envoy))
    })?;
    for Member { envoy, id, .. } in &fleet.envoys {
        let told = envoy.stat("cluster.xds-grpc.upstream_cx_close_notify")?;
        ensure!(told >= 1, "{id} got no GOAWAY");
    }
    if protocol == Protocol::Delta {
        let name = "isthmus_xds_resources_sent_total";
        let sent = fleet.staying.metric(name, &[])?;
        ensure!(sent == 0, "{sent} resources were sent that were there");
    }
    ensure!(fleet.applied()? == before, "nothing is applied anew");

    // The other instance is in charge.
    fleet
        .staying
        .publish("routes.yaml", &edge_route_document("r2"))?;
    load.wait_for(REQUESTS / 3)?;
    fleet.wait_reloaded()?;
    load.wait_for(REQUESTS.saturating_sub(load.completed()))?;
    let report = load.finish()?;
    report.expect_no_failure(REQUESTS)?;
    ensure!(report.reversals == 0, "{report:?}");
    ensure!(report.by_revision.contains_key("r2"), "{report:?}");
    Ok(())
}

/// Envoys that know two instances, and are all connected to one.
struct Fleet {
    // In the order in which they must be dropped.
    envoys: Vec<Member>,
    leaving: ControlPlane,
    staying: ControlPlane,
    _dir: TempDir,
}

struct Member {
    envoy: RealEnvoy,
    id: String,
    address: SocketAddrV4,
}

impl Fleet {
    fn start(protocol: Protocol) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("isthmus-drain-")
            .tempdir()
            .context("no directory for files")?;
        let addresses: [SocketAddrV4; ENVOYS] = free_ports()?;
        let [first_xds, first_admin, second_xds, second_admin] = free_ports()?;
        let mut leaving = prepare(&dir.path().join("leaving"), first_xds, first_admin)?;
        let mut staying = prepare(&dir.path().join("staying"), second_xds, second_admin)?;
        for plane in [&leaving, &staying] {
            for (number, address) in addresses.into_iter().enumerate() {
                let mut edge = edge_document(protocol, address);
                edge["metadata"]["name"] = json!(format!("edge-{number}"));
                edge["spec"]["selector"] = json!({"id": member_id(number)});
                plane.publish(&format!("edge-{number}.yaml"), &edge)?;
            }
            plane.publish("routes.yaml", &edge_route_document("r1"))?;
        }
        // All connect to the one that is there.
        leaving.start()?;
        let mut envoys = Vec::new();
        for (number, address) in addresses.into_iter().enumerate() {
            let id = member_id(number);
            let home = dir.path().join(&id);
            std::fs::create_dir(&home)?;
            let plan = EnvoyPlan {
                cluster: "edge",
                control_plane: first_xds,
                dir: &home,
                id: &id,
                netns: None,
                protocol,
                user: User::Caller,
            };
            let mut bootstrap = plan.bootstrap();
            add_endpoint(&mut bootstrap, second_xds)?;
            let envoy = RealEnvoy::start_with(&plan, &bootstrap)?;
            envoys.push(Member { envoy, id, address });
        }
        for member in &mut envoys {
            member.envoy.wait_ready()?;
        }
        staying.start()?;
        Ok(Self {
            envoys,
            leaving,
            staying,
            _dir: dir,
        })
    }

    /// Fails unless an Envoy is at the other instance, and has what it is to have.
    fn expect_settled(&self, Member { id, .. }: &Member) -> Result<()> {
        let clients = self.staying.clients_of(id)?;
        ensure!(clients.len() == 1, "{id} has {clients:?}");
        let types = clients[0]["types"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        ensure!(types.len() >= 3, "{id} has asked for {types:?}");
        for status in types {
            ensure!(status["configStatus"] == "SYNCED", "{id}: {status}");
        }
        Ok(())
    }

    /// How often each Envoy has put a configuration in place, by kind.
    fn applied(&self) -> Result<Vec<u64>> {
        let names = [
            "listener_manager.listener_create_success",
            "listener_manager.listener_modified",
            "listener_manager.listener_removed",
            "cluster_manager.cluster_modified",
            "http.edge.rds.edge.config_reload",
        ];
        let all = self
            .envoys
            .iter()
            .flat_map(|member| names.map(|name| member.envoy.stat(name)));
        all.collect()
    }

    fn wait_reloaded(&self) -> Result<()> {
        wait::until("the changed route in all Envoys", DEADLINE, || {
            for Member { envoy, id, .. } in &self.envoys {
                let reloads = envoy.stat("http.edge.rds.edge.config_reload")?;
                ensure!(reloads == 2, "{id} has loaded {reloads}");
            }
            Ok(())
        })
    }
}

fn member_id(number: usize) -> String {
    format!("edge-{number}")
}

fn prepare(dir: &Path, xds: SocketAddrV4, admin: SocketAddrV4) -> Result<ControlPlane> {
    std::fs::create_dir(dir)?;
    ControlPlane::prepare(ControlPlanePlan {
        admin,
        dir: dir.to_owned(),
        netns: None,
        xds,
    })
}

fn add_endpoint(bootstrap: &mut serde_json::Value, address: SocketAddrV4) -> Result<()> {
    let assignment = &mut bootstrap["static_resources"]["clusters"][0]["load_assignment"];
    let Some(endpoints) = assignment["endpoints"][0]["lb_endpoints"].as_array_mut() else {
        bail!("the bootstrap has no endpoint");
    };
    let mut second = endpoints[0].clone();
    second["endpoint"]["address"]["socket_address"]["port_value"] = json!(address.port());
    endpoints.push(second);
    Ok(())
}
