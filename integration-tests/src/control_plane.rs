//! A running `isthmus-xds` with a directory of documents.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::http::{HttpConnection, Response};
use crate::process::{Process, Program, User};
use crate::{netns, programs, wait};

/// Where Envoys ask.
pub const XDS_PORT: u16 = 15010;
/// Where people and metrics ask.
pub const ADMIN_PORT: u16 = 15014;

/// How long it may take to be ready.
const READY_DEADLINE: Duration = Duration::from_secs(15);

/// Where it runs and listens.
#[derive(Clone, Debug)]
pub struct ControlPlanePlan {
    /// Where people and metrics ask.
    pub admin: SocketAddrV4,
    /// Directory for its log and its documents.
    pub dir: PathBuf,
    /// File of the namespace to run in; the caller's own if left out.
    pub netns: Option<PathBuf>,
    /// Where Envoys ask.
    pub xds: SocketAddrV4,
}

impl ControlPlanePlan {
    /// On the usual ports of an address.
    pub fn on(address: Ipv4Addr, netns: Option<PathBuf>, dir: &Path) -> Self {
        Self {
            admin: SocketAddrV4::new(address, ADMIN_PORT),
            dir: dir.to_owned(),
            netns,
            xds: SocketAddrV4::new(address, XDS_PORT),
        }
    }
}

/// A running control plane. Its documents outlive it, so that it can be started again.
#[derive(Debug)]
pub struct ControlPlane {
    documents: PathBuf,
    flags: Vec<String>,
    plan: ControlPlanePlan,
    process: Option<Process>,
    socket: Option<PathBuf>,
}

impl ControlPlane {
    /// Prepares an empty directory of documents; [`Self::start`] starts the program.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made.
    pub fn prepare(plan: ControlPlanePlan) -> Result<Self> {
        let documents = plan.dir.join("documents");
        fs::create_dir_all(&documents)
            .with_context(|| format!("{} could not be made", documents.display()))?;
        Ok(Self {
            documents,
            flags: Vec::new(),
            plan,
            process: None,
            socket: None,
        })
    }

    /// Has the program, when it starts, listen on a Unix socket as well.
    pub fn listen_on_socket(&mut self, path: PathBuf) {
        self.socket = Some(path);
    }

    /// Gives the program more flags when it is started.
    pub fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
    }

    /// Starts the program and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it ends, or is not ready in time.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        wait::until("a ready isthmus-xds", READY_DEADLINE, || {
            let response = self.admin("/readyz")?;
            ensure!(
                response.status == 200,
                "/readyz answers {}: {}",
                response.status,
                response.text().trim()
            );
            Ok(())
        })
    }

    /// Starts the program and waits until it answers, ready or not: its documents may be wrong.
    ///
    /// # Errors
    ///
    /// When it ends, or does not answer in time.
    pub fn launch(&mut self) -> Result<()> {
        let mut args: Vec<OsString> = vec![
            "--config-dir".into(),
            self.documents.clone().into(),
            "--xds-listen".into(),
            self.plan.xds.to_string().into(),
            // Inside a namespace of the lab; on loopback it changes nothing.
            "--insecure".into(),
            "--admin-listen".into(),
            self.plan.admin.to_string().into(),
        ];
        if let Some(path) = &self.socket {
            args.extend(["--xds-socket".into(), path.clone().into()]);
        }
        args.extend(self.flags.iter().map(OsString::from));
        let mut process = Process::start(&Program {
            args,
            log_dir: &self.plan.dir,
            name: "isthmus-xds",
            netns: self.plan.netns.as_deref(),
            path: &programs::own("isthmus-xds")?,
            user: User::Caller,
        })?;
        wait::until("a live isthmus-xds", READY_DEADLINE, || {
            process.check_running()?;
            self.admin("/livez").map(drop)
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Asks the program to end and waits for that.
    ///
    /// # Errors
    ///
    /// When it is not running or does not end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process
            .take()
            .context("isthmus-xds is not running")?
            .terminate()
    }

    /// Ends the program at once.
    ///
    /// # Errors
    ///
    /// When it is not running or does not end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process
            .take()
            .context("isthmus-xds is not running")?
            .kill()
    }

    /// Writes a document, so that it is there whole or not at all.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn publish(&self, file: &str, document: &Value) -> Result<()> {
        // JSON is YAML.
        self.publish_text(file, &serde_json::to_string_pretty(document)?)
    }

    /// Writes a file of any content, so that it is there whole or not at all.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn publish_text(&self, file: &str, text: &str) -> Result<()> {
        // Beside the directory, not in it: the watcher sees the rename alone.
        let draft = self.plan.dir.join(format!("draft-{file}"));
        fs::write(&draft, text)
            .with_context(|| format!("{} could not be written", draft.display()))?;
        let path = self.documents.join(file);
        fs::rename(&draft, &path)
            .with_context(|| format!("{} could not be written", path.display()))
    }

    /// Reads a page of the admin interface.
    ///
    /// # Errors
    ///
    /// When it does not answer. Any status is an answer.
    pub fn admin(&self, path: &str) -> Result<Response> {
        let address = self.plan.admin;
        let stream = netns::enter(self.plan.netns.as_deref(), || TcpStream::connect(address))?
            .context("the admin interface of isthmus-xds does not answer")?;
        Ok(HttpConnection::new(stream).request("GET", "admin", path, "connection: close\r\n")?)
    }

    /// What it knows of the streams of a node: one entry of `/config_dump` for each.
    ///
    /// # Errors
    ///
    /// When it does not answer with a dump.
    pub fn clients_of(&self, node: &str) -> Result<Vec<Value>> {
        let response = self.admin(&format!("/config_dump?node={node}"))?;
        let mut dump: Value = serde_json::from_slice(&response.body)
            .with_context(|| format!("/config_dump answers {}", response.status))?;
        let Value::Array(clients) = dump["clients"].take() else {
            bail!("the dump has no clients: {dump}");
        };
        Ok(clients)
    }

    /// Sums a metric over the series whose labels hold all of `labels`, such as `type="cds"`. One that was never counted
    /// is 0.
    ///
    /// # Errors
    ///
    /// When the metrics cannot be read.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<u64> {
        let text = self.admin("/metrics")?.text();
        let series = text.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label))
        });
        series
            .map(|line| {
                let value = line.rsplit(' ').next().unwrap_or_default();
                value
                    .parse::<u64>()
                    .with_context(|| format!("metric {line:?}"))
            })
            .sum()
    }

    /// What it has printed, from all its starts.
    ///
    /// # Errors
    ///
    /// When it never ran.
    pub fn log(&self) -> Result<String> {
        let path = self.plan.dir.join("isthmus-xds.log");
        fs::read_to_string(&path).with_context(|| format!("{} could not be read", path.display()))
    }
}
