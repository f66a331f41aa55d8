//! A whole mesh on one machine: control plane, two pods with sidecars, an application in one of them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::control_plane::{ControlPlane, ControlPlanePlan};
use crate::envoy::{EnvoyPlan, Protocol, RealEnvoy};
use crate::http::{HttpConnection, Response};
use crate::iptables::Capture;
use crate::lab::{NODE_ADDRESS, NetnsLab, Pod, SERVICE_ADDRESS};
use crate::load::LoadPlan;
use crate::process::{Process, User};
use crate::sidecar::{TRACE_HEADER, mesh_document, require_revision, route_document};
use crate::{nginx, wait};

/// The pod that requests come from.
pub const CLIENT: &str = "client";
/// The pod that answers.
pub const SERVER: &str = "server";

/// Port of the service.
pub const SERVICE_PORT: u16 = 80;

/// Revision of the first route.
pub const FIRST_REVISION: &str = "r1";

/// How long a change may take from the file to an answer.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);

/// How long idle connections between the sidecars may take to be closed.
const IDLE_DEADLINE: Duration = Duration::from_secs(15);

/// What answers behind the server's sidecar.
#[derive(Clone, Copy, Debug)]
pub enum Application {
    /// nginx, with the pod's name in every answer.
    Nginx,
    /// Whatever this starts on [`nginx::APPLICATION_PORT`].
    Custom(fn(&Pod) -> Result<Process>),
}

impl Application {
    fn start(self, pod: &Pod) -> Result<Process> {
        match self {
            Self::Nginx => nginx::start(pod),
            Self::Custom(start) => start(pod),
        }
    }
}

/// A running mesh. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Mesh {
    // In the order in which they must be dropped.
    sidecars: BTreeMap<String, RealEnvoy>,
    applications: BTreeMap<String, Process>,
    /// The control plane, with the mesh's documents.
    pub control_plane: ControlPlane,
    lab: NetnsLab,
    /// Pods that are endpoints of the service.
    endpoints: Vec<String>,
    protocol: Protocol,
}

impl Mesh {
    /// Starts a mesh of a client and a server and waits until it answers a request.
    ///
    /// # Errors
    ///
    /// When a part of it does not start.
    pub fn start(protocol: Protocol) -> Result<Self> {
        Self::start_with(protocol, Application::Nginx)
    }

    /// As [`Self::start`], with an application of the caller's.
    ///
    /// # Errors
    ///
    /// When a part of it does not start.
    pub fn start_with(protocol: Protocol, application: Application) -> Result<Self> {
        let lab = NetnsLab::create()?;
        let plan = ControlPlanePlan::on(NODE_ADDRESS, Some(lab.node().path()), lab.dir());
        let control_plane = ControlPlane::prepare(plan)?;
        let mut mesh = Self {
            sidecars: BTreeMap::new(),
            applications: BTreeMap::new(),
            control_plane,
            lab,
            endpoints: vec![SERVER.to_owned()],
            protocol,
        };

        mesh.lab.add_pod(CLIENT, Some(&Capture::default()))?;
        let server = mesh.lab.add_pod(SERVER, Some(&Capture::default()))?;
        let process = application.start(server)?;
        mesh.applications.insert(SERVER.to_owned(), process);
        mesh.publish_endpoints()?;
        mesh.publish_route(FIRST_REVISION)?;
        mesh.control_plane.start()?;
        mesh.start_sidecar(CLIENT)?;
        mesh.start_sidecar(SERVER)?;
        mesh.wait_revision(FIRST_REVISION)?;
        Ok(mesh)
    }

    /// Adds a pod with an application and a sidecar, and makes it an endpoint of the service.
    ///
    /// # Errors
    ///
    /// When a part of it does not start.
    pub fn add_server(&mut self, name: &str) -> Result<()> {
        let process = nginx::start(self.lab.add_pod(name, Some(&Capture::default()))?)?;
        self.applications.insert(name.to_owned(), process);
        self.start_sidecar(name)?;
        self.endpoints.push(name.to_owned());
        self.publish_endpoints()
    }

