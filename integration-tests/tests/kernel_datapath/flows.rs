//! What the programs tell about single connections, and that telling never costs one.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
};

use isthmus_accel_abi::{
    Counter, FlowEvent, FlowKind, FlowMode, Hop, LatencyKey, Measure, PassCause, PassReason,
    PodVerdicts, PortKey, RuleList, SettingsMode, VerdictCode, map, v4_mapped,
};
use isthmus_accel_core::MapOp;
use isthmus_accel_datapath::{
    Datapath as _,
    linux::{FlowReader, LoadOptions},
};

use crate::fixture::{APP, Fixture, PROXY, Pod, VIP, wait_until};

const OUTBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001);
const EXCLUDED: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 3306);

fn load() -> Fixture {
    Fixture::load_with(LoadOptions {
        mode: SettingsMode::SOCKMAP,
        flows: FlowMode::ON,
        ..LoadOptions::default()
    })
}

fn exclude_port(fixture: &mut Fixture, pod: &Pod) {
    let port = EXCLUDED.port().to_be_bytes();
    let key = PortKey::new(pod.cookie, RuleList::EXCLUDE_OUTBOUND, port);
    fixture.apply(MapOp::PutPort(key));
}

/// Reads events until there are `count`.
fn read(reader: &mut FlowReader, count: usize) -> Vec<FlowEvent> {
    let mut events = Vec::new();
    wait_until(&format!("{count} events"), || {
        events.extend(std::iter::from_fn(|| reader.next_event()));
        events.len() >= count
    });
    events
}

fn verdicts(fixture: &Fixture, pod: &Pod) -> PodVerdicts {
    let rows = fixture.datapath.verdicts().expect("they can be read");
    rows.iter()
        .find(|row| row.netns_cookie == pod.cookie)
        .map(|row| row.verdicts)
        .unwrap_or_default()
}

fn lost(fixture: &Fixture) -> u64 {
    let rows = fixture.datapath.counters().expect("they can be read");
    let row = rows.iter().find(|row| row.counter == Counter::FlowsLost);
    row.expect("every counter is listed").count
}

#[test]
fn every_step_of_a_redirected_connection_is_told() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = load();
    fixture.add_pod(&pod);
    let mut reader = fixture.datapath.flow_reader().expect("the ring is pinned");
    let proxy = pod.listen(PROXY, OUTBOUND);
    let mut client = pod.connect(APP, VIP).expect("the proxy listens");
    let (mut accepted, _) = proxy.accept().expect("a connection");
    client.write_all(&[7; 100]).expect("it is connected");
    accepted
        .read_exact(&mut [0; 100])
        .expect("what was sent arrives");
    accepted.write_all(&[8; 30]).expect("it is connected");
    client
        .read_exact(&mut [0; 30])
        .expect("what was sent arrives");
    let local = client.local_addr().expect("it is bound");
    drop(client);
    drop(accepted);

    let events = read(&mut reader, 5);
    let of_kind = |kind: FlowKind, verdict: VerdictCode| {
        let found = events
            .iter()
            .find(|event| event.kind == kind && event.facts.verdict == verdict);
        found.unwrap_or_else(|| panic!("no {} event in {events:#?}", kind.name()))
    };
    let decided = of_kind(FlowKind::DECIDED, VerdictCode::REDIRECTED);
    let facts = decided.facts;
    assert_eq!(
        (facts.uid, facts.gid, facts.pid),
        (APP, APP, std::process::id())
    );
    assert_eq!(facts.netns_cookie, pod.cookie);
    assert_eq!(facts.dialled.addr, v4_mapped(VIP.ip().octets()));
    assert_eq!(facts.dialled.port, VIP.port().to_be_bytes());
    assert_eq!(facts.target_addr, v4_mapped([127, 0, 0, 1]));
    assert_eq!(facts.target_port, OUTBOUND.port().to_be_bytes());
    assert_eq!((facts.hop, facts.flags), (Hop::APP_TO_PROXY, 0));
    assert_ne!(facts.cgroup_id, 0);

    let established = of_kind(FlowKind::ESTABLISHED, VerdictCode::REDIRECTED);
    assert_eq!(established.socket_cookie, decided.socket_cookie);
    assert_eq!(established.facts, facts, "the socket remembers");
    assert_eq!(established.key.local_port, local.port().to_be_bytes());

    let taken = of_kind(FlowKind::ACCEPTED, VerdictCode::NONE);
    assert_eq!(taken.key.peer_port, local.port().to_be_bytes());
    assert_eq!(taken.key.local_port, OUTBOUND.port().to_be_bytes());
    assert_eq!(taken.facts.dialled, facts.dialled);
    assert_eq!(taken.facts.hop, Hop::PROXY_TO_APP_RETURN);

    let sent = of_kind(FlowKind::CLOSED, VerdictCode::REDIRECTED);
    assert_eq!((sent.bytes_redirected, sent.on_tcp_because), (100, 0));
    let answered = of_kind(FlowKind::CLOSED, VerdictCode::NONE);
    assert_eq!(answered.bytes_redirected, 0, "an application reads by TCP");
    let reason = PassReason::ReaderIsApp.index() + 1;
    assert_eq!(usize::try_from(answered.on_tcp_because), Ok(reason));
    assert!(answered.bytes_acked >= 30, "{answered:?}");
    let stats = fixture.hop(&pod, Hop::PROXY_TO_APP_RETURN);
    assert_eq!(stats.connections_on_tcp[PassReason::ReaderIsApp.index()], 1);
    let stats = fixture.hop(&pod, Hop::APP_TO_PROXY);
    assert_eq!(stats.connections_on_tcp, [0; PassReason::COUNT]);
    assert_eq!(lost(&fixture), 0);
}

