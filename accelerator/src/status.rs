//! What is loaded and what it does: read from the pins, with the names that the agent left.

mod observed;
mod table;

use std::{collections::BTreeMap, net::Ipv6Addr, path::PathBuf};

use isthmus_accel_abi::{PassReason, SettingsMode, SockKey};
use isthmus_accel_core::State;
use isthmus_accel_datapath::{Datapath, DatapathError, HopRow, PairRow, RetiredRow};
use serde::Serialize;

pub(crate) use self::table::section;
pub use self::{
    observed::{Bucket, Latency, Parked, Verdict},
    table::render_table,
};
use crate::runtime_dir::Roster;

/// Version of the JSON below: fields are added within a version, never removed or given another
/// meaning.
pub const FORMAT_VERSION: u32 = 1;
/// Sockets that are listed one by one; all of them are counted. More would fill no screen and cost a
/// system call each.
const MAX_LISTED_SOCKETS: usize = 1_000;

/// The answer of `status`. Lists are sorted; the JSON has these names.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Status {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Whether somebody keeps the pods up to date.
    pub agent: AgentStatus,
    /// Where it was read from.
    pub pin_dir: PathBuf,
    /// Whether messages may skip TCP/IP at all.
    pub mode: Mode,
    /// What other versions still serve.
    pub other_versions: Vec<OtherVersion>,
    /// The programs.
    pub programs: Vec<Program>,
    /// Pods that are loaded.
    pub pods: Vec<Pod>,
    /// Pods of the file that are left to iptables.
    pub pods_left_to_iptables: Vec<IdlePod>,
    /// Counters of each hop that has carried something, by pod.
    pub hops: Vec<Hop>,
    /// What became of connect calls, by pod, without what did not occur.
    pub verdicts: Vec<Verdict>,
    /// How long connections took, by pod and hop.
    pub latencies: Vec<Latency>,
    /// What lies unread past TCP, by pod, with its limits.
    pub parked: Vec<Parked>,
    /// Sockets that may skip TCP/IP.
    pub sockets: Vec<Socket>,
    /// How full each map is.
    pub maps: Vec<MapUse>,
    /// Counters of the node, by name.
    pub counters: BTreeMap<&'static str, u64>,
}

/// Where a status comes from, and what the maps do not say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// Whether an agent runs.
    pub agent: AgentStatus,
    /// What the programs may do.
    pub mode: Mode,
    /// The pins.
    pub pin_dir: PathBuf,
}

/// What the programs may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Connections are redirected; every message goes by TCP.
    RedirectOnly,
    /// Messages towards proxies may skip TCP/IP.
    Sockmap,
    /// Nothing is changed; verdicts are recorded, iptables acts.
    Shadow,
}

/// Whether an agent runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct AgentStatus {
    /// Tells whether one does. Without, what is loaded goes on to work.
    pub is_running: bool,
    /// Its process, if known.
    pub pid: Option<u32>,
}

/// What an agent of another version has loaded: it takes nothing new, and goes with its last socket.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct OtherVersion {
    /// The version.
    pub version: u32,
    /// Where it is pinned.
    pub pin_dir: PathBuf,
    /// Sockets that it still answers for.
    pub sockets: usize,
}

/// One program.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Where it is attached.
    pub hook: &'static str,
    /// The kernel's id.
    pub id: Option<u32>,
    /// Whether it runs.
    pub is_attached: bool,
}

/// A pod that is loaded.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Pod {
    /// `namespace/name`, `null` if no agent has left it.
    pub name: Option<String>,
    /// Its network namespace.
    pub netns_cookie: u64,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// User of its sidecar.
    pub proxy_uid: u32,
    /// Group of its sidecar.
    pub proxy_gid: u32,
    /// Port rules.
    pub port_rules: usize,
    /// Address rules.
    pub cidr_rules: usize,
    /// Owner groups in its lists.
    pub group_rules: usize,
}

/// A pod that is not.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct IdlePod {
    /// `namespace/name`.
    pub name: String,
    /// `waiting`, `refused` or `left-alone`.
    pub condition: String,
    /// Why.
    pub reason: Option<String>,
}

