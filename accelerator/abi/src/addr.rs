//! IPv4 addresses as the 16 bytes in which every map stores them (RFC 4291, section 2.5.5.2).

// `::ffff:0:0/96`.
const MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Returns the v4-mapped IPv6 form of an IPv4 address in network order.
#[must_use]
#[inline]
pub const fn v4_mapped(octets: [u8; 4]) -> [u8; 16] {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, octets[0], octets[1], octets[2], octets[3],
    ]
}

/// Returns the IPv4 address behind a v4-mapped one, or `None` for real IPv6.
#[must_use]
#[inline]
pub fn v4_of(address: [u8; 16]) -> Option<[u8; 4]> {
    let [head @ .., a, b, c, d] = address;
    (head == MAPPED_PREFIX).then_some([a, b, c, d])
}

/// Tells whether the address is in 127.0.0.0/8.
#[must_use]
#[inline]
pub fn is_loopback(address: &[u8; 16]) -> bool {
    address[10] == 0xff && address[11] == 0xff && address[12] == 127
}
