//! The datapath of the running kernel.

mod btf;
mod cost;
mod detach;
mod flows;
mod installation;
mod kernel_version;
mod load;
mod maps;
mod mounts;
mod netns;
mod order;
mod pins;
mod succession;
mod sys;
mod transparency;
mod version;
mod virtual_machines;
mod way_back;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use isthmus_accel_abi::{
    ABI_VERSION, Counter, FlowMode, Histogram, HopStats, InterfaceKey, ParkedSum, PodParked,
    PodVerdicts, RULE_PRESENT, Settings, SettingsMode, program,
};
use isthmus_accel_core::{MapOp, State};

pub(crate) use self::order::{FEATURE as FIRST_PLACE, REMEDY as FIRST_PLACE_REMEDY, first_place};
pub use self::{
    btf::{KernelOffsets, VMLINUX_BTF},
    cost::{ProgramCost, program_costs},
    detach::{DetachReport, Patience, Unread, detach},
    flows::FlowReader,
    kernel_version::KernelVersion,
    load::{LoadOptions, try_programs},
    mounts::{BpfFs, DEFAULT_BPFFS, DEFAULT_PIN_DIR, cgroup_root, ensure_bpffs, is_bpffs},
    succession::{pin_dirs, pin_root, retire_others},
    version::Version,
    way_back::WayBackError,
};
use self::{
    installation::Installation,
    load::Hook,
    maps::{Maps, TypedMap},
    pins::Pins,
    transparency::Transparency,
};
use crate::{
    CounterRow, Datapath, DatapathError, HopRow, LatencyRow, MapUsage, PairRow, ParkedRow,
    ProgramRow, RetiredRow, VerdictRow,
};

/// The pinned programs and maps of the running kernel.
///
/// Dropping it changes nothing in the kernel: what is pinned goes on.
#[derive(Debug)]
pub struct LinuxDatapath {
    pins: Pins,
    maps: Maps,
    namespaces: BTreeMap<u64, PathBuf>,
    /// What was told before that: where a pod is that leaves.
    former_namespaces: BTreeMap<u64, PathBuf>,
    transparency: Transparency,
}

impl LinuxDatapath {
    /// Adopts what is pinned under `pin_dir`, and loads and attaches what is missing. Programs of
    /// another build are replaced in place, on the same maps. Takes about 0.2 s.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::OtherAbi`] if the pinned maps have other layouts,
    /// [`DatapathError::Missing`], [`DatapathError::Load`] or [`DatapathError::Program`] if the
    /// kernel or the caller's rights do not suffice.
    pub fn open_or_load(
        pin_dir: &Path,
        cgroup_root: &Path,
        options: &LoadOptions,
    ) -> Result<Self, DatapathError> {
        ensure_bpffs(pin_dir)?;
        let pins = Pins::new(pin_dir);
        let maps = load::load(&pins, cgroup_root, options)?;
        Ok(Self {
            pins,
            maps,
            namespaces: BTreeMap::new(),
            former_namespaces: BTreeMap::new(),
            transparency: Transparency::default(),
        })
    }

    /// Loads and attaches what an agent of another version would, for tests of upgrades.
    ///
    /// # Errors
    ///
    /// As [`Self::open_or_load`].
    pub fn load_version(
        pin_dir: &Path,
        cgroup_root: &Path,
        options: &LoadOptions,
        version: &Version,
    ) -> Result<(), DatapathError> {
        ensure_bpffs(pin_dir)?;
        load::load_version(&Pins::new(pin_dir), cgroup_root, options, version)
    }

    /// Opens what is pinned, with or without an agent that runs.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::NotLoaded`] if nothing is, [`DatapathError::OtherAbi`] if it has
    /// other layouts.
    pub fn open_pinned(pin_dir: &Path) -> Result<Self, DatapathError> {
        let pins = Pins::new(pin_dir);
        let Some(found) = Installation::at(pin_dir).abi_version()? else {
            return Err(DatapathError::NotLoaded {
                path: pin_dir.to_owned(),
            });
        };
        if found != ABI_VERSION {
            return Err(DatapathError::OtherAbi {
                path: pin_dir.to_owned(),
                found,
                expected: ABI_VERSION,
            });
        }
        let maps = Maps::open(&pins)?;
        Ok(Self {
            pins,
            maps,
            namespaces: BTreeMap::new(),
            former_namespaces: BTreeMap::new(),
            transparency: Transparency::default(),
        })
    }

