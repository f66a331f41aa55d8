//! Who redirects: Istio's own rules, the accelerator, or both.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use isthmus_integration_tests::istio::{IstioIptables, PodSettings, Rules};
use isthmus_integration_tests::process::{Process, Program, User};
use isthmus_integration_tests::{programs, shell, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{Fixture, PATIENCE, Pod};
use crate::net::Net;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    /// First, so that no table of iptables was ever made in these namespaces.
    AcceleratorAlone,
    /// The oracle.
    IptablesAlone,
    Both,
}

/// What redirects at the moment.
pub(crate) struct Redirection<'a> {
    net: &'a Net,
    istio: IstioIptables,
    mode: Mode,
    agent: Option<Agent>,
    /// Configurations so far: their pods have names of their own, by which their loading shows.
    generation: u32,
    ways_back: Option<IstiosWayBack<'a>>,
}

impl<'a> Redirection<'a> {
    pub(crate) fn new(net: &'a Net, mode: Mode) -> Self {
        let agent =
            (mode != Mode::IptablesAlone).then(|| Agent::start().expect("the agent starts"));
        Self {
            net,
            istio: IstioIptables::start().expect("`cargo xtask setup` builds it"),
            mode,
            agent,
            generation: 0,
            ways_back: None,
        }
    }

    /// Governs the pod by these settings; the other pod has none of its own.
    ///
    /// Returns why the accelerator leaves a pod to iptables, if it does.
    pub(crate) fn apply(&mut self, settings: &PodSettings) -> Option<String> {
        let peer = PodSettings::default();
        if self.mode != Mode::AcceleratorAlone {
            for (pod, settings) in [(&self.net.pod, settings), (&self.net.peer, &peer)] {
                let rules = self.istio.rules(&settings.istio_config());
                install(pod, &rules.unwrap_or_else(|error| panic!("{error:#}")));
            }
            if settings.is_tproxy() {
                self.ways_back
                    .get_or_insert_with(|| IstiosWayBack::make(&self.net.pod));
            }
        }
        self.generation += 1;
        let names = ["pod", "peer"].map(|name| format!("default/{name}-{}", self.generation));
        let pods = [
            settings.node_config_entry(&names[0], &self.net.pod.path()),
            peer.node_config_entry(&names[1], &self.net.peer.path()),
        ];
        let agent = self.agent.as_mut()?;
        let left_alone = agent.apply(&names, &pods);
        left_alone.unwrap_or_else(|error| panic!("{error:#}"))
    }
}

/// What Istio adds beside its rules in TPROXY mode (`tools/common/tproxy`). Dropping it removes it.
pub(crate) struct IstiosWayBack<'a> {
    pod: &'a Pod,
}

impl<'a> IstiosWayBack<'a> {
    pub(crate) fn make(pod: &'a Pod) -> Self {
        let made = Self { pod };
        made.change("add");
        made
    }

    fn change(&self, verb: &str) {
        let route = ["local", "default", "dev", "lo", "table", "133"];
        for family in ["-4", "-6"] {
            let rule = [family, "rule", verb, "fwmark", "1337", "lookup", "133"];
            self.pod.ip(&rule);
            self.pod
                .ip(&[&[family, "route", verb], &route[..]].concat());
        }
    }
}

impl Drop for IstiosWayBack<'_> {
    fn drop(&mut self) {
        self.change("del");
    }
}

/// How an agent ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    Asked,
    Killed,
}

/// The accelerator's own program, with a file of its own.
pub(crate) struct Agent {
    // In the order in which they must be dropped.
    process: Process,
    fixture: Fixture,
    dir: TempDir,
}

impl Agent {
    pub(crate) fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same with these arguments.
    pub(crate) fn start_with(more: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        // The program finds the pins as another agent left them. The fixture removes them, and what a
        // killed test leaves of them.
        let fixture = Fixture::load();
        let config = write_config(&dir, &[])?;
        // Other tests run agents for pods of their own at the same time.
        let mut args = vec!["run".into(), "--share-hooks".into()];
        args.extend(["--config".into(), config.into()]);
        args.extend(["--pin-dir".into(), fixture.pin_dir.clone().into()]);
        args.extend(["--runtime-dir".into(), dir.path().join("run").into()]);
        args.extend(more.iter().map(Into::into));
        let process = Process::start(&Program {
            args,
            log_dir: dir.path(),
            name: "isthmus-accelerator",
            netns: None,
            path: &programs::own("isthmus-accelerator")?,
            user: User::Caller,
        })?;
        Ok(Self {
            process,
            fixture,
            dir,
        })
    }

    /// Writes a file with these pods, and waits until each is loaded or left alone; returns why some are.
    pub(crate) fn apply(&mut self, names: &[String], pods: &[Value]) -> Result<Option<String>> {
        write_config(&self.dir, pods)?;
        wait::until("the agent's next configuration", PATIENCE, || {
            self.process.check_running()?;
            let status = self.status()?;
            let found = |list: &str| -> Vec<Value> {
                let rows = status[list].as_array().into_iter().flatten();
                let is_ours = |row: &&Value| names.iter().any(|name| row["name"] == **name);
                rows.filter(is_ours).cloned().collect()
            };
            let left_alone = found("pods_left_to_iptables");
            let is_done = found("pods").len() + left_alone.len() == names.len();
            ensure!(is_done, "status says {status}");
            let reasons = left_alone
                .iter()
                .map(|row| format!("{}: {}", row["name"], row["reason"]));
            Ok(reasons.reduce(|all, one| format!("{all}; {one}")))
        })
    }

    /// Ends it, gently or not, and takes out what it has loaded.
    pub(crate) fn end(self, end: End) -> Result<()> {
        let Self {
            mut process,
            fixture,
            ..
        } = self;
        match end {
            End::Asked => process.terminate()?,
            End::Killed => process.kill()?,
        };
        drop(fixture);
        Ok(())
    }

    fn status(&self) -> Result<Value> {
        let text = shell::capture(
            Command::new(programs::own("isthmus-accelerator")?)
                .args(["status", "--output", "json", "--pin-dir"])
                .arg(&self.fixture.pin_dir)
                .arg("--runtime-dir")
                .arg(self.dir.path().join("run")),
        )?;
        serde_json::from_str(&text).with_context(|| format!("status printed {text}"))
    }
}

fn write_config(dir: &TempDir, pods: &[Value]) -> Result<PathBuf> {
    let document = json!({"apiVersion": "isthmus.io/v1alpha1", "kind": "NodeConfig", "dnsCapture": "none", "pods": pods});
    let (draft, file) = (dir.path().join("draft"), dir.path().join("node.yaml"));
    fs::write(&draft, document.to_string())?;
    fs::rename(&draft, &file)?;
    Ok(file)
}

const NO_RULES: &str = "*nat\nCOMMIT\n*mangle\nCOMMIT\n*raw\nCOMMIT\n";

/// Replaces the rules of a namespace.
fn install(pod: &Pod, rules: &Rules) {
    for (program, text) in [
        ("iptables-restore", &rules.v4),
        ("ip6tables-restore", &rules.v6),
    ] {
        restore(pod, program, &[], NO_RULES.to_owned());
        restore(pod, program, &["--noflush"], text.clone());
    }
}

fn restore(pod: &Pod, program: &'static str, args: &'static [&str], text: String) {
    let feed = move || shell::feed(Command::new(program).args(args), &text);
    pod.run_as(0, feed)
        .unwrap_or_else(|error| panic!("{error:#}"));
}
