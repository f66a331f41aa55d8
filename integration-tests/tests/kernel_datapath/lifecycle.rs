//! The agent comes and goes; the programs stay until they are taken out, and then nothing stays.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::Command,
    thread,
};

use isthmus_accel_abi::{Hop, map, program};
use isthmus_accel_datapath::{
    Datapath as _, DatapathError, Mechanism, ProgramRow,
    linux::{DetachReport, LinuxDatapath, Patience, Unread},
    probe,
};

use crate::fixture::{APP, Fixture, PATIENCE, PROXY, Pod, VIP, original_dst, take_out, wait_until};

const OUTBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001);

/// Ids of everything of a kind that the kernel has.
fn ids(kind: &str) -> Vec<u64> {
    let output = Command::new("bpftool").args(["-j", kind, "list"]).output();
    let output = output.expect("bpftool is installed (`cargo xtask setup`)");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    rows.as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| row["id"].as_u64())
        .collect()
}

/// Ids of what is pinned under the directory.
fn pinned(pin_dir: &Path, kind: &str, subdir: &str) -> Vec<u64> {
    let files = std::fs::read_dir(pin_dir.join(subdir)).expect("it is there");
    let id = |file: std::io::Result<std::fs::DirEntry>| {
        let path = file.expect("it can be read").path();
        let output = Command::new("bpftool")
            .args(["-j", kind, "show", "pinned"])
            .arg(&path)
            .output();
        let output = output.expect("bpftool is installed (`cargo xtask setup`)");
        let row: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        row["id"]
            .as_u64()
            .unwrap_or_else(|| panic!("{}: {row}", path.display()))
    };
    files.map(id).collect()
}

