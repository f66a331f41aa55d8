//! Which connections of a pod go through its sidecar: Istio's rules as a value.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::dns::DnsCapture;

/// What `istio-iptables` would be told about one pod.
///
/// Order of the outbound rules, first match wins: `exclude_outbound_ports` leaves, `exclude_outbound_ranges`
/// leaves, `include_outbound_ports` is taken whatever the address, `include_outbound_ranges` is taken, and
/// the rest leaves (`istio/istio: tools/istio-iptables/pkg/capture/run.go`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrafficPolicy {
    /// Interfaces of which no connection is taken, neither what arrives nor what leaves, by name; one that ends
    /// in `+` stands for all that begin like it.
    pub exclude_interfaces: BTreeSet<String>,
    /// Interfaces by which virtual machines send, by name as above: what arrives by them for one of
    /// `include_outbound_ranges` is taken as what leaves the pod, before all other rules, and nothing else is.
    pub virtual_interfaces: BTreeSet<String>,
    /// Destination ports that leave, whoever dials them.
    pub exclude_outbound_ports: BTreeSet<u16>,
    /// Destination ranges that leave.
    pub exclude_outbound_ranges: BTreeSet<IpRange>,
    /// Destination ports that are taken regardless of the address.
    pub include_outbound_ports: BTreeSet<u16>,
    /// Destination ranges that are taken.
    pub include_outbound_ranges: RangeCapture,
    /// Whether one of these ranges was written with a loopback address in front of its slash. Only
    /// then may a connection to a loopback address, or to the pod's own, be taken at all.
    pub has_loopback_range: bool,
    /// Ports of the pod whose incoming connections are taken.
    pub inbound_ports: PortCapture,
    /// Whom the application sees as the client of what arrives.
    pub interception: Interception,
    /// Which queries to name servers go to the pod's agent. Those that do not, and come by TCP, follow the
    /// rules above.
    pub dns: DnsCapture,
    /// When IPv6 is captured as well.
    pub ipv6: Ipv6Capture,
    /// Which of the application's sockets may skip TCP.
    pub app_acceleration: AppAcceleration,
    /// Groups of users whose connections are taken.
    pub owner_groups: GroupCapture,
    /// Where on loopback nobody's connections are taken, by IPv4.
    pub direct_loopback: LoopbackRange,
}

/// How what arrives is taken (`sidecar.istio.io/interceptionMode`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Interception {
    /// The sidecar dials the application from loopback: what Istio does by default.
    #[default]
    Redirect,
    /// The sidecar dials the application with the address of its client, and the application's answers
    /// find their way back to it.
    Tproxy,
}

/// Groups of users (`ISTIO_OUTBOUND_OWNER_GROUPS`). Only the group that a socket was made as counts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum GroupCapture {
    /// `*`: every group but these.
    AllBut(BTreeSet<u32>),
    /// These. Exclusions do not apply to a list, as in Istio.
    Only(BTreeSet<u32>),
}

impl Default for GroupCapture {
    fn default() -> Self {
        Self::AllBut(BTreeSet::new())
    }
}

/// An IPv4 range in 127.0.0.0/8 (`ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LoopbackRange {
    base: Ipv4Addr,
    prefix_len: u8,
}

impl Default for LoopbackRange {
    /// 127.0.0.1/32
    fn default() -> Self {
        Self {
            base: Ipv4Addr::LOCALHOST,
            prefix_len: 32,
        }
    }
}

impl LoopbackRange {
    /// Returns the lowest address, in network order.
    #[must_use]
    pub fn base(self) -> [u8; 4] {
        self.base.octets()
    }

    /// Returns the mask of the bits that all addresses of the range share, in network order.
    #[must_use]
    pub fn netmask(self) -> [u8; 4] {
        v4_mask(self.prefix_len).to_be_bytes()
    }

    /// Parses `address/length`.
    ///
    /// # Errors
    ///
    /// Returns [`BadRange`] unless it is an IPv4 loopback address and a length from 8 to 32, as Istio
    /// demands (`tools/istio-iptables/pkg/config/validation.go`).
    pub fn parse(text: &str) -> Result<Self, BadRange> {
        let range = IpRange::parse(text)?;
        match range.addr() {
            IpAddr::V4(base) if base.is_loopback() && range.prefix_len() >= 8 => Ok(Self {
                base,
                prefix_len: range.prefix_len(),
            }),
            IpAddr::V4(_) | IpAddr::V6(_) => Err(BadRange::NotLoopback),
        }
    }
}

/// Which pods have the rules for IPv6 too (`istio-iptables --dual-stack`). A pod without an IPv6 address
/// never has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Ipv6Capture {
    /// Every pod with an IPv6 address: what Istio does in a dual-stack mesh.
    #[default]
    WithAddress,
    /// Pods that have no IPv4 address besides: what Istio does otherwise.
    WithoutIpv4,
}

/// Which sockets of an application may skip TCP towards its sidecar.
///
/// Being in a sockmap changes what some calls of a socket do, so that this is a promise of the operator
/// about the application: no kernel hook that costs nothing shows those calls.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AppAcceleration {
    /// None: its sockets are those of plain TCP in every respect.
    #[default]
    Off,
    /// What it writes. It must not ask `FIONREAD` (nginx does), and a read that waits may end with
    /// `EAGAIN` on a signal or a reset: nonblocking sockets never notice.
    Writes,
    /// What it writes and reads. Beyond that it must not use `splice` (Go's `io.Copy` between sockets
    /// does), `MSG_WAITALL` or `MSG_OOB`.
    ReadsAndWrites,
}

/// Destinations by address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RangeCapture {
    /// `*`: every address.
    All,
    /// These; none of them means none.
    Only(BTreeSet<IpRange>),
}

