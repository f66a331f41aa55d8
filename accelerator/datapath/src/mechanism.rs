//! What the accelerator can do on a kernel, one mechanism at a time.

use isthmus_accel_abi::program;

/// Something that a kernel either allows or does not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mechanism {
    /// Connections over IPv4 go to the proxy, which learns where they wanted to go. Nothing else works without it.
    Redirect,
    /// The same over IPv6.
    RedirectV6,
    /// An application sees the address that it dialled as its peer's.
    PeerName,
    /// Queries of names go to the proxy.
    Dns,
    /// What arrives for a pod goes to the proxy's listener without NAT.
    Inbound,
    /// Messages skip TCP.
    Sockmap,
}

impl Mechanism {
    /// Every mechanism, the first one without which nothing works first.
    pub const ALL: [Self; 6] = [
        Self::Redirect,
        Self::RedirectV6,
        Self::PeerName,
        Self::Dns,
        Self::Inbound,
        Self::Sockmap,
    ];

    /// Returns the word that the table and JSON use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::RedirectV6 => "redirect-v6",
            Self::PeerName => "peer-name",
            Self::Dns => "dns",
            Self::Inbound => "inbound",
            Self::Sockmap => "sockmap",
        }
    }

    /// Returns what a program is a part of. One that serves several belongs to the first of them.
    #[must_use]
    pub fn of_program(name: &str) -> Self {
        match name.strip_prefix("isthmus_").unwrap_or(name) {
            "connect6" => Self::RedirectV6,
            "getpeername4" | "getpeername6" => Self::PeerName,
            "sendmsg4" | "sendmsg6" | "recvmsg4" | "recvmsg6" => Self::Dns,
            "listeners" | "sk_lookup" | "virtual" => Self::Inbound,
            "parked" | "skmsg" => Self::Sockmap,
            _ => Self::Redirect,
        }
    }

    /// Tells whether this build has programs for it.
    #[must_use]
    pub fn is_built(self) -> bool {
        program::ALL
            .iter()
            .any(|name| Self::of_program(name) == self)
    }
}

/// What became of a mechanism on this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MechanismRow {
    /// Which one.
    pub mechanism: Mechanism,
    /// Whether it will be used.
    pub is_enabled: bool,
    /// Why, or why not.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirecting_and_skipping_tcp_are_built() {
        assert!(Mechanism::Redirect.is_built());
        assert!(Mechanism::Sockmap.is_built());
    }
}
