//! What the kernel must be given, and what it says afterwards.

use std::{
    ffi::CStr,
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};

const MOUNTS: [(&str, &str); 7] = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Mounts what a node has.
///
/// # Errors
///
/// When the kernel refuses one.
pub(crate) fn mount_all() -> anyhow::Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("{place} could not be made"))?;
        mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("{kind} could not be mounted at {place}"))?;
    }
    Ok(())
}

/// Loads the modules of a list: no kmod is here that the kernel could ask for them.
///
/// # Errors
///
/// When the kernel refuses one.
pub(crate) fn load_modules(paths: &str) -> anyhow::Result<()> {
    for path in paths.lines() {
        let file = File::open(path).with_context(|| format!("{path} could not be opened"))?;
        let no_parameters: &CStr = c"";
        // SAFETY: a descriptor, a string with its end, and no flags.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_finit_module,
                file.as_raw_fd(),
                no_parameters.as_ptr(),
                0,
            )
        };
        if answer != 0 {
            let error = io::Error::last_os_error();
            // Loaded by another one's init function.
            if error.raw_os_error() != Some(libc::EEXIST) {
                return Err(error).with_context(|| format!("{path} could not be loaded"));
            }
        }
    }
    Ok(())
}

/// What the kernel's log must not hold: the programs under test run inside of the kernel.
const COMPLAINTS: [&str; 6] = [
    "WARNING: ",
    "BUG: ",
    "Oops: ",
    "soft lockup",
    "possible deadlock",
    "general protection",
];

/// Searches the kernel's log.
///
/// # Errors
///
/// When it cannot be read.
pub(crate) fn complaints() -> anyhow::Result<Vec<String>> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .context("/dev/kmsg could not be opened")?;
    let mut complaints = Vec::new();
    // One record a read.
    let mut record = vec![0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(len) => {
                let text = String::from_utf8_lossy(&record[..len]).into_owned();
                if COMPLAINTS.iter().any(|word| text.contains(word)) {
                    let line = text.lines().next().unwrap_or_default();
                    let message = line.split_once(';').map_or(line, |(_, message)| message);
                    complaints.push(message.to_owned());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(complaints),
            // Overwritten before it was read.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error).context("/dev/kmsg could not be read"),
        }
    }
}
