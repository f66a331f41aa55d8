//! Secrets over the Unix socket of a node: an Envoy is the user that it runs as, by the kernel's word, whatever it says.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isthmus_integration_tests::control_plane::{ControlPlane, ControlPlanePlan};
use isthmus_integration_tests::envoy::{EnvoyPlan, Protocol, RealEnvoy};
use isthmus_integration_tests::loopback::free_ports;
use isthmus_integration_tests::process::User;
use isthmus_integration_tests::sidecar::{document, type_url};
use isthmus_integration_tests::wait;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The id that both Envoys claim to have.
const CLAIMED: &str = "node";

/// How long a program may take to notice something.
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn an_envoy_of_another_user_gets_the_secrets_of_its_user_and_no_others() -> Result<()> {
    let node = Node::start(0o660, User::Proxy)?;
    let envoy = node.envoy(User::Proxy)?;
    let client = wait::until("the client of user 1337", DEADLINE, || {
        let clients = node.control_plane.clients_of(CLAIMED)?;
        let [client] = &clients[..] else {
            anyhow::bail!("there are {clients:?}");
        };
        Ok(client.clone())
    })?;
    ensure!(client["identity"] == "uid:1337", "{client}");
    let peer = client["peer"].as_str().unwrap_or_default();
    ensure!(peer.starts_with("unix:uid=1337,gid=1337,pid="), "{client}");
    wait::until("the secret of its own", DEADLINE, || {
        let own = envoy.stat("sds.of-1337.update_success")?;
        ensure!(own == 1, "it was updated {own} times");
        Ok(())
    })?;
    // Asked for by the same client, in the same breath, and answered: there is none, to it.
    let sent = node
        .control_plane
        .metric("isthmus_xds_resources_sent_total", &["type=\"sds\""])?;
    ensure!(sent == 1, "{sent} secrets were sent");
    let dump = envoy.config_dump()?;
    let sections = dump["configs"].as_array().into_iter().flatten();
    let active = sections.filter_map(|it| it["dynamic_active_secrets"].as_array());
    let active: Vec<&Value> = active.flatten().map(|it| &it["name"]).collect();
    ensure!(active == ["of-1337"], "it has {active:?}");
    node.expect_no_secret_in_log()
}

#[test]
fn an_envoy_of_a_user_without_access_to_the_socket_is_nobody() -> Result<()> {
    let node = Node::start(0o660, User::Proxy)?;
    let envoy = node.envoy(User::Application)?;
    wait::until("a refused connection", DEADLINE, || {
        let refused = envoy.stat("cluster.xds-grpc.upstream_cx_connect_fail")?;
        ensure!(refused >= 1, "it connects");
        Ok(())
    })?;
    let clients = node.control_plane.clients_of(CLAIMED)?;
    ensure!(clients.is_empty(), "{clients:?}");
    node.expect_no_secret_in_log()
}

#[test]
fn an_envoy_of_a_stranger_who_may_connect_is_served_what_is_for_everybody() -> Result<()> {
    let node = Node::start(0o666, User::Proxy)?;
    let envoy = node.envoy(User::Application)?;
    wait::until("clusters for everybody", DEADLINE, || {
        let clusters = envoy.admin("/clusters")?;
        ensure!(clusters.contains("needs-of-0::"), "{clusters}");
        Ok(())
    })?;
    wait::until("an answer about the secrets", DEADLINE, || {
        let labels = ["type=\"sds\"", "kind=\"ack\""];
        let name = "isthmus_xds_requests_total";
        let answered = node.control_plane.metric(name, &labels)?;
        ensure!(answered >= 1, "nothing is answered");
        Ok(())
    })?;
    let clients = node.control_plane.clients_of(CLAIMED)?;
    ensure!(clients[0]["identity"] == "uid:1000", "{clients:?}");
    let sent = node
        .control_plane
        .metric("isthmus_xds_resources_sent_total", &["type=\"sds\""])?;
    ensure!(sent == 0, "{sent} secrets were sent");
    node.expect_no_secret_in_log()
}

