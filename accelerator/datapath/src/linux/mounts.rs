//! Where cgroup v2 and the BPF filesystem are mounted.

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::DatapathError;

/// Where the BPF filesystem usually is.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
/// Where this agent pins what it loads, unless told otherwise; `v2` is the version of the layouts in it.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/isthmus/v2";

const MOUNTINFO: &str = "/proc/self/mountinfo";
// Linux, `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: libc::__fsword_t = 0xcafe_4a11;

/// Finds the root of the cgroup v2 tree, on unified and on hybrid machines.
///
/// # Errors
///
/// Returns [`DatapathError::Missing`] if cgroup v2 is not mounted.
pub fn cgroup_root() -> Result<PathBuf, DatapathError> {
    let mounts = fs::read_to_string(MOUNTINFO).map_err(|source| DatapathError::Kernel {
        action: format!("reading {MOUNTINFO}"),
        source,
    })?;
    parse_cgroup_root(&mounts).ok_or_else(|| DatapathError::Missing {
        feature: "cgroup v2",
        detail: format!("no mount of type cgroup2 in {MOUNTINFO}"),
        remedy: "mount -t cgroup2 none /sys/fs/cgroup/unified",
    })
}

/// The mount of the root of the tree is wanted, not one of a part of it. Of several, the first.
fn parse_cgroup_root(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (kind.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(unescape(point)))
    })
}

// proc(5): space, tab, newline and backslash are octal.
fn unescape(field: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(field.to_owned(), |text, (code, char)| {
        text.replace(code, char)
    })
}

/// Whether [`ensure_bpffs`] had to mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BpfFs {
    /// It was there.
    Found,
    /// Mounted here by us. It stays: another program may have come to use it since.
    Mounted(PathBuf),
}

/// Sees to it that `dir` is, or will be, inside a BPF filesystem, and makes it.
///
/// # Errors
///
/// Returns [`DatapathError::Missing`] if there is none and it cannot be mounted.
pub fn ensure_bpffs(dir: &Path) -> Result<BpfFs, DatapathError> {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(dir);
    let mut outcome = BpfFs::Found;
    if !is_bpffs(existing) {
        let point = Path::new(DEFAULT_BPFFS);
        if !dir.starts_with(point) {
            return Err(DatapathError::Missing {
                feature: "BPF filesystem",
                detail: format!("{} is not in one", dir.display()),
                remedy: "choose a directory under /sys/fs/bpf, or mount -t bpf bpf there first",
            });
        }
        mount_bpffs(point).map_err(|error| DatapathError::Missing {
            feature: "BPF filesystem",
            detail: format!("{DEFAULT_BPFFS} is not mounted, and mounting it failed: {error}"),
            remedy: "run as root, or mount -t bpf bpf /sys/fs/bpf",
        })?;
        outcome = BpfFs::Mounted(point.to_owned());
    }
    fs::create_dir_all(dir).map_err(|source| DatapathError::Kernel {
        action: format!("making {}", dir.display()),
        source,
    })?;
    Ok(outcome)
}

/// Tells whether a path is in a BPF filesystem.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: all-zero is a valid `statfs`.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a path that ends in NUL, and a buffer of the right type.
    let answer = unsafe { libc::statfs(path.as_ptr(), &raw mut stat) };
    answer == 0 && stat.f_type == BPF_FS_MAGIC
}

fn mount_bpffs(point: &Path) -> io::Result<()> {
    let point = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: four strings that end in NUL; this type of filesystem takes no further data here.
    let answer = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            point.as_ptr(),
            c"bpf".as_ptr(),
            0,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_root_of_cgroup_v2() {
        const HYBRID: &str = "\
31 23 0:27 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        const PART: &str = "30 23 0:26 /../.. /mnt/part rw - cgroup2 cgroup2 rw";
        const SPACE: &str = "30 23 0:26 / /mnt/c\\040g rw - cgroup2 cgroup2 rw";
        let cases = [
            ("hybrid", HYBRID, Some("/sys/fs/cgroup/unified")),
            ("unified", UNIFIED, Some("/sys/fs/cgroup")),
            ("a part of the tree is not its root", PART, None),
            ("escaped", SPACE, Some("/mnt/c g")),
            ("none", "", None),
        ];
        for (name, mountinfo, root) in cases {
            assert_eq!(
                parse_cgroup_root(mountinfo).as_deref(),
                root.map(Path::new),
                "{name}"
            );
        }
    }
}
