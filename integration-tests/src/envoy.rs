//! A real Envoy, as a pod's sidecar or on loopback, that gets its configuration over xDS.

use std::fs;
use std::net::SocketAddrV4;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::http::HttpConnection;
use crate::process::{Process, Program, User};
use crate::{programs, wait};

/// How long Envoy may take to be live, with all that it waits for.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How long the admin interface may take to answer.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Name of the cluster that leads to the control plane.
const CONTROL_PLANE_CLUSTER: &str = "xds-grpc";

/// How an Envoy asks for its configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// One aggregated stream, incremental.
    Delta,
    /// A stream of its own for each type, state of the world.
    PerType,
    /// A stream of its own for each type, incremental.
    PerTypeDelta,
    /// One aggregated stream, state of the world.
    Sotw,
}

impl Protocol {
    /// The source of a resource that another resource names.
    pub fn config_source(self) -> Value {
        match self {
            Self::Delta | Self::Sotw => json!({"ads": {}, "resource_api_version": "V3"}),
            Self::PerType => {
                json!({"api_config_source": api_config_source("GRPC"), "resource_api_version": "V3"})
            }
            Self::PerTypeDelta => {
                json!({"api_config_source": api_config_source("DELTA_GRPC"), "resource_api_version": "V3"})
            }
        }
    }

    fn dynamic_resources(self) -> Value {
        let source = self.config_source();
        match self {
            Self::PerType | Self::PerTypeDelta => {
                json!({"lds_config": source, "cds_config": source})
            }
            Self::Sotw => {
                json!({"ads_config": api_config_source("GRPC"), "lds_config": source, "cds_config": source})
            }
            Self::Delta => {
                json!({"ads_config": api_config_source("DELTA_GRPC"), "lds_config": source, "cds_config": source})
            }
        }
    }
}

fn api_config_source(api_type: &str) -> Value {
    // Envoy's own back-off reaches 30 s: a test that restarts the control plane does not wait for that.
    let retry = json!({"retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"}});
    json!({
        "api_type": api_type,
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": CONTROL_PLANE_CLUSTER, "retry_policy": retry}}],
    })
}

/// Who an Envoy is, and where.
#[derive(Debug)]
pub struct EnvoyPlan<'a> {
    /// Cluster of its node, which selectors may match.
    pub cluster: &'a str,
    /// Where the control plane listens.
    pub control_plane: SocketAddrV4,
    /// Directory for its files, which its user may write.
    pub dir: &'a Path,
    /// Id of its node.
    pub id: &'a str,
    /// File of the namespace to run in; the caller's own if left out.
    pub netns: Option<&'a Path>,
    /// How it asks.
    pub protocol: Protocol,
    /// Who it runs as.
    pub user: User,
}

impl EnvoyPlan<'_> {
    /// The bootstrap, for changes that a test makes to it.
    pub fn bootstrap(&self) -> Value {
        json!({
            "node": {"id": self.id, "cluster": self.cluster},
            "admin": {"address": {"pipe": {"path": self.admin()}}},
            "dynamic_resources": self.protocol.dynamic_resources(),
            "static_resources": {"clusters": [control_plane_cluster(self.control_plane)]},
        })
    }

    fn admin(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }
}

/// A running Envoy.
#[derive(Debug)]
pub struct RealEnvoy {
    admin: PathBuf,
    process: Process,
}

impl RealEnvoy {
    /// Starts Envoy. It is not ready yet: see [`Self::wait_ready`].
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(plan: &EnvoyPlan<'_>) -> Result<Self> {
        Self::start_with(plan, &plan.bootstrap())
    }

