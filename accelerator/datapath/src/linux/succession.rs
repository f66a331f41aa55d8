//! Versions side by side: whichever agent starts last takes new traffic over from all others, older and
//! newer, and lets them serve the sockets that they have until there are none.
//!
//! ```text
//!  <dir>/v1   links: sock_ops, getsockopt, getpeername ...    retired: serves its sockets, then goes
//!  <dir>/v2   links: all                                      takes what is new
//! ```
//!
//! Nothing is copied from one to the other: a socket keeps the programs and the storage that it came in
//! with, and with them every unread byte. The order is add before delete, so that there is no moment
//! in which nobody takes new connections. A connection that both take is rewritten by the first, and the
//! second sees it on its way to where the first has sent it. To the outbound or inbound port of its own
//! proxy, that is a loopback address, which the rules leave alone. To the inbound port of another pod, it
//! is still that pod's address, and `decide` leaves the port alone: it would be rewritten to the same, and
//! that be taken for the original destination.

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use isthmus_accel_abi::program;

use super::installation::{Duty, Installation};
use crate::{DatapathError, RetiredRow};

/// Finds what other versions have pinned beside `pin_dir`, oldest first. A directory whose name is not
/// `v` and a number stands alone.
pub(crate) fn others(pin_dir: &Path) -> Vec<(u32, PathBuf)> {
    let (Some(own), Some(parent)) = (version_of(pin_dir), pin_dir.parent()) else {
        return Vec::new();
    };
    let mut others: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| Some((version_of(&path)?, path)))
        .filter(|(version, path)| *version != own && path.is_dir())
        .collect();
    others.sort();
    others
}

/// Returns the pin directories of every version that is there: `pin_dir` and those beside it.
#[must_use]
pub fn pin_dirs(pin_dir: &Path) -> Vec<PathBuf> {
    let own = pin_dir.is_dir().then(|| pin_dir.to_owned());
    let others = others(pin_dir).into_iter().map(|(_, path)| path);
    own.into_iter().chain(others).collect()
}

/// Returns the directory that all versions of `pin_dir` have in common.
#[must_use]
pub fn pin_root(pin_dir: &Path) -> &Path {
    match (version_of(pin_dir), pin_dir.parent()) {
        (Some(_), Some(parent)) => parent,
        _ => pin_dir,
    }
}

/// Reads the number in the name of a versioned pin directory.
pub(crate) fn version_of(dir: &Path) -> Option<u32> {
    let digits = dir.file_name()?.to_str()?.strip_prefix('v')?;
    let is_canonical = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    is_canonical.then(|| digits.parse().ok())?
}

/// Says what other versions still serve.
pub(crate) fn rows(pin_dir: &Path) -> Result<Vec<RetiredRow>, DatapathError> {
    let others = others(pin_dir);
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let counter = Installation::at(pin_dir).program(program::LIVE)?;
    let row = |(version, pin_dir): (u32, PathBuf)| {
        let sockets = Installation::at(&pin_dir).live_sockets(counter.as_fd())?;
        Ok(RetiredRow {
            version,
            pin_dir,
            sockets,
        })
    };
    others.into_iter().map(row).collect()
}

/// Takes new traffic away from every other version, removes those that serve nobody any more, and
/// returns the rest. Doing it again goes on from where an agent was killed.
///
/// # Errors
///
/// As [`crate::Datapath::retire_others`].
pub fn retire_others(pin_dir: &Path) -> Result<Vec<RetiredRow>, DatapathError> {
    let others = others(pin_dir);
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let counter = Installation::at(pin_dir).program(program::LIVE)?;
    let mut left = Vec::new();
    for (version, pin_dir) in others {
        let installation = Installation::at(&pin_dir);
        // Before anything else, and each time: an older agent may have been started and killed since.
        let was_active = installation.unhook(Duty::NewTraffic)? > 0;
        installation.stop_skipping_tcp()?;
        // What was redirected or accepted just before needs a moment: it is left to the next round.
        let is_settled = !was_active && !installation.has_handshakes()?;
        if is_settled {
            installation.release_drained()?;
        }
        let sockets = installation.live_sockets(counter.as_fd())?;
        if is_settled && sockets == 0 {
            installation.remove()?;
        } else {
            left.push(RetiredRow {
                version,
                pin_dir,
                sockets,
            });
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_from_other_directories() {
        let cases = [
            ("/sys/fs/bpf/isthmus/v1", Some(1)),
            ("/sys/fs/bpf/isthmus/v12", Some(12)),
            ("/sys/fs/bpf/isthmus/v", None),
            ("/sys/fs/bpf/isthmus/v01", None),
            ("/sys/fs/bpf/isthmus/v1.bak", None),
            ("/sys/fs/bpf/isthmus/V1", None),
            ("/sys/fs/bpf/isthmus", None),
            ("/sys/fs/bpf/isthmus/v99999999999", None),
        ];
        for (dir, version) in cases {
            assert_eq!(version_of(Path::new(dir)), version, "{dir}");
        }
    }

    #[test]
    fn other_versions_are_found_beside_a_version_only() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["v1", "v2", "v10", "other"] {
            fs::create_dir(dir.path().join(name)).expect("it is writable");
        }
        fs::write(dir.path().join("v3"), "").expect("it is writable");
        let found: Vec<u32> = others(&dir.path().join("v2"))
            .into_iter()
            .map(|(version, _)| version)
            .collect();
        assert_eq!(found, [1, 10]);
        assert_eq!(others(&dir.path().join("other")), []);
    }
}
