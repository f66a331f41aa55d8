//! One network namespace: made, entered by commands or by a thread, and removed.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::thread::LinkNameSpaceType;

use crate::{shell, wait};

/// Where `ip netns` keeps the files of namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// How long the processes of a namespace get to be gone after SIGKILL.
const PROCESS_EXIT_DEADLINE: Duration = Duration::from_secs(5);

/// A network namespace that is removed, with every process in it, when this is dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with its loopback interface up and IPv6 off.
    ///
    /// IPv6 stays off until the programs handle it: duplicate address detection would add a second of waiting.
    ///
    /// # Errors
    ///
    /// When this is not root, or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        shell::capture(Command::new("ip").args(["netns", "add", name]))?;
        let netns = Self {
            name: name.to_owned(),
        };
        netns.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// File of the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Runs `ip` in the namespace.
    ///
    /// # Errors
    ///
    /// When the command fails.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        shell::capture(Command::new("ip").args(["-n", &self.name]).args(args))
    }

    /// Sets a sysctl of the namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not know it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        let value = value.to_owned();
        self.enter(move || {
            std::fs::write(&path, value)
                .with_context(|| format!("{} could not be set", path.display()))
        })?
    }

    /// A command that runs in the namespace, as the user who calls.
    ///
    /// Only the network is another: mounts stay those of the caller, unlike with `ip netns exec`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command_in(&self.path(), program)
    }

    /// Runs `work` on a thread inside the namespace. Sockets that it opens stay there.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    ///
    /// When `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        enter(Some(&self.path()), work)
    }

    /// Bytes that an interface has received and sent.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn interface_bytes(&self, interface: &str) -> Result<InterfaceBytes> {
        let json = self.ip(&["-json", "-statistics", "link", "show", "dev", interface])?;
        let links: serde_json::Value = serde_json::from_str(&json).context("ip printed no JSON")?;
        let counter = |direction: &str| {
            links[0]["stats64"][direction]["bytes"]
                .as_u64()
                .ok_or_else(|| anyhow!("ip shows no {direction} bytes of {interface}"))
        };
        Ok(InterfaceBytes {
            received: counter("rx")?,
            sent: counter("tx")?,
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("network namespace {} is left behind: {error:#}", self.name);
        }
    }
}

/// As [`Netns::command`], for the file of a namespace.
pub fn command_in(path: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", path.display()))
        .arg("--")
        .arg(program);
    command
}

/// Runs `work` on a thread inside the namespace, or where the caller is without one.
///
/// # Errors
///
/// When the namespace cannot be entered.
///
/// # Panics
///
/// When `work` does.
pub fn enter<T: Send>(path: Option<&Path>, work: impl FnOnce() -> T + Send) -> Result<T> {
    let Some(path) = path else {
        return Ok(work());
    };
    thread::scope(|scope| {
        // The thread ends here and takes the changed namespace with it.
        let inside = scope.spawn(move || enter_thread(path).map(|()| work()));
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling thread into a namespace, for the rest of its life.
///
/// # Errors
///
/// When the file is no namespace, or this is not root.
pub fn enter_thread(path: &Path) -> Result<()> {
    let namespace =
        File::open(path).with_context(|| format!("{} could not be opened", path.display()))?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("{} could not be entered", path.display()))
}

/// What went over an interface since it exists.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InterfaceBytes {
    /// Bytes received, with headers.
    pub received: u64,
    /// Bytes sent, with headers.
    pub sent: u64,
}

/// Kills what runs in a namespace and removes it.
///
/// # Errors
///
/// When a process of it does not end, or it cannot be removed.
pub fn remove(name: &str) -> Result<()> {
    wait::until(
        &format!("the end of the processes in {name}"),
        PROCESS_EXIT_DEADLINE,
        || {
            let left = shell::capture(Command::new("ip").args(["netns", "pids", name]))?;
            // Each time anew: one that was just being started enters while we look.
            for pid in left
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .filter_map(rustix::process::Pid::from_raw)
            {
                // Gone already is as good.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            // A child of ours is a zombie until it is reaped, and `ip` does not list those.
            if left.trim().is_empty() {
                Ok(())
            } else {
                Err(anyhow!("still there: {}", left.trim().replace('\n', " ")))
            }
        },
    )?;
    shell::capture(Command::new("ip").args(["netns", "delete", name])).map(drop)
}
