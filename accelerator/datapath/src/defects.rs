//! Known defects of the kernel's sockmap, and which of them the running kernel has.
//!
//! Source: `cve/published` of the kernel's own vulnerability tracker, read in 2026-11. A defect with releases in it makes
//! the sockmap unsafe below them; one without is in something that the accelerator never does.

use std::fmt;

use crate::linux::KernelVersion;

/// A defect of sockmap.
#[derive(Debug, Eq, PartialEq)]
pub struct Defect {
    /// Its CVE, or the commit that mends it.
    pub id: &'static str,
    /// What it does.
    pub effect: &'static str,
    /// The first release of each line that has the fix, from the oldest line. Lines after the last have it from their
    /// start; lines between two that are not named never got it.
    fixed_in: &'static [KernelVersion],
    /// What is true of lines older than the first.
    older: Older,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Older {
    /// They have the defect, too, and no release with the fix.
    Affected,
    /// They do not have what is defective.
    NotConcerned,
}

/// What a defect means for one kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exposure {
    /// The accelerator never does what triggers it.
    Avoided,
    /// Fixed, or never there.
    Fixed,
    /// The kernel has it; the release of its line that does not, if there is one.
    Affected(Option<KernelVersion>),
}

impl Exposure {
    /// Returns the word that JSON uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avoided => "avoided",
            Self::Fixed => "fixed",
            Self::Affected(_) => "affected",
        }
    }
}

const fn v(major: u32, minor: u32, patch: u32) -> KernelVersion {
    KernelVersion::new(major, minor, patch)
}

const fn fixed(
    id: &'static str,
    effect: &'static str,
    fixed_in: &'static [KernelVersion],
) -> Defect {
    Defect {
        id,
        effect,
        fixed_in,
        older: Older::NotConcerned,
    }
}

const fn avoided(id: &'static str, effect: &'static str) -> Defect {
    fixed(id, effect, &[])
}

/// Every defect that is known, from the oldest.
pub const DEFECTS: &[Defect] = &[
    fixed(
        "CVE-2022-50536",
        "data loss and a wrong reference count with apply_bytes",
        &[v(5, 4, 229), v(5, 10, 163), v(5, 15, 86), v(6, 1, 2)],
    ),
    fixed(
        "CVE-2023-52986",
        "an accepted socket inherits its listener's sockmap state",
        &[v(5, 10, 168), v(5, 15, 93), v(6, 1, 11)],
    ),
    fixed(
        "CVE-2024-35895",
        "locks are taken in the wrong order on deletion",
        &[v(6, 1, 85), v(6, 6, 26)],
    ),
    fixed(
        "CVE-2024-46783",
        "a negative result of sendmsg stops the kernel",
        &[
            v(5, 4, 284),
            v(5, 10, 226),
            v(5, 15, 167),
            v(6, 1, 110),
            v(6, 6, 51),
        ],
    ),
    fixed(
        "CVE-2024-47710",
        "freeing a big sockhash locks a CPU up",
        &[v(6, 6, 54), v(6, 11, 2)],
    ),
    fixed(
        "CVE-2024-56633",
        "memory is given back that was never charged",
        &[
            v(5, 4, 287),
            v(5, 10, 231),
            v(5, 15, 174),
            v(6, 1, 120),
            v(6, 6, 66),
            v(6, 12, 5),
        ],
    ),
    Defect {
        id: "commit d888b7af7c14",
        effect: "redirected bytes are not charged to the receive buffer: no flow control",
        fixed_in: &[v(6, 1, 122), v(6, 6, 68), v(6, 12, 7)],
        older: Older::Affected,
    },
    fixed(
        "CVE-2024-56664",
        "closing races with replacing: use after free",
        &[
            v(5, 10, 236),
            v(5, 15, 180),
            v(6, 1, 125),
            v(6, 6, 67),
            v(6, 12, 6),
        ],
    ),
    fixed(
        "CVE-2025-38112",
        "polling races with closing",
        RACES_OF_2025,
    ),
    fixed(
        "CVE-2025-38154",
        "use after free while sending",
        RACES_OF_2025,
    ),
    fixed(
        "CVE-2025-38166",
        "panic with kTLS",
        &[v(6, 1, 142), v(6, 6, 94), v(6, 12, 34)],
    ),
    fixed(
        "CVE-2025-68227",
        "MPTCP that falls back to TCP gets the wrong operations",
        &[
            v(5, 10, 247),
            v(5, 15, 197),
            v(6, 1, 159),
            v(6, 6, 118),
            v(6, 12, 60),
            v(6, 17, 10),
        ],
    ),
    fixed(
        "CVE-2026-68284",
        "use after free with corked messages",
        &[v(6, 6, 148), v(6, 12, 101), v(6, 18, 42), v(7, 2, 0)],
    ),
    avoided(
        "CVE-2026-63830",
        "bpf_msg_push_data, which no program calls",
    ),
    avoided("CVE-2026-63926", "bpf_msg_pop_data, which no program calls"),
    avoided(
        "CVE-2026-64548",
        "bpf_msg_push_data, which no program calls",
    ),
    avoided("CVE-2026-74256", "bpf_msg_pop_data, which no program calls"),
    avoided(
        "CVE-2026-64025",
        "kTLS; a socket with an upper-layer protocol never enters the sockmap",
    ),
];

const RACES_OF_2025: &[KernelVersion] = &[
    v(5, 10, 239),
    v(5, 15, 186),
    v(6, 1, 142),
    v(6, 6, 94),
    v(6, 12, 34),
];

