//! What this machine offers, and what to do about what it lacks.

use std::{fs, path::Path};

use isthmus_accel_abi::program;

use crate::{
    DatapathError,
    defects::{DEFECTS, Defect, Exposure, check_sockmap},
    linux::{self, KernelOffsets, KernelVersion},
    mechanism::{Mechanism, MechanismRow},
};

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProbeRow {
    /// What.
    pub feature: &'static str,
    /// What does not work without it.
    pub needed_by: Mechanism,
    /// Tells whether it is there.
    pub is_present: bool,
    /// What was found.
    pub detail: String,
    /// What to do if it is missing.
    pub remedy: &'static str,
}

/// Everything that was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Probe {
    /// The kernel, if its words are understood.
    pub kernel: Option<KernelVersion>,
    /// In the order in which a missing one explains those after it.
    pub rows: Vec<ProbeRow>,
}

impl Probe {
    /// Returns the first thing that is missing for a mechanism, or `None` if all is there.
    #[must_use]
    pub fn first_missing(&self, mechanism: Mechanism) -> Option<&ProbeRow> {
        self.rows
            .iter()
            .find(|row| !row.is_present && row.is_needed_by(mechanism))
    }

    /// Returns what becomes of each mechanism that this build has.
    #[must_use]
    pub fn mechanisms(&self) -> Vec<MechanismRow> {
        let row = |mechanism| {
            let missing = self.first_missing(mechanism);
            let last = || {
                self.rows
                    .iter()
                    .rfind(|row| row.needed_by == mechanism)
                    .map_or_else(String::new, |row| row.detail.clone())
            };
            MechanismRow {
                mechanism,
                is_enabled: missing.is_none(),
                reason: missing.map_or_else(last, |row| format!("{}: {}", row.feature, row.detail)),
            }
        };
        Mechanism::ALL
            .into_iter()
            .filter(|mechanism| mechanism.is_built())
            .map(row)
            .collect()
    }

    /// Returns what each known defect of sockmap means for the kernel; nothing if the kernel is not known.
    #[must_use]
    pub fn defects(&self) -> Vec<(&'static Defect, Exposure)> {
        let Some(kernel) = self.kernel else {
            return Vec::new();
        };
        DEFECTS
            .iter()
            .map(|defect| (defect, defect.exposure(kernel)))
            .collect()
    }
}

impl ProbeRow {
    fn is_needed_by(&self, mechanism: Mechanism) -> bool {
        self.needed_by == Mechanism::Redirect || self.needed_by == mechanism
    }
}

/// Looks at the machine. Loads every program once into the kernel, attaches and pins nothing, and
/// mounts nothing. Takes about 0.2 s.
#[must_use]
pub fn probe(pin_dir: &Path) -> Probe {
    let mut rows = vec![capabilities(), cgroup(), bpffs(pin_dir), first_place()];
    let offsets = KernelOffsets::of_running_kernel();
    rows.push(kernel_types(&offsets));
    rows.extend(programs(offsets.as_ref().ok()));
    rows.push(fields(offsets.as_ref().ok()));
    let kernel = KernelVersion::running();
    rows.push(sockmap_floor(kernel));
    Probe { kernel, rows }
}

// Linux, `include/uapi/linux/capability.h`.
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

fn capabilities() -> ProbeRow {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let missing = missing_capabilities(held);
    ProbeRow {
        feature: "rights",
        needed_by: Mechanism::Redirect,
        is_present: missing.is_empty(),
        detail: if missing.is_empty() {
            "all there".to_owned()
        } else {
            format!("without {}", missing.join(", "))
        },
        remedy: "run as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN",
    }
}

fn missing_capabilities(held: u64) -> Vec<&'static str> {
    [
        (CAP_BPF, "CAP_BPF"),
        (CAP_PERFMON, "CAP_PERFMON"),
        (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
    ]
    .into_iter()
    .filter_map(|(bit, name)| (held & bit == 0).then_some(name))
    .collect()
}

fn cgroup() -> ProbeRow {
    let root = linux::cgroup_root();
    ProbeRow {
        feature: "cgroup v2",
        needed_by: Mechanism::Redirect,
        is_present: root.is_ok(),
        detail: match root {
            Ok(root) => format!("at {}", root.display()),
            Err(error) => error.to_string(),
        },
        remedy: "mount -t cgroup2 none /sys/fs/cgroup/unified",
    }
}

