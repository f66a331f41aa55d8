//! The maps by their types, over raw calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use bytemuck::Pod;
use isthmus_accel_abi::{
    CidrKey, Counter, End, GroupKey, Handshake, Histogram, HopKey, HopStats, InterfaceKey,
    LatencyKey, ListenerKey, Parked, PodConfig, PodParked, PodVerdicts, PortKey, Settings, SockKey,
    TupleEntry, map,
};

use super::{
    pins::Pins,
    sys::{self, MapFacts},
};
use crate::DatapathError;

/// A map of plain keys and values.
#[derive(Debug)]
pub(crate) struct TypedMap<K, V> {
    pub(crate) name: &'static str,
    pub(crate) max_entries: u32,
    fd: OwnedFd,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> TypedMap<K, V> {
    pub(crate) fn open(pins: &Pins, name: &'static str) -> Result<Self, DatapathError> {
        let path = pins.map(name);
        let failed = |source| DatapathError::Map {
            map: name,
            action: "opened",
            source,
        };
        let fd = sys::open_pinned(&path).map_err(failed)?;
        let facts = sys::map_facts(fd.as_fd()).map_err(failed)?;
        let has_layout = |facts: &MapFacts| {
            facts.key_size_bytes as usize == size_of::<K>()
                && facts.value_size_bytes as usize == size_of::<V>()
        };
        if !has_layout(&facts) {
            return Err(failed(io::Error::other(format!(
                "{} has another layout; run `isthmus-accelerator detach` first",
                path.display()
            ))));
        }
        Ok(Self {
            name,
            max_entries: facts.max_entries,
            fd,
            types: PhantomData,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> DatapathError + use<K, V> {
        let map = self.name;
        move |source| DatapathError::Map {
            map,
            action,
            source,
        }
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        let mut value = V::zeroed();
        let key = bytemuck::bytes_of(key);
        let is_there = sys::map_lookup(self.fd(), key, bytemuck::bytes_of_mut(&mut value))
            .map_err(self.failed("read"))?;
        Ok(is_there.then_some(value))
    }

    pub(crate) fn put(&self, key: &K, value: &V) -> Result<(), DatapathError> {
        sys::map_update(
            self.fd(),
            bytemuck::bytes_of(key),
            bytemuck::bytes_of(value),
        )
        .map_err(|error| match error.raw_os_error() {
            // Hash maps say E2BIG, tries ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => DatapathError::MapFull {
                map: self.name,
                max_entries: self.max_entries,
            },
            _ => self.failed("written")(error),
        })
    }

    pub(crate) fn remove(&self, key: &K) -> Result<bool, DatapathError> {
        sys::map_delete(self.fd(), bytemuck::bytes_of(key)).map_err(self.failed("written"))
    }

    /// Returns the keys. An entry that is removed meanwhile may make the walk start anew, so that it
    /// ends after at most twice as many steps as the map has room for.
    pub(crate) fn keys(&self) -> Result<Vec<K>, DatapathError> {
        let mut keys = Vec::new();
        let mut last: Option<K> = None;
        for _ in 0..self.max_entries.saturating_mul(2) {
            let mut next = K::zeroed();
            let is_there = sys::map_next_key(
                self.fd(),
                last.as_ref().map(bytemuck::bytes_of),
                bytemuck::bytes_of_mut(&mut next),
            )
            .map_err(self.failed("read"))?;
            if !is_there {
                break;
            }
            keys.push(next);
            last = Some(next);
        }
        Ok(keys)
    }

    /// Returns the entries, without those that vanish meanwhile.
    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut entries = Vec::new();
        for key in self.keys()? {
            if let Some(value) = self.get(&key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }

    /// Returns one value for each CPU that the machine may ever have.
    pub(crate) fn per_cpu(&self, key: &K) -> Result<Vec<V>, DatapathError> {
        let cpus = possible_cpus().map_err(self.failed("read"))?;
        // The kernel pads each value to 8 bytes; every per-CPU value here is a multiple of that.
        let mut values = vec![V::zeroed(); cpus];
        let is_there = sys::map_lookup(
            self.fd(),
            bytemuck::bytes_of(key),
            bytemuck::cast_slice_mut(&mut values),
        )
        .map_err(self.failed("read"))?;
        values.truncate(if is_there { cpus } else { 0 });
        Ok(values)
    }

    /// Returns what all CPUs have counted together, from `empty` on.
    pub(crate) fn sums(
        &self,
        empty: V,
        add: impl Fn(&mut V, &V),
    ) -> Result<BTreeMap<K, V>, DatapathError>
    where
        K: Ord,
    {
        let mut sums = BTreeMap::new();
        for key in self.keys()? {
            let mut sum = empty;
            for cpu in self.per_cpu(&key)? {
                add(&mut sum, &cpu);
            }
            sums.insert(key, sum);
        }
        Ok(sums)
    }
}

/// A map whose layout only another version knows.
#[derive(Debug)]
pub(crate) struct RawMap {
    name: &'static str,
    fd: OwnedFd,
    facts: MapFacts,
}

impl RawMap {
    pub(crate) fn open(pins: &Pins, name: &'static str) -> Result<Self, DatapathError> {
        let opened = sys::open_pinned(&pins.map(name))
            .and_then(|fd| sys::map_facts(fd.as_fd()).map(|facts| (fd, facts)));
        let (fd, facts) = opened.map_err(|source| DatapathError::Map {
            map: name,
            action: "opened",
            source,
        })?;
        Ok(Self { name, fd, facts })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DatapathError> {
        let mut value = vec![0; self.facts.value_size_bytes as usize];
        let is_there = sys::map_lookup(self.fd.as_fd(), key, &mut value)
            .map_err(|source| self.failed("read", source))?;
        Ok(is_there.then_some(value))
    }

    pub(crate) fn put(&self, key: &[u8], value: &[u8]) -> Result<(), DatapathError> {
        sys::map_update(self.fd.as_fd(), key, value)
            .map_err(|source| self.failed("written", source))
    }

    pub(crate) fn remove(&self, key: &[u8]) -> Result<bool, DatapathError> {
        sys::map_delete(self.fd.as_fd(), key).map_err(|source| self.failed("written", source))
    }

    pub(crate) fn has_entries(&self) -> Result<bool, DatapathError> {
        Ok(self.next_key(None)?.is_some())
    }

    /// As [`TypedMap::keys`], each once.
    pub(crate) fn keys(&self) -> Result<BTreeSet<Vec<u8>>, DatapathError> {
        let mut keys = BTreeSet::new();
        let mut last: Option<Vec<u8>> = None;
        for _ in 0..self.facts.max_entries.saturating_mul(2) {
            let Some(next) = self.next_key(last.as_deref())? else {
                break;
            };
            keys.insert(next.clone());
            last = Some(next);
        }
        Ok(keys)
    }

    fn next_key(&self, key: Option<&[u8]>) -> Result<Option<Vec<u8>>, DatapathError> {
        let mut next = vec![0; self.facts.key_size_bytes as usize];
        let is_there = sys::map_next_key(self.fd.as_fd(), key, &mut next)
            .map_err(|source| self.failed("read", source))?;
        Ok(is_there.then_some(next))
    }

    fn failed(&self, action: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Map {
            map: self.name,
            action,
            source,
        }
    }
}

/// Every map that user space reads or writes.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) pods: TypedMap<u64, PodConfig>,
    pub(crate) addrs: TypedMap<[u8; 16], u64>,
    pub(crate) ports: TypedMap<PortKey, u32>,
    pub(crate) groups: TypedMap<GroupKey, u32>,
    pub(crate) cidrs: TypedMap<CidrKey, u32>,
    pub(crate) routes: TypedMap<CidrKey, u32>,
    pub(crate) handshakes: TypedMap<u64, Handshake>,
    pub(crate) tuples: TypedMap<SockKey, TupleEntry>,
    pub(crate) ends: TypedMap<SockKey, End>,
    pub(crate) sockets: TypedMap<SockKey, u32>,
    pub(crate) parked: TypedMap<SockKey, Parked>,
    pub(crate) pod_parked: TypedMap<u64, PodParked>,
    pub(crate) hops: TypedMap<HopKey, HopStats>,
    pub(crate) verdicts: TypedMap<u64, PodVerdicts>,
    pub(crate) latency: TypedMap<LatencyKey, Histogram>,
    pub(crate) counters: TypedMap<u32, u64>,
    pub(crate) settings: TypedMap<u32, Settings>,
    pub(crate) interfaces: TypedMap<InterfaceKey, u32>,
    pub(crate) virtual_interfaces: TypedMap<InterfaceKey, u32>,
    pub(crate) listeners: TypedMap<ListenerKey, u64>,
}

impl Maps {
    pub(crate) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            pods: TypedMap::open(pins, map::PODS)?,
            addrs: TypedMap::open(pins, map::POD_ADDRS)?,
            ports: TypedMap::open(pins, map::PORT_RULES)?,
            groups: TypedMap::open(pins, map::GROUP_RULES)?,
            cidrs: TypedMap::open(pins, map::CIDR_RULES)?,
            routes: TypedMap::open(pins, map::ROUTES)?,
            handshakes: TypedMap::open(pins, map::HANDSHAKES)?,
            tuples: TypedMap::open(pins, map::ORIG_DST_BY_TUPLE)?,
            ends: TypedMap::open(pins, map::ENDS)?,
            sockets: TypedMap::open(pins, map::SOCKETS)?,
            parked: TypedMap::open(pins, map::PARKED)?,
            pod_parked: TypedMap::open(pins, map::POD_PARKED)?,
            hops: TypedMap::open(pins, map::HOP_STATS)?,
            verdicts: TypedMap::open(pins, map::VERDICTS)?,
            latency: TypedMap::open(pins, map::LATENCY)?,
            counters: TypedMap::open(pins, map::COUNTERS)?,
            settings: TypedMap::open(pins, map::SETTINGS)?,
            interfaces: TypedMap::open(pins, map::EXCLUDED_INTERFACES)?,
            virtual_interfaces: TypedMap::open(pins, map::VIRTUAL_INTERFACES)?,
            listeners: TypedMap::open(pins, map::LISTENERS)?,
        })
    }

    pub(crate) fn counter(&self, counter: Counter) -> Result<u64, DatapathError> {
        Ok(self.counters.per_cpu(&counter.index())?.iter().sum())
    }
}

// `0-3,8` in the kernel's list format: the last number decides.
fn possible_cpus() -> io::Result<usize> {
    const PATH: &str = "/sys/devices/system/cpu/possible";
    let ranges = fs::read_to_string(PATH)?;
    let last = ranges.trim().rsplit([',', '-']).next().unwrap_or_default();
    let highest: usize = last
        .parse()
        .map_err(|_| io::Error::other(format!("{PATH} holds {ranges:?}, not a list of CPUs")))?;
    Ok(highest + 1)
}
