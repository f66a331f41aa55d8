//! What one version has under its pin directory, through the few facts that hold for every version
//! (`isthmus_accel_abi::map` lists them), so that an agent can end what another has begun.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use isthmus_accel_abi::{SettingsMode, map, program};

use super::{
    maps::RawMap,
    netns,
    pins::Pins,
    sys::{self, LinkFacts},
    virtual_machines,
};
use crate::DatapathError;

/// What a link is there for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Duty {
    /// It takes what is new: without it, connections and datagrams go their ordinary way.
    NewTraffic,
    /// It answers for sockets that were taken earlier, or follows them to their end.
    LiveSockets,
}

impl Duty {
    /// Tells it from the kernel's numbers, which mean the same for programs of every version.
    pub(crate) fn of(link: &LinkFacts) -> Self {
        // Linux, `include/uapi/linux/bpf.h`: `enum bpf_attach_type`.
        const BIND4: u32 = 8;
        const BIND6: u32 = 9;
        const CONNECT4: u32 = 10;
        const CONNECT6: u32 = 11;
        const SENDMSG4: u32 = 14;
        const SENDMSG6: u32 = 15;
        const SK_LOOKUP: u32 = 36;
        const TCX_INGRESS: u32 = 46;
        match link.attach_type {
            Some(
                BIND4 | BIND6 | CONNECT4 | CONNECT6 | SENDMSG4 | SENDMSG6 | SK_LOOKUP | TCX_INGRESS,
            ) => Self::NewTraffic,
            Some(_) | None => Self::LiveSockets,
        }
    }
}

/// Redirected bytes that nobody has read yet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Unread {
    /// Sockets at which they lie.
    pub sockets: usize,
    /// Bytes, with those that TCP has delivered behind them.
    pub bytes: u64,
}

const SETTINGS_INDEX: [u8; 4] = [0; 4];

/// What is pinned under one directory, by whichever version.
#[derive(Debug)]
pub(crate) struct Installation {
    pins: Pins,
}

impl Installation {
    pub(crate) fn at(dir: &Path) -> Self {
        Self {
            pins: Pins::new(dir),
        }
    }

    /// Reads which version it is of; `None` before an agent has written it.
    pub(crate) fn abi_version(&self) -> Result<Option<u32>, DatapathError> {
        let Some(settings) = self.map(map::SETTINGS) else {
            return Ok(None);
        };
        let value = settings.get(&SETTINGS_INDEX)?;
        let version = value.as_deref().and_then(|value| value.first_chunk());
        Ok(version
            .map(|bytes| u32::from_ne_bytes(*bytes))
            .filter(|version| *version != 0))
    }

    /// Writes the version and what the programs may do.
    pub(crate) fn write_settings(
        &self,
        abi_version: u32,
        mode: SettingsMode,
    ) -> Result<(), DatapathError> {
        let settings = RawMap::open(&self.pins, map::SETTINGS)?;
        let mut value = settings.get(&SETTINGS_INDEX)?.unwrap_or_default();
        // What follows these two fields is another version's, or an option that was switched since.
        let begin = [
            abi_version.to_ne_bytes().as_slice(),
            bytemuck::bytes_of(&mode),
        ]
        .concat();
        if let Some(place) = value.get_mut(..begin.len()) {
            place.copy_from_slice(&begin);
        }
        settings.put(&SETTINGS_INDEX, &value)
    }

    /// Ends what the links of this duty do; returns how many there were.
    pub(crate) fn unhook(&self, duty: Duty) -> Result<usize, DatapathError> {
        let mut count = 0;
        for path in self.links() {
            let facts = sys::open_pinned(&path).and_then(|link| sys::link_facts(link.as_fd()));
            // One that cannot be asked is of no use to anybody.
            if facts.is_ok_and(|facts| Duty::of(&facts) != duty) {
                continue;
            }
            Pins::unpin(&path)?;
            count += 1;
        }
        Ok(count)
    }

    /// Removes what was made in the namespaces of pods; returns the first failure behind all of them.
    ///
    /// Call it before the links go, by which the namespaces are found.
    pub(crate) fn withdraw_ways_back(&self) -> Result<(), DatapathError> {
        let mut outcome = Ok(());
        for cookie in netns::attached(&self.pins)? {
            outcome = outcome.and(netns::withdraw_way_back(&self.pins, cookie, None));
        }
        outcome
    }

    /// Removes what was made in the namespaces of pods with virtual machines. Call it before the links go.
    pub(crate) fn withdraw_rules(&self) -> Result<(), DatapathError> {
        virtual_machines::withdraw(&self.pins)
    }

    /// Makes every message go by TCP from here on, and keeps new sockets out of the sockmap.
    pub(crate) fn stop_skipping_tcp(&self) -> Result<(), DatapathError> {
        match self.abi_version()? {
            Some(version) => self.write_settings(version, SettingsMode::REDIRECT_ONLY),
            None => Ok(()),
        }
    }

