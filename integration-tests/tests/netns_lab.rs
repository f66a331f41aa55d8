//! The lab itself: what it makes, and that nothing of it is left, however it ends.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::iptables::{self, Capture, OUTBOUND_PORT};
use isthmus_integration_tests::lab::NetnsLab;
use isthmus_integration_tests::netns::NETNS_DIR;
use isthmus_integration_tests::{shell, wait};

/// Nothing here takes a second; a busy machine may.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn pods_reach_each_other_over_the_bridge() -> Result<()> {
    let own_links = || shell::capture(Command::new("ip").args(["-brief", "link"]));
    let before = own_links()?;
    let mut lab = NetnsLab::create()?;
    lab.add_pod("client", None)?;
    let address = lab.add_pod("server", None)?.address;

    let listener = lab
        .pod("server")?
        .netns
        .enter(|| TcpListener::bind((address, 8080)))??;
    let client = lab
        .pod("client")?
        .netns
        .enter(|| TcpStream::connect((address, 8080)))??;
    let (_, peer) = listener.accept()?;
    assert_eq!(peer, client.local_addr()?);
    assert_eq!(
        own_links()?,
        before,
        "the machine's own network is as it was"
    );
    Ok(())
}

#[test]
fn rules_redirect_what_an_application_dials_and_count_it() -> Result<()> {
    let mut lab = NetnsLab::create()?;
    let pod = lab.add_pod("client", Some(&Capture::default()))?;
    let sidecar = pod
        .netns
        .enter(|| TcpListener::bind(("127.0.0.1", OUTBOUND_PORT)))??;

    let application = pod.netns.enter(|| TcpStream::connect("198.19.0.10:80"))??;
    let (accepted, _) = sidecar.accept()?;
    assert_eq!(
        application.peer_addr()?.to_string(),
        "198.19.0.10:80",
        "the application sees what it dialled"
    );
    assert_eq!(accepted.local_addr()?.port(), OUTBOUND_PORT);
    assert_eq!(iptables::outbound_redirects(&pod.netns)?, 1);
    Ok(())
}

#[test]
fn a_panic_leaves_nothing_behind() -> Result<()> {
    let mut dir = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut lab = NetnsLab::create().expect("a lab can be made");
        lab.add_pod("client", Some(&Capture::default()))
            .expect("a pod can be made");
        dir = Some(lab.dir().to_owned());
        panic!("a test that fails");
    }));
    assert!(outcome.is_err(), "the panic came through");
    assert!(
        dir.is_some_and(|dir| !dir.exists()),
        "the lab's files are gone"
    );
    assert_eq!(namespaces_of_labs()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn what_a_killed_lab_left_is_removed_by_the_next_one() -> Result<()> {
    // As if process 1 had been a lab and was killed; a program of it still runs.
    let name = "isthmus-lab-1-0-client";
    shell::capture(Command::new("ip").args(["netns", "add", name]))?;
    let mut left = Command::new("ip")
        .args(["netns", "exec", name, "tail", "-f", "/dev/null"])
        // Should it survive, it must not hold the pipe that the test runner reads to its end.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // Before it is in the namespace, nothing there is to be killed.
    let pids = || shell::capture(Command::new("ip").args(["netns", "pids", name]));
    let own = left.id().to_string();
    wait::until("the program's being in the namespace", PATIENCE, || {
        let pids = pids()?;
        ensure!(
            pids.lines().any(|pid| pid.trim() == own),
            "there are: {pids}"
        );
        Ok(())
    })?;

    let lab = NetnsLab::create()?;
    let found = namespaces_of_labs()?;
    assert!(!found.contains(&name.to_owned()), "{found:?}");
    let ended = wait::until("the program's end", PATIENCE, || {
        left.try_wait()?.context("it runs")
    })?;
    assert!(!ended.success(), "the program was killed");
    drop(lab);
    assert_eq!(namespaces_of_labs()?, Vec::<String>::new());
    Ok(())
}

fn namespaces_of_labs() -> Result<Vec<String>> {
    let names =
        fs::read_dir(NETNS_DIR)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Result<Vec<String>> = names.collect();
    Ok(names?
        .into_iter()
        .filter(|name| name.starts_with("isthmus-lab-"))
        .collect())
}