#[test]
fn a_connection_that_is_left_alone_says_why() {
    let pod = Pod::alone([198, 18, 0, 1]);
    pod.ip(&["addr", "add", "198.19.7.9/32", "dev", "lo"]);
    let mut fixture = load();
    exclude_port(&mut fixture, &pod);
    fixture.add_pod(&pod);
    let mut reader = fixture.datapath.flow_reader().expect("the ring is pinned");
    let server = pod.listen(0, EXCLUDED);
    let mut client = pod.connect(APP, EXCLUDED).expect("somebody listens");
    let (accepted, _) = server.accept().expect("a connection");
    client.write_all(&[1; 500]).expect("it is connected");
    drop((client, accepted));

    let excluded = VerdictCode::passed(PassCause::PortExcluded);
    let events = read(&mut reader, 5);
    let steps: Vec<FlowKind> = events
        .iter()
        .filter(|event| event.facts.verdict == excluded)
        .map(|event| event.kind)
        .collect();
    let expected = [FlowKind::DECIDED, FlowKind::ESTABLISHED, FlowKind::CLOSED];
    assert_eq!(steps, expected, "{events:#?}");
    assert_eq!(verdicts(&fixture, &pod).counts[excluded.index()], 1);
    let refused = pod
        .connect(APP, SocketAddrV4::new(pod.addr, 9))
        .expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let steps: Vec<FlowKind> = read(&mut reader, 2)
        .iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(
        steps,
        [FlowKind::DECIDED, FlowKind::CLOSED],
        "a failed connect"
    );
}

#[test]
fn a_full_ring_loses_events_and_no_connection() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load_with(LoadOptions {
        mode: SettingsMode::SOCKMAP,
        flows: FlowMode::ON,
        max_entries: vec![(map::FLOWS, 4096)],
    });
    fixture.add_pod(&pod);
    let mut reader = fixture.datapath.flow_reader().expect("the ring is pinned");
    let proxy = pod.listen(PROXY, OUTBOUND);
    for _ in 0..50 {
        let client: TcpStream = pod.connect(APP, VIP).expect("the proxy listens");
        let (accepted, _) = proxy.accept().expect("a connection");
        drop((client, accepted));
    }
    // Five steps each, and a record has a header of 8 bytes.
    let room = 4096 / (size_of::<FlowEvent>() + 8);
    let kept = std::iter::from_fn(|| reader.next_event()).count();
    assert!((room - 1..=room).contains(&kept), "{kept} of {room}");
    wait_until("every other event is counted", || {
        kept as u64 + lost(&fixture) == 250
    });
    let counts = verdicts(&fixture, &pod).counts;
    assert_eq!(counts[VerdictCode::REDIRECTED.index()], 50);

    let _client = pod.connect(APP, VIP).expect("the proxy listens");
    assert_eq!(
        read(&mut reader, 1)[0].kind,
        FlowKind::DECIDED,
        "it goes on"
    );
}

