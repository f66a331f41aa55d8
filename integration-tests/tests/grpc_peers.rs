//! The xDS clients of gRPC's own libraries resolve `xds:///` targets: proxyless services are served like Envoys, and
//! neither their updates nor their removals need one.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use isthmus_integration_tests::control_plane::{ControlPlane, ControlPlanePlan};
use isthmus_integration_tests::grpc_peer::{Backend, Client, Language, Outcome, set_from_python};
use isthmus_integration_tests::loopback::free_ports;
use isthmus_integration_tests::sidecar::{document, type_url};
use isthmus_integration_tests::wait::{self, Hopeless};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the client dials, and the name of its listener.
const SERVICE: &str = "greeter";

const NODE: &str = "greeter-client";

/// How long a change may take from the file to a call. The first includes the start of an interpreter.
const DEADLINE: Duration = Duration::from_secs(30);

/// Calls in a row that show that a state is there to stay.
const STEADY_CALLS: usize = 100;

/// gRPC's clients ask for these, and for nothing else.
const TYPES: [&str; 4] = [
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
];

#[test]
fn grpc_go_follows_updates_and_removals() -> Result<()> {
    follows_updates_and_removals(Language::Go, &json!({"ads": {}}))
}

#[test]
fn grpc_python_follows_updates_and_removals() -> Result<()> {
    follows_updates_and_removals(Language::Python, &json!({"ads": {}}))
}

#[test]
fn grpc_javascript_follows_updates_and_removals() -> Result<()> {
    follows_updates_and_removals(Language::JavaScript, &json!({"self": {}}))
}

#[test]
fn grpc_python_follows_what_a_python_program_sets_over_the_api() -> Result<()> {
    let mut peers = Peers::start_with(Language::Python, &json!({"ads": {}}), Endpoints::OverApi)?;
    peers.wait_for("answers by A", |outcome| is_answer(outcome, "A"), |_| false)?;

    // Listener, route and cluster are in files; the endpoints alone are the program's, and move.
    let events = peers.set_endpoints(peers.second.address())?;
    ensure!(
        events.contains(&json!({"node_id": NODE, "verdict": "accepted", "error": ""})),
        "{events:?}"
    );
    let last = events.last().context("no events")?;
    ensure!(
        last["is_converged"] == 1 && last["clients"] == 1 && last["accepted"] == 1,
        "{events:?}"
    );
    peers.wait_for(
        "answers by B",
        |outcome| is_answer(outcome, "B"),
        |outcome| matches!(outcome, Outcome::Failure { .. }),
    )?;
    peers.expect_synced()
}

fn follows_updates_and_removals(language: Language, config_source: &Value) -> Result<()> {
    let mut peers = Peers::start(language, config_source)?;
    peers.wait_for("answers by A", |outcome| is_answer(outcome, "A"), |_| false)?;
    peers.expect_synced()?;

    // Not one call fails while the service moves.
    let endpoints = endpoints_document(peers.second.address());
    peers.control_plane.publish("endpoints.yaml", &endpoints)?;
    peers.wait_for(
        "answers by B",
        |outcome| is_answer(outcome, "B"),
        |outcome| matches!(outcome, Outcome::Failure { .. }),
    )?;
    peers.expect_synced()?;

    peers
        .control_plane
        .publish("listener.yaml", &document("listener", &[]))?;
    peers.wait_for(
        "failures without a listener",
        |outcome| is_gone(outcome, language),
        |outcome| matches!(outcome, Outcome::Failure { .. }) && !is_gone(outcome, language),
    )?;
    if language == Language::JavaScript {
        let reason = format!("[{SERVICE}] Resolution error: LDS resource does not exist");
        ensure!(
            peers.client.log()?.contains(&reason),
            "the client fails, but not for want of its listener"
        );
    }

    // grpc-js-xds 1.14.1 keeps what was removed in its cache, and passes on only what differs from that (grpc-node#3074).
    let stat_prefix = match language {
        Language::JavaScript => "greeter-again",
        Language::Go | Language::Python => SERVICE,
    };
    let listener = listener_document(config_source, stat_prefix);
    peers.control_plane.publish("listener.yaml", &listener)?;
    peers.wait_for(
        "answers by B again",
        |outcome| is_answer(outcome, "B"),
        |outcome| is_answer(outcome, "A"),
    )?;
    peers.expect_synced()
}

fn is_answer(outcome: &Outcome, name: &str) -> bool {
    matches!(outcome, Outcome::Answer { backend } if backend == name)
}

fn is_gone(outcome: &Outcome, language: Language) -> bool {
    let Outcome::Failure { code, details } = outcome else {
        return false;
    };
    // grpc-js puts an empty list of addresses in the place of the reason: the test looks for that in its trace.
    let says_why = details.contains(SERVICE) || language == Language::JavaScript;
    code == "UNAVAILABLE" && says_why
}

/// Where the control plane has the endpoints from.
#[derive(Clone, Copy, Debug)]
enum Endpoints {
    InFiles,
    OverApi,
}

/// A control plane, a client of it in another language, and two backends of the same service.
struct Peers {
    // In the order in which they must be dropped.
    client: Client,
    control_plane: ControlPlane,
    second: Backend,
    _first: Backend,
    dir: TempDir,
    api: SocketAddrV4,
    /// Outcomes that earlier steps have looked at.
    seen: usize,
}

impl Peers {
    /// Starts all with the first backend behind the service.
    fn start(language: Language, config_source: &Value) -> Result<Self> {
        Self::start_with(language, config_source, Endpoints::InFiles)
    }

    fn start_with(language: Language, config_source: &Value, endpoints: Endpoints) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("isthmus-grpc-")
            .tempdir()
            .context("no directory for files")?;
        let first = Backend::start(language, "A", dir.path())?;
        let second = Backend::start(language, "B", dir.path())?;

