use std::net::Ipv4Addr;

use isthmus_accel_abi::{FlowFacts, OriginalDst, PassCause, SockKey, v4_mapped};
use serde_json::json;

use super::{filter::Filter, *};
use crate::runtime_dir::RosterPod;

const CLIENT: u64 = 11;
const SERVER: u64 = 12;
const VIP: [u8; 4] = [198, 19, 7, 9];
// 2026-11-27T06:00:00Z, and a machine that was started 1,000 s before.
const NOW_UNIX_NS: u64 = 1_795_759_200_000_000_000;
const BOOT_UNIX_NS: u64 = NOW_UNIX_NS - 1_000_000_000_000;

pub(crate) fn event(kind: FlowKind, verdict: VerdictCode) -> FlowEvent {
    let is_accepting = verdict == VerdictCode::NONE;
    let is_redirected = verdict == VerdictCode::REDIRECTED;
    let key = SockKey {
        netns_cookie: CLIENT,
        local_addr: v4_mapped([198, 18, 0, 1]),
        peer_addr: v4_mapped([127, 0, 0, 1]),
        local_port: 40_000_u16.to_be_bytes(),
        peer_port: 15_001_u16.to_be_bytes(),
        reserved: [0; 4],
    };
    let caller = |id| if is_accepting { 0 } else { id };
    FlowEvent {
        time_ns: 1_000_000_123_456,
        socket_cookie: 77,
        facts: FlowFacts {
            started_ns: 1_000_000_000_000,
            netns_cookie: CLIENT,
            peer_netns: if is_redirected || is_accepting {
                CLIENT
            } else {
                0
            },
            cgroup_id: caller(9).into(),
            dialled: OriginalDst {
                addr: v4_mapped(VIP),
                port: 80_u16.to_be_bytes(),
                reserved: [0; 6],
            },
            target_addr: if is_redirected {
                v4_mapped([127, 0, 0, 1])
            } else {
                [0; 16]
            },
            target_port: if is_redirected {
                15_001_u16.to_be_bytes()
            } else {
                [0; 2]
            },
            reserved: [0; 6],
            pid: caller(4_242),
            uid: caller(1_000),
            gid: caller(1_001),
            verdict,
            hop: if is_redirected {
                Hop::APP_TO_PROXY
            } else {
                Hop::NONE
            },
            flags: 0,
        },
        key: if kind == FlowKind::DECIDED {
            SockKey {
                local_addr: [0; 16],
                peer_addr: [0; 16],
                local_port: [0; 2],
                peer_port: [0; 2],
                ..key
            }
        } else if is_accepting {
            SockKey {
                netns_cookie: CLIENT,
                ..key.flipped(CLIENT)
            }
        } else {
            key
        },
        bytes_acked: 0,
        bytes_received: 0,
        bytes_redirected: 0,
        kind,
        connect_us: 0,
        srtt_us: 0,
        on_tcp_because: 0,
    }
}

fn names() -> Names {
    let pod = |addr: [u8; 4], cookie| RosterPod {
        addresses: vec![IpAddr::V4(Ipv4Addr::from(addr))],
        condition: "accelerated".to_owned(),
        netns: "/run/netns/x".into(),
        netns_cookie: Some(cookie),
        reason: None,
    };
    let pods = [
        ("default/client", pod([198, 18, 0, 1], CLIENT)),
        ("shop/server", pod([198, 18, 0, 2], SERVER)),
    ];
    let roster = Roster {
        config: "/etc/isthmus/node.yaml".into(),
        pods: pods.map(|(name, pod)| (name.to_owned(), pod)).into(),
    };
    Names::from(&roster)
}

fn flow(event: &FlowEvent) -> Flow {
    Flow::new(event, &names(), BOOT_UNIX_NS)
}

#[test]
fn a_redirect_has_hubbles_fields() {
    let flow = flow(&event(FlowKind::DECIDED, VerdictCode::REDIRECTED));
    let expected = json!({
        "flow": {
            "time": "2026-11-27T06:00:00.000123456Z",
            "verdict": "REDIRECTED",
            "IP": {"destination": "198.19.7.9", "ipVersion": "IPv4"},
            "l4": {"TCP": {"source_port": 0, "destination_port": 80}},
            "source": {"namespace": "default", "pod_name": "client"},
            "destination": {},
            "Type": "SOCK",
            "node_name": "node-1",
            "traffic_direction": "EGRESS",
            "sock_xlate_point": "SOCK_XLATE_POINT_PRE_DIRECTION_FWD",
            "proxy_port": 15_001,
            "socket_cookie": "77",
            "cgroup_id": "9",
            "extensions": {
                "@type": "type.googleapis.com/google.protobuf.Struct",
                "value": {
                    "step": "decided",
                    "verdict": "redirected",
                    "hop": "app_to_proxy",
                    "netns_cookie": "11",
                    "target": "default/client 127.0.0.1:15001",
                    "pid": 4_242,
                    "uid": 1_000,
                    "gid": 1_001,
                },
            },
        },
        "node_name": "node-1",
        "time": "2026-11-27T06:00:00.000123456Z",
    });
    assert_eq!(hubble::render(&flow, "node-1"), expected);
    assert_eq!(
        table::render(&flow)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        "06:00:00.000123 decided redirected default/client 198.19.7.9:80 to default/client \
         127.0.0.1:15001, pid 4242 uid 1000"
    );
}