    /// Returns the pin directory.
    pub fn pin_dir(&self) -> &Path {
        self.pins.dir()
    }

    /// Tells whether messages may skip TCP.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the map cannot be read.
    pub fn mode(&self) -> Result<SettingsMode, DatapathError> {
        Ok(self.maps.settings.get(&0)?.unwrap_or_default().mode)
    }

    /// Says what the programs may do, for all sockets at once: allows or forbids messages to skip TCP,
    /// begins or ends the shadow.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the map cannot be read or written.
    pub fn switch_mode(&mut self, mode: SettingsMode) -> Result<(), DatapathError> {
        let settings = self.maps.settings.get(&0)?.unwrap_or_default();
        self.maps.settings.put(
            &0,
            &Settings {
                abi_version: ABI_VERSION,
                mode,
                ..settings
            },
        )
    }

    /// Tells whether the programs tell about single connections.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the map cannot be read.
    pub fn flows(&self) -> Result<FlowMode, DatapathError> {
        Ok(self.maps.settings.get(&0)?.unwrap_or_default().flows)
    }

    /// Opens the ring of flow events. It has one place from which it is read: two readers would each
    /// get a part.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if it cannot be opened or mapped.
    pub fn flow_reader(&self) -> Result<FlowReader, DatapathError> {
        FlowReader::open(&self.pins)
    }

    fn usage<K: bytemuck::Pod, V: bytemuck::Pod>(
        map: &TypedMap<K, V>,
    ) -> Result<MapUsage, DatapathError> {
        Ok(MapUsage {
            name: map.name,
            entries: u32::try_from(map.keys()?.len()).unwrap_or(u32::MAX),
            max_entries: map.max_entries,
        })
    }
}

impl Datapath for LinuxDatapath {
    fn loaded(&self) -> Result<State, DatapathError> {
        Ok(State {
            addrs: self.maps.addrs.entries()?.into_iter().collect(),
            cidrs: self.maps.cidrs.keys()?.into_iter().collect(),
            pods: self.maps.pods.entries()?.into_iter().collect(),
            groups: self.maps.groups.keys()?.into_iter().collect(),
            interfaces: self.maps.interfaces.keys()?.into_iter().collect(),
            ports: self.maps.ports.keys()?.into_iter().collect(),
            routes: self.maps.routes.entries()?.into_iter().collect(),
            steered: netns::attached(&self.pins)?,
            virtual_interfaces: self.maps.virtual_interfaces.keys()?.into_iter().collect(),
            virtual_links: virtual_machines::attached(&self.pins)?,
        })
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), DatapathError> {
        let maps = &self.maps;
        match op {
            MapOp::PutPort(key) => maps.ports.put(key, &RULE_PRESENT),
            MapOp::PutGroup(key) => maps.groups.put(key, &RULE_PRESENT),
            MapOp::PutCidr(key) => maps.cidrs.put(key, &RULE_PRESENT),
            MapOp::PutPod {
                netns_cookie,
                config,
            } => maps.pods.put(netns_cookie, config),
            MapOp::PutAddr { addr, netns_cookie } => maps.addrs.put(addr, netns_cookie),
            MapOp::PutInterface(key) => maps.interfaces.put(key, &RULE_PRESENT),
            MapOp::PutVirtualInterface(key) => maps.virtual_interfaces.put(key, &RULE_PRESENT),
            MapOp::RemoveVirtualInterface(key) => maps.virtual_interfaces.remove(key).map(drop),
            MapOp::AttachVirtual(key) => self.attach_virtual(*key),
            MapOp::DetachVirtual(key) => self.detach_virtual(*key),
            MapOp::RemoveInterface(key) => maps.interfaces.remove(key).map(drop),
            MapOp::PutRoute { key, ifindex } => maps.routes.put(key, ifindex),
            MapOp::RemoveRoute(key) => maps.routes.remove(key).map(drop),
            MapOp::AttachNetns { netns_cookie } => self.attach_netns(*netns_cookie),
            MapOp::DetachNetns { netns_cookie } => {
                let former = || self.former_namespaces.get(netns_cookie);
                let known = self.namespaces.get(netns_cookie).or_else(former);
                let known = known.map(PathBuf::as_path);
                netns::withdraw_way_back(&self.pins, *netns_cookie, known)?;
                netns::detach(&self.pins, *netns_cookie, &maps.listeners)
            }
            MapOp::RemoveAddr { addr } => maps.addrs.remove(addr).map(drop),
            MapOp::RemoveCidr(key) => maps.cidrs.remove(key).map(drop),
            MapOp::RemoveGroup(key) => maps.groups.remove(key).map(drop),
            MapOp::RemovePort(key) => maps.ports.remove(key).map(drop),
            MapOp::RemovePod { netns_cookie } => {
                maps.pods.remove(netns_cookie)?;
                self.remove_rows(|cookie| cookie == *netns_cookie)
            }
        }
    }