/// What was pinned under a directory, by kind and the kernel's ids.
#[derive(Debug)]
pub(crate) struct Objects([(&'static str, Vec<u64>); 3]);

impl Objects {
    pub(crate) fn pinned(pin_dir: &Path) -> Self {
        let kinds = [("prog", "programs"), ("map", "maps"), ("link", "links")];
        Self(kinds.map(|(kind, subdir)| (kind, pinned(pin_dir, kind, subdir))))
    }

    /// Those that the kernel still has.
    pub(crate) fn left(&self) -> Vec<(&'static str, u64)> {
        let left = |(kind, ours): &(&'static str, Vec<u64>)| {
            let (kind, all) = (*kind, ids(kind));
            let left = ours.iter().filter(move |id| all.contains(id));
            left.map(move |id| (kind, *id)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(left).collect()
    }
}

#[test]
fn programs_run_without_an_agent_and_the_next_one_adopts_them() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let proxy = pod.listen(PROXY, OUTBOUND);
    let mut before = pod.connect(APP, VIP).expect("the proxy listens");
    let (mut accepted_before, _) = proxy.accept().expect("a connection");
    let programs = fixture.datapath.programs().expect("they can be listed");
    assert!(programs.iter().all(|row| row.is_attached), "{programs:?}");
    let state = fixture.datapath.loaded().expect("it can be read");

    // What a SIGKILL leaves: the pins.
    let (pin_dir, options) = (fixture.pin_dir.clone(), fixture.options.clone());
    fixture.datapath = LinuxDatapath::open_pinned(&pin_dir).expect("it is pinned");
    before.write_all(b"one").expect("it is connected");
    let _during = pod.connect(APP, VIP).expect("the proxy listens");
    let (accepted, _) = proxy.accept().expect("it is redirected all the same");
    assert_eq!(original_dst(&accepted).expect("it was redirected"), VIP);

    fixture.datapath = Fixture::open(&pin_dir, &options);
    assert_eq!(
        fixture.datapath.programs().expect("they can be listed"),
        programs,
        "the same run on"
    );
    assert_eq!(fixture.datapath.loaded().expect("it can be read"), state);
    before.write_all(b"two").expect("it is connected");
    let mut bytes = [0; 6];
    accepted_before.read_exact(&mut bytes).expect("both arrive");
    assert_eq!(&bytes, b"onetwo");
    assert_eq!(fixture.hop(&pod, Hop::APP_TO_PROXY).bytes_redirected, 6);
}

#[test]
fn programs_on_maps_that_are_gone_are_replaced_in_place() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let (pin_dir, options) = (fixture.pin_dir.clone(), fixture.options.clone());
    let links = pinned(&pin_dir, "link", "links");
    let ids = |rows: &[ProgramRow]| rows.iter().map(|row| row.id).collect::<Vec<_>>();
    let programs = ids(&fixture.datapath.programs().expect("they can be listed"));

    std::fs::remove_file(pin_dir.join("maps").join(map::COUNTERS)).expect("it is pinned");
    fixture.datapath = Fixture::open(&pin_dir, &options);
    let replaced = fixture.datapath.programs().expect("they can be listed");
    assert!(
        ids(&replaced).iter().all(|id| !programs.contains(id)),
        "{replaced:?}"
    );
    assert!(replaced.iter().all(|row| row.is_attached), "{replaced:?}");
    assert_eq!(
        pinned(&pin_dir, "link", "links"),
        links,
        "through the same links"
    );

    let proxy = pod.listen(PROXY, OUTBOUND);
    let _client = pod.connect(APP, VIP).expect("the proxy listens");
    let (accepted, _) = proxy.accept().expect("it is redirected");
    assert_eq!(original_dst(&accepted).expect("it was redirected"), VIP);
}

#[test]
fn nothing_is_left_after_a_detach() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let pin_dir = fixture.pin_dir.clone();
    let ours = Objects::pinned(&pin_dir);
    let counts = ours.0.each_ref().map(|(_, ids)| ids.len());
    assert_eq!(
        counts[..2],
        [
            program::ALL.len() + program::ON_DEMAND.len(),
            map::ALL.len()
        ]
    );
    assert!(counts[2] > 0, "there are links");

    take_out(&pin_dir, &Patience::default()).expect("it can be removed");
    // The handles of this process are the last that hold the maps.
    drop(fixture);
    wait_until("the kernel has let go", || ours.left().is_empty());
    assert!(!pin_dir.exists());
    assert_eq!(
        take_out(&pin_dir, &Patience::default()).expect("twice is fine"),
        DetachReport::default()
    );
    let error = LinuxDatapath::open_pinned(&pin_dir).expect_err("it is gone");
    assert!(matches!(error, DatapathError::NotLoaded { .. }), "{error}");
}

#[test]
fn a_detach_waits_for_what_is_parked_and_connections_go_on() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let proxy = pod.listen(PROXY, OUTBOUND);
    let mut app = pod.connect(APP, VIP).expect("the proxy listens");
    let (mut accepted, _) = proxy.accept().expect("a connection");
    let message = vec![7; 10_000];
    app.write_all(&message).expect("it is connected");
    assert_eq!(
        fixture.hop(&pod, Hop::APP_TO_PROXY).bytes_redirected,
        10_000
    );

    let ours = Objects::pinned(&fixture.pin_dir);
    let pin_dir = fixture.pin_dir.clone();
    let patience = Patience {
        reading: PATIENCE,
        ..Patience::NONE
    };
    let detaching =
        thread::spawn(move || take_out(&pin_dir, &patience).expect("it can be removed"));
    // Detached from new connections, but not done: the reader has not read.
    wait_until("the sockmap is off", || {
        fixture.datapath.mode().expect("the map can be read")
            == isthmus_accel_abi::SettingsMode::REDIRECT_ONLY
    });
    app.write_all(b"by TCP").expect("it is connected");
    let mut bytes = vec![0; message.len()];
    accepted.read_exact(&mut bytes).expect("nothing is lost");
    assert_eq!(bytes, message);
    let report = detaching.join().expect("it ends");
    assert_eq!((report.sockets, report.unread), (2, Unread::default()));

    let mut bytes = [0; 6];
    accepted.read_exact(&mut bytes).expect("TCP goes on");
    assert_eq!(&bytes, b"by TCP");
    drop(fixture);
    wait_until("the connection has let go too", || ours.left().is_empty());
    app.write_all(b"more").expect("it is connected");
    let mut bytes = [0; 4];
    accepted.read_exact(&mut bytes).expect("TCP goes on");
    assert_eq!(&bytes, b"more");
}

#[test]
fn a_reader_that_stalls_through_a_detach_loses_nothing_and_leaves_nothing() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let proxy = pod.listen(PROXY, OUTBOUND);
    let mut app = pod.connect(APP, VIP).expect("the proxy listens");
    let (mut accepted, _) = proxy.accept().expect("a connection");
    let parked = vec![7; 10_000];
    app.write_all(&parked).expect("it is connected");
    let ours = Objects::pinned(&fixture.pin_dir);

    let report = take_out(&fixture.pin_dir, &Patience::NONE).expect("it can be removed");
    let unread = Unread {
        sockets: 1,
        bytes: 10_000,
    };
    assert_eq!((report.sockets, report.unread), (2, unread));
    assert!(!fixture.pin_dir.exists());
    drop(fixture);
    wait_until("all but what the socket holds is gone", || {
        let left = ours.left();
        left.iter().all(|(kind, _)| *kind != "link")
            && left.iter().filter(|(kind, _)| *kind == "prog").count() == 1
    });

    app.write_all(b"by TCP").expect("it is connected");
    let mut bytes = Vec::new();
    drop(app);
    accepted.read_to_end(&mut bytes).expect("nothing is lost");
    assert_eq!(bytes, [&parked[..], b"by TCP"].concat());
    drop(accepted);
    wait_until("the rest is gone with it", || ours.left().is_empty());
}

#[test]
fn the_probe_finds_this_machine_fit() {
    let probe = probe(Path::new("/sys/fs/bpf/isthmus-test-probe"));
    for needed_by in [Mechanism::Redirect, Mechanism::Sockmap] {
        assert_eq!(probe.first_missing(needed_by), None);
    }
    assert!(
        !Path::new("/sys/fs/bpf/isthmus-test-probe").exists(),
        "a probe leaves nothing"
    );
}
