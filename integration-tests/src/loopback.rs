//! The control-plane half of a mesh, for machines without root or BPF: `isthmus-xds` and a real Envoy on loopback.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::control_plane::{ControlPlane, ControlPlanePlan};
use crate::envoy::{EnvoyPlan, Protocol, RealEnvoy};
use crate::http::HttpConnection;
use crate::load::LoadPlan;
use crate::process::User;
use crate::sidecar::{edge_document, edge_route_document, require_revision};
use crate::wait;

/// How long a change may take from the file to an answer.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);

/// A control plane and one Envoy that answers by itself.
#[derive(Debug)]
pub struct LoopbackMesh {
    // In the order in which they must be dropped.
    envoy: RealEnvoy,
    /// The control plane, with the Envoy's documents.
    pub control_plane: ControlPlane,
    address: SocketAddrV4,
    _dir: TempDir,
}

impl LoopbackMesh {
    /// Starts both and waits until a route of this revision answers.
    ///
    /// # Errors
    ///
    /// When a part of it does not start.
    pub fn start(protocol: Protocol, revision: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("isthmus-loopback-")
            .tempdir()
            .context("no directory for files")?;
        let [address, xds, admin] = free_ports()?;
        let plan = ControlPlanePlan {
            admin,
            dir: dir.path().to_owned(),
            netns: None,
            xds,
        };
        let mut control_plane = ControlPlane::prepare(plan)?;
        control_plane.publish("edge.yaml", &edge_document(protocol, address))?;
        control_plane.publish("routes.yaml", &edge_route_document(revision))?;
        control_plane.start()?;

        let mut envoy = RealEnvoy::start(&EnvoyPlan {
            cluster: "edge",
            control_plane: xds,
            dir: dir.path(),
            id: "edge-1",
            netns: None,
            protocol,
            user: User::Caller,
        })?;
        envoy.wait_ready()?;
        let mesh = Self {
            envoy,
            control_plane,
            address,
            _dir: dir,
        };
        mesh.wait_revision(revision)?;
        Ok(mesh)
    }

    /// The Envoy.
    pub fn envoy(&self) -> &RealEnvoy {
        &self.envoy
    }

    /// Writes the route with another revision.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn publish_route(&self, revision: &str) -> Result<()> {
        self.control_plane
            .publish("routes.yaml", &edge_route_document(revision))
    }

    /// Waits until a request is answered by a route of this revision.
    ///
    /// # Errors
    ///
    /// When that does not happen in time.
    pub fn wait_revision(&self, revision: &str) -> Result<()> {
        wait::until(
            &format!("an answer by route {revision}"),
            CHANGE_DEADLINE,
            || {
                let stream = TcpStream::connect(self.address)?;
                let response = HttpConnection::new(stream).request(
                    "GET",
                    "edge",
                    "/",
                    "connection: close\r\n",
                )?;
                require_revision(&response, revision)
            },
        )
    }

    /// Load on the Envoy.
    pub fn load_plan(&self, connections: usize) -> LoadPlan {
        LoadPlan {
            connections,
            host: "edge".to_owned(),
            netns: None,
            target: self.address,
        }
    }
}

/// Ports of loopback that nobody listens on. All are held until the last is known, so that they differ.
///
/// # Errors
///
/// When there is none.
pub fn free_ports<const N: usize>() -> Result<[SocketAddrV4; N]> {
    let mut listeners = Vec::new();
    let mut ports = [SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0); N];
    for port in &mut ports {
        let listener = TcpListener::bind(*port).context("loopback has no free port")?;
        port.set_port(listener.local_addr()?.port());
        listeners.push(listener);
    }
    Ok(ports)
}