#[test]
fn switched_off_nothing_is_told_but_everything_is_counted() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let mut reader = fixture.datapath.flow_reader().expect("the ring is pinned");
    let proxy = pod.listen(PROXY, OUTBOUND);
    let client = pod.connect(APP, VIP).expect("the proxy listens");
    let (accepted, _) = proxy.accept().expect("a connection");
    drop((client, accepted));

    let redirected = VerdictCode::REDIRECTED.index();
    assert_eq!(verdicts(&fixture, &pod).counts[redirected], 1);
    let histogram = |hop, measure| {
        let netns_cookie = pod.cookie;
        let key = LatencyKey {
            netns_cookie,
            hop,
            measure,
        };
        let rows = fixture.datapath.latency().expect("they can be read");
        rows.iter()
            .find(|row| row.key == key)
            .map(|row| row.histogram)
            .unwrap_or_default()
    };
    wait_until("the closed connection has left its round-trip time", || {
        histogram(Hop::APP_TO_PROXY, Measure::SRTT).count() == 1
    });
    let connect = histogram(Hop::APP_TO_PROXY, Measure::CONNECT);
    assert_eq!(connect.count(), 1);
    assert!((1..30_000_000).contains(&connect.sum_us), "{connect:?}");
    assert_eq!(reader.next_event(), None);
    assert_eq!(lost(&fixture), 0);

    reader.switch(FlowMode::ON).expect("it can be written");
    let is_on = fixture.datapath.flows().expect("it can be read") == FlowMode::ON;
    assert!(is_on);
    let _client = pod.connect(APP, VIP).expect("the proxy listens");
    assert_eq!(read(&mut reader, 1)[0].kind, FlowKind::DECIDED);

    let netns_cookie = pod.cookie;
    fixture.apply(MapOp::RemovePod { netns_cookie });
    assert_eq!(verdicts(&fixture, &pod), PodVerdicts::EMPTY);
    let rows = fixture.datapath.latency().expect("they can be read");
    assert!(rows.is_empty(), "{rows:?}");
}

#[test]
fn in_the_shadow_verdicts_are_recorded_and_nothing_is_changed() {
    let pod = Pod::alone([198, 18, 0, 1]);
    pod.ip(&["addr", "add", "198.19.7.9/32", "dev", "lo"]);
    let mut fixture = Fixture::load_with(LoadOptions {
        mode: SettingsMode::SHADOW,
        flows: FlowMode::ON,
        ..LoadOptions::default()
    });
    fixture.add_pod(&pod);
    let mut reader = fixture.datapath.flow_reader().expect("the ring is pinned");
    let direct = pod.listen(0, VIP);
    let proxy = pod.listen(PROXY, OUTBOUND);
    let client = pod.connect(APP, VIP).expect("somebody listens");
    let (_accepted, from) = direct.accept().expect("it goes where it was dialled");
    assert_eq!(client.local_addr().expect("it is bound"), from);
    let events = read(&mut reader, 3);
    assert_eq!(events[0].facts.verdict, VerdictCode::REDIRECTED);
    assert_eq!(
        events[0].facts.flags,
        isthmus_accel_abi::FlowFacts::IS_SHADOW
    );
    assert!(
        fixture
            .datapath
            .pairs(1)
            .expect("it can be read")
            .is_empty()
    );

    // The same programs, without a restart.
    fixture
        .datapath
        .switch_mode(SettingsMode::SOCKMAP)
        .expect("it can be written");
    let _client = pod.connect(APP, VIP).expect("the proxy listens");
    proxy.accept().expect("from here on it is redirected");
}
