//! Addresses as the 16 bytes in which every map stores them: IPv4 v4-mapped (RFC 4291, section
//! 2.5.5.2), which is also how an IPv6 socket names an IPv4 peer.

// `::ffff:0:0/96`.
const MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// 127.0.0.1: where the proxy of a pod listens for IPv4.
pub const LOOPBACK: [u8; 16] = v4_mapped([127, 0, 0, 1]);

/// `::1`: where the proxy of a pod listens for IPv6.
pub const LOOPBACK_V6: [u8; 16] = v6_ending_in(1);

/// Address that Istio's Envoy binds its IPv4 dials to the application to ("6 is the magical number",
/// istio/istio, `pilot/pkg/networking/core/listener_address.go`).
pub const ENVOY_INBOUND_SOURCE: [u8; 16] = v4_mapped([127, 0, 0, 6]);

/// The same for IPv6: `::6`, which Istio adds to the loopback device.
pub const ENVOY_INBOUND_SOURCE_V6: [u8; 16] = v6_ending_in(6);

/// Returns the v4-mapped IPv6 form of an IPv4 address in network order.
#[must_use]
#[inline]
pub const fn v4_mapped(octets: [u8; 4]) -> [u8; 16] {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, octets[0], octets[1], octets[2], octets[3],
    ]
}

/// Tells whether the address is IPv4, v4-mapped.
#[must_use]
#[inline]
pub fn is_v4(address: &[u8; 16]) -> bool {
    let [head @ .., _, _, _, _] = *address;
    head == MAPPED_PREFIX
}

/// Returns the IPv4 address behind a v4-mapped one, or `None` for real IPv6.
#[must_use]
#[inline]
pub fn v4_of(address: [u8; 16]) -> Option<[u8; 4]> {
    let [.., a, b, c, d] = address;
    is_v4(&address).then_some([a, b, c, d])
}

/// Tells whether the address is one that every pod has on its loopback device: 127.0.0.0/8, `::1`, or
/// Istio's `::6`.
#[must_use]
#[inline]
pub fn is_loopback(address: &[u8; 16]) -> bool {
    if is_v4(address) {
        return address[12] == 127;
    }
    *address == LOOPBACK_V6 || *address == ENVOY_INBOUND_SOURCE_V6
}

/// Tells whether the address is in `fe80::/10`: it says nothing without its interface, and two pods may
/// have the same.
#[must_use]
#[inline]
pub const fn is_v6_link_local(address: &[u8; 16]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// Tells whether the address is `0.0.0.0` or `::`.
#[must_use]
#[inline]
pub fn is_unspecified(address: &[u8; 16]) -> bool {
    *address == v4_mapped([0; 4]) || *address == v6_ending_in(0)
}

const fn v6_ending_in(last: u8) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

#[cfg(test)]
mod tests {
    use core::net::Ipv6Addr;

    use super::*;

    #[test]
    fn addresses_are_what_they_are() {
        type Row = (&'static str, bool, bool, bool, bool);
        // address, IPv4, loopback, link-local, unspecified
        let rows: [Row; 12] = [
            ("::ffff:127.0.0.1", true, true, false, false),
            ("::ffff:127.9.9.9", true, true, false, false),
            ("::ffff:128.0.0.1", true, false, false, false),
            ("::ffff:0.0.0.0", true, false, false, true),
            ("::ffff:254.128.0.1", true, false, false, false),
            ("::", false, false, false, true),
            ("::1", false, true, false, false),
            ("::6", false, true, false, false),
            ("::7f00:1", false, false, false, false),
            ("fe80::1", false, false, true, false),
            ("febf::1", false, false, true, false),
            ("fec0::ffff:7f00:1", false, false, false, false),
        ];
        for (text, v4, loopback, link_local, unspecified) in rows {
            let address = text.parse::<Ipv6Addr>().expect(text).octets();
            assert_eq!(is_v4(&address), v4, "{text}");
            assert_eq!(v4_of(address).is_some(), v4, "{text}");
            assert_eq!(is_loopback(&address), loopback, "{text}");
            assert_eq!(is_v6_link_local(&address), link_local, "{text}");
            assert_eq!(is_unspecified(&address), unspecified, "{text}");
        }
    }
}
