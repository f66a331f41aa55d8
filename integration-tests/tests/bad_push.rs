//! A listener that passes every rule of Envoy's descriptors and that Envoy refuses: the rest of the push flows, traffic
//! goes on, the refusal is traced to its line, and an Envoy that starts after it serves what was accepted last.

use std::net::{SocketAddrV4, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::backend::Backend;
use isthmus_integration_tests::control_plane::{ControlPlane, ControlPlanePlan};
use isthmus_integration_tests::envoy::{EnvoyPlan, Protocol, RealEnvoy};
use isthmus_integration_tests::http::HttpConnection;
use isthmus_integration_tests::loopback::free_ports;
use isthmus_integration_tests::process::User;
use isthmus_integration_tests::sidecar::document;
use isthmus_integration_tests::{programs, wait};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);

fn cluster(name: &str, backend: SocketAddrV4) -> Value {
    let address = json!({"socketAddress": {"address": backend.ip().to_string(), "portValue": backend.port()}});
    json!({
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "connectTimeout": "5s",
        "loadAssignment": {
            "clusterName": name,
            "endpoints": [{"lbEndpoints": [{"endpoint": {"address": address}}]}],
        },
    })
}

// With two equal chains Envoy cannot tell which one is meant.
fn listener(at: SocketAddrV4, chains: usize) -> Value {
    let proxy = json!({
        "name": "tcp",
        "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "statPrefix": "tcp",
            "cluster": "backend",
        },
    });
    json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "edge",
        "address": {"socketAddress": {"address": at.ip().to_string(), "portValue": at.port()}},
        "filterChains": vec![json!({"filters": [proxy]}); chains],
    })
}

fn expect_answer(at: SocketAddrV4) -> Result<()> {
    let stream = TcpStream::connect(at).with_context(|| format!("nobody listens on {at}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let response =
        HttpConnection::new(stream).request("GET", "host", "/", "connection: close\r\n")?;
    ensure!(response.status == 200, "status {}", response.status);
    Ok(())
}

#[test]
fn a_bad_push_is_survived_and_traced() -> Result<()> {
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        survive(protocol).with_context(|| format!("over {protocol:?}"))?;
    }
    Ok(())
}

fn survive(protocol: Protocol) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [admin, xds, at] = free_ports()?;
    let mut control_plane = ControlPlane::prepare(ControlPlanePlan {
        admin,
        dir: dir.path().to_owned(),
        netns: None,
        xds,
    })?;
    let backend = Backend::start("backend")?;
    let good = cluster("backend", backend.address());
    control_plane.publish(
        "push.yaml",
        &document("push", &[good.clone(), listener(at, 1)]),
    )?;
    control_plane.start()?;
    let start = |id: &str| -> Result<RealEnvoy> {
        let dir = dir.path().join(id);
        std::fs::create_dir_all(&dir)?;
        let mut envoy = RealEnvoy::start(&EnvoyPlan {
            cluster: "edge",
            control_plane: xds,
            dir: &dir,
            id,
            netns: None,
            protocol,
            user: User::Caller,
        })?;
        envoy.wait_ready()?;
        wait::until("an answer through the Envoy", DEADLINE, || {
            expect_answer(at)
        })?;
        Ok(envoy)
    };
    let first = start("first")?;

    let more = cluster("more", backend.address());
    let push = [good, more, listener(at, 2)];
    control_plane.publish("push.yaml", &document("push", &push))?;
    let nacks = wait::until("a refusal that is set aside", DEADLINE, || {
        let text = control_plane.admin("/nacks")?.text();
        expect_answer(at)?;
        ensure!(text.contains("\"isSetAside\":true"), "{text}");
        Ok(text)
    })?;
    ensure!(nacks.contains("\"name\":\"edge\""), "{nacks}");
    wait::until("the rest of the push", DEADLINE, || {
        let clusters = first.admin("/clusters")?;
        ensure!(clusters.contains("more::"), "{clusters}");
        Ok(())
    })?;
    let output = Command::new(programs::own("isthmus-xds")?)
        .args(["nacks", "--server", &format!("http://{admin}")])
        .output()?;
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    for wanted in [
        "first",
        "edge",
        "push.yaml:",
        "in force, set aside",
        "filter chain",
    ] {
        ensure!(list.contains(wanted), "{wanted}: {list}");
    }

    // One that starts now cannot have what the other keeps in memory.
    drop(first);
    let second = start("second")?;
    let stats = second.stat("listener_manager.lds.update_rejected")?;
    ensure!(stats == 0, "the second Envoy refused {stats} updates");
    Ok(())
}
