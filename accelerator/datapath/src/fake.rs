//! The datapath as values in memory, for tests of everything above it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    time::Duration,
};

use isthmus_accel_abi::{
    Counter, Histogram, HopKey, HopStats, LatencyKey, MAX_CIDR_RULES, MAX_GROUP_RULES,
    MAX_POD_ADDRS, MAX_PODS, MAX_PORT_RULES, MAX_ROUTES, PodVerdicts, map, program,
};
use isthmus_accel_core::{MapOp, State};

use crate::{
    CounterRow, Datapath, DatapathError, HopRow, LatencyRow, MapUsage, PairRow, ParkedRow,
    ProgramRow, RetiredRow, VerdictRow, linux::WayBackError,
};

/// A datapath that only remembers. It has the bounds of the real maps.
#[derive(Clone, Debug, Default)]
pub struct FakeDatapath {
    /// What is loaded.
    pub state: State,
    /// Operations in the order in which they were applied.
    pub applied: Vec<MapOp>,
    /// What [`Datapath::hop_stats`] returns.
    pub hops: BTreeMap<HopKey, HopStats>,
    /// What [`Datapath::verdicts`] returns.
    pub verdicts: BTreeMap<u64, PodVerdicts>,
    /// What [`Datapath::latency`] returns.
    pub latency: BTreeMap<LatencyKey, Histogram>,
    /// What [`Datapath::parked`] returns.
    pub parked: Vec<ParkedRow>,
    /// What [`Datapath::pairs`] returns.
    pub pairs: Vec<PairRow>,
    /// What [`Datapath::retired`] returns.
    pub retired: Vec<RetiredRow>,
    /// What [`Datapath::locate`] was told.
    pub namespaces: BTreeMap<u64, PathBuf>,
    /// The next operation fails as if its map was full, once.
    pub is_next_op_refused: bool,
    /// What virtual machines send cannot be delivered.
    pub is_old_kernel: bool,
    /// Namespaces, by cookie, that take no link.
    pub unlinkable: BTreeSet<u64>,
    /// Namespaces, by cookie, whose way back cannot be kept.
    pub wayless: BTreeSet<u64>,
}

impl FakeDatapath {
    fn sizes(state: &State) -> [(&'static str, usize, u32); 6] {
        [
            (map::PODS, state.pods.len(), MAX_PODS),
            (map::POD_ADDRS, state.addrs.len(), MAX_POD_ADDRS),
            (map::PORT_RULES, state.ports.len(), MAX_PORT_RULES),
            (map::GROUP_RULES, state.groups.len(), MAX_GROUP_RULES),
            (map::CIDR_RULES, state.cidrs.len(), MAX_CIDR_RULES),
            (map::ROUTES, state.routes.len(), MAX_ROUTES),
        ]
    }
}

impl Datapath for FakeDatapath {
    fn loaded(&self) -> Result<State, DatapathError> {
        Ok(self.state.clone())
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), DatapathError> {
        if let MapOp::AttachNetns { netns_cookie } = op
            && self.unlinkable.contains(netns_cookie)
        {
            return Err(DatapathError::Kernel {
                action: format!("attaching to namespace {netns_cookie}"),
                source: io::Error::from_raw_os_error(libc::E2BIG),
            });
        }
        let mut next = self.state.clone();
        next.apply(op);
        let is_refused = std::mem::take(&mut self.is_next_op_refused);
        let full = Self::sizes(&next)
            .into_iter()
            .find(|(_, entries, max)| is_refused || *entries > *max as usize);
        if let Some((map, _, max_entries)) = full {
            return Err(DatapathError::MapFull { map, max_entries });
        }

        self.state = next;
        self.applied.push(*op);
        Ok(())
    }

    fn locate(&mut self, namespaces: BTreeMap<u64, PathBuf>) {
        self.namespaces = namespaces;
    }

