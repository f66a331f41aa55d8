//! Which kernel this is, and whether its sockmap can be trusted.

use std::{fmt, fs};

/// A kernel version with its patch level.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct KernelVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

/// First patch level of each line in which every known defect of sockmap is fixed: the newest of
/// CVE-2025-38154, CVE-2025-68227 and CVE-2026-68284 that concerns the line. Lines that are not here
/// and are older than [`FIRST_FIXED`] never got all of them.
const FLOORS: [KernelVersion; 4] = [
    KernelVersion::new(6, 1, 159),
    KernelVersion::new(6, 6, 148),
    KernelVersion::new(6, 12, 101),
    KernelVersion::new(6, 18, 42),
];
/// From here on every line has the fixes from its first release.
const FIRST_FIXED: KernelVersion = KernelVersion::new(7, 2, 0);

impl KernelVersion {
    const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// Reads the running kernel's. `None` if the kernel's words are not understood.
    #[must_use]
    pub fn running() -> Option<Self> {
        let version = fs::read_to_string("/proc/version").ok()?;
        let ubuntu = fs::read_to_string("/proc/version_signature").unwrap_or_default();
        Self::parse(&version, &ubuntu)
    }

    // Distributions hide the upstream patch level in `uname -r` and show it elsewhere: Debian in the
    // build's name, Ubuntu in a file of its own.
    fn parse(version: &str, ubuntu: &str) -> Option<Self> {
        let debian = version
            .split_once(" Debian ")
            .and_then(|(_, rest)| rest.split_whitespace().next());
        let upstream = version.strip_prefix("Linux version ")?;
        ubuntu
            .split_whitespace()
            .nth(2)
            .and_then(Self::parse_numbers)
            .or_else(|| debian.and_then(Self::parse_numbers))
            .or_else(|| Self::parse_numbers(upstream))
    }

    fn parse_numbers(text: &str) -> Option<Self> {
        let end = text
            .find(|char: char| !char.is_ascii_digit() && char != '.')
            .unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(str::parse);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let patch = numbers.next().unwrap_or(Ok(0)).ok()?;
        Some(Self::new(major, minor, patch))
    }

    /// Says whether messages may skip TCP on this kernel.
    ///
    /// # Errors
    ///
    /// Returns why not, as a sentence for the operator.
    pub fn check_sockmap(self) -> Result<(), String> {
        if self >= FIRST_FIXED {
            return Ok(());
        }
        let Some(floor) = FLOORS
            .iter()
            .find(|floor| (floor.major, floor.minor) == (self.major, self.minor))
        else {
            let reason = if self < KernelVersion::new(6, 1, 0) {
                "does not charge redirected bytes to the receive buffer, so that there is no flow control"
            } else {
                "has no release with all fixes of sockmap"
            };
            return Err(format!("the {}.{} line {reason}", self.major, self.minor));
        };
        if self < *floor {
            return Err(format!(
                "{self} has known defects in sockmap, fixed in {floor}"
            ));
        }
        Ok(())
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_level_is_found_where_each_distribution_puts_it() {
        let cases = [
            (
                "plain",
                "Linux version 6.18.44-fc-v669 (x) #1 SMP",
                "",
                "6.18.44",
            ),
            ("no patch level", "Linux version 7.3 (x)", "", "7.3.0"),
            (
                "Debian",
                "Linux version 6.1.0-56-cloud-amd64 (d@d) (gcc) #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026)",
                "",
                "6.1.192",
            ),
            (
                "Ubuntu",
                "Linux version 6.8.0-31-generic (b@l) #31-Ubuntu SMP",
                "Ubuntu 6.8.0-31.31-generic 6.8.1",
                "6.8.1",
            ),
        ];
        for (name, version, ubuntu, expected) in cases {
            let parsed = KernelVersion::parse(version, ubuntu).expect(name);
            assert_eq!(parsed.to_string(), expected, "{name}");
        }
        assert_eq!(KernelVersion::parse("FreeBSD 14", ""), None);
    }

    #[test]
    fn sockmap_is_refused_below_the_floor_of_each_line() {
        let cases = [
            ((5, 4, 300), false),
            ((5, 10, 262), false),
            ((5, 15, 197), false),
            ((6, 1, 158), false),
            ((6, 1, 159), true),
            ((6, 6, 147), false),
            ((6, 6, 148), true),
            ((6, 8, 12), false),
            ((6, 12, 100), false),
            ((6, 12, 101), true),
            ((6, 17, 13), false),
            ((6, 18, 41), false),
            ((6, 18, 42), true),
            ((6, 19, 14), false),
            ((7, 1, 9), false),
            ((7, 2, 0), true),
            ((7, 3, 4), true),
            ((8, 0, 0), true),
        ];
        for ((major, minor, patch), is_allowed) in cases {
            let version = KernelVersion::new(major, minor, patch);
            assert_eq!(version.check_sockmap().is_ok(), is_allowed, "{version}");
        }
    }
}