    /// Tells whether connections may be between SYN and established.
    pub(crate) fn has_handshakes(&self) -> Result<bool, DatapathError> {
        self.has_entries(map::ORIG_DST_BY_TUPLE)
    }

    /// Tells whether any pod's connections are taken.
    pub(crate) fn has_pods(&self) -> Result<bool, DatapathError> {
        self.has_entries(map::PODS)
    }

    /// Counts the sockets in the sockmap.
    pub(crate) fn sockets(&self) -> Result<usize, DatapathError> {
        Ok(match self.map(map::SOCKETS) {
            Some(sockets) => sockets.keys()?.len(),
            None => 0,
        })
    }

    /// Counts the sockets that its programs still answer for, with the program [`program::LIVE`] of
    /// whichever version.
    pub(crate) fn live_sockets(&self, counter: BorrowedFd<'_>) -> Result<usize, DatapathError> {
        let states = [map::SOCKET_STATE, map::DNS_SOCKETS];
        let count =
            |states: RawMap| sys::iterate_map(counter, states.fd()).map(|marks| marks.len());
        let maps = states.into_iter().filter_map(|name| self.map(name));
        let counts: Result<Vec<usize>, _> = maps.map(count).collect();
        let counts = counts.map_err(|source| DatapathError::Kernel {
            action: format!("running {}", program::LIVE),
            source,
        })?;
        Ok(counts.iter().sum())
    }

    /// Opens one of its programs.
    pub(crate) fn program(&self, name: &str) -> Result<OwnedFd, DatapathError> {
        let path = self.pins.program(name);
        sys::open_pinned(&path).map_err(|source| DatapathError::Kernel {
            action: format!("opening {}", path.display()),
            source,
        })
    }

    /// Gives every socket back to TCP that has nothing parked, and says what the others hold. Nothing
    /// may be redirected any more.
    pub(crate) fn release_drained(&self) -> Result<Unread, DatapathError> {
        let mut unread = Unread::default();
        // Without what can tell, a socket stays as it is: nothing may be lost.
        let (Some(sockets), Some(ends)) = (self.map(map::SOCKETS), self.map(map::ENDS)) else {
            return Ok(unread);
        };
        let Ok(parked) = self.program(program::PARKED) else {
            return Ok(unread);
        };
        for key in sockets.keys()? {
            // A connection that was reset: what came before the reset may still be read.
            if ends.get(&key)?.is_none() {
                continue;
            }
            match sys::test_run(parked.as_fd(), &key) {
                Ok(0) => {
                    // The socket may have been closed, and removed with that.
                    sockets.remove(&key)?;
                }
                Ok(bytes) => {
                    unread.sockets += 1;
                    unread.bytes += u64::from(bytes);
                }
                Err(source) => {
                    return Err(DatapathError::Kernel {
                        action: format!("running {}", program::PARKED),
                        source,
                    });
                }
            }
        }
        Ok(unread)
    }

    /// Removes every pin and the directories.
    pub(crate) fn remove(&self) -> Result<(), DatapathError> {
        self.pins.remove_all()
    }

    fn links(&self) -> Vec<PathBuf> {
        self.pins
            .link_dirs()
            .iter()
            .flat_map(|dir| files_under(dir))
            .collect()
    }

    fn map(&self, name: &'static str) -> Option<RawMap> {
        RawMap::open(&self.pins, name).ok()
    }

    fn has_entries(&self, name: &'static str) -> Result<bool, DatapathError> {
        match self.map(name) {
            Some(map) => map.has_entries(),
            None => Ok(false),
        }
    }
}

/// The files below a directory, at whatever depth; none if it is not there.
fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_under(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_new_traffic_is_told_from_what_serves_live_sockets() {
        let cases = [
            ("cgroup/connect4", Some(10), Duty::NewTraffic),
            ("cgroup/connect6", Some(11), Duty::NewTraffic),
            ("cgroup/sendmsg4", Some(14), Duty::NewTraffic),
            ("cgroup/sendmsg6", Some(15), Duty::NewTraffic),
            ("sk_lookup", Some(36), Duty::NewTraffic),
            ("tcx/ingress", Some(46), Duty::NewTraffic),
            ("sock_ops", Some(3), Duty::LiveSockets),
            ("cgroup/recvmsg4", Some(19), Duty::LiveSockets),
            ("cgroup/getsockopt", Some(21), Duty::LiveSockets),
            ("cgroup/getpeername4", Some(29), Duty::LiveSockets),
            ("cgroup/getpeername6", Some(30), Duty::LiveSockets),
            ("a kind that says nothing", None, Duty::LiveSockets),
        ];
        for (name, attach_type, duty) in cases {
            let facts = LinkFacts {
                program_id: 1,
                attach_type,
                netns_inode: None,
            };
            assert_eq!(Duty::of(&facts), duty, "{name}");
        }
    }
}
