//! The consuming end of the ring of flow events.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use aya::maps::{Map, MapData, RingBuf};
use isthmus_accel_abi::{Counter, FlowEvent, FlowMode, Settings, map};

use super::{maps::TypedMap, pins::Pins, sys};
use crate::DatapathError;

/// Reads flow events in the order in which the programs have begun to write them. Its descriptor is
/// readable (poll, epoll) while there are any.
pub struct FlowReader {
    counters: TypedMap<u32, u64>,
    ring: RingBuf<MapData>,
    settings: TypedMap<u32, Settings>,
}

impl FlowReader {
    pub(crate) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let counters = TypedMap::open(pins, map::COUNTERS)?;
        let settings = TypedMap::open(pins, map::SETTINGS)?;
        let failed = |source| DatapathError::Map {
            map: map::FLOWS,
            action: "opened",
            source,
        };
        let fd = sys::open_pinned(&pins.map(map::FLOWS)).map_err(failed)?;
        let data = MapData::from_fd(fd).map_err(|error| failed(io::Error::other(error)))?;
        let ring = RingBuf::try_from(Map::RingBuf(data))
            .map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self {
            counters,
            ring,
            settings,
        })
    }

    /// Returns how many events found the ring full, since the maps were made.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the counter cannot be read.
    pub fn lost(&self) -> Result<u64, DatapathError> {
        let counts = self.counters.per_cpu(&Counter::FlowsLost.index())?;
        Ok(counts.iter().sum())
    }

    /// Starts or stops the programs' telling.
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError::Map`] if the settings cannot be read or written.
    pub fn switch(&self, flows: FlowMode) -> Result<(), DatapathError> {
        let settings = self.settings.get(&0)?.unwrap_or_default();
        self.settings.put(&0, &Settings { flows, ..settings })
    }

    /// Takes the next event. `None` says that there is none, so that the descriptor can be waited for.
    pub fn next_event(&mut self) -> Option<FlowEvent> {
        loop {
            // A record of another length is of another build of the programs, which is being replaced.
            let record = self.ring.next()?;
            if let Ok(event) = bytemuck::try_pod_read_unaligned(&record) {
                return Some(event);
            }
        }
    }
}

impl AsFd for FlowReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for FlowReader {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl fmt::Debug for FlowReader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fd = self.as_raw_fd();
        formatter
            .debug_struct("FlowReader")
            .field("fd", &fd)
            .finish()
    }
}