    fn locate(&mut self, namespaces: BTreeMap<u64, PathBuf>) {
        self.former_namespaces = mem::replace(&mut self.namespaces, namespaces);
    }

    fn find_listeners(&mut self) -> Result<(), DatapathError> {
        let linked = virtual_machines::attached(&self.pins)?;
        let has_virtual: BTreeSet<u64> = linked.iter().map(InterfaceKey::netns_cookie).collect();
        let mut outcome = Ok(());
        for cookie in netns::attached(&self.pins)? {
            let (Some(path), Some(pod)) =
                (self.namespaces.get(&cookie), self.maps.pods.get(&cookie)?)
            else {
                continue;
            };
            let listeners = &self.maps.listeners;
            outcome = outcome.and(netns::find_listeners(
                &self.pins,
                (cookie, &pod),
                path,
                listeners,
            ));
            if has_virtual.contains(&cookie) {
                let transparency = &mut self.transparency;
                outcome = outcome.and(virtual_machines::keep_up(
                    cookie,
                    (path, &pod),
                    transparency,
                ));
            }
        }
        outcome
    }

    fn serves_virtual_machines(&self) -> bool {
        let is_shadow = self.mode().is_ok_and(|mode| mode == SettingsMode::SHADOW);
        virtual_machines::is_supported() && !is_shadow
    }

    fn keep_ways_back(&mut self) -> Result<BTreeMap<u64, DatapathError>, DatapathError> {
        let steered = netns::attached(&self.pins)?;
        let is_shadow = self.mode()? == SettingsMode::SHADOW;
        let mut failures = BTreeMap::new();
        for (cookie, config) in self.maps.pods.entries()? {
            let path = self.namespaces.get(&cookie);
            let (Some(path), true) = (
                path,
                steered.contains(&cookie) && netns::needs_way_back(&config),
            ) else {
                continue;
            };
            let outcome = if is_shadow {
                netns::withdraw_way_back(&self.pins, cookie, Some(path))
            } else {
                netns::establish_way_back(cookie, path, &config)
            };
            failures.extend(outcome.err().map(|error| (cookie, error)));
        }
        Ok(failures)
    }

    fn hop_stats(&self) -> Result<Vec<HopRow>, DatapathError> {
        let sums = self.maps.hops.sums(HopStats::default(), HopStats::add)?;
        let row = |(key, stats)| HopRow { key, stats };
        Ok(sums.into_iter().map(row).collect())
    }

    fn verdicts(&self) -> Result<Vec<VerdictRow>, DatapathError> {
        let counts = &self.maps.verdicts;
        let sums = counts.sums(PodVerdicts::EMPTY, PodVerdicts::add)?;
        let row = |(netns_cookie, verdicts)| VerdictRow {
            netns_cookie,
            verdicts,
        };
        Ok(sums.into_iter().map(row).collect())
    }