/// What went over one hop, from one pod. Counted since the pod was added.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Hop {
    /// The sending pod, `null` if no agent has left its name.
    pub pod: Option<String>,
    /// Its network namespace.
    pub netns_cookie: u64,
    /// Which hop.
    pub hop: &'static str,
    /// Whether it may skip TCP/IP at all: only proxies read in a way that allows it.
    pub is_read_by_proxy: bool,
    /// Connections.
    pub connections: u64,
    /// Messages: write calls, roughly.
    pub messages: u64,
    /// Payload bytes in all.
    pub bytes_total: u64,
    /// Payload bytes that went from socket to socket.
    pub bytes_redirected: u64,
    /// The share of them, in hundredths of a percent; `null` if there were no bytes.
    pub redirected_basis_points: Option<u64>,
    /// Messages that TCP carried, by reason, without the reasons that did not occur.
    pub passes: BTreeMap<&'static str, u64>,
    /// Connections that went over to TCP for good, by the first reason, without the reasons that did not
    /// occur.
    pub connections_on_tcp: BTreeMap<&'static str, u64>,
}

/// One end of a connection that may skip TCP/IP.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Socket {
    /// Network namespace of this end.
    pub netns_cookie: u64,
    /// Address and port of this end.
    pub local: String,
    /// Address and port of the other end, as this one sees it.
    pub peer: String,
    /// Hop of what this end sends.
    pub hop: &'static str,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct MapUse {
    /// Its name.
    pub name: &'static str,
    /// Entries in it.
    pub entries: u32,
    /// Entries that fit.
    pub max_entries: u32,
}

impl From<SettingsMode> for Mode {
    fn from(mode: SettingsMode) -> Self {
        match mode {
            SettingsMode::SOCKMAP => Self::Sockmap,
            SettingsMode::SHADOW => Self::Shadow,
            _ => Self::RedirectOnly,
        }
    }
}

/// Reads everything. Costs one pass over the maps.
///
/// # Errors
///
/// Returns [`DatapathError`] if the kernel does not let a map or program be read.
pub fn collect(
    datapath: &dyn Datapath,
    roster: &Roster,
    origin: Origin,
) -> Result<Status, DatapathError> {
    let state = datapath.loaded()?;
    let names = names_by_cookie(roster);
    let mut maps: Vec<MapUse> = datapath
        .map_usage()?
        .into_iter()
        .map(|usage| MapUse {
            name: usage.name,
            entries: usage.entries,
            max_entries: usage.max_entries,
        })
        .collect();
    maps.sort();
    let mut sockets: Vec<Socket> = datapath
        .pairs(MAX_LISTED_SOCKETS)?
        .iter()
        .map(render_socket)
        .collect();
    sockets.sort();

    Ok(Status {
        format_version: FORMAT_VERSION,
        agent: origin.agent,
        pin_dir: origin.pin_dir,
        mode: origin.mode,
        other_versions: other_versions(datapath)?,
        programs: programs(datapath)?,
        pods: pods(&state, &names),
        pods_left_to_iptables: idle_pods(roster),
        hops: hops(&datapath.hop_stats()?, &names),
        verdicts: observed::verdicts(&datapath.verdicts()?, &names),
        latencies: observed::latencies(&datapath.latency()?, &names),
        parked: observed::parked(&datapath.parked()?, &names),
        sockets,
        maps,
        counters: datapath
            .counters()?
            .iter()
            .map(|row| (row.counter.name(), row.count))
            .collect(),
    })
}

type Names<'a> = BTreeMap<u64, &'a str>;

fn names_by_cookie(roster: &Roster) -> Names<'_> {
    roster
        .pods
        .iter()
        .filter_map(|(name, pod)| Some((pod.netns_cookie?, name.as_str())))
        .collect()
}

fn other_versions(datapath: &dyn Datapath) -> Result<Vec<OtherVersion>, DatapathError> {
    let version = |row: RetiredRow| OtherVersion {
        version: row.version,
        pin_dir: row.pin_dir,
        sockets: row.sockets,
    };
    Ok(datapath.retired()?.into_iter().map(version).collect())
}

fn programs(datapath: &dyn Datapath) -> Result<Vec<Program>, DatapathError> {
    let program = |row: isthmus_accel_datapath::ProgramRow| Program {
        name: row.name,
        hook: row.hook,
        id: row.id,
        is_attached: row.is_attached,
    };
    let mut programs: Vec<Program> = datapath.programs()?.into_iter().map(program).collect();
    programs.sort_by_key(|program| program.name);
    Ok(programs)
}

