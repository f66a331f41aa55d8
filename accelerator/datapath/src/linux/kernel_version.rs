//! Which kernel this is.

use std::{fmt, fs};

/// A kernel version with its patch level.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct KernelVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

impl KernelVersion {
    pub(crate) const fn new(major: u32, minor: u32, patch: u32) -> Self {
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

    /// Returns the line that it belongs to: the version without its patch level.
    pub(crate) const fn line(self) -> (u32, u32) {
        (self.major, self.minor)
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
}