    /// Adds a pod without a sidecar, without rules and without an application.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn add_plain_pod(&mut self, name: &str) -> Result<()> {
        self.lab.add_pod(name, None).map(drop)
    }

    /// Takes a pod out of the service; its application and its sidecar go on to run.
    ///
    /// # Errors
    ///
    /// When the endpoints cannot be written.
    pub fn withdraw_server(&mut self, name: &str) -> Result<()> {
        self.endpoints.retain(|endpoint| endpoint != name);
        self.publish_endpoints()
    }

    /// The pods.
    pub fn lab(&self) -> &NetnsLab {
        &self.lab
    }

    /// A pod.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.lab.pod(name)
    }

    /// The sidecar of a pod.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn sidecar(&self, pod: &str) -> Result<&RealEnvoy> {
        self.sidecars
            .get(pod)
            .with_context(|| format!("pod {pod} has no sidecar"))
    }

    /// Writes the route with another revision.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn publish_route(&self, revision: &str) -> Result<()> {
        self.control_plane
            .publish("routes.yaml", &route_document(revision))
    }

    /// Sends one request from the client's application to the service.
    ///
    /// # Errors
    ///
    /// When there is no answer; any status is one.
    pub fn request(&self, headers: &str) -> Result<Response> {
        request_service(self.pod(CLIENT)?, "/", headers)
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
                let response = self.request("")?;
                require_revision(&response, revision)
            },
        )
    }

    /// Sends one request that both sidecars log, and returns what the sidecar of `pod` wrote about it.
    ///
    /// # Errors
    ///
    /// When the request fails or is not logged.
    pub fn trace(&self, pod: &str, trace: &str) -> Result<Value> {
        let response = self.request(&format!("{TRACE_HEADER}: {trace}\r\n"))?;
        ensure!(
            response.status == 200,
            "status {}: {}",
            response.status,
            response.text()
        );
        let sidecar = self.sidecar(pod)?;
        wait::until(&format!("the log line of {trace}"), CHANGE_DEADLINE, || {
            let lines = sidecar.access_log(trace)?;
            lines.into_iter().next().context("it is not there")
        })
    }

    /// Load from the client to the service.
    ///
    /// # Errors
    ///
    /// When there is no client.
    pub fn load_plan(&self, connections: usize) -> Result<LoadPlan> {
        Ok(LoadPlan {
            connections,
            host: "server.default".to_owned(),
            netns: Some(self.pod(CLIENT)?.netns.path()),
            target: SocketAddrV4::new(SERVICE_ADDRESS, SERVICE_PORT),
        })
    }

    /// Waits until the sidecars hold no connection, so that the next request makes new ones everywhere.
    ///
    /// # Errors
    ///
    /// When somebody keeps one open.
    pub fn wait_idle(&self) -> Result<()> {
        for (pod, sidecar) in &self.sidecars {
            wait::until(
                &format!("idle connections of {pod} to be closed"),
                IDLE_DEADLINE,
                || {
                    let open = sidecar.data_connections()?;
                    ensure!(open == 0, "{open} are open");
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    /// The service, for wrk.
    pub fn url(&self) -> String {
        format!("http://{SERVICE_ADDRESS}:{SERVICE_PORT}/")
    }

    fn publish_endpoints(&self) -> Result<()> {
        let servers: Result<Vec<Ipv4Addr>> = self
            .endpoints
            .iter()
            .map(|name| Ok(self.pod(name)?.address))
            .collect();
        self.control_plane
            .publish("mesh.yaml", &mesh_document(self.protocol, &servers?))
    }

    fn start_sidecar(&mut self, name: &str) -> Result<()> {
        let sidecar = start_sidecar(self.lab.pod(name)?, self.protocol)?;
        self.sidecars.insert(name.to_owned(), sidecar);
        Ok(())
    }
}

/// Starts the sidecar of a pod, and waits until it has what the node's control plane has for it.
///
/// # Errors
///
/// When it does not start.
pub fn start_sidecar(pod: &Pod, protocol: Protocol) -> Result<RealEnvoy> {
    let mut sidecar = RealEnvoy::start(&EnvoyPlan {
        cluster: "lab",
        control_plane: SocketAddrV4::new(NODE_ADDRESS, crate::control_plane::XDS_PORT),
        dir: &pod.dir,
        id: &format!(
            "sidecar~{}~{}.default~default.svc.cluster.local",
            pod.address, pod.name
        ),
        netns: Some(&pod.netns.path()),
        protocol,
        user: User::Proxy,
    })?;
    sidecar.wait_ready()?;
    Ok(sidecar)
}

/// Sends one request from a pod's application to the service.
///
/// # Errors
///
/// When there is no answer; any status is one.
pub fn request_service(pod: &Pod, path: &str, headers: &str) -> Result<Response> {
    let address = SocketAddrV4::new(SERVICE_ADDRESS, SERVICE_PORT);
    let stream = pod.netns.enter(|| TcpStream::connect(address))??;
    stream.set_read_timeout(Some(CHANGE_DEADLINE))?;
    let headers = format!("connection: close\r\n{headers}");
    Ok(HttpConnection::new(stream).request("GET", "server.default", path, &headers)?)
}