fn pods(state: &State, names: &Names<'_>) -> Vec<Pod> {
    let mut pods: Vec<Pod> = state
        .pods
        .iter()
        .filter(|(_, config)| config.is_in_force())
        .map(|(cookie, config)| Pod {
            name: names.get(cookie).map(|name| (*name).to_owned()),
            netns_cookie: *cookie,
            addresses: addresses(state, *cookie),
            proxy_uid: config.proxy_uid,
            proxy_gid: config.proxy_gid,
            port_rules: state
                .ports
                .iter()
                .filter(|key| key.netns_cookie() == *cookie)
                .count(),
            cidr_rules: state
                .cidrs
                .iter()
                .filter(|key| key.netns_cookie() == *cookie)
                .count(),
            group_rules: state
                .groups
                .iter()
                .filter(|key| key.netns_cookie == *cookie)
                .count(),
        })
        .collect();
    pods.sort_by(|a, b| {
        by_name(a.name.as_deref(), a.netns_cookie).cmp(&by_name(b.name.as_deref(), b.netns_cookie))
    });
    pods
}

// Those without a name last.
fn by_name(name: Option<&str>, netns_cookie: u64) -> (bool, Option<&str>, u64) {
    (name.is_none(), name, netns_cookie)
}

fn addresses(state: &State, cookie: u64) -> Vec<String> {
    let of_pod = state.addrs.iter().filter(|(_, owner)| **owner == cookie);
    of_pod.map(|(addr, _)| render_addr(*addr)).collect()
}

fn idle_pods(roster: &Roster) -> Vec<IdlePod> {
    let idle = roster
        .pods
        .iter()
        .filter(|(_, pod)| pod.netns_cookie.is_none());
    idle.map(|(name, pod)| IdlePod {
        name: name.clone(),
        condition: pod.condition.clone(),
        reason: pod.reason.clone(),
    })
    .collect()
}

fn hops(rows: &[HopRow], names: &Names<'_>) -> Vec<Hop> {
    // Hops of one pod in the order of their numbers, which is that of a connection's life.
    let mut rows: Vec<&HopRow> = rows.iter().collect();
    rows.sort_by_key(|row| row.key);
    let mut hops: Vec<Hop> = rows.into_iter().map(|row| hop(row, names)).collect();
    hops.sort_by(|a, b| {
        by_name(a.pod.as_deref(), a.netns_cookie).cmp(&by_name(b.pod.as_deref(), b.netns_cookie))
    });
    hops
}

fn hop(row: &HopRow, names: &Names<'_>) -> Hop {
    let stats = &row.stats;
    Hop {
        pod: names
            .get(&row.key.netns_cookie)
            .map(|name| (*name).to_owned()),
        netns_cookie: row.key.netns_cookie,
        hop: row.key.hop.name(),
        is_read_by_proxy: row.key.hop.is_read_by_proxy(),
        connections: stats.connections,
        messages: stats.messages,
        bytes_total: stats.bytes_total,
        bytes_redirected: stats.bytes_redirected,
        redirected_basis_points: basis_points(stats.bytes_redirected, stats.bytes_total),
        passes: by_reason(&stats.passes),
        connections_on_tcp: by_reason(&stats.connections_on_tcp),
    }
}

fn by_reason(counts: &[u64; PassReason::COUNT]) -> BTreeMap<&'static str, u64> {
    PassReason::ALL
        .into_iter()
        .zip(*counts)
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.name(), count))
        .collect()
}

fn basis_points(part: u64, whole: u64) -> Option<u64> {
    let points = (u128::from(part) * 10_000).checked_div(u128::from(whole))?;
    u64::try_from(points).ok()
}

fn render_socket(row: &PairRow) -> Socket {
    let SockKey {
        netns_cookie,
        local_addr,
        peer_addr,
        local_port,
        peer_port,
        ..
    } = row.key;
    let end = |addr, port| format!("{}:{}", render_addr(addr), u16::from_be_bytes(port));
    Socket {
        netns_cookie,
        local: end(local_addr, local_port),
        peer: end(peer_addr, peer_port),
        hop: row.hop.name(),
    }
}

fn render_addr(addr: [u8; 16]) -> String {
    Ipv6Addr::from(addr).to_canonical().to_string()
}

#[cfg(test)]
mod tests;