#[test]
fn hubbles_verdict_says_what_was_done() {
    let passed = VerdictCode::passed(PassCause::PortExcluded);
    let cases = [
        (
            "a redirect",
            FlowKind::DECIDED,
            VerdictCode::REDIRECTED,
            0,
            "REDIRECTED",
        ),
        ("a pass", FlowKind::DECIDED, passed, 0, "FORWARDED"),
        (
            "a proxy's dial",
            FlowKind::DECIDED,
            VerdictCode::FOLLOWED,
            0,
            "FORWARDED",
        ),
        (
            "in the shadow",
            FlowKind::DECIDED,
            VerdictCode::REDIRECTED,
            FlowFacts::IS_SHADOW,
            "AUDIT",
        ),
        (
            "established",
            FlowKind::ESTABLISHED,
            VerdictCode::REDIRECTED,
            0,
            "TRACED",
        ),
        (
            "accepted",
            FlowKind::ACCEPTED,
            VerdictCode::NONE,
            0,
            "TRACED",
        ),
        ("closed", FlowKind::CLOSED, passed, 0, "TRACED"),
    ];
    for (name, kind, verdict, flags, expected) in cases {
        let mut event = event(kind, verdict);
        event.facts.flags = flags;
        let json = hubble::render(&flow(&event), "node-1");
        assert_eq!(json["flow"]["verdict"], expected, "{name}");
        let has_proxy_port = json["flow"].get("proxy_port").is_some();
        assert_eq!(has_proxy_port, expected == "REDIRECTED", "{name}");
    }
}

#[test]
fn an_accepting_end_is_the_destination() {
    let json = hubble::render(
        &flow(&event(FlowKind::ACCEPTED, VerdictCode::NONE)),
        "node-1",
    );
    let flow = &json["flow"];
    assert_eq!(flow["traffic_direction"], "INGRESS");
    assert_eq!(flow["IP"]["source"], "198.18.0.1");
    assert_eq!(flow["source"]["pod_name"], "client");
    assert_eq!(flow["l4"]["TCP"]["source_port"], 40_000);
    assert_eq!(flow["IP"]["destination"], "198.19.7.9", "as dialled");
    assert!(flow.get("cgroup_id").is_none(), "it has no caller");
}

#[test]
fn a_closed_connection_says_what_went_over_it_and_why_by_tcp() {
    let mut event = event(FlowKind::CLOSED, VerdictCode::REDIRECTED);
    event.bytes_acked = 42;
    event.bytes_redirected = 1_000;
    event.srtt_us = 81;
    let reason = PassReason::PeerBufferFull;
    event.on_tcp_because = u32::try_from(reason.index()).expect("a dozen reasons") + 1;
    let text = table::render(&flow(&event));
    assert!(
        text.ends_with(
            "app_to_proxy, sent 42 B by TCP, 1000 B past it, received 0 B by TCP, on TCP because \
             peer_buffer_full, srtt 81 us"
        ),
        "{text}"
    );
    event.on_tcp_because = u32::MAX;
    assert!(
        !table::render(&flow(&event)).contains("because"),
        "of another build"
    );
}

#[test]
fn filters_look_at_both_ends() {
    let redirect = flow(&event(FlowKind::DECIDED, VerdictCode::REDIRECTED));
    let mut to_server = event(
        FlowKind::DECIDED,
        VerdictCode::passed(PassCause::PortExcluded),
    );
    to_server.facts.dialled.addr = v4_mapped([198, 18, 0, 2]);
    to_server.facts.dialled.port = 3_306_u16.to_be_bytes();
    let to_server = flow(&to_server);
    let pod = |pod: &str| Filter {
        pod: Some(pod.to_owned()),
        ..Filter::default()
    };
    let port = |port| Filter {
        port: Some(port),
        ..Filter::default()
    };
    let verdict = |verdict: &str| Filter {
        verdict: Some(verdict.to_owned()),
        ..Filter::default()
    };
    let cases = [
        ("no condition", Filter::default(), [true, true]),
        ("the source", pod("default/client"), [true, true]),
        ("the destination", pod("shop/server"), [false, true]),
        ("a namespace", pod("shop/"), [false, true]),
        ("part of a name", pod("shop/serve"), [false, false]),
        ("the port dialled", port(3_306), [false, true]),
        ("the port rewritten", port(15_001), [true, false]),
        ("another port", port(81), [false, false]),
        ("redirected", verdict("redirected"), [true, false]),
        ("passed", verdict("passed"), [false, true]),
        (
            "all of them",
            Filter {
                port: Some(80),
                ..verdict("passed")
            },
            [false, false],
        ),
    ];
    for (name, filter, expected) in cases {
        let found = [&redirect, &to_server].map(|flow| filter.matches(flow));
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn times_are_of_the_calendar() {
    let cases = [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000000Z"),
        (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
        (4_102_444_800, "2100-01-01T00:00:00.000000000Z"),
    ];
    for (seconds, expected) in cases {
        assert_eq!(hubble::render_time(seconds * 1_000_000_000), expected);
    }
}