/// Ports of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PortCapture {
    /// `*`: every port but these.
    AllBut(BTreeSet<u16>),
    /// These; none of them means none. Exclusions do not apply to a list, as in Istio.
    Only(BTreeSet<u16>),
}

/// A range of addresses in CIDR form, with the host bits cleared.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct IpRange {
    addr: IpAddr,
    prefix_len: u8,
}

impl IpRange {
    /// Returns the range around an address. Host bits are cleared; a length over that of the address counts
    /// as that.
    #[must_use]
    pub fn around(addr: IpAddr, prefix_len: u8) -> Self {
        let longest = match addr {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        let prefix_len = prefix_len.min(longest);
        Self {
            addr: clear_host_bits(addr, prefix_len),
            prefix_len,
        }
    }

    /// Returns the lowest address of the range.
    #[must_use]
    pub fn addr(self) -> IpAddr {
        self.addr
    }

    /// Returns how many leading bits all addresses of the range share: at most 32 for IPv4, 128 for IPv6.
    #[must_use]
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// Parses `address/length` as Go's `netip.ParsePrefix` does, which Istio uses: the length is
    /// required, and bits behind it may be set (they are cleared, as iptables does).
    ///
    /// # Errors
    ///
    /// Returns [`BadRange`] for anything else, and for IPv4 addresses written as IPv6.
    pub fn parse(text: &str) -> Result<Self, BadRange> {
        let (addr, prefix_len) = text.split_once('/').ok_or(BadRange::NoLength)?;
        let addr: IpAddr = addr.parse().map_err(|_| BadRange::Address)?;
        let longest = match addr {
            IpAddr::V4(_) => 32,
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return Err(BadRange::MappedAddress),
            IpAddr::V6(_) => 128,
        };
        let is_plain = prefix_len.bytes().all(|byte| byte.is_ascii_digit())
            && (prefix_len.len() == 1 || !prefix_len.starts_with('0'));
        let prefix_len = match prefix_len.parse::<u8>() {
            Ok(length) if is_plain && length <= longest => length,
            Ok(_) | Err(_) => return Err(BadRange::Length { longest }),
        };
        Ok(Self::around(addr, prefix_len))
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.addr, self.prefix_len)
    }
}

/// Why a text is not an [`IpRange`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadRange {
    /// What stands before the slash.
    #[error("the address is neither IPv4 nor IPv6")]
    Address,
    /// What stands behind the slash.
    #[error("the prefix length is not a number from 0 to {longest}")]
    Length {
        /// Largest length of this family.
        longest: u8,
    },
    /// iptables would never match it, and ip6tables never sees such packets.
    #[error("an IPv4 range in IPv6 form matches nothing: write it as IPv4")]
    MappedAddress,
    /// A range of something else.
    #[error("it is not within 127.0.0.0/8")]
    NotLoopback,
    /// A bare address.
    #[error("the prefix length is missing: one address is written as 198.18.0.1/32")]
    NoLength,
}

fn v4_mask(prefix_len: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix_len))
        .unwrap_or(0)
}

fn clear_host_bits(addr: IpAddr, prefix_len: u8) -> IpAddr {
    match addr {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & v4_mask(prefix_len))),
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(prefix_len))
                .unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_ranges_as_go_does() {
        struct Case {
            text: &'static str,
            range: Result<&'static str, BadRange>,
        }
        let cases = [
            Case {
                text: "198.18.0.0/15",
                range: Ok("198.18.0.0/15"),
            },
            Case {
                text: "198.18.3.4/15",
                range: Ok("198.18.0.0/15"),
            },
            Case {
                text: "198.18.3.4/32",
                range: Ok("198.18.3.4/32"),
            },
            Case {
                text: "198.18.3.4/0",
                range: Ok("0.0.0.0/0"),
            },
            Case {
                text: "2001:db8::1/32",
                range: Ok("2001:db8::/32"),
            },
            Case {
                text: "2001:db8::1/0",
                range: Ok("::/0"),
            },
            Case {
                text: "198.18.0.1",
                range: Err(BadRange::NoLength),
            },
            Case {
                text: "",
                range: Err(BadRange::NoLength),
            },
            Case {
                text: "*",
                range: Err(BadRange::NoLength),
            },
            Case {
                text: "198.18.0/16",
                range: Err(BadRange::Address),
            },
            Case {
                text: "198.018.0.0/16",
                range: Err(BadRange::Address),
            },
            Case {
                text: "/8",
                range: Err(BadRange::Address),
            },
            Case {
                text: "fe80::1%eth0/64",
                range: Err(BadRange::Address),
            },
            Case {
                text: "198.18.0.0/33",
                range: Err(BadRange::Length { longest: 32 }),
            },
            Case {
                text: "198.18.0.0/",
                range: Err(BadRange::Length { longest: 32 }),
            },
            Case {
                text: "198.18.0.0/+8",
                range: Err(BadRange::Length { longest: 32 }),
            },
            Case {
                text: "198.18.0.0/08",
                range: Err(BadRange::Length { longest: 32 }),
            },
            Case {
                text: "2001:db8::/129",
                range: Err(BadRange::Length { longest: 128 }),
            },
            Case {
                text: "2001:db8::/256",
                range: Err(BadRange::Length { longest: 128 }),
            },
            Case {
                text: "::ffff:198.18.0.0/112",
                range: Err(BadRange::MappedAddress),
            },
        ];

        for Case { text, range } in cases {
            let parsed = IpRange::parse(text).map(|range| range.to_string());
            assert_eq!(parsed.as_deref().map_err(|error| *error), range, "{text:?}");
        }
    }
}