fn bpffs(pin_dir: &Path) -> ProbeRow {
    let existing = pin_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(pin_dir);
    let is_mounted = linux::is_bpffs(existing);
    // The agent mounts the usual one itself.
    let is_mountable = pin_dir.starts_with(linux::DEFAULT_BPFFS);
    ProbeRow {
        feature: "BPF filesystem",
        needed_by: Mechanism::Redirect,
        is_present: is_mounted || is_mountable,
        detail: match (is_mounted, is_mountable) {
            (true, _) => format!("{} is in one", pin_dir.display()),
            (false, true) => format!("{} will be mounted", linux::DEFAULT_BPFFS),
            (false, false) => format!("{} is not in one", pin_dir.display()),
        },
        remedy: "choose a directory under /sys/fs/bpf, or mount -t bpf bpf there first",
    }
}

fn first_place() -> ProbeRow {
    let outcome = linux::first_place();
    ProbeRow {
        feature: linux::FIRST_PLACE,
        needed_by: Mechanism::Redirect,
        is_present: outcome.is_ok(),
        detail: match outcome {
            Ok(found) => found,
            Err(DatapathError::Missing { detail, .. }) => detail,
            Err(error) => error.to_string(),
        },
        remedy: linux::FIRST_PLACE_REMEDY,
    }
}

fn kernel_types(offsets: &Result<KernelOffsets, DatapathError>) -> ProbeRow {
    ProbeRow {
        feature: "kernel types (BTF)",
        needed_by: Mechanism::Redirect,
        is_present: offsets.is_ok(),
        detail: match offsets {
            Ok(_) => linux::VMLINUX_BTF.to_owned(),
            Err(error) => error.to_string(),
        },
        remedy: "run a kernel built with CONFIG_DEBUG_INFO_BTF=y",
    }
}

fn programs(offsets: Option<&KernelOffsets>) -> Vec<ProbeRow> {
    let row = |name, error: Option<String>| ProbeRow {
        feature: name,
        needed_by: Mechanism::of_program(name),
        is_present: error.is_none(),
        detail: error.unwrap_or_else(|| "the kernel accepts it".to_owned()),
        remedy: "run Linux 6.1 or newer with CONFIG_CGROUP_BPF=y and CONFIG_BPF_STREAM_PARSER=y",
    };
    let Some(offsets) = offsets else {
        return program::ALL
            .map(|name| {
                row(
                    name,
                    Some("cannot be tried without kernel types".to_owned()),
                )
            })
            .into();
    };
    linux::try_programs(offsets)
        .into_iter()
        .map(|(name, error)| row(name, error))
        .collect()
}

fn fields(offsets: Option<&KernelOffsets>) -> ProbeRow {
    let missing = offsets.map_or("kernel types".to_owned(), |offsets| {
        offsets.missing().join(", ")
    });
    ProbeRow {
        feature: "kernel fields",
        needed_by: Mechanism::Sockmap,
        is_present: missing.is_empty(),
        detail: if missing.is_empty() {
            "all there".to_owned()
        } else {
            format!("without {missing}")
        },
        remedy: "run a kernel of a line that is supported, see the README",
    }
}

fn sockmap_floor(kernel: Option<KernelVersion>) -> ProbeRow {
    let outcome = kernel.map_or(
        Err("the kernel's version is not understood".to_owned()),
        check_sockmap,
    );
    ProbeRow {
        feature: "safe sockmap",
        needed_by: Mechanism::Sockmap,
        is_present: outcome.is_ok(),
        detail: outcome.unwrap_or_else(|reason| reason),
        remedy: "update to 6.1.159, 6.6.148, 6.12.101, 6.18.42, 7.2 or newer; redirecting works all the same",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(needed_by: Mechanism, is_present: bool) -> ProbeRow {
        ProbeRow {
            feature: "x",
            needed_by,
            is_present,
            detail: String::new(),
            remedy: "",
        }
    }

    #[test]
    fn skipping_tcp_needs_what_redirecting_needs_and_more() {
        use Mechanism::{Redirect, Sockmap};
        let cases = [
            (
                "all there",
                vec![(Redirect, true), (Sockmap, true)],
                true,
                true,
            ),
            (
                "no sockmap",
                vec![(Redirect, true), (Sockmap, false)],
                true,
                false,
            ),
            (
                "nothing",
                vec![(Redirect, false), (Sockmap, true)],
                false,
                false,
            ),
        ];
        for (name, rows, can_redirect, can_skip) in cases {
            let rows = rows.into_iter().map(|(by, is_present)| row(by, is_present));
            let probe = Probe {
                kernel: None,
                rows: rows.collect(),
            };
            assert_eq!(
                probe.first_missing(Redirect).is_none(),
                can_redirect,
                "{name}"
            );
            assert_eq!(probe.first_missing(Sockmap).is_none(), can_skip, "{name}");
        }
    }

    #[test]
    fn missing_rights_are_named() {
        assert_eq!(missing_capabilities(u64::MAX), [] as [&str; 0]);
        assert_eq!(missing_capabilities(!CAP_BPF), ["CAP_BPF"]);
        assert_eq!(missing_capabilities(0).len(), 4);
    }
}