    fn find_listeners(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    fn keep_ways_back(&mut self) -> Result<BTreeMap<u64, DatapathError>, DatapathError> {
        let pods = self.state.pods.iter();
        let wayless = pods.filter(|(cookie, _)| self.wayless.contains(cookie));
        let failure = |(cookie, _)| {
            let error = DatapathError::WayBack {
                action: "made",
                netns: self.namespaces.get(cookie).cloned().unwrap_or_default(),
                source: WayBackError::OneFamily,
            };
            (*cookie, error)
        };
        Ok(wayless.map(failure).collect())
    }

    fn serves_virtual_machines(&self) -> bool {
        !self.is_old_kernel
    }

    fn hop_stats(&self) -> Result<Vec<HopRow>, DatapathError> {
        let row = |(key, stats): (&HopKey, &HopStats)| HopRow {
            key: *key,
            stats: *stats,
        };
        Ok(self.hops.iter().map(row).collect())
    }

    fn parked(&self) -> Result<Vec<ParkedRow>, DatapathError> {
        Ok(self.parked.clone())
    }

    fn verdicts(&self) -> Result<Vec<VerdictRow>, DatapathError> {
        let row = |(netns_cookie, verdicts): (&u64, &PodVerdicts)| VerdictRow {
            netns_cookie: *netns_cookie,
            verdicts: *verdicts,
        };
        Ok(self.verdicts.iter().map(row).collect())
    }

    fn latency(&self) -> Result<Vec<LatencyRow>, DatapathError> {
        let row = |(key, histogram): (&LatencyKey, &Histogram)| LatencyRow {
            key: *key,
            histogram: *histogram,
        };
        Ok(self.latency.iter().map(row).collect())
    }

    fn counters(&self) -> Result<Vec<CounterRow>, DatapathError> {
        let row = |counter| CounterRow { counter, count: 0 };
        Ok(Counter::ALL.map(row).into())
    }

    fn programs(&self) -> Result<Vec<ProgramRow>, DatapathError> {
        let row = |name| ProgramRow {
            name,
            hook: "fake",
            id: Some(1),
            is_attached: true,
        };
        Ok(program::ALL.map(row).into())
    }

    fn pairs(&self, limit: usize) -> Result<Vec<PairRow>, DatapathError> {
        Ok(self.pairs.iter().take(limit).copied().collect())
    }

    fn sweep(&mut self, _older_than: Duration) -> Result<usize, DatapathError> {
        Ok(0)
    }

    fn retired(&self) -> Result<Vec<RetiredRow>, DatapathError> {
        Ok(self.retired.clone())
    }

    fn retire_others(&mut self) -> Result<Vec<RetiredRow>, DatapathError> {
        self.retired.retain(|row| row.sockets > 0);
        Ok(self.retired.clone())
    }

    fn map_usage(&self) -> Result<Vec<MapUsage>, DatapathError> {
        let usage = |(name, entries, max_entries)| MapUsage {
            name,
            entries: u32::try_from(entries).unwrap_or(u32::MAX),
            max_entries,
        };
        Ok(Self::sizes(&self.state).map(usage).into())
    }
}

#[cfg(test)]
mod tests {
    use isthmus_accel_abi::PodConfig;

    use super::*;

    #[test]
    fn it_holds_what_was_applied_and_no_more_than_fits() {
        let mut datapath = FakeDatapath::default();
        let put = |netns_cookie| MapOp::PutPod {
            netns_cookie,
            config: PodConfig::istio_default(),
        };
        for netns_cookie in 0..u64::from(MAX_PODS) {
            datapath.apply(&put(netns_cookie)).expect("there is room");
        }
        let error = datapath
            .apply(&put(u64::from(MAX_PODS)))
            .expect_err("there is none left");
        assert!(
            matches!(error, DatapathError::MapFull { map: map::PODS, .. }),
            "{error}"
        );
        assert_eq!(
            datapath.loaded().expect("a fake can be read").pods.len(),
            MAX_PODS as usize
        );
    }
}
