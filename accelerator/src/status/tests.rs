//! Golden answers. `status.txt` and `status.json` are what users and scripts see: a change there is a
//! change of the interface.

use isthmus_accel_abi::{
    Histogram, Hop as AbiHop, HopKey, HopStats, LatencyKey, Measure, ParkedSum, PassCause,
    PodConfig, PodVerdicts, VerdictCode, v4_mapped,
};
use isthmus_accel_core::MapOp;
use isthmus_accel_datapath::{ParkedRow, fake::FakeDatapath};

use super::*;
use crate::runtime_dir::RosterPod;

#[test]
fn the_table_is_as_written_down() {
    let table = render_table(&status());
    assert_eq!(table, include_str!("golden/status.txt"), "it is:\n{table}");
}

#[test]
fn the_json_is_as_written_down() {
    let json = serde_json::to_string_pretty(&status()).expect("maps have string keys") + "\n";
    assert_eq!(json, include_str!("golden/status.json"), "it is:\n{json}");
}

#[test]
fn an_empty_node_has_a_table_too() {
    let agent = AgentStatus {
        is_running: false,
        pid: None,
    };
    let datapath = FakeDatapath::default();
    let status = collect(&datapath, &Roster::default(), origin(agent)).expect("a fake can be read");
    let table = render_table(&status);
    assert!(
        table.starts_with("Agent: not running; what is loaded goes on to work\n"),
        "{table}"
    );
    assert!(
        table.contains("\nPods\n  none\n\nHops\n  none\n\nConnect calls\n  none\n"),
        "{table}"
    );
}

#[test]
fn shares_need_bytes() {
    assert_eq!(basis_points(0, 0), None);
    assert_eq!(basis_points(1, 3), Some(3_333));
    assert_eq!(basis_points(u64::MAX, u64::MAX), Some(10_000));
}

fn origin(agent: AgentStatus) -> Origin {
    Origin {
        agent,
        mode: Mode::Sockmap,
        pin_dir: PathBuf::from("/sys/fs/bpf/isthmus/v2"),
    }
}

fn status() -> Status {
    let agent = AgentStatus {
        is_running: true,
        pid: Some(4242),
    };
    collect(&datapath(), &roster(), origin(agent)).expect("a fake can be read")
}

// Pods 1 and 2 have names, pod 3 was loaded by an agent whose roster is lost.
fn datapath() -> FakeDatapath {
    let mut datapath = FakeDatapath::default();
    datapath.retired.push(RetiredRow {
        version: 3,
        pin_dir: PathBuf::from("/sys/fs/bpf/isthmus/v3"),
        sockets: 12,
    });
    for cookie in [3, 1, 2_u8] {
        let netns_cookie = u64::from(cookie);
        datapath.state.apply(&MapOp::PutAddr {
            addr: v4_mapped([198, 18, 0, cookie]),
            netns_cookie,
        });
        datapath.state.apply(&MapOp::PutPod {
            netns_cookie,
            config: PodConfig::istio_default(),
        });
    }
    let excluded = isthmus_accel_abi::RuleList::EXCLUDE_OUTBOUND;
    let rule = isthmus_accel_abi::PortKey::new(1, excluded, 53_u16.to_be_bytes());
    datapath.state.apply(&MapOp::PutPort(rule));

    let mut passes = [0; PassReason::COUNT];
    passes[PassReason::PeerUnknown.index()] = 3;
    passes[PassReason::Latched.index()] = 20;
    let mut connections_on_tcp = [0; PassReason::COUNT];
    connections_on_tcp[PassReason::PeerUnknown.index()] = 2;
    let stats = HopStats {
        connections: 16,
        messages: 1_023,
        bytes_total: 1_048_576,
        bytes_redirected: 1_040_000,
        passes,
        connections_on_tcp,
    };
    datapath
        .hops
        .insert(HopKey::new(1, AbiHop::APP_TO_PROXY), stats);
    datapath.hops.insert(
        HopKey::new(1, AbiHop::PROXY_TO_APP_RETURN),
        HopStats::default(),
    );
    datapath.hops.insert(
        HopKey::new(3, AbiHop::APP_TO_PROXY_RETURN),
        HopStats {
            connections: 1,
            ..stats
        },
    );
    let mut verdicts = PodVerdicts::EMPTY;
    verdicts.counts[VerdictCode::REDIRECTED.index()] = 16;
    verdicts.counts[VerdictCode::passed(PassCause::PortExcluded).index()] = 4;
    datapath.verdicts.insert(1, verdicts);
    datapath.parked = vec![ParkedRow {
        netns_cookie: 1,
        sum: ParkedSum {
            bytes: 700,
            messages: 3,
        },
    }];
    let mut histogram = Histogram::EMPTY;
    histogram.counts[3] = 15;
    histogram.counts[6] = 1;
    histogram.sum_us = 3_210;
    let key = LatencyKey {
        netns_cookie: 1,
        hop: AbiHop::APP_TO_PROXY,
        measure: Measure::CONNECT,
    };
    datapath.latency.insert(key, histogram);
    datapath.pairs.push(PairRow {
        key: SockKey {
            netns_cookie: 1,
            local_addr: v4_mapped([198, 18, 0, 1]),
            peer_addr: v4_mapped([127, 0, 0, 1]),
            local_port: 40_000_u16.to_be_bytes(),
            peer_port: 15_001_u16.to_be_bytes(),
            reserved: [0; 4],
        },
        hop: AbiHop::APP_TO_PROXY,
        cookie: 77,
    });
    datapath
}

fn roster() -> Roster {
    let pod = |netns_cookie: Option<u64>, condition: &str, reason: Option<&str>| RosterPod {
        addresses: Vec::new(),
        condition: condition.to_owned(),
        netns: PathBuf::from("/run/netns/x"),
        netns_cookie,
        reason: reason.map(str::to_owned),
    };
    let pods = [
        ("default/client", pod(Some(1), "accelerated", None)),
        ("default/server", pod(Some(2), "accelerated", None)),
        (
            "default/late",
            pod(None, "waiting", Some("/run/netns/late does not exist")),
        ),
    ];
    Roster {
        config: PathBuf::from("/etc/isthmus/node.yaml"),
        pods: pods
            .into_iter()
            .map(|(name, pod)| (name.to_owned(), pod))
            .collect(),
    }
}
