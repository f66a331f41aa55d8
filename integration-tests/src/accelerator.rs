//! A running `isthmus-accelerator`, isolated from any other by a pin directory of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::lab::{NAME_PREFIX, Pod};
use crate::process::{Process, Program, User, command_as};
use crate::{programs, shell, wait};

/// Where the kernel's BPF filesystem is mounted.
pub const BPF_DIR: &str = "/sys/fs/bpf";

/// How long the agent may take to load its programs and apply its file.
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// A running agent and what it has in the kernel. Dropping it detaches everything.
#[derive(Debug)]
pub struct Accelerator {
    args: Vec<OsString>,
    config: PathBuf,
    dir: PathBuf,
    pin_dir: PathBuf,
    process: Option<Process>,
}

/// Whether the agent may let messages skip TCP/IP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sockmap {
    /// Where the kernel allows it.
    Auto,
    /// Connections are redirected, and every byte goes by TCP.
    Off,
}

/// When the programs tell about single connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flows {
    /// While somebody looks.
    Auto,
    /// Always.
    On,
}

/// What pods promise of their applications (`isthmus.io/accelerate-application`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Applications {
    /// Nothing: only connections between sidecars skip TCP/IP, the default.
    LeftAlone,
    /// What they send their sidecars may skip TCP/IP.
    Write,
}

impl Applications {
    fn value(self) -> &'static str {
        match self {
            Self::LeftAlone => "off",
            Self::Write => "writes",
        }
    }
}

/// What `status -o json` says.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// One row for each hop of each pod that has carried something.
    pub hops: Vec<HopRow>,
    /// The pods that are loaded.
    pub pods: Vec<PodRow>,
}

/// A hop of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HopRow {
    /// Payload bytes that went past TCP and IP.
    pub bytes_redirected: u64,
    /// Payload bytes in all.
    pub bytes_total: u64,
    /// Connections.
    pub connections: u64,
    /// Name of the hop.
    pub hop: String,
    /// Write calls.
    pub messages: u64,
    /// Messages that TCP carried, by reason.
    pub passes: BTreeMap<String, u64>,
}

/// A pod.
#[derive(Clone, Debug, Deserialize)]
pub struct PodRow {
    /// Its name in the file.
    pub name: Option<String>,
}

impl Status {
    /// The sum over pods of every hop.
    pub fn by_hop(&self) -> BTreeMap<String, HopBytes> {
        let mut sums: BTreeMap<String, HopBytes> = BTreeMap::new();
        for row in &self.hops {
            let sum = sums.entry(row.hop.clone()).or_default();
            sum.add(HopBytes {
                redirected: row.bytes_redirected,
                total: row.bytes_total,
            });
        }
        sums
    }
}

/// Payload bytes of a hop.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HopBytes {
    /// Past TCP and IP.
    pub redirected: u64,
    /// In all.
    pub total: u64,
}

impl HopBytes {
    /// Which part went past TCP and IP, from 0 to 1; `None` if nothing was sent.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a share needs no more than 52 bits"
    )]
    pub fn share(self) -> Option<f64> {
        (self.total > 0).then(|| self.redirected as f64 / self.total as f64)
    }

    /// Adds what another measurement moved.
    pub fn add(&mut self, other: Self) {
        self.redirected += other.redirected;
        self.total += other.total;
    }

    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            redirected: self.redirected.saturating_sub(earlier.redirected),
            total: self.total.saturating_sub(earlier.total),
        }
    }
}

impl Accelerator {
    /// Prepares an agent whose files and log are in `dir`; [`Self::start`] starts it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written.
    pub fn prepare(dir: &Path) -> Result<Self> {
        let name = dir
            .file_name()
            .context("a lab's directory has a name")?
            .to_string_lossy()
            .into_owned();
        // The lab's prefix lets the next lab find it, should this one be killed. Who has another name looks
        // after it.
        let name = if name.starts_with("isthmus-") {
            name
        } else {
            format!("{NAME_PREFIX}{name}")
        };
        let accelerator = Self {
            args: Vec::new(),
            config: dir.join("node.yaml"),
            dir: dir.to_owned(),
            pin_dir: Path::new(BPF_DIR).join(name.replace('.', "-")),
            process: None,
        };
        accelerator.write_pods(&[])?;
        Ok(accelerator)
    }

