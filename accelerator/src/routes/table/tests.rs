//! Datagrams as the kernel makes them, cut and spoilt ones, and any bytes at all.

use isthmus_accel_datapath::netlink::{Dump, Progress};
use nix::libc::NLMSG_DONE;
use proptest::prelude::*;

use super::*;

const V4: u8 = 2;
const V6: u8 = 10;
const UNICAST: u8 = RTN_UNICAST;
const MAIN: u32 = RT_TABLE_MAIN as u32;
/// Sizes of `struct nlmsghdr` and `rtattr`.
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;

/// A route message.
#[derive(Clone, Copy)]
struct Message<'a> {
    family: u8,
    range: &'a str,
    kind: u8,
    table: u32,
    metric: u32,
    /// Flags of the route, and of its last next hop.
    flags: u32,
    tos: u8,
    /// One becomes an interface, more become next hops.
    interfaces: &'a [u32],
}

const fn to<'a>(family: u8, range: &'a str, interfaces: &'a [u32]) -> Message<'a> {
    Message {
        family,
        range,
        kind: UNICAST,
        table: MAIN,
        metric: 0,
        flags: 0,
        tos: 0,
        interfaces,
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn the_main_table_says_what_leaves_by_which_interface() {
    struct Case {
        name: &'static str,
        messages: Vec<Message<'static>>,
        routes: &'static [(&'static str, &'static [u32])],
    }
    let one = to(V4, "198.18.1.0/24", &[2]);
    let cases = [
        Case {
            name: "a network, and the default route of each family",
            messages: vec![one, to(V4, "0.0.0.0/0", &[2]), to(V6, "::/0", &[3])],
            routes: &[("0.0.0.0/0", &[2]), ("198.18.1.0/24", &[2]), ("::/0", &[3])],
        },
        Case {
            name: "other tables",
            messages: vec![
                Message { table: 255, ..one },
                Message { table: 1000, ..one },
            ],
            routes: &[],
        },
        Case {
            name: "the lowest metric counts",
            messages: vec![
                Message { metric: 200, ..one },
                Message {
                    metric: 100,
                    interfaces: &[3],
                    ..one
                },
                Message {
                    metric: 150,
                    interfaces: &[4],
                    ..one
                },
            ],
            routes: &[("198.18.1.0/24", &[3])],
        },
        Case {
            name: "all of the same metric count",
            messages: vec![
                one,
                Message {
                    interfaces: &[3],
                    ..one
                },
            ],
            routes: &[("198.18.1.0/24", &[2, 3])],
        },
        Case {
            name: "several next hops, the last of them dead",
            messages: vec![
                to(V4, "198.18.2.0/24", &[4, 3]),
                Message {
                    flags: RTNH_F_DEAD,
                    ..to(V4, "198.18.3.0/24", &[4, 3])
                },
            ],
            routes: &[("198.18.2.0/24", &[3, 4]), ("198.18.3.0/24", &[4])],
        },
        Case {
            name: "an interface that is down",
            messages: vec![Message {
                flags: RTNH_F_DEAD,
                ..one
            }],
            routes: &[],
        },
        Case {
            name: "local ranges leave by lo, unreachable ones by none, multicast is no destination",
            messages: vec![
                Message {
                    kind: RTN_LOCAL,
                    ..one
                },
                Message {
                    kind: RTN_UNREACHABLE,
                    ..to(V4, "198.18.2.0/24", &[])
                },
                Message {
                    kind: 5,
                    ..to(V4, "198.18.3.0/24", &[2])
                },
            ],
            routes: &[("198.18.1.0/24", &[1]), ("198.18.2.0/24", &[])],
        },
        Case {
            name: "policy routing, the cache and link-local networks",
            messages: vec![
                Message { tos: 16, ..one },
                Message {
                    flags: RTM_F_CLONED,
                    ..one
                },
                to(V6, "fe80::/64", &[2]),
                to(9, "198.18.1.0/24", &[2]),
            ],
            routes: &[],
        },
    ];

    for Case {
        name,
        messages,
        routes,
    } in cases
    {
        let mut datagram = messages.iter().flat_map(render).collect::<Vec<u8>>();
        datagram.extend(bare(NLMSG_DONE, 0, &[0; 4]));
        let mut table = Table::default();
        let progress = read(&mut table, &datagram).expect(name);
        assert_eq!(progress, Progress::Done, "{name}");
        let expected: Routes = routes
            .iter()
            .map(|(range, by)| {
                (
                    IpRange::parse(range).expect(range),
                    by.iter().copied().collect(),
                )
            })
            .collect();
        assert_eq!(table.into_routes(), expected, "{name}");
    }
}

#[test]
fn a_table_that_is_too_long_is_cut_off_behind_the_limit() {
    let mut table = Table::default();
    let ranges = (0..=u16::MAX).map(|number| {
        let [third, fourth] = number.to_be_bytes();
        format!("198.18.{third}.{fourth}/32")
    });
    let mut count = 0;
    for range in ranges {
        count += 1;
        let progress = read(&mut table, &render(&to(V4, &range, &[2])));
        if progress.expect("a route like others") == Progress::Done {
            break;
        }
    }
    assert_eq!(count, MAX_ROUTES_PER_POD + 1);
    assert_eq!(table.into_routes().len(), count, "so that it shows");
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..256), is_route: bool) {
        if is_route && bytes.len() >= HEADER_BYTES {
            let length = u32::try_from(bytes.len()).expect("few");
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&RTM_NEWROUTE.to_ne_bytes());
            bytes[6..8].fill(0);
        }
        let _ = read(&mut Table::default(), &bytes);
    }
}

