//! One control plane, one Envoy and one backend on loopback, and ways to wait for what each of them says.

use std::net::{SocketAddrV4, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use isthmus_integration_tests::backend::Backend;
use isthmus_integration_tests::control_plane::{ControlPlane, ControlPlanePlan};
use isthmus_integration_tests::envoy::{EnvoyPlan, Protocol, RealEnvoy};
use isthmus_integration_tests::http::{HttpConnection, Response};
use isthmus_integration_tests::loopback::free_ports;
use isthmus_integration_tests::process::User;
use isthmus_integration_tests::sidecar::document;
use isthmus_integration_tests::wait;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a program may take to notice something.
const DEADLINE: Duration = Duration::from_secs(20);

/// The node's id and cluster.
pub(crate) const NODE: &str = "ads-node";
pub(crate) const NODE_CLUSTER: &str = "ads-cluster";

/// The file that holds all resources, so that each change is one commit.
const FILE: &str = "resources.yaml";

/// Runs a case over both variants of ADS at the same time.
pub(crate) fn over_sotw_and_delta(case: fn(Protocol) -> Result<()>) -> Result<()> {
    over(&[Protocol::Sotw, Protocol::Delta], case)
}

/// Runs a case over some protocols at the same time.
pub(crate) fn over(protocols: &[Protocol], case: fn(Protocol) -> Result<()>) -> Result<()> {
    let run = |protocol| case(protocol).with_context(|| format!("over {protocol:?}"));
    thread::scope(|scope| {
        let runs: Vec<_> = protocols
            .iter()
            .map(|&protocol| scope.spawn(move || run(protocol)))
            .collect();
        let ended = runs.into_iter().map(|run| {
            run.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        // All of them are waited for, so that each shows its log.
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

/// The programs of one case.
pub(crate) struct Lab {
    // In the order in which they must be dropped.
    envoy: Option<RealEnvoy>,
    pub(crate) control_plane: ControlPlane,
    pub(crate) protocol: Protocol,
    /// Addresses for listeners of the Envoy.
    pub(crate) listeners: [SocketAddrV4; 3],
    /// What clusters lead to.
    pub(crate) backend: Backend,
    pub(crate) xds: SocketAddrV4,
    dir: TempDir,
}

impl Lab {
    /// Nothing runs yet.
    pub(crate) fn new(protocol: Protocol) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("isthmus-ads-")
            .tempdir()
            .context("no directory for files")?;
        let [admin, xds, first, second, third] = free_ports()?;
        let control_plane = ControlPlane::prepare(ControlPlanePlan {
            admin,
            dir: dir.path().to_owned(),
            netns: None,
            xds,
        })?;
        Ok(Self {
            envoy: None,
            control_plane,
            protocol,
            listeners: [first, second, third],
            backend: Backend::start("backend")?,
            xds,
            dir,
        })
    }

    /// With both programs, and the Envoy live.
    pub(crate) fn live(
        protocol: Protocol,
        resources: impl Fn(&Self) -> Vec<Value>,
    ) -> Result<Self> {
        let mut lab = Self::new(protocol)?;
        lab.publish(&resources(&lab))?;
        lab.start()?;
        lab.wait_live()?;
        Ok(lab)
    }

    /// Starts both programs.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.start_with(|_| ())
    }

    /// Starts both programs, the Envoy with a changed bootstrap.
    pub(crate) fn start_with(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        self.control_plane.start()?;
        self.start_envoy(change)
    }

    /// Starts the Envoy, which may live without its control plane.
    pub(crate) fn start_envoy(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let plan = EnvoyPlan {
            cluster: NODE_CLUSTER,
            control_plane: self.xds,
            dir: self.dir.path(),
            id: NODE,
            netns: None,
            protocol: self.protocol,
            user: User::Caller,
        };
        let mut bootstrap = plan.bootstrap();
        if matches!(self.protocol, Protocol::Delta | Protocol::Sotw) {
            bootstrap["dynamic_resources"]["ads_config"]["set_node_on_first_message_only"] =
                json!(true);
        }
        change(&mut bootstrap);
        self.envoy = Some(RealEnvoy::start_with(&plan, &bootstrap)?);
        self.wait("an answer of Envoy's admin interface", |lab| {
            lab.envoy()?.admin("/server_info").map(drop)
        })
    }

    /// Ends the control plane's process and starts another: every stream is reset.
    pub(crate) fn restart_control_plane(&mut self) -> Result<()> {
        self.control_plane.kill()?;
        self.control_plane.start()
    }

    /// Makes these the resources, and nothing else, in one commit.
    pub(crate) fn publish(&self, resources: &[Value]) -> Result<()> {
        self.control_plane
            .publish(FILE, &document("resources", resources))
    }

    pub(crate) fn envoy(&self) -> Result<&RealEnvoy> {
        self.envoy.as_ref().context("no Envoy was started")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until the Envoy has all that it waits for at its start.
    pub(crate) fn wait_live(&mut self) -> Result<()> {
        self.envoy
            .as_mut()
            .context("no Envoy was started")?
            .wait_ready()
    }

    /// Waits until a look at the lab fails no more.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        mut look: impl FnMut(&Self) -> Result<T>,
    ) -> Result<T> {
        wait::until(what, DEADLINE, || look(self)).map_err(|error| {
            let log = self.control_plane.log().unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(12).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            anyhow!("{error:#}\nisthmus-xds says:\n{}", tail.join("\n"))
        })
    }

    /// Waits until a statistic of Envoy has a value.
    pub(crate) fn stat_is(&self, name: &str, wanted: u64) -> Result<()> {
        self.wait(&format!("{name} = {wanted}"), |lab| {
            let found = lab.envoy()?.stat(name)?;
            ensure!(found == wanted, "it is {found}");
            Ok(())
        })
    }

    /// Waits until a statistic of Envoy has a value or a larger one.
    pub(crate) fn stat_reaches(&self, name: &str, wanted: u64) -> Result<()> {
        self.wait(&format!("{name} >= {wanted}"), |lab| {
            let found = lab.envoy()?.stat(name)?;
            ensure!(found >= wanted, "it is {found}");
            Ok(())
        })
    }

    /// Fails unless every statistic of this name, of any cluster, listener or layer, is 0.
    pub(crate) fn expect_no_rejection(&self) -> Result<()> {
        let stats = self
            .envoy()?
            .admin("/stats?usedonly&filter=update_rejected$")?;
        ensure!(stats.trim().is_empty(), "Envoy refused: {stats}");
        Ok(())
    }

    /// Names in one list of one section of Envoy's dump, such as the warming clusters.
    pub(crate) fn dumped(&self, section: &str, list: &str) -> Result<Vec<Value>> {
        let dump = self.envoy()?.config_dump()?;
        let sections = dump["configs"].as_array().context("an empty dump")?;
        let is_it = |config: &&Value| {
            let name = config["@type"].as_str().unwrap_or_default();
            name.ends_with(&format!(".{section}"))
        };
        let found = sections
            .iter()
            .find(is_it)
            .with_context(|| format!("the dump has no {section}"))?;
        Ok(found[list].as_array().cloned().unwrap_or_default())
    }

    /// Names of Envoy's clusters that are in force or that warm (`dynamic_active_clusters`, `dynamic_warming_clusters`).
    pub(crate) fn clusters(&self, list: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = self
            .dumped("ClustersConfigDump", list)?
            .iter()
            .filter_map(|entry| entry["cluster"]["name"].as_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Waits until the control plane's own view of the Envoy says this of a type.
    pub(crate) fn server_says(&self, type_url: &str, wanted: &str) -> Result<Value> {
        self.wait(&format!("{wanted} for {type_url}"), |lab| {
            let status = lab.server_view(type_url)?;
            let found = status["configStatus"].as_str().unwrap_or_default();
            ensure!(found == wanted, "it is {status}");
            Ok(status)
        })
    }

    /// The control plane's own view of one type of the Envoy.
    pub(crate) fn server_view(&self, type_url: &str) -> Result<Value> {
        let clients = self.control_plane.clients_of(NODE)?;
        let types = clients
            .iter()
            .flat_map(|client| client["types"].as_array().into_iter().flatten());
        let mut of_type = types.filter(|status| status["typeUrl"] == type_url);
        of_type
            .next()
            .cloned()
            .with_context(|| format!("nobody asked for {type_url}: {clients:?}"))
    }

    /// Fails unless a request is answered by the backend, at once.
    pub(crate) fn expect_answer(&self, listener: usize) -> Result<Response> {
        let response = request(self.listeners[listener])?;
        ensure!(
            response.status == 200,
            "status {}: {}",
            response.status,
            response.text()
        );
        Ok(response)
    }

    /// Waits until a request is answered by a route of this revision.
    pub(crate) fn wait_answer(&self, listener: usize, revision: &str) -> Result<()> {
        self.wait(&format!("an answer by route {revision}"), |lab| {
            let response = lab.expect_answer(listener)?;
            let found = response.header("x-isthmus-revision").unwrap_or_default();
            ensure!(found == revision, "it came by {found:?}");
            Ok(())
        })
    }
}

fn request(listener: SocketAddrV4) -> Result<Response> {
    let stream =
        TcpStream::connect(listener).with_context(|| format!("nobody listens on {listener}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(HttpConnection::new(stream).request("GET", "host", "/", "connection: close\r\n")?)
}
