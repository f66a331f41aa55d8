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
    /// Two sidecars, redirected, and messages between them past TCP/IP: the default.
    Default,
    /// As the default, and every step of every connection is told of (`--flows on`).
    Flows,
    /// As the default, and what applications send past TCP/IP too: pods that opt in.
    Full,
}

impl Path {
    /// All of them, in the order of the table.
    pub(crate) const ALL: [Self; 6] = [
        Self::NoMesh,
        Self::Iptables,
        Self::Redirect,
        Self::Default,
        Self::Flows,
        Self::Full,
    ];

    /// Those of the accelerator, which must not be worse than iptables. Telling of flows is asked for, and is
    /// shown for its cost.
    pub(crate) const OURS: [Self; 3] = [Self::Redirect, Self::Default, Self::Full];

    /// Name in the table, in `accel.json` and on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NoMesh => "no-mesh",
            Self::Iptables => "iptables",
            Self::Redirect => "redirect",
            Self::Default => "default",
            Self::Flows => "flows",
            Self::Full => "full",
        }
    }

    /// The ports that connections come from. What iptables redirect and what is redirected when it is made
    /// have different addresses at the client, and the same at the sidecar, which remembers each port for a
    /// minute (`TIME_WAIT`): from the same ports at thousands of connections a second, some would wait a
    /// second for their second SYN, in whichever path comes later.
    pub(crate) const fn source_ports(self) -> &'static str {
        match self {
            Self::NoMesh | Self::Iptables => "1024 32767",
            Self::Redirect | Self::Default | Self::Flows | Self::Full => "32768 65000",
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