impl Defect {
    /// Tells what it means for a kernel.
    #[must_use]
    pub fn exposure(&self, kernel: KernelVersion) -> Exposure {
        let (Some(first), Some(last)) = (self.fixed_in.first(), self.fixed_in.last()) else {
            return Exposure::Avoided;
        };
        let line = kernel.line();
        if let Some(release) = self.fixed_in.iter().find(|fix| fix.line() == line) {
            return if kernel < *release {
                Exposure::Affected(Some(*release))
            } else {
                Exposure::Fixed
            };
        }
        let is_older = line < first.line();
        if line > last.line() || (is_older && self.older == Older::NotConcerned) {
            Exposure::Fixed
        } else {
            Exposure::Affected(None)
        }
    }
}

/// Says whether messages may skip TCP on a kernel; the answer names the defect that decides.
///
/// # Errors
///
/// Returns why not, as a sentence for the operator.
pub fn check_sockmap(kernel: KernelVersion) -> Result<String, String> {
    let exposed = |exposure: Exposure| {
        DEFECTS
            .iter()
            .filter(move |defect| defect.exposure(kernel) == exposure)
    };
    if let Some(defect) = exposed(Exposure::Affected(None)).next_back() {
        return Err(format!(
            "{kernel} has {defect}; no release of its line has the fix"
        ));
    }
    match floor(kernel) {
        Some((release, defect)) if kernel < release => Err(format!(
            "{kernel} has {defect}; its line is fixed from {release} on"
        )),
        Some((release, defect)) => Ok(format!(
            "{kernel} has the known fixes: its line needs {release} or newer, for {}",
            defect.id
        )),
        None => Ok(format!(
            "{kernel} has the known fixes from its line's start"
        )),
    }
}

/// The oldest release of a kernel's line that has every fix, and the defect that makes it so.
#[must_use]
pub fn floor(kernel: KernelVersion) -> Option<(KernelVersion, &'static Defect)> {
    DEFECTS
        .iter()
        .filter_map(|defect| {
            let is_line = |fix: &&KernelVersion| fix.line() == kernel.line();
            let release = defect.fixed_in.iter().find(is_line)?;
            Some((*release, defect))
        })
        .max_by_key(|(release, _)| *release)
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.id, self.effect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockmap_is_refused_below_the_floor_of_each_line() {
        let cases = [
            (v(5, 4, 300), Some("d888b7af7c14")),
            (v(5, 10, 262), Some("d888b7af7c14")),
            (v(5, 15, 197), Some("d888b7af7c14")),
            (v(6, 1, 158), Some("CVE-2025-68227")),
            (v(6, 1, 159), None),
            (v(6, 6, 147), Some("CVE-2026-68284")),
            (v(6, 6, 148), None),
            (v(6, 8, 12), Some("CVE-2026-68284")),
            (v(6, 12, 100), Some("CVE-2026-68284")),
            (v(6, 12, 101), None),
            (v(6, 17, 13), Some("CVE-2026-68284")),
            (v(6, 18, 15), Some("CVE-2026-68284")),
            (v(6, 18, 41), Some("CVE-2026-68284")),
            (v(6, 18, 42), None),
            (v(6, 19, 14), Some("CVE-2026-68284")),
            (v(7, 1, 9), Some("CVE-2026-68284")),
            (v(7, 2, 0), None),
            (v(7, 3, 4), None),
            (v(8, 0, 0), None),
        ];
        for (kernel, defect) in cases {
            match (check_sockmap(kernel), defect) {
                (Ok(_), None) => {}
                (Err(reason), Some(defect)) => {
                    assert!(reason.contains(defect), "{kernel}: {reason}");
                }
                (outcome, _) => panic!("{kernel}: {outcome:?}, expected {defect:?}"),
            }
        }
    }

    #[test]
    fn the_newest_defect_sets_the_floor_of_a_line() {
        let cases = [
            (v(5, 10, 1), Some((v(5, 10, 247), "CVE-2025-68227"))),
            (v(5, 15, 1), Some((v(5, 15, 197), "CVE-2025-68227"))),
            (v(6, 1, 1), Some((v(6, 1, 159), "CVE-2025-68227"))),
            (v(6, 6, 1), Some((v(6, 6, 148), "CVE-2026-68284"))),
            (v(6, 12, 1), Some((v(6, 12, 101), "CVE-2026-68284"))),
            (v(6, 18, 1), Some((v(6, 18, 42), "CVE-2026-68284"))),
            (v(7, 3, 1), None),
        ];
        for (kernel, expected) in cases {
            let found = floor(kernel).map(|(release, defect)| (release, defect.id));
            assert_eq!(found, expected, "{kernel}");
        }
    }

    #[test]
    fn each_defect_is_judged_by_the_line_of_the_kernel() {
        let cases = [
            (
                "CVE-2024-47710",
                v(6, 6, 53),
                Exposure::Affected(Some(v(6, 6, 54))),
            ),
            ("CVE-2024-47710", v(6, 8, 12), Exposure::Affected(None)),
            ("CVE-2024-47710", v(6, 1, 1), Exposure::Fixed),
            ("CVE-2024-47710", v(6, 12, 0), Exposure::Fixed),
            ("CVE-2026-63830", v(6, 12, 0), Exposure::Avoided),
            (
                "commit d888b7af7c14",
                v(5, 15, 300),
                Exposure::Affected(None),
            ),
        ];
        for (id, kernel, expected) in cases {
            let defect = DEFECTS.iter().find(|defect| defect.id == id).expect(id);
            assert_eq!(defect.exposure(kernel), expected, "{id} on {kernel}");
        }
    }

    #[test]
    fn lines_are_in_order() {
        for defect in DEFECTS {
            assert!(
                defect.fixed_in.is_sorted_by_key(|fix| fix.line()),
                "{defect}"
            );
        }
    }
}
