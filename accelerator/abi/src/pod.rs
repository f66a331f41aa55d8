//! What the kernel knows about one pod.

use crate::{LOOPBACK_V6, v4_of};

/// Bits of [`PodConfig::flags`].
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(transparent)]
pub struct PodFlags(u32);

impl PodFlags {
    /// No flag: nothing is captured except by the include lists.
    pub const NONE: Self = Self(0);
    /// `includeOutboundIPRanges: "*"`.
    pub const OUTBOUND_ALL: Self = Self(1);
    /// `includeInboundPorts: "*"`.
    pub const INBOUND_ALL: Self = Self(1 << 1);
    /// The outbound include ranges contain loopback addresses, so that Istio leaves out the rule
    /// that lets everything on `lo` pass (row O4).
    pub const LOOPBACK_IN_RANGES: Self = Self(1 << 2);
    /// The pod has the rules of ip6tables too (row X4); without, its IPv6 traffic is left alone.
    pub const IPV6: Self = Self(1 << 3);
    /// Some groups of users are not captured (row O9).
    pub const EXCLUDES_GROUPS: Self = Self(1 << 4);
    /// Only some groups of users are captured (row O9).
    pub const ONLY_GROUPS: Self = Self(1 << 5);
    /// Some interfaces of the pod are left alone (row I1), so that `EXCLUDED_INTERFACES` and `ROUTES` are
    /// to be asked.
    pub const INTERFACES_EXCLUDED: Self = Self(1 << 6);
    /// The pod is not captured yet. Its entry is there so that its proxy's listeners can be told from others
    /// before the first connection is steered to them.
    pub const PREPARING: Self = Self(1 << 7);
    /// The pod's agent answers its DNS (`ISTIO_META_DNS_CAPTURE`): port 53 of the servers in
    /// [`crate::RuleList::DNS_SERVERS`] is taken (row D1), and rows O3 and O4 leave port 53 out.
    pub const DNS: Self = Self(1 << 8);
    /// Port 53 of every server is taken (`CAPTURE_ALL_DNS`). Counts with [`Self::DNS`] only.
    pub const DNS_ALL: Self = Self(1 << 9);
    /// The proxy dials the application with the addresses of its clients (TPROXY, row T1), and takes the tunnel's
    /// port like any other.
    pub const TPROXY: Self = Self(1 << 10);
    /// By some interfaces of the pod virtual machines send (row I2), so that `VIRTUAL_INTERFACES` is to be
    /// asked.
    pub const VIRTUAL_INTERFACES: Self = Self(1 << 11);
    /// The application's sockets may enter the sockmap, so that what it writes to its proxy skips TCP.
    /// By promise of the operator: reads through a sockmap differ (`api`, `AppAcceleration`).
    pub const APP_WRITES: Self = Self(1 << 16);
    /// What its proxy writes to the application may skip TCP too. Only with [`Self::APP_WRITES`].
    pub const APP_READS: Self = Self(1 << 17);

    /// Tells whether every bit of `other` is set.
    #[must_use]
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Value of `PODS`: how one pod's traffic is governed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PodConfig {
    /// User of the proxy; its sockets are never sent to itself.
    pub proxy_uid: u32,
    /// Group of the proxy; its sockets are never sent to itself.
    pub proxy_gid: u32,
    /// What is captured wholesale.
    pub flags: PodFlags,
    /// Port of the proxy's outbound listener on 127.0.0.1 and `::1`, network order.
    pub outbound_port: [u8; 2],
    /// Port of the proxy's inbound listener on the pod's addresses and loopback, network order.
    pub inbound_port: [u8; 2],
    /// The IPv4 range that nobody's dials are captured for (rows O3, O10), network order.
    pub direct_loopback: [u8; 4],
    /// Netmask of `direct_loopback`.
    pub direct_loopback_mask: [u8; 4],
    /// IPv4 address that what leaves the pod comes from, network order; zero if it has none.
    pub source_v4: [u8; 4],
    /// The same for IPv6.
    pub source_v6: [u8; 16],
}

impl PodConfig {
    /// Istio's user and group of the proxy.
    pub const ISTIO_PROXY_ID: u32 = 1337;
    /// Istio's outbound listener.
    pub const ISTIO_OUTBOUND_PORT: u16 = 15_001;
    /// Istio's inbound listener.
    pub const ISTIO_INBOUND_PORT: u16 = 15_006;

    /// Returns Istio's default for a pod with IPv4 addresses: user and group 1337, everything captured
    /// both ways, and 127.0.0.1 the only loopback address that is always direct.
    #[must_use]
    pub const fn istio_default() -> Self {
        Self {
            proxy_uid: Self::ISTIO_PROXY_ID,
            proxy_gid: Self::ISTIO_PROXY_ID,
            flags: PodFlags::OUTBOUND_ALL.with(PodFlags::INBOUND_ALL),
            outbound_port: Self::ISTIO_OUTBOUND_PORT.to_be_bytes(),
            inbound_port: Self::ISTIO_INBOUND_PORT.to_be_bytes(),
            direct_loopback: [127, 0, 0, 1],
            direct_loopback_mask: [0xff; 4],
            source_v4: [0; 4],
            source_v6: [0; 16],
        }
    }

    /// Returns the entry of the pod while it is not captured yet.
    #[must_use]
    pub const fn preparing(self) -> Self {
        Self {
            flags: self.flags.with(PodFlags::PREPARING),
            ..self
        }
    }

    /// Tells whether the pod is captured, as its entry says.
    #[must_use]
    #[inline]
    pub const fn is_in_force(&self) -> bool {
        !self.flags.has(PodFlags::PREPARING)
    }

    /// Tells whether the address is in the loopback range that is always direct. For IPv6 that is `::1`.
    #[must_use]
    #[inline]
    pub fn is_direct_loopback(&self, address: &[u8; 16]) -> bool {
        match v4_of(*address) {
            Some(octets) => {
                let mask = u32::from_ne_bytes(self.direct_loopback_mask);
                u32::from_ne_bytes(octets) & mask == u32::from_ne_bytes(self.direct_loopback)
            }
            None => *address == LOOPBACK_V6,
        }
    }
}

const _: () = assert!(size_of::<PodConfig>() == 44);
