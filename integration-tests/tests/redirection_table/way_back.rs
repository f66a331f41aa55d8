//! Row T1 beyond its dials: what is made in the pod for it, for how long, and what a refusal does.

use std::collections::BTreeMap;
use std::process::Command;

use isthmus_integration_tests::istio::PodSettings;
use isthmus_integration_tests::wait;

use crate::dial::{self, Dial, Seen};
use crate::fixture::{PATIENCE, Pod};
use crate::inbound;
use crate::modes::{Agent, End, IstiosWayBack, Mode, Redirection};
use crate::net::{Addr, NO_MAPPED, Net};
use crate::row::row;
use crate::servers::{Servers, Transparency};

const SETTINGS: [&str; 3] = [
    "/proc/sys/net/ipv4/tcp_fwmark_accept",
    "/proc/sys/net/ipv4/fwmark_reflect",
    "/proc/sys/net/ipv6/fwmark_reflect",
];
/// A port of the pod on which nobody listens.
const CLOSED: u16 = 9999;

/// Everything that is made in a pod, as `ip` and the kernel show it.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Routing {
    /// Rules of IPv4 and IPv6, then routes of all tables that are not the kernel's own.
    tables: Vec<String>,
    settings: Vec<String>,
}

impl Routing {
    fn of(pod: &Pod) -> Self {
        pod.run_as(0, || {
            let show = |args: &[&str]| {
                let output = Command::new("ip").args(args).output();
                String::from_utf8(output.expect("ip runs").stdout).expect("it prints text")
            };
            let rules = |family: &str| show(&[family, "rule", "show"]);
            let routes = |family: &str| {
                let text = show(&[family, "route", "show", "table", "all"]);
                let is_of_table =
                    |line: &&str| line.contains(" table ") && !line.contains(" table local");
                let lines: Vec<&str> = text.lines().filter(is_of_table).collect();
                lines.join("\n")
            };
            let read = |file: &str| std::fs::read_to_string(file).expect("the kernel has it");
            Self {
                tables: vec![rules("-4"), rules("-6"), routes("-4"), routes("-6")],
                settings: SETTINGS.map(read).to_vec(),
            }
        })
    }

    fn is_made(&self) -> bool {
        let has_rule = |rules: &String| rules.contains("lookup 15006 proto 173");
        self.tables[..2].iter().all(has_rule)
            && self.settings.iter().all(|value| value.trim() == "1")
    }
}

fn settings() -> PodSettings {
    row("T1")
        .annotation("sidecar.istio.io/interceptionMode", "TPROXY")
        .settings
}

fn set(pod: &Pod, file: &'static str, value: &'static str) {
    let written = pod.run_as(0, move || std::fs::write(file, value));
    written.expect("the namespace is ours");
}

fn start(net: &Net) -> Agent {
    start_with(net, &[])
}

fn start_with(net: &Net, args: &[&str]) -> Agent {
    let mut agent = Agent::start_with(args).expect("the agent starts");
    let names = ["default/pod".to_owned()];
    let entries = [settings().node_config_entry(&names[0], &net.pod.path())];
    let left_alone = agent.apply(&names, &entries).expect("the pod is loaded");
    assert_eq!(left_alone, None);
    agent
}

#[test]
fn nothing_of_the_way_back_is_left_in_a_pod_after_detach() {
    let net = Net::new();
    // `detach` finds a pod by its mounts, processes and threads: these are the ones.
    let _servers = Servers::start(&net, Transparency::On);
    for accepts_marks in ["0", "1"] {
        set(&net.pod, SETTINGS[0], accepts_marks);
        let before = Routing::of(&net.pod);
        for end in [End::Asked, End::Killed] {
            let agent = start(&net);
            let made = Routing::of(&net.pod);
            assert!(made.is_made(), "{made:?}");
            agent.end(end).expect("it runs until it is ended");
            assert_eq!(
                Routing::of(&net.pod),
                before,
                "{end:?}, {accepts_marks} before"
            );
        }
    }
}

#[test]
fn nor_when_the_pod_is_no_longer_for_tproxy_or_leaves() {
    let net = Net::new();
    let before = Routing::of(&net.pod);
    let mut agent = start(&net);
    assert!(Routing::of(&net.pod).is_made());
    let names = ["default/other".to_owned()];
    let redirect = PodSettings::default().node_config_entry(&names[0], &net.pod.path());
    agent.apply(&names, &[redirect]).expect("it is loaded");
    assert_eq!(Routing::of(&net.pod), before, "in the other mode");

    let tproxy = settings().node_config_entry("default/pod", &net.pod.path());
    let names = ["default/pod".to_owned()];
    agent.apply(&names, &[tproxy]).expect("it is loaded");
    assert!(Routing::of(&net.pod).is_made());
    agent.apply(&[], &[]).expect("there is nothing to load");
    wait::until("the pod to be as before", PATIENCE, || {
        let now = Routing::of(&net.pod);
        anyhow::ensure!(now == before, "{now:?}");
        Ok(())
    })
    .expect("it leaves nothing");
}

#[test]
fn a_shadow_makes_none() {
    let net = Net::new();
    let before = Routing::of(&net.pod);
    let _agent = start_with(&net, &["--shadow"]);
    assert_eq!(Routing::of(&net.pod), before);
}

#[test]
fn istios_way_back_takes_the_place_of_the_agents_and_leaves_it_again() {
    let net = Net::new();
    let _agent = start(&net);
    let is_made = |expected: bool| {
        wait::until("the next round", PATIENCE, || {
            let now = Routing::of(&net.pod);
            anyhow::ensure!(now.is_made() == expected, "{now:?}");
            let values = now.settings.iter().map(|value| value.trim());
            let expected = if expected { "1" } else { "0" };
            anyhow::ensure!(values.clone().all(|value| value == expected), "{now:?}");
            Ok(())
        })
        .expect("the agent looks every five seconds");
    };
    is_made(true);
    let istios = IstiosWayBack::make(&net.pod);
    is_made(false);
    drop(istios);
    is_made(true);
}

#[test]
fn a_refusal_finds_its_way_back_as_by_istios_rules() {
    let net = Net::new();
    let mut seen = BTreeMap::new();
    for mode in [Mode::AcceleratorAlone, Mode::IptablesAlone, Mode::Both] {
        let mut redirection = Redirection::new(&net, mode);
        assert_eq!(redirection.apply(&settings()), None);
        for family in NO_MAPPED {
            let closed = Dial {
                port: CLOSED,
                ..inbound::for_client(Addr::World)
            };
            seen.insert((mode as u8, *family), dial::dial(&net, &closed, *family));
        }
    }
    let refused = Seen::Failed("connect", "Connection refused (os error 111)".to_owned());
    for (at, seen) in seen {
        assert_eq!(seen, refused, "{at:?}");
    }
}
