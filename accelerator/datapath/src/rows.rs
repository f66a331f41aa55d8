//! The trait, what it returns, and how it fails.

use std::{collections::BTreeMap, fmt, io, path::PathBuf, time::Duration};

use isthmus_accel_abi::{
    Counter, Histogram, HopKey, HopStats, LatencyKey, ParkedSum, PodVerdicts, SockKey,
};
use isthmus_accel_core::{MapOp, State};

use crate::linux::WayBackError;

/// Something that captures traffic as its [`State`] says: the kernel, or a fake.
pub trait Datapath: fmt::Debug {
    /// Reads back what is loaded. Costs one pass over the maps of pods and rules.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if a map cannot be read.
    fn loaded(&self) -> Result<State, DatapathError>;

    /// Applies one operation. Applying it twice is the same as once; removing what is absent is fine.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::MapFull`] if there is no room, [`DatapathError::Map`] otherwise.
    fn apply(&mut self, op: &MapOp) -> Result<(), DatapathError>;

    /// Tells where the network namespaces of pods are, by cookie. Replaces what was told before;
    /// [`MapOp::AttachNetns`] does nothing for those that are missing here, or gone.
    fn locate(&mut self, namespaces: BTreeMap<u64, PathBuf>);

    /// Looks for listeners in steered namespaces of which none is known, and lets those of pods with virtual
    /// machines answer for addresses of others. Call it every few seconds: a listener that began before its
    /// pod was loaded, or that outlived a younger one, is found by nothing else. Costs some system calls for
    /// each pod, and a walk over the namespace's sockets for those without.
    ///
    /// # Errors
    ///
    /// Returns the first [`DatapathError`], about whichever pod; the others are served all the same.
    fn find_listeners(&mut self) -> Result<(), DatapathError>;

    /// Looks after the ways back of loaded pods whose sidecars dial for their clients (TPROXY): makes again what
    /// somebody has removed, and makes room where Istio's own has come. Call it every few seconds. Costs some
    /// twenty system calls for each such pod. Returns the pods, by cookie, that have none, with the reason.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if a map cannot be read.
    fn keep_ways_back(&mut self) -> Result<BTreeMap<u64, DatapathError>, DatapathError>;
    /// Tells whether what virtual machines send is to be delivered in their pods ([`MapOp::AttachVirtual`]): the
    /// kernel must be able to, and a shadow changes nothing.
    fn serves_virtual_machines(&self) -> bool;

    /// Returns the counters of every hop that has carried something, summed over CPUs, by key.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the map cannot be read.
    fn hop_stats(&self) -> Result<Vec<HopRow>, DatapathError>;

    /// Returns what became of the connect calls of every pod that has made one, summed over CPUs, by
    /// namespace.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the map cannot be read.
    fn verdicts(&self) -> Result<Vec<VerdictRow>, DatapathError>;

    /// Returns what lies unread at the readers of each pod past TCP, by namespace.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the map cannot be read.
    fn parked(&self) -> Result<Vec<ParkedRow>, DatapathError>;

    /// Returns how long the connections of every hop took, summed over CPUs, by key.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the map cannot be read.
    fn latency(&self) -> Result<Vec<LatencyRow>, DatapathError>;

    /// Returns the counters of the whole node, in the order of [`Counter::ALL`].
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the map cannot be read.
    fn counters(&self) -> Result<Vec<CounterRow>, DatapathError>;

    /// Returns the programs, loaded or not.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Kernel`] if the kernel refuses to tell.
    fn programs(&self) -> Result<Vec<ProgramRow>, DatapathError>;

    /// Returns the sockets that are in the sockmap, at most `limit` of them.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the map cannot be read.
    fn pairs(&self, limit: usize) -> Result<Vec<PairRow>, DatapathError>;

    /// Returns how full each bounded map is. Costs one pass over the keys of each.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if a map cannot be read.
    fn map_usage(&self) -> Result<Vec<MapUsage>, DatapathError>;

    /// Gives up handshakes that are older than `older_than`: their connect call failed before it sent
    /// anything, which the kernel tells no program. Returns how many. Also forgets what connections have
    /// counted since their pod was removed. Call it every minute or so with
    /// [`isthmus_accel_abi::HANDSHAKE_MAX_AGE_SECONDS`].
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if a map cannot be read or written.
    fn sweep(&mut self, older_than: Duration) -> Result<usize, DatapathError>;

    /// Returns what other versions have loaded beside this one.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if a map cannot be read.
    fn retired(&self) -> Result<Vec<RetiredRow>, DatapathError>;

    /// Takes new traffic over from every other version beside this one, removes those that serve no
    /// socket any more, and returns the others. Call it when the pods are loaded, and every few seconds.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Kernel`] or [`DatapathError::Map`] for what could not be taken over or
    /// removed; calling it again goes on.
    fn retire_others(&mut self) -> Result<Vec<RetiredRow>, DatapathError>;
}