    fn parked(&self) -> Result<Vec<ParkedRow>, DatapathError> {
        let rows = self.maps.pod_parked.entries()?;
        let row = |(netns_cookie, pod): (u64, PodParked)| ParkedRow {
            netns_cookie,
            sum: pod.sum,
        };
        let mut rows: Vec<ParkedRow> = rows.into_iter().map(row).collect();
        rows.sort_by_key(|row| row.netns_cookie);
        rows.dedup_by_key(|row| row.netns_cookie);
        Ok(rows)
    }

    fn latency(&self) -> Result<Vec<LatencyRow>, DatapathError> {
        let sums = self.maps.latency.sums(Histogram::EMPTY, Histogram::add)?;
        let row = |(key, histogram)| LatencyRow { key, histogram };
        Ok(sums.into_iter().map(row).collect())
    }

    fn counters(&self) -> Result<Vec<CounterRow>, DatapathError> {
        Counter::ALL
            .into_iter()
            .map(|counter| {
                Ok(CounterRow {
                    counter,
                    count: self.maps.counter(counter)?,
                })
            })
            .collect()
    }

    fn programs(&self) -> Result<Vec<ProgramRow>, DatapathError> {
        program::ALL
            .into_iter()
            .map(|name| self.program(name))
            .collect()
    }

    fn pairs(&self, limit: usize) -> Result<Vec<PairRow>, DatapathError> {
        let mut rows = Vec::new();
        for key in self.maps.ends.keys()?.into_iter().take(limit) {
            if let Some(end) = self.maps.ends.get(&key)? {
                rows.push(PairRow {
                    key,
                    hop: end.hop,
                    cookie: end.cookie,
                });
            }
        }
        Ok(rows)
    }

    fn map_usage(&self) -> Result<Vec<MapUsage>, DatapathError> {
        let maps = &self.maps;
        Ok(vec![
            Self::usage(&maps.pods)?,
            Self::usage(&maps.addrs)?,
            Self::usage(&maps.ports)?,
            Self::usage(&maps.groups)?,
            Self::usage(&maps.cidrs)?,
            Self::usage(&maps.routes)?,
            Self::usage(&maps.handshakes)?,
            Self::usage(&maps.tuples)?,
            Self::usage(&maps.ends)?,
            Self::usage(&maps.sockets)?,
            Self::usage(&maps.parked)?,
            Self::usage(&maps.pod_parked)?,
            Self::usage(&maps.hops)?,
            Self::usage(&maps.verdicts)?,
            Self::usage(&maps.latency)?,
            Self::usage(&maps.interfaces)?,
            Self::usage(&maps.virtual_interfaces)?,
            Self::usage(&maps.listeners)?,
        ])
    }

    fn retired(&self) -> Result<Vec<RetiredRow>, DatapathError> {
        succession::rows(self.pins.dir())
    }

    fn retire_others(&mut self) -> Result<Vec<RetiredRow>, DatapathError> {
        retire_others(self.pins.dir())
    }

    fn sweep(&mut self, older_than: Duration) -> Result<usize, DatapathError> {
        let now_ns = monotonic_ns();
        let limit_ns = u64::try_from(older_than.as_nanos()).unwrap_or(u64::MAX);
        let mut swept = 0;
        for (cookie, handshake) in self.maps.handshakes.entries()? {
            if now_ns.saturating_sub(handshake.started_ns) > limit_ns {
                swept += usize::from(self.maps.handshakes.remove(&cookie)?);
            }
        }
        if swept > 0 {
            for (key, entry) in self.maps.tuples.entries()? {
                if self.maps.handshakes.get(&entry.client_cookie)?.is_none() {
                    self.maps.tuples.remove(&key)?;
                }
            }
        }
        // Connections outlive their pod, and count what they do.
        let pods: BTreeSet<u64> = self.maps.pods.keys()?.into_iter().collect();
        self.remove_rows(|cookie| !pods.contains(&cookie))?;
        self.sweep_budgets(&pods)?;
        Ok(swept)
    }
}

