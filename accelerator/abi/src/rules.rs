//! Keys of the per-pod port and address rules.

use core::fmt;

use crate::is_v4;

/// Value of every rule: rules are sets, and a map must have a value.
pub const RULE_PRESENT: u32 = 1;

/// Bits of [`CidrKey`] in front of the address: the netns cookie and the list.
const CIDR_SCOPE_BITS: u32 = 96;

/// Bits of a whole [`CidrKey`] without its length field: what a lookup asks with.
pub const CIDR_DATA_BITS: u32 = CIDR_SCOPE_BITS + 128;

/// Bits of the v4-mapped prefix in front of an IPv4 address.
const MAPPED_BITS: u8 = 96;

/// Set in the list of an IPv6 range, so that `::/0` and IPv4 addresses, which are v4-mapped, do not meet.
const V6_LIST: u32 = 1 << 31;

/// Which of a pod's lists a rule belongs to.
#[derive(Clone, Copy, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct RuleList(u32);

impl RuleList {
    /// `excludeOutboundPorts` (O1), `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE` (O9),
    /// `excludeOutboundIPRanges` (O11).
    pub const EXCLUDE_OUTBOUND: Self = Self(1);
    /// `ISTIO_OUTBOUND_OWNER_GROUPS` (O9), `includeOutboundPorts` (O12), `includeOutboundIPRanges` (O13).
    pub const INCLUDE_OUTBOUND: Self = Self(2);
    /// `excludeInboundPorts` (I4).
    pub const EXCLUDE_INBOUND: Self = Self(3);
    /// `includeInboundPorts` (I6).
    pub const INCLUDE_INBOUND: Self = Self(4);
    /// Servers of the pod's `resolv.conf` (D1).
    pub const DNS_SERVERS: Self = Self(8);
    /// Ranges of the pod's main routing table, in a map of their own (I1).
    pub const ROUTES: Self = Self(9);

    /// Returns the name that logs and `status` use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EXCLUDE_OUTBOUND => "exclude_outbound",
            Self::INCLUDE_OUTBOUND => "include_outbound",
            Self::EXCLUDE_INBOUND => "exclude_inbound",
            Self::INCLUDE_INBOUND => "include_inbound",
            Self::DNS_SERVERS => "dns_servers",
            Self::ROUTES => "routes",
            _ => "unknown",
        }
    }
}

impl fmt::Debug for RuleList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Key of `PORT_RULES`: one port in one list of one pod.
#[derive(
    Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(C)]
pub struct PortKey {
    netns_cookie: u64,
    list: RuleList,
    port: [u8; 2],
    // Spelled out: the verifier rejects keys built from uninitialised bytes.
    _reserved: [u8; 2],
}

impl PortKey {
    /// Returns the key of `port` (network order) in `list` of the pod behind `netns_cookie`.
    #[must_use]
    #[inline]
    pub const fn new(netns_cookie: u64, list: RuleList, port: [u8; 2]) -> Self {
        Self {
            netns_cookie,
            list,
            port,
            _reserved: [0; 2],
        }
    }

    /// Returns the netns cookie of the pod.
    pub const fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    /// Returns the list that the port is in.
    pub const fn list(&self) -> RuleList {
        self.list
    }

    /// Returns the port in host order.
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

/// Key of `GROUP_RULES`: one group of users in one list of one pod.
#[derive(
    Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(C)]
pub struct GroupKey {
    /// Namespace of the pod.
    pub netns_cookie: u64,
    /// One of the outbound lists.
    pub list: RuleList,
    /// The group.
    pub gid: u32,
}

/// Key of `CIDR_RULES` and of `ROUTES`, longest-prefix tries: one address range in one list of one pod.
///
/// The cookie and the list are the first bits of the prefix, so that one trie holds every pod.
#[derive(
    Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(C)]
pub struct CidrKey {
    prefix_bits: u32,
    netns_cookie: [u8; 8],
    list: [u8; 4],
    addr: [u8; 16],
}

impl CidrKey {
    /// Returns the key of an IPv4 range. Host bits are cleared; a length over 32 counts as 32.
    #[must_use]
    pub fn v4(netns_cookie: u64, list: RuleList, octets: [u8; 4], prefix_bits: u8) -> Self {
        let bits = MAPPED_BITS + prefix_bits.min(32);
        Self::range(netns_cookie, list.0, crate::v4_mapped(octets), bits)
    }

    /// Returns the key of an IPv6 range, which holds no IPv4 address, not even if it is `::/0`. Host bits
    /// are cleared; a length over 128 counts as 128.
    #[must_use]
    pub fn v6(netns_cookie: u64, list: RuleList, addr: [u8; 16], prefix_bits: u8) -> Self {
        Self::range(netns_cookie, list.0 | V6_LIST, addr, prefix_bits.min(128))
    }

    fn range(netns_cookie: u64, list: u32, addr: [u8; 16], prefix_bits: u8) -> Self {
        let addr = (u128::from_be_bytes(addr) & mask(prefix_bits.into())).to_be_bytes();
        Self {
            prefix_bits: CIDR_SCOPE_BITS + u32::from(prefix_bits),
            netns_cookie: netns_cookie.to_ne_bytes(),
            list: list.to_ne_bytes(),
            addr,
        }
    }