/// What another version has loaded, older or newer: it takes nothing new, and goes with its last socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RetiredRow {
    /// The version of its layouts, see [`isthmus_accel_abi::ABI_VERSION`].
    pub version: u32,
    /// Where it is pinned.
    pub pin_dir: PathBuf,
    /// Sockets that it answers for.
    pub sockets: usize,
}

/// Counters of one hop of one sending pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HopRow {
    /// Which hop, of which namespace.
    pub key: HopKey,
    /// The counts.
    pub stats: HopStats,
}

/// Connect calls of one pod, by what became of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VerdictRow {
    /// Namespace of the pod.
    pub netns_cookie: u64,
    /// The counts.
    pub verdicts: PodVerdicts,
}

/// What lies unread at the readers of one pod past TCP, as far as its budget knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ParkedRow {
    /// Namespace of the readers.
    pub netns_cookie: u64,
    /// How much.
    pub sum: ParkedSum,
}

/// How long the connections of one hop of one pod took.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LatencyRow {
    /// Which hop, of which namespace, and what is measured.
    pub key: LatencyKey,
    /// The values.
    pub histogram: Histogram,
}

/// One counter of the node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CounterRow {
    /// Which event.
    pub counter: Counter,
    /// How often it happened since the maps were made.
    pub count: u64,
}

/// One program.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProgramRow {
    /// Its name in the object, see [`isthmus_accel_abi::program`].
    pub name: &'static str,
    /// Where it is attached, in the kernel's words.
    pub hook: &'static str,
    /// The kernel's id, `None` if it is not loaded.
    pub id: Option<u32>,
    /// Tells whether it is attached, so that it runs without the agent too.
    pub is_attached: bool,
}

/// One socket in the sockmap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PairRow {
    /// This end.
    pub key: SockKey,
    /// Hop of what this end sends.
    pub hop: isthmus_accel_abi::Hop,
    /// Socket cookie of this end.
    pub cookie: u64,
}

/// How full one map is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapUsage {
    /// Its name, see [`isthmus_accel_abi::map`].
    pub name: &'static str,
    /// Entries in it.
    pub entries: u32,
    /// Entries that fit.
    pub max_entries: u32,
}

/// Why the datapath could not do what it was asked to. Audience: the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatapathError {
    /// The committed object is damaged, or not the one this agent was built with.
    #[error("the built-in BPF object cannot be used: {detail}; rebuild it with `cargo xtask ebpf`")]
    Object {
        /// What is wrong with it.
        detail: String,
    },

    /// The kernel refused a program, most often because a feature is missing.
    #[error(
        "the kernel refused program {program}; `isthmus-accelerator probe` names what is missing"
    )]
    Program {
        /// Which one.
        program: &'static str,
        /// The verifier's or the loader's words.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },

    /// The maps could not be made or found.
    #[error("the BPF maps cannot be created; is this root, with CAP_BPF and CAP_NET_ADMIN?")]
    Load {
        /// The loader's words.
        #[source]
        source: Box<aya::EbpfError>,
    },

    /// One call on one map failed.
    #[error("map {map} cannot be {action}")]
    Map {
        /// Which map.
        map: &'static str,
        /// What was tried: "read", "written", "opened".
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },

    /// A rule map is full.
    #[error("map {map} is full at {max_entries} entries; fewer pods or rules fit on this node")]
    MapFull {
        /// Which map.
        map: &'static str,
        /// Its bound.
        max_entries: u32,
    },

    /// Another call to the kernel failed.
    #[error("{action} failed")]
    Kernel {
        /// What was tried, with the object.
        action: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },

    /// What a sidecar dials for its clients would not come back to it (TPROXY).
    #[error("the way back to the sidecar cannot be {action} in {}", netns.display())]
    WayBack {
        /// "made" or "removed".
        action: &'static str,
        /// File of the network namespace.
        netns: PathBuf,
        /// What failed.
        source: WayBackError,
    },

    /// The pin directory belongs to an agent with other layouts.
    #[error(
        "{path} holds maps of layout version {found}, this agent needs {expected}; run `isthmus-accelerator detach` first"
    )]
    OtherAbi {
        /// The pin directory.
        path: PathBuf,
        /// Version that the pinned maps were made with.
        found: u32,
        /// Version of this agent.
        expected: u32,
    },

    /// Nothing is loaded under this directory.
    #[error("nothing is loaded under {path}; start it with `isthmus-accelerator run`")]
    NotLoaded {
        /// The pin directory.
        path: PathBuf,
    },

    /// The machine lacks something without which nothing works.
    #[error("{feature} is missing: {detail}; {remedy}")]
    Missing {
        /// What.
        feature: &'static str,
        /// What was found instead.
        detail: String,
        /// What to do.
        remedy: &'static str,
    },
}
