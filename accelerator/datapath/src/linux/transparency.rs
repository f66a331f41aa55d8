//! Listeners that answer for addresses of others (`IP_TRANSPARENT`).
//!
//! What a virtual machine dials is accepted by the proxy under the address that was dialled, which is not the
//! pod's: the kernel answers from there only for a socket that may (Linux, `inet_sk_flowi_flags`). No program
//! can give a socket that, but who may enter the pod can, by a copy of the descriptor (`pidfd_getfd(2)`). What
//! is accepted inherits it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use isthmus_accel_abi::PodConfig;
use nix::sys::socket::{setsockopt, sockopt::IpTransparent};

use super::pins::failed;
use crate::DatapathError;

/// `TCP_LISTEN`, as the kernel's tables have it.
const LISTENING: &str = "0A";

/// Which listeners have been granted it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transparency {
    /// By namespace, the inodes of their sockets.
    granted: BTreeMap<u64, BTreeSet<u64>>,
}

impl Transparency {
    /// Grants it to what listens on the proxy's outbound port in the calling thread's namespace, which is given
    /// what virtual machines send, whoever that is. Looks at the kernel's table of sockets, and at the node's
    /// processes only if there is one that does not have it yet.
    ///
    /// # Errors
    ///
    /// Returns the kernel's answer. A listener that no process is seen to have is an error too: the agent
    /// does not see the node's processes then.
    pub(crate) fn grant_here(&mut self, cookie: u64, pod: &PodConfig) -> Result<(), DatapathError> {
        let port = u16::from_be_bytes(pod.outbound_port);
        let listening = listening_here(port)?;
        let granted = self.granted.entry(cookie).or_default();
        granted.retain(|inode| listening.contains(inode));
        let lacking: BTreeSet<u64> = listening.difference(granted).copied().collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let found = grant(&lacking)?;
        granted.extend(&found);
        // One that was closed meanwhile is no loss.
        let listening = listening_here(port)?;
        if lacking
            .iter()
            .any(|it| listening.contains(it) && !found.contains(it))
        {
            return Err(DatapathError::Kernel {
                action: format!(
                    "looking for the process that listens on port {port} of a pod with virtual machines \
                     (the agent must see the node's processes, `hostPID: true`, and have CAP_SYS_PTRACE)"
                ),
                source: io::Error::from_raw_os_error(libc::ESRCH),
            });
        }
        Ok(())
    }

    /// Forgets a namespace.
    pub(crate) fn forget(&mut self, cookie: u64) {
        self.granted.remove(&cookie);
    }
}

/// Returns the inodes of sockets that listen on a port of the calling thread's namespace.
fn listening_here(port: u16) -> Result<BTreeSet<u64>, DatapathError> {
    let mut inodes = BTreeSet::new();
    for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let table = match fs::read_to_string(file) {
            Ok(table) => table,
            // A kernel that does without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("reading", Path::new(file))(error)),
        };
        inodes.extend(listeners_in(&table, port));
    }
    Ok(inodes)
}

/// Reads the kernel's table (`/proc/net/tcp`): `sl local remote state queues timer retransmits uid timeout inode`.
fn listeners_in(table: &str, port: u16) -> impl Iterator<Item = u64> {
    let port = format!(":{port:04X}");
    table.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = fields.as_slice() else {
            return None;
        };
        let is_wanted = *state == LISTENING && local.ends_with(&port);
        is_wanted.then(|| inode.parse().ok()).flatten()
    })
}

/// Grants it to these sockets, whoever has them; returns those that were found.
fn grant(inodes: &BTreeSet<u64>) -> Result<BTreeSet<u64>, DatapathError> {
    let mut found = BTreeSet::new();
    for process in numbers_in(Path::new("/proc")) {
        let fds = PathBuf::from(format!("/proc/{process}/fd"));
        for fd in numbers_in(&fds) {
            let file = fds.join(fd.to_string());
            let Some(inode) = fs::read_link(&file)
                .ok()
                .and_then(|link| socket_inode(&link))
            else {
                continue;
            };
            if !inodes.contains(&inode) || found.contains(&inode) {
                continue;
            }
            let granted = copy_of(process, fd).and_then(|socket| {
                // For IPv6 it is the same bit.
                setsockopt(&socket, IpTransparent, &true).map_err(io::Error::from)
            });
            match granted {
                Ok(()) => found.extend([inode]),
                // It was closed, or its process is gone.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => {}
                Err(error) => return Err(failed("granting IP_TRANSPARENT to", &file)(error)),
            }
        }
        if found.len() == inodes.len() {
            break;
        }
    }
    Ok(found)
}

// Nothing, if the process is gone.
fn numbers_in(dir: &Path) -> impl Iterator<Item = RawFd> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn socket_inode(link: &Path) -> Option<u64> {
    let name = link.to_str()?.strip_prefix("socket:[")?;
    name.strip_suffix(']')?.parse().ok()
}

fn copy_of(process: libc::pid_t, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })?;
    // SAFETY: an open descriptor and plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_told_by_port_and_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 4711 1 0000000000000000 100 0 0 10 0
   1: 00000000:3A9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 4712 1 0000000000000000 100 0 0 10 0
   2: 0100007F:3A99 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1337        0 4713 1 0000000000000000 20 4 30 10 -1
   0: 00000000000000000000000000000000:3A99 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 4715 1 0000000000000000 100 0 0 10 0
";
        let found: Vec<u64> = listeners_in(table, 15_001).collect();
        assert_eq!(found, [4711, 4715]);
    }

    #[test]
    fn sockets_are_told_from_other_files() {
        let inode = |link: &str| socket_inode(Path::new(link));
        assert_eq!(inode("socket:[4711]"), Some(4711));
        for link in ["/dev/null", "pipe:[4711]", "socket:[]", "socket:[x]"] {
            assert_eq!(inode(link), None, "{link}");
        }
    }
}
