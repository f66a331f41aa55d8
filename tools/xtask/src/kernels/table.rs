//! Which kernels there are, and what is expected of each.

/// A Debian kernel.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Kernel {
    /// What the user calls it, and the log's name.
    pub(super) name: &'static str,
    /// Suite of the archive that serves it.
    pub(super) suite: &'static str,
    /// Its version, up to where the newest one is taken.
    pub(super) version: &'static str,
    /// What `isthmus-accelerator probe` must find off there; the rest of [`MECHANISMS`] must be on.
    pub(super) off: &'static [&'static str],
    /// A part of the reason that it must give for what is off.
    pub(super) why: &'static str,
    /// Parts of names of tests that cannot pass there, and why.
    pub(super) left_out: &'static [(&'static str, &'static str)],
}

/// What CI boots.
pub(super) const CI: [&str; 3] = ["6.1", "6.12", "7.3"];

/// The mechanisms of the accelerator, as its probe calls them: the columns of the README's matrix.
pub(super) const MECHANISMS: [&str; 6] = [
    "redirect",
    "redirect-v6",
    "peer-name",
    "dns",
    "inbound",
    "sockmap",
];

/// Tests that need messages to skip TCP.
const NO_SOCKMAP: &[(&str, &str)] = &[
    ("backpressure::", "messages do not skip TCP there"),
    ("closing::", "messages do not skip TCP there"),
    ("order::", "messages do not skip TCP there"),
    ("share::", "messages do not skip TCP there"),
    (
        "pods_with_the_same_tuple",
        "it compares what has skipped TCP, of which there is nothing",
    ),
    (
        "connections_that_see_two_tuples",
        "it counts what has skipped TCP, of which there is nothing",
    ),
    (
        "a_port_that_is_used_again",
        "no socket has a place that another could take",
    ),
    (
        "a_detach_waits_for_what_is_parked",
        "nothing is ever parked there",
    ),
    (
        "sockets_without_room_stay_on_tcp",
        "all sockets stay on TCP there",
    ),
    (
        "the_probe_finds_this_machine_fit",
        "it must not, and the report that the host reads is checked instead",
    ),
];

/// Every kernel, from the oldest.
pub(super) const KERNELS: [Kernel; 6] = [
    Kernel {
        name: "5.10",
        suite: "bullseye-security",
        version: "5.10.",
        off: &MECHANISMS,
        why: "bpf_get_netns_cookie",
        left_out: &[(
            "",
            "sock_ops and getsockopt programs cannot tell network namespaces apart before Linux 5.15",
        )],
    },
    Kernel {
        name: "6.1",
        suite: "bookworm-security",
        version: "6.1.",
        off: &[],
        why: "",
        left_out: &[],
    },
    Kernel {
        name: "6.12",
        suite: "bookworm-security",
        version: "6.12.",
        off: &[],
        why: "",
        left_out: &[],
    },
    Kernel {
        name: "6.12.100",
        suite: "bookworm-security",
        version: "6.12.100+",
        off: &["sockmap"],
        why: "CVE-2026-68284",
        left_out: NO_SOCKMAP,
    },
    Kernel {
        name: "6.18.15",
        suite: "trixie-backports",
        version: "6.18.15+",
        off: &["sockmap"],
        why: "CVE-2026-68284",
        left_out: NO_SOCKMAP,
    },
    Kernel {
        name: "7.3",
        suite: "trixie-backports",
        version: "7.3.",
        off: &[],
        why: "",
        left_out: &[],
    },
];

impl Kernel {
    /// Whether only the probe runs there.
    pub(super) fn has_no_tests(&self) -> bool {
        self.left_out.iter().any(|(name, _)| name.is_empty())
    }

    /// Says which tests did not run.
    pub(super) fn explain_what_is_left_out(&self) {
        for (name, why) in self.left_out {
            let name = if name.is_empty() { "every test" } else { name };
            println!("{}: {name} is left out: {why}", self.name);
        }
    }
}

/// The README's matrix.
#[cfg(test)]
fn matrix() -> String {
    let head = format!("| Linux | {} |\n", MECHANISMS.join(" | "));
    let rule = format!("|---|{}\n", "---|".repeat(MECHANISMS.len()));
    let row = |kernel: &Kernel| {
        let cell = |name: &&str| {
            if kernel.off.contains(name) {
                "no"
            } else {
                "yes"
            }
        };
        let cells: Vec<&str> = MECHANISMS.iter().map(cell).collect();
        format!("| {} | {} |\n", kernel.name, cells.join(" | "))
    };
    [head, rule]
        .into_iter()
        .chain(KERNELS.iter().map(row))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_the_matrix_that_is_checked() {
        let readme = include_str!("../../../../README.md");
        assert!(
            readme.contains(&matrix()),
            "put this into the README:\n{}",
            matrix()
        );
    }
}