    /// Returns the key that asks whether one address is in any range of `list`.
    #[must_use]
    #[inline]
    pub fn lookup(netns_cookie: u64, list: RuleList, addr: [u8; 16]) -> Self {
        let family = if is_v4(&addr) { 0 } else { V6_LIST };
        Self {
            prefix_bits: CIDR_DATA_BITS,
            netns_cookie: netns_cookie.to_ne_bytes(),
            list: (list.0 | family).to_ne_bytes(),
            addr,
        }
    }

    /// Returns the netns cookie of the pod.
    pub const fn netns_cookie(&self) -> u64 {
        u64::from_ne_bytes(self.netns_cookie)
    }

    /// Returns the list that the range is in.
    pub const fn list(&self) -> RuleList {
        RuleList(u32::from_ne_bytes(self.list) & !V6_LIST)
    }

    /// Returns the first address of the range.
    pub const fn addr(&self) -> [u8; 16] {
        self.addr
    }

    /// Returns the length of the prefix in bits of the 16-byte address.
    pub const fn addr_prefix_bits(&self) -> u32 {
        self.prefix_bits.saturating_sub(CIDR_SCOPE_BITS)
    }

    /// Tells whether this range is in the list of a [`CidrKey::lookup`] key and contains its address
    /// (what the trie does in the kernel).
    #[must_use]
    pub fn covers(&self, lookup: &Self) -> bool {
        let inside = u128::from_be_bytes(lookup.addr) & mask(self.addr_prefix_bits());
        self.netns_cookie == lookup.netns_cookie
            && self.list == lookup.list
            && inside == u128::from_be_bytes(self.addr)
    }
}

fn mask(prefix_bits: u32) -> u128 {
    u128::MAX
        .checked_shl(128 - prefix_bits.min(128))
        .unwrap_or_default()
}

const _: () = assert!(size_of::<PortKey>() == 16);
const _: () = assert!(size_of::<GroupKey>() == 16);
const _: () = assert!(size_of::<CidrKey>() == 32);
const _: () = assert!(align_of::<CidrKey>() == 4);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v4_mapped;

    #[test]
    fn a_range_holds_its_addresses_and_no_other() {
        struct Case {
            name: &'static str,
            range: ([u8; 4], u8),
            addr: [u8; 4],
            is_inside: bool,
        }
        let cases = [
            Case {
                name: "inside /8",
                range: ([198, 18, 0, 0], 8),
                addr: [198, 99, 1, 2],
                is_inside: true,
            },
            Case {
                name: "outside /8",
                range: ([198, 18, 0, 0], 8),
                addr: [199, 18, 0, 0],
                is_inside: false,
            },
            Case {
                name: "host bits are ignored",
                range: ([198, 18, 7, 7], 16),
                addr: [198, 18, 0, 1],
                is_inside: true,
            },
            Case {
                name: "/32 is one address",
                range: ([198, 18, 7, 7], 32),
                addr: [198, 18, 7, 8],
                is_inside: false,
            },
            Case {
                name: "/0 is every v4 address",
                range: ([0, 0, 0, 0], 0),
                addr: [1, 2, 3, 4],
                is_inside: true,
            },
        ];
        for Case {
            name,
            range: (base, bits),
            addr,
            is_inside,
        } in cases
        {
            let key = CidrKey::v4(7, RuleList::INCLUDE_OUTBOUND, base, bits);
            let lookup = CidrKey::lookup(7, RuleList::INCLUDE_OUTBOUND, v4_mapped(addr));
            assert_eq!(key.covers(&lookup), is_inside, "{name}");
            assert_eq!(key.addr_prefix_bits(), 96 + u32::from(bits), "{name}");
        }
    }

    #[test]
    fn ranges_of_pods_lists_and_families_do_not_meet() {
        let list = RuleList::INCLUDE_OUTBOUND;
        let (v4, v6) = (v4_mapped([198, 18, 0, 1]), [0x20; 16]);
        let (all_v4, all_v6) = (CidrKey::v4(7, list, [0; 4], 0), CidrKey::v6(7, list, v6, 0));
        assert!(
            all_v6.covers(&CidrKey::lookup(7, list, v6)),
            "::/0 is every IPv6 address"
        );
        assert!(
            !all_v6.covers(&CidrKey::lookup(7, list, v4)),
            "and no IPv4 address"
        );
        assert!(!all_v4.covers(&CidrKey::lookup(7, list, v6)));
        assert!(!all_v4.covers(&CidrKey::lookup(8, list, v4)), "another pod");
        let other = RuleList::EXCLUDE_OUTBOUND;
        assert!(
            !all_v4.covers(&CidrKey::lookup(7, other, v4)),
            "another list"
        );
        assert_eq!((all_v4.list(), all_v6.list()), (list, list));

        let subnet = CidrKey::v6(7, list, [0x20; 16], 60);
        let mut neighbour = [0x20; 16];
        neighbour[7] = 0x2f;
        assert!(
            subnet.covers(&CidrKey::lookup(7, list, neighbour)),
            "host bits are ignored"
        );
        neighbour[7] = 0x30;
        assert!(!subnet.covers(&CidrKey::lookup(7, list, neighbour)));
    }
}