        let [xds, admin, api] = free_ports()?;
        let mut control_plane = ControlPlane::prepare(ControlPlanePlan {
            admin,
            dir: dir.path().to_owned(),
            netns: None,
            xds,
        })?;
        control_plane.publish("listener.yaml", &listener_document(config_source, SERVICE))?;
        control_plane.publish("service.yaml", &service_document(config_source))?;
        match endpoints {
            Endpoints::InFiles => {
                control_plane.publish("endpoints.yaml", &endpoints_document(first.address()))?;
                control_plane.start()?;
            }
            Endpoints::OverApi => {
                control_plane.add_flags(&["--api-listen", &api.to_string()]);
                control_plane.launch()?;
                let resources = [endpoints_resource(first.address())];
                set_from_python("first-commit", api, "endpoints", &resources, dir.path())?;
            }
        }

        let target = format!("xds:///{SERVICE}");
        let client = Client::start(language, NODE, xds, &target, dir.path())?;
        Ok(Self {
            client,
            control_plane,
            second,
            api,
            _first: first,
            dir,
            seen: 0,
        })
    }

    /// Waits until calls steadily come to what is wanted. None on the way there may be `forbidden`.
    fn wait_for(
        &mut self,
        what: &str,
        is_wanted: impl Fn(&Outcome) -> bool,
        is_forbidden: impl Fn(&Outcome) -> bool,
    ) -> Result<()> {
        let seen = self.seen;
        let client = &mut self.client;
        self.seen = wait::until(what, DEADLINE, || {
            let outcomes = client.outcomes()?;
            let fresh = &outcomes[seen..];
            if let Some(outcome) = fresh.iter().find(|outcome| is_forbidden(outcome)) {
                bail!(Hopeless(format!("a call came to {outcome}")));
            }
            let steady = fresh
                .iter()
                .rev()
                .take_while(|outcome| is_wanted(outcome))
                .count();
            ensure!(
                steady >= STEADY_CALLS,
                "{steady} of {} calls in a row, the last came to {}",
                fresh.len(),
                fresh
                    .last()
                    .map_or_else(|| "nothing".to_owned(), ToString::to_string)
            );
            Ok(outcomes.len())
        })?;
        Ok(())
    }

    /// Waits until the control plane lists the client with all that it asks for in force.
    /// Sets the endpoints over the API; returns how that came to the clients.
    fn set_endpoints(&self, backend: SocketAddrV4) -> Result<Vec<Value>> {
        let resources = [endpoints_resource(backend)];
        set_from_python(
            "next-commit",
            self.api,
            "endpoints",
            &resources,
            self.dir.path(),
        )
    }

    fn expect_synced(&self) -> Result<()> {
        wait::until("a synchronised client", DEADLINE, || {
            let dump = self.control_plane.admin("/config_dump")?;
            let dump: Value = serde_json::from_slice(&dump.body)?;
            let clients = dump["clients"].as_array().context("no clients")?;
            let client = clients
                .iter()
                .find(|client| client["node"]["id"] == NODE)
                .with_context(|| format!("{NODE} is not listed"))?;
            let user_agent = client["userAgent"].as_str().unwrap_or_default();
            ensure!(
                user_agent.starts_with("gRPC") && client["variant"] == "sotw",
                "not a gRPC client: {client}"
            );
            let types = client["types"].as_array().context("no types")?;
            for wanted in TYPES {
                let url = type_url(wanted);
                ensure!(
                    types
                        .iter()
                        .any(|status| status["typeUrl"] == *url
                            && status["configStatus"] == "SYNCED"),
                    "{wanted} is not SYNCED: {client}"
                );
            }
            Ok(())
        })
    }
}

fn listener_document(config_source: &Value, stat_prefix: &str) -> Value {
    let router = json!({"@type": type_url("envoy.extensions.filters.http.router.v3.Router")});
    let manager = json!({
        "@type": type_url("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "statPrefix": stat_prefix,
        "rds": {"configSource": config_source, "routeConfigName": SERVICE},
        "httpFilters": [{"name": "envoy.filters.http.router", "typedConfig": router}],
    });
    document(
        "listener",
        &[json!({
            "@type": type_url("envoy.config.listener.v3.Listener"),
            "name": SERVICE,
            "apiListener": {"apiListener": manager},
        })],
    )
}

fn service_document(config_source: &Value) -> Value {
    let route = json!({"name": "default", "match": {"prefix": ""}, "route": {"cluster": SERVICE}});
    document(
        "service",
        &[
            json!({
                "@type": type_url("envoy.config.route.v3.RouteConfiguration"),
                "name": SERVICE,
                "virtualHosts": [{"name": SERVICE, "domains": ["*"], "routes": [route]}],
            }),
            json!({
                "@type": type_url("envoy.config.cluster.v3.Cluster"),
                "name": SERVICE,
                "type": "EDS",
                "edsClusterConfig": {"edsConfig": config_source},
                "connectTimeout": "5s",
            }),
        ],
    )
}

fn endpoints_document(backend: SocketAddrV4) -> Value {
    document("endpoints", &[endpoints_resource(backend)])
}

fn endpoints_resource(backend: SocketAddrV4) -> Value {
    let address = json!({"address": backend.ip().to_string(), "portValue": backend.port()});
    json!({
        "@type": type_url("envoy.config.endpoint.v3.ClusterLoadAssignment"),
        "clusterName": SERVICE,
        // gRPC leaves out a locality without weight.
        "endpoints": [{
            "locality": {"region": "loopback"},
            "loadBalancingWeight": 1,
            "lbEndpoints": [{"endpoint": {"address": {"socketAddress": address}}}],
        }],
    })
}
