//! Agents of other versions, played by the test: their objects, and what they leave in the kernel.

use std::{borrow::Cow, fs, path::Path, process::Command};

use isthmus_accel_abi::{ABI_VERSION, PodConfig, SettingsMode, map};
use isthmus_accel_datapath::linux::{LinuxDatapath, LoadOptions, Version, cgroup_root};

/// The objects that the releases of other versions were built with.
pub(crate) fn other_versions() -> [Version; 2] {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/accelerator");
    let object = fs::read(dir.join("isthmus-v1.bpf.o")).expect("it is in the repository");
    let older = Version {
        abi_version: 1,
        maps: vec![
            "PODS",
            "POD_ADDRS",
            "PORT_RULES",
            "CIDR_RULES",
            "HANDSHAKES",
            "ORIG_DST_BY_TUPLE",
            "SOCKET_STATE",
            "ENDS",
            "SOCKETS",
            "HOP_STATS",
            "COUNTERS",
            "SETTINGS",
        ],
        object: Cow::Owned(object),
        programs: vec![
            "isthmus_parked",
            "isthmus_skmsg",
            "isthmus_sockops",
            "isthmus_getsockopt",
            "isthmus_getpeername4",
            "isthmus_connect4",
        ],
    };
    // Nobody has written it yet: what is known of it is what all versions have in common.
    let newer = Version {
        abi_version: ABI_VERSION + 1,
        ..Version::built_in()
    };
    [older, newer]
}

/// Loads what an agent of that version would, with these pods: their cookies and addresses.
pub(crate) fn install(dir: &Path, version: &Version, config: PodConfig, pods: &[(u64, [u8; 16])]) {
    let cgroup = cgroup_root().expect("cgroup v2 is mounted");
    LinuxDatapath::load_version(dir, &cgroup, &options(), version).expect("it can be loaded");
    let config = if version.abi_version == 1 {
        // User, group, everything captured both ways, and the ports of the listeners.
        let words = [1337_u32, 1337, 3].map(u32::to_ne_bytes).concat();
        let ports = [15_001_u16, 15_006].map(u16::to_be_bytes).concat();
        [words, ports].concat()
    } else {
        bytemuck::bytes_of(&config).to_vec()
    };
    for (cookie, addr) in pods {
        put(dir, map::PODS, &cookie.to_ne_bytes(), &config);
        put(dir, map::POD_ADDRS, addr, &cookie.to_ne_bytes());
    }
}

/// Everything switched on.
pub(crate) fn options() -> LoadOptions {
    LoadOptions {
        mode: SettingsMode::SOCKMAP,
        ..LoadOptions::default()
    }
}

/// Writes into a map whose layout only another version knows.
fn put(dir: &Path, map: &str, key: &[u8], value: &[u8]) {
    let hex = |bytes: &[u8]| {
        let words = bytes.iter().map(|byte| format!("{byte:02x}"));
        words.collect::<Vec<_>>()
    };
    let status = Command::new("bpftool")
        .args(["map", "update", "pinned"])
        .arg(dir.join("maps").join(map))
        .args(["key", "hex"])
        .args(hex(key))
        .args(["value", "hex"])
        .args(hex(value))
        .status();
    assert!(
        status.expect("bpftool is installed").success(),
        "{map} of {}",
        dir.display()
    );
}
