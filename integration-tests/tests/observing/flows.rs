//! `isthmus-accelerator flows`, and the agent behind it.

use std::{
    io::{BufRead as _, BufReader},
    net::Ipv4Addr,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
};

use isthmus_integration_tests::wait;
use serde_json::Value;

use crate::pod::{APP, Agent, PATIENCE, PROXY, Pod};

/// Flows in Hubble's fields, once there are at least `count`.
fn flows(agent: &Agent, args: &[&str], count: usize) -> Vec<Value> {
    let args = [&["--last", "100", "-o", "json"], args].concat();
    let wanted = format!("{count} flows for {args:?}");
    let flows = wait::until(&wanted, PATIENCE, || {
        let text = agent.ask("flows", &args);
        let flows: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("each line is JSON"))
            .collect();
        anyhow::ensure!(flows.len() >= count, "there are {}: {text}", flows.len());
        Ok(flows)
    });
    flows.expect("they are told")
}

/// A viewer that follows, killed when dropped.
struct Viewer {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Viewer {
    fn start(agent: &Agent, args: &[&str]) -> Self {
        let mut child = agent
            .command("flows")
            .args(["--follow", "--last", "0"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let output = child.stdout.take().expect("it is piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let viewer = Self { child, lines };
        let head = viewer.next();
        assert!(head.starts_with("TIME "), "{head}");
        viewer
    }

    fn next(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        line.expect("a line is printed")
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn flows_have_names_and_hubbles_fields_and_are_filtered() {
    let pod = Pod::new();
    let _proxy = pod.listen(Ipv4Addr::LOCALHOST, 15_001);
    let _server = pod.listen(Pod::ADDR, 8_080);
    let agent = Agent::start(&pod, &["--flows", "on"]);
    assert!(pod.dial(APP, Pod::VIP, 80), "the proxy listens");
    assert!(pod.dial(APP, Pod::ADDR, 8_080), "the server listens");

    let decided = |flows: Vec<Value>| -> Vec<Value> {
        let flows = flows.into_iter().map(|flow| flow["flow"].clone());
        flows
            .filter(|flow| flow["extensions"]["value"]["step"] == "decided")
            .collect()
    };
    let redirected = flows(&agent, &["--verdict", "redirected"], 3);
    let redirected = decided(redirected);
    assert_eq!(redirected.len(), 1, "{redirected:#?}");
    let flow = &redirected[0];
    assert_eq!(flow["verdict"], "REDIRECTED");
    assert_eq!(flow["Type"], "SOCK");
    assert_eq!(flow["IP"]["destination"], "198.19.7.9");
    assert_eq!(flow["l4"]["TCP"]["destination_port"], 80);
    assert_eq!(flow["source"]["namespace"], "default");
    assert_eq!(flow["source"]["pod_name"], "app");
    assert_eq!(flow["proxy_port"], 15_001);
    assert_eq!(flow["extensions"]["value"]["uid"], APP);

    let passed = decided(flows(&agent, &["--verdict", "passed"], 3));
    assert_eq!(passed.len(), 1, "{passed:#?}");
    assert_eq!(passed[0]["verdict"], "FORWARDED");
    assert_eq!(passed[0]["extensions"]["value"]["reason"], "own_address");
    assert_eq!(passed[0]["destination"]["pod_name"], "app");

    let by_port = decided(flows(&agent, &["--port", "8080"], 3));
    assert_eq!(by_port, passed);
    assert_eq!(flows(&agent, &["--pod", "default/other"], 0).len(), 0);
    let table = agent.ask("flows", &["--pod", "default/app", "--verdict", "passed"]);
    assert!(table.contains("  passed O2/O4/O7  "), "{table}");
}

#[test]
fn programs_tell_while_somebody_looks_and_everybody_sees_all() {
    let pod = Pod::new();
    let _proxy = pod.listen(Ipv4Addr::LOCALHOST, 15_001);
    let agent = Agent::start(&pod, &[]);
    assert!(pod.dial(APP, Pod::VIP, 81), "the proxy listens");
    assert_eq!(flows(&agent, &[], 0).len(), 0, "nobody looked");

    let viewers = [
        Viewer::start(&agent, &["--verdict", "redirected"]),
        Viewer::start(&agent, &["--verdict", "redirected"]),
    ];
    // A viewer has printed its head before the agent may have let it in.
    wait::until("telling begins", PATIENCE, || {
        pod.dial(PROXY, Pod::VIP, 82);
        anyhow::ensure!(!flows(&agent, &["--port", "82"], 0).is_empty(), "not yet");
        Ok(())
    })
    .expect("somebody looks");
    assert!(pod.dial(APP, Pod::VIP, 83), "the proxy listens");
    for viewer in &viewers {
        let line = viewer.next();
        assert!(line.contains("198.19.7.9:83"), "{line}");
    }
    drop(viewers);
    wait::until("telling ends", PATIENCE, || {
        let count = || flows(&agent, &["--port", "84"], 0).len();
        let before = count();
        pod.dial(PROXY, Pod::VIP, 84);
        anyhow::ensure!(count() == before, "not yet");
        Ok(())
    })
    .expect("nobody looks");
}

#[test]
fn without_an_agent_the_error_says_what_to_do() {
    let pod = Pod::new();
    let mut agent = Agent::start(&pod, &[]);
    agent.accelerator.kill().expect("it runs");
    let output = agent.command("flows").output().expect("it can be started");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("start it with `isthmus-accelerator run`: Connection refused"),
        "{errors}"
    );
}