fn read(table: &mut Table, datagram: &[u8]) -> io::Result<Progress> {
    Dump::default().handle(datagram, &mut |kind, body| table.take(kind, body))
}

fn render(message: &Message<'_>) -> Vec<u8> {
    let (addr, prefix_len) = message.range.split_once('/').expect("a range");
    let addr = match addr.parse().expect("an address") {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let prefix_len: u8 = prefix_len.parse().expect("a number");
    let short_table = u8::try_from(message.table).unwrap_or(252);
    let mut body = vec![
        message.family,
        prefix_len,
        0,
        message.tos,
        short_table,
        0,
        0,
        message.kind,
    ];
    body.extend(message.flags.to_ne_bytes());
    let mut add = |name: u16, value: &[u8]| body.extend(attribute_of(name, value));
    add(RTA_TABLE, &message.table.to_ne_bytes());
    if prefix_len > 0 {
        add(RTA_DST, &addr);
    }
    if message.metric > 0 {
        add(RTA_PRIORITY, &message.metric.to_ne_bytes());
    }
    match message.interfaces {
        [] => {}
        [one] => add(RTA_OIF, &one.to_ne_bytes()),
        [.., last] => {
            // A gateway behind each, which is nobody's business here.
            let hop = |ifindex: &u32| {
                let is_last = ifindex == last;
                let flags = if is_last {
                    message.flags.to_ne_bytes()[0]
                } else {
                    0
                };
                let fixed = [
                    &16_u16.to_ne_bytes()[..],
                    &[flags, 0],
                    &ifindex.to_ne_bytes(),
                ];
                [fixed.concat(), attribute_of(5, &[198, 18, 1, 1])].concat()
            };
            let hops: Vec<u8> = message.interfaces.iter().flat_map(hop).collect();
            add(RTA_MULTIPATH, &hops);
        }
    }
    bare(RTM_NEWROUTE.into(), 2, &body)
}

fn attribute_of(name: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).expect("few");
    let mut bytes = [length.to_ne_bytes(), name.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes
}

fn bare(kind: i32, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("few");
    let kind = u16::try_from(kind).expect("a small number");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}
