//! How a request gets from pod to pod.

use clap::ValueEnum;

/// A data path that is measured.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Path {
    /// Pod to pod, without sidecars.
    NoMesh,
    /// Two sidecars behind Istio's iptables rules.
    Iptables,
    /// Two sidecars, connections redirected when they are made; every byte by TCP.
    Redirect,
    /// Two sidecars, redirected, and messages towards proxies past TCP/IP.
    Full,
}

impl Path {
    /// All of them, in the order of the table.
    pub(crate) const ALL: [Self; 4] = [Self::NoMesh, Self::Iptables, Self::Redirect, Self::Full];

    /// Name in the table, in `accel.json` and on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NoMesh => "no-mesh",
            Self::Iptables => "iptables",
            Self::Redirect => "redirect",
            Self::Full => "full",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for path in Path::ALL {
            let value = path.to_possible_value().expect("none is hidden");
            assert_eq!(value.get_name(), path.name());
        }
    }
}