/// A control plane of root, on a socket.
struct Node {
    // In the order in which they must be dropped.
    control_plane: ControlPlane,
    socket: PathBuf,
    /// A line of each key.
    keys: Vec<String>,
    dir: TempDir,
}

impl Node {
    /// The socket belongs to the group of `user` and has this mode.
    fn start(mode: u32, user: User) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("isthmus-socket-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .context("no directory for files")?;
        let [xds, admin] = free_ports()?;
        let home = dir.path().join("control-plane");
        fs::create_dir(&home)?;
        fs::set_permissions(&home, Permissions::from_mode(0o700))?;
        let mut control_plane = ControlPlane::prepare(ControlPlanePlan {
            admin,
            dir: home,
            netns: None,
            xds,
        })?;
        let socket = dir.path().join("xds.sock");
        control_plane.listen_on_socket(socket.clone());
        let clusters = ["of-1337", "of-0"].map(cluster);
        control_plane.publish("everybody.yaml", &document("everybody", &clusters))?;
        let mut keys = Vec::new();
        for (uid, name) in [(1337, "of-1337"), (0, "of-0")] {
            let (secret, key) = secret(name)?;
            keys.push(key);
            let mut document = document(name, &[secret]);
            document["spec"]["selector"] = json!({"identity": format!("uid:{uid}")});
            control_plane.publish(&format!("{name}.yaml"), &document)?;
        }
        control_plane.start()?;
        chown(&socket, None, user.ids()).context("only root may give a socket to a group")?;
        fs::set_permissions(&socket, Permissions::from_mode(mode))?;
        Ok(Self {
            control_plane,
            socket,
            keys,
            dir,
        })
    }

    /// Starts an Envoy of a user, which asks over the socket.
    fn envoy(&self, user: User) -> Result<RealEnvoy> {
        let home = self.dir.path().join("envoy");
        fs::create_dir(&home)?;
        chown(&home, user.ids(), user.ids()).context("only root may start another user's Envoy")?;
        let plan = EnvoyPlan {
            cluster: "node",
            // Not used: it asks over the socket.
            control_plane: std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 1),
            dir: &home,
            id: CLAIMED,
            netns: None,
            protocol: Protocol::Delta,
            user,
        };
        let mut bootstrap = plan.bootstrap();
        let way = &mut bootstrap["static_resources"]["clusters"][0]["load_assignment"];
        way["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"] = pipe(&self.socket);
        let envoy = RealEnvoy::start_with(&plan, &bootstrap)?;
        wait::until("Envoy's admin interface", DEADLINE, || {
            envoy.admin("/server_info").map(drop)
        })?;
        Ok(envoy)
    }

    fn expect_no_secret_in_log(&self) -> Result<()> {
        let log = self.control_plane.log()?;
        for key in &self.keys {
            ensure!(!log.contains(key), "the log has a key:\n{log}");
        }
        Ok(())
    }
}

fn pipe(path: &Path) -> Value {
    json!({"pipe": {"path": path}})
}

// Needs a secret.
fn cluster(secret: &str) -> Value {
    let source = Protocol::Delta.config_source();
    let context = json!({
        "@type": type_url("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
        "commonTlsContext": {"tlsCertificateSdsSecretConfigs": [{"name": secret, "sdsConfig": source}]},
    });
    json!({
        "@type": type_url("envoy.config.cluster.v3.Cluster"),
        "name": format!("needs-{secret}"),
        "connectTimeout": "1s",
        "transportSocket": {"name": "envoy.transport_sockets.tls", "typedConfig": context},
    })
}

// A certificate, and a line of its key.
fn secret(name: &str) -> Result<(Value, String)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])
        .context("no certificate could be made")?;
    let key = made.signing_key.serialize_pem();
    let line = key.lines().nth(1).context("a key has lines")?.to_owned();
    let certificate = json!({
        "certificateChain": {"inlineString": made.cert.pem()},
        "privateKey": {"inlineString": key},
    });
    let secret = json!({
        "@type": type_url("envoy.extensions.transport_sockets.tls.v3.Secret"),
        "name": name,
        "tlsCertificate": certificate,
    });
    Ok((secret, line))
}