    /// Starts Envoy with a bootstrap that may differ from the plan's own.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_with(plan: &EnvoyPlan<'_>, bootstrap: &Value) -> Result<Self> {
        let admin = plan.admin();
        let file = plan.dir.join("bootstrap.json");
        fs::write(&file, serde_json::to_vec_pretty(bootstrap)?)
            .with_context(|| format!("{} could not be written", file.display()))?;
        let flags = [
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warn",
        ];
        let mut args: Vec<_> = flags.map(Into::into).into();
        // Access logs are read by tests: the default lets them wait for 10 s.
        args.extend(["--file-flush-interval-msec", "50", "--config-path"].map(Into::into));
        args.push(file.into());
        let process = Process::start(&Program {
            args,
            log_dir: plan.dir,
            name: "envoy",
            netns: plan.netns,
            path: &programs::tool("envoy")?,
            user: plan.user,
        })?;
        Ok(Self { admin, process })
    }

    /// Waits until Envoy has its first listeners and clusters and accepts connections.
    ///
    /// # Errors
    ///
    /// When it ends, or is not ready in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait::until("a ready Envoy", READY_DEADLINE, || {
            self.process.check_running()?;
            let state = admin(&self.admin, "GET", "/ready")?;
            ensure!(state.trim() == "LIVE", "it says {}", state.trim());
            // Ready without listeners means that the control plane gave an empty answer.
            let listeners = admin(&self.admin, "GET", "/listeners")?;
            ensure!(!listeners.trim().is_empty(), "it has no listeners");
            Ok(())
        })
        .map_err(|error| anyhow!("{error:#}\n{}", self.process.tail()))
    }

    /// Reads a page of the admin interface, such as `/clusters`.
    ///
    /// # Errors
    ///
    /// When Envoy does not answer with 200.
    pub fn admin(&self, path: &str) -> Result<String> {
        admin(&self.admin, "GET", path)
    }

    /// Reads one counter or gauge.
    ///
    /// # Errors
    ///
    /// When Envoy does not answer. A statistic that does not exist yet is 0.
    pub fn stat(&self, name: &str) -> Result<u64> {
        let text = self.admin(&format!("/stats?filter=^{}$", name.replace('.', "\\.")))?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map_or(Ok(0), |value| {
            value
                .trim()
                .parse()
                .with_context(|| format!("statistic {name} is {value:?}"))
        })
    }

    /// How many connections it has open that carry requests of the mesh, on both sides.
    ///
    /// # Errors
    ///
    /// When Envoy does not answer.
    pub fn data_connections(&self) -> Result<u64> {
        let text = self.admin("/stats?filter=_cx_active$")?;
        let open = text.lines().filter_map(|line| line.rsplit_once(": "));
        // The stream to the control plane stays, and asking is a connection too.
        let data = open
            .filter(|(name, _)| !name.contains(CONTROL_PLANE_CLUSTER) && !name.contains(".admin."));
        data.map(|(name, value)| {
            value
                .trim()
                .parse::<u64>()
                .with_context(|| format!("{name} is {value:?}"))
        })
        .sum()
    }

    /// Reads the configuration that Envoy runs.
    ///
    /// # Errors
    ///
    /// When Envoy does not answer with JSON.
    pub fn config_dump(&self) -> Result<Value> {
        serde_json::from_str(&self.admin("/config_dump?include_eds")?)
            .context("the configuration dump is not JSON")
    }

    /// What it has logged so far of a request with this trace ([`crate::sidecar::TRACE_HEADER`]).
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn access_log(&self, trace: &str) -> Result<Vec<Value>> {
        let log = self.process.log()?;
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.filter(|line| line["trace"] == trace).collect())
    }

    /// The process, for its log.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Fails, with the end of its log, if it has ended by itself.
    ///
    /// # Errors
    ///
    /// When it is not running.
    pub fn check_running(&mut self) -> Result<()> {
        self.process.check_running()
    }
}

fn admin(socket: &Path, method: &str, path: &str) -> Result<String> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("{} does not answer", socket.display()))?;
    stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    let response =
        HttpConnection::new(stream).request(method, "admin", path, "connection: close\r\n")?;
    let text = response.text();
    // `/ready` says in its body which state Envoy is in.
    ensure!(
        response.status == 200 || path == "/ready",
        "{path} answers {}: {}",
        response.status,
        text.trim()
    );
    Ok(text)
}

/// The cluster that leads to a control plane, for a bootstrap.
fn control_plane_cluster(address: SocketAddrV4) -> Value {
    let http2 = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    let socket_address = json!({"address": address.ip().to_string(), "port_value": address.port()});
    json!({
        "name": CONTROL_PLANE_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {
            "cluster_name": CONTROL_PLANE_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": socket_address}}}]}],
        },
    })
}