impl LinuxDatapath {
    // The link comes first and goes last: by it `detach` finds the namespace.
    fn attach_netns(&self, cookie: u64) -> Result<(), DatapathError> {
        let Some(path) = self.namespaces.get(&cookie) else {
            return Ok(());
        };
        netns::attach(&self.pins, cookie, path)?;
        let Some(config) = self.maps.pods.get(&cookie)? else {
            return Ok(());
        };
        if !netns::needs_way_back(&config) || self.mode()? == SettingsMode::SHADOW {
            return Ok(());
        }
        netns::establish_way_back(cookie, path, &config).inspect_err(|_| {
            // What failed is told; of the next attempt, this would be the second link.
            let _undone = netns::withdraw_way_back(&self.pins, cookie, Some(path))
                .and_then(|()| netns::detach(&self.pins, cookie, &self.maps.listeners));
        })
    }

    fn attach_virtual(&mut self, key: InterfaceKey) -> Result<(), DatapathError> {
        let cookie = key.netns_cookie();
        let (Some(path), Some(pod)) = (self.namespaces.get(&cookie), self.maps.pods.get(&cookie)?)
        else {
            return Ok(());
        };
        let transparency = &mut self.transparency;
        virtual_machines::attach(&self.pins, key, (path, &pod), transparency).map(drop)
    }

    fn detach_virtual(&mut self, key: InterfaceKey) -> Result<(), DatapathError> {
        let cookie = key.netns_cookie();
        let known = self.namespaces.get(&cookie);
        let path = known.or_else(|| self.former_namespaces.get(&cookie));
        virtual_machines::detach(&self.pins, key, path.map(PathBuf::as_path))?;
        self.transparency.forget(cookie);
        Ok(())
    }

    /// Removes what was counted in the namespaces that `is_gone` names.
    fn remove_rows(&self, is_gone: impl Fn(u64) -> bool) -> Result<(), DatapathError> {
        let maps = &self.maps;
        for key in maps.hops.keys()? {
            if is_gone(key.netns_cookie) {
                maps.hops.remove(&key)?;
            }
        }
        for key in maps.latency.keys()? {
            if is_gone(key.netns_cookie) {
                maps.latency.remove(&key)?;
            }
        }
        for cookie in maps.verdicts.keys()? {
            if is_gone(cookie) {
                maps.verdicts.remove(&cookie)?;
            }
        }
        Ok(())
    }

    /// Forgets the accounts of pods that are gone, once their last reader has closed.
    fn sweep_budgets(&self, pods: &BTreeSet<u64>) -> Result<(), DatapathError> {
        for (netns_cookie, pod) in self.maps.pod_parked.entries()? {
            if pod.sum == ParkedSum::default() && !pods.contains(&netns_cookie) {
                self.maps.pod_parked.remove(&netns_cookie)?;
            }
        }
        Ok(())
    }

    fn program(&self, name: &'static str) -> Result<ProgramRow, DatapathError> {
        let failed = |source| DatapathError::Kernel {
            action: format!("asking about {name}"),
            source,
        };
        let hook = Hook::of(name);
        let id = match sys::open_pinned(&self.pins.program(name)) {
            Ok(program) => Some(sys::program_facts(program.as_fd()).map_err(failed)?.id),
            Err(_) => None,
        };
        let is_attached = match hook {
            Hook::Cgroup(_) => match sys::open_pinned(&self.pins.link(name)) {
                Ok(link) => id == Some(sys::link_facts(link.as_fd()).map_err(failed)?.program_id),
                Err(_) => false,
            },
            // Kernels before 5.20 cannot tell; the program stays attached as long as the map lives.
            Hook::Sockmap(hook) => sys::attached_to_map(self.maps.sockets.fd(), hook)
                .map_or(id.is_some(), |attached| {
                    attached.is_some() && attached == id
                }),
            // Instances are linked pod by pod.
            Hook::Netns | Hook::Interface => id.is_some(),
            Hook::None => false,
        };
        Ok(ProgramRow {
            name,
            hook: hook.name(),
            id,
            is_attached,
        })
    }
}

/// Returns `CLOCK_MONOTONIC` in nanoseconds: the clock of flow events (`bpf_ktime_get_ns`).
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a clock that always exists, and a buffer of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
