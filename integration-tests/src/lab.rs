//! `NetnsLab`: a node with a bridge, and pods on it, all of them network namespaces.
//!
//! The caller's own network is never touched. All addresses are of 198.18.0.0/15, the benchmark range. One lab exists at
//! a time on a machine, whoever asks for it, and one that was killed is cleared away by the next.

mod exclusive;

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;

use self::exclusive::Exclusive;
use crate::iptables::{self, Capture};
use crate::netns::Netns;

/// Address of the node on its bridge: the pods' gateway, and where the control plane listens.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// A service's address: no interface has it, a sidecar must answer for it.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);

/// Every namespace and pin directory of every lab starts with this.
pub(crate) const NAME_PREFIX: &str = "isthmus-lab-";

/// Last byte of the first pod's address.
const FIRST_POD: u8 = 10;

/// Pods that fit a lab: a bound on the last byte of an address.
const MAX_PODS: usize = 100;

/// Keeps the labs of one process apart in messages and in the kernel's own traces.
static NEXT_LAB: AtomicU32 = AtomicU32::new(0);

/// A node and its pods. Dropping it removes all of it, also after a panic.
#[derive(Debug)]
pub struct NetnsLab {
    // In the order in which they must be dropped: pods, node, files, and last the right to have a lab.
    pods: Vec<Pod>,
    node: Netns,
    dir: TempDir,
    name: String,
    next_pod: usize,
    _exclusive: Exclusive,
}

/// A pod: a namespace with an interface on the bridge.
#[derive(Debug)]
pub struct Pod {
    /// Its address.
    pub address: Ipv4Addr,
    /// Directory for its files, which any user may write.
    pub dir: PathBuf,
    /// Name that the lab gave it, such as `client`.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
}

impl NetnsLab {
    /// Waits until no other lab is on this machine, clears away what a killed one left, and makes a node.
    ///
    /// # Errors
    ///
    /// When this is not root or `ip` fails.
    pub fn create() -> Result<Self> {
        let exclusive = Exclusive::acquire(NAME_PREFIX)?;
        let name = format!(
            "{NAME_PREFIX}{}-{}",
            std::process::id(),
            NEXT_LAB.fetch_add(1, Ordering::Relaxed)
        );

        let dir = tempfile::Builder::new()
            .prefix(&name)
            .tempdir()
            .context("no directory for the lab's files")?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let node = Netns::create(&format!("{name}-node"))?;
        node.ip(&["link", "add", "pods", "type", "bridge"])?;
        node.ip(&[
            "address",
            "add",
            &format!("{NODE_ADDRESS}/16"),
            "dev",
            "pods",
        ])?;
        node.ip(&["link", "set", "pods", "up"])?;
        Ok(Self {
            pods: Vec::new(),
            node,
            dir,
            name,
            next_pod: 0,
            _exclusive: exclusive,
        })
    }

    /// The node's namespace.
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// Directory for the lab's files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds a pod, with the rules that Istio would install in it if `capture` is given.
    ///
    /// # Errors
    ///
    /// When `ip` or iptables fails.
    pub fn add_pod(&mut self, name: &str, capture: Option<&Capture>) -> Result<&Pod> {
        anyhow::ensure!(
            self.next_pod < MAX_PODS,
            "a lab has at most {MAX_PODS} pods"
        );
        let last = FIRST_POD + u8::try_from(self.next_pod).context("MAX_PODS fits a byte")?;
        self.next_pod += 1;
        let address = Ipv4Addr::new(198, 18, 0, last);

        let netns = Netns::create(&format!("{}-{name}", self.name))?;
        let port = format!("pod{last}");
        self.node.ip(&[
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            netns.name(),
        ])?;
        self.node
            .ip(&["link", "set", &port, "master", "pods", "up"])?;
        netns.ip(&["address", "add", &format!("{address}/16"), "dev", "eth0"])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        netns.ip(&["route", "add", "default", "via", &NODE_ADDRESS.to_string()])?;
        if let Some(capture) = capture {
            iptables::install(&netns, capture)?;
        }

        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).with_context(|| format!("{} could not be made", dir.display()))?;
        fs::set_permissions(&dir, Permissions::from_mode(0o777))?;
        self.pods.push(Pod {
            address,
            dir,
            name: name.to_owned(),
            netns,
        });
        self.pod(name)
    }

    /// A pod by its name.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods
            .iter()
            .find(|pod| pod.name == name)
            .with_context(|| format!("the lab has no pod {name}"))
    }

    /// Removes a pod with all that runs in it.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let index = self.pods.iter().position(|pod| pod.name == name);
        drop(
            self.pods
                .remove(index.with_context(|| format!("the lab has no pod {name}"))?),
        );
        Ok(())
    }
}