    /// Writes the agent's file, so that it is there whole or not at all. The pods opt in: the lab's applications use
    /// nothing that a sockmap changes.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write_pods(&self, pods: &[&Pod]) -> Result<()> {
        self.write_pods_as(pods, Applications::Write)
    }

    /// As [`Self::write_pods`], with or without the opt-in of the pods' applications.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_pods_as(&self, pods: &[&Pod], applications: Applications) -> Result<()> {
        let namespaces = pods.iter().map(|pod| (pod.name.as_str(), pod.netns.path()));
        self.write_namespaces(namespaces, applications)
    }

    /// The same, for pods of which only the names and the files of their namespaces matter.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write_namespaces<'a>(
        &self,
        pods: impl IntoIterator<Item = (&'a str, PathBuf)>,
        applications: Applications,
    ) -> Result<()> {
        let render = |(name, netns): (&str, PathBuf)| {
            json!({
                "name": format!("default/{name}"),
                "netns": netns,
                "proxyUID": User::Proxy.ids(),
                "proxyGID": User::Proxy.ids(),
                "annotations": {"isthmus.io/accelerate-application": applications.value()},
            })
        };
        let pods: Vec<_> = pods.into_iter().map(render).collect();
        let document =
            json!({"apiVersion": "isthmus.io/v1alpha1", "kind": "NodeConfig", "pods": pods});
        let draft = self.dir.join("node.yaml.draft");
        fs::write(&draft, serde_json::to_vec_pretty(&document)?)?;
        fs::rename(&draft, &self.config)
            .with_context(|| format!("{} could not be written", self.config.display()))
    }

    /// Adds arguments to the agent's `run`.
    #[must_use]
    pub fn with_args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// Starts the agent and waits until `pods` pods are loaded.
    ///
    /// # Errors
    ///
    /// When it ends, or is not ready in time.
    pub fn start(&mut self, pods: usize) -> Result<()> {
        self.start_with(pods, Sockmap::Auto, Flows::Auto)
    }

    /// As [`Self::start`], with or without the sockmap and flows.
    ///
    /// # Errors
    ///
    /// When it ends, or is not ready in time.
    pub fn start_with(&mut self, pods: usize, sockmap: Sockmap, flows: Flows) -> Result<()> {
        let mut args = vec!["run".into(), "--config".into(), self.config.clone().into()];
        if sockmap == Sockmap::Off {
            args.extend(["--sockmap".into(), "off".into()]);
        }
        if flows == Flows::On {
            args.extend(["--flows".into(), "on".into()]);
        }
        // Other tests, and the machine's own agent, have other pods.
        args.push("--share-hooks".into());
        args.extend(self.places());
        args.extend(self.args.iter().cloned());
        let mut process = Process::start(&Program {
            args,
            log_dir: &self.dir,
            name: "isthmus-accelerator",
            netns: None,
            path: &programs::own("isthmus-accelerator")?,
            user: User::Caller,
        })?;
        let ready = self.wait_pods(pods, || process.check_running());
        self.process = Some(process);
        ready
    }

    /// Waits until exactly `pods` pods are loaded.
    ///
    /// # Errors
    ///
    /// When that does not happen in time.
    pub fn wait_loaded(&self, pods: usize) -> Result<()> {
        self.wait_pods(pods, || Ok(()))
    }

    /// Asks the kernel, through the agent's program; works while no agent runs.
    ///
    /// # Errors
    ///
    /// When nothing is loaded.
    pub fn status(&self) -> Result<Status> {
        let text = shell::capture(self.command("status")?.args(["--output", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("status printed {text}"))
    }

    /// Ends the agent at once; what it loaded stays.
    ///
    /// # Errors
    ///
    /// When it is not running or does not end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process
            .take()
            .context("the agent is not running")?
            .kill()
    }

    /// Asks the agent to end; what it loaded stays.
    ///
    /// # Errors
    ///
    /// When it is not running or does not end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process
            .take()
            .context("the agent is not running")?
            .terminate()
    }

    /// Ends the agent and removes everything from the kernel.
    ///
    /// # Errors
    ///
    /// When something stays behind.
    pub fn detach(&mut self) -> Result<()> {
        if self.process.is_some() {
            self.terminate()?;
        }
        shell::capture(&mut self.command("detach")?)?;
        ensure!(
            !self.pin_dir.exists(),
            "{} is still there",
            self.pin_dir.display()
        );
        Ok(())
    }

    /// Runs the agent as a user without rights, to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn run_without_rights() -> Result<(ExitStatus, String)> {
        // A copy: that user may not be allowed into the directory where the program was built.
        let dir = tempfile::tempdir().context("no directory for a file")?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let program = dir.path().join("isthmus-accelerator");
        fs::copy(programs::own("isthmus-accelerator")?, &program)?;
        let config = dir.path().join("node.yaml");
        fs::write(
            &config,
            "apiVersion: isthmus.io/v1alpha1\nkind: NodeConfig\npods: []\n",
        )?;

        let output = command_as(User::Application, None, &program)
            .args(["run", "--config"])
            .arg(&config)
            .output()
            .context("setpriv could not be started")?;
        Ok((
            output.status,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }

    /// Where its maps and links are pinned.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    fn wait_pods(&self, pods: usize, mut check: impl FnMut() -> Result<()>) -> Result<()> {
        wait::until(&format!("{pods} loaded pods"), READY_DEADLINE, || {
            check()?;
            let found = self.status()?.pods.len();
            ensure!(found == pods, "{found} are loaded");
            Ok(())
        })
    }

    /// A command of the agent's program, about this agent.
    ///
    /// # Errors
    ///
    /// When the program is not built.
    pub fn command(&self, verb: &str) -> Result<Command> {
        let mut command = Command::new(programs::own("isthmus-accelerator")?);
        command.arg(verb).args(self.places());
        Ok(command)
    }

    fn places(&self) -> [OsString; 4] {
        let runtime_dir = self.dir.join("run");
        [
            "--pin-dir".into(),
            self.pin_dir.clone().into(),
            "--runtime-dir".into(),
            runtime_dir.into(),
        ]
    }
}

impl Drop for Accelerator {
    fn drop(&mut self) {
        if self.pin_dir.exists()
            && let Err(error) = self.detach()
        {
            eprintln!("the accelerator does not detach: {error:#}");
            remove_pins(&self.pin_dir);
        }
    }
}

/// Removes a directory of pins by force, which detaches what is pinned there.
pub fn remove_pins(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && dir.exists()
    {
        eprintln!("{} is left behind: {error}", dir.display());
    }
}
