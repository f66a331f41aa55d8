//! The admin endpoint: health, metrics and what is in force, for people and their tools.

mod answers;
mod changes;
mod history;
mod load;
mod nacks;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use isthmus_xds_core::stream::TypeStatus;
use isthmus_xds_core::{Name, ScopeKey, TypeSet, TypeUrl, Variant, View};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clients::Client;
use crate::history::Generation;
use crate::metrics::short_name;
use crate::plane::Plane;
use crate::provenance::ResourceKey;
use crate::redact;

use self::answers::Answers;
pub use self::changes::{CHANGE_HEADER, Changes};

const INDEX: &str = "isthmus-xds admin\n\n\
    /livez         is the process alive\n\
    /readyz        is there a configuration to serve\n\
    /metrics       OpenMetrics\n\
    /config_dump   what is served to whom; ?type=cds|eds|... and ?node=ID narrow it\n\
    /load          load that clients report, by cluster and locality\n\
    /history       the last generations; /history/diff?from=G&to=G what differs\n\
    /nacks         what clients refused, and where that is written\n\
    /rollback      POST: see isthmus-xds rollback --help\n";

/// What the endpoint shows, and whether it may change it.
#[derive(Clone, Debug)]
struct Admin {
    plane: Arc<Plane>,
    changes: Changes,
    answers: Answers,
}

/// Serves the admin endpoint of a plane.
pub fn router(plane: Arc<Plane>, changes: Changes) -> Router {
    Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/config_dump", get(config_dump))
        .route("/load", get(load::load))
        .route("/history", get(history::list))
        .route("/history/diff", get(history::diff))
        .route("/nacks", get(nacks::list))
        .route("/rollback", post(history::rollback))
        .route("/rollback/release", post(history::release))
        .with_state(Admin {
            plane,
            changes,
            answers: Answers::default(),
        })
}

async fn readyz(State(Admin { plane, .. }): State<Admin>) -> (StatusCode, &'static str) {
    if plane.is_ready() {
        return (StatusCode::OK, "ok\n");
    }
    let message = "not ready: no configuration was loaded without error yet; see the log\n";
    (StatusCode::SERVICE_UNAVAILABLE, message)
}

async fn metrics(State(Admin { plane, .. }): State<Admin>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    plane.metrics.observe_interest(plane.interest_entries());
    match plane.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DumpQuery {
    r#type: Option<String>,
    node: Option<String>,
}

impl DumpQuery {
    fn wants_type(&self, type_url: &str) -> bool {
        self.r#type
            .as_ref()
            .is_none_or(|wanted| wanted == type_url || wanted == short_name(type_url))
    }

    fn wants_node(&self, client: &Client) -> bool {
        self.node
            .as_ref()
            .is_none_or(|wanted| **wanted == *client.node_id)
    }
}

async fn config_dump(
    State(Admin { plane, answers, .. }): State<Admin>,
    Query(query): Query<DumpQuery>,
) -> Response {
    answers.make(move || dump(&plane, &query)).await
}

fn dump(plane: &Plane, query: &DumpQuery) -> Value {
    let (generation, scopes) = plane.snapshot();
    let history = plane.history();
    let newest = history.newest();
    let clients = plane.clients.list();
    let clients: Vec<&(u64, Arc<Client>)> = clients
        .iter()
        .filter(|(_, client)| query.wants_node(client))
        .collect();
    let is_shown = |key: &ScopeKey| {
        query.node.is_none() || clients.iter().any(|(_, client)| client.scope() == *key)
    };
    let scopes = scopes
        .iter()
        .filter(|(key, _)| is_shown(key))
        .map(|(key, view)| dump_scope(key, view, newest.map(|it| &**it), query))
        .collect::<Vec<_>>();
    json!({
        "generation": generation,
        "scopes": scopes,
        "clients": clients.iter().map(|(id, client)| dump_client(*id, client)).collect::<Vec<_>>(),
    })
}

fn dump_scope(
    key: &ScopeKey,
    view: &View,
    newest: Option<&Generation>,
    query: &DumpQuery,
) -> Value {
    let written = |type_url: &TypeUrl, name: &Name| {
        let resource = ResourceKey::new(type_url, name);
        let traced = newest?.resource(key.documents(), &resource)?;
        Some(traced.origin.to_string())
    };
    let types = view
        .types()
        .filter(|(type_url, _)| query.wants_type(type_url));
    json!({
        "documents": key.documents().iter().map(|name| &**name).collect::<Vec<_>>(),
        "types": types.map(|(url, set)| dump_type(url, set, &written)).collect::<Vec<_>>(),
    })
}

fn dump_type(
    type_url: &TypeUrl,
    set: &TypeSet,
    written: &dyn Fn(&TypeUrl, &Name) -> Option<String>,
) -> Value {
    let resources = set.resources().map(|resource| {
        json!({
            "name": &**resource.name(),
            "version": resource.version().to_string(),
            "origin": written(type_url, resource.name()),
            "resource": redact::render(type_url, &resource.value()),
        })
    });
    json!({
        "typeUrl": &**type_url,
        "version": set.version().to_string(),
        "generation": set.generation(),
        "resources": resources.collect::<Vec<_>>(),
    })
}

fn dump_client(id: u64, client: &Client) -> Value {
    json!({
        "stream": id,
        "node": { "id": &*client.node_id, "cluster": client.node_cluster },
        "userAgent": client.user_agent,
        "peer": client.peer.to_string(),
        "identity": client.peer.identity().map(ToString::to_string),
        "variant": format!("{:?}", client.variant).to_lowercase(),
        "documents": client.scope().documents().iter().map(|name| &**name).collect::<Vec<_>>(),
        "types": client.types().iter().map(|status| dump_status(client.variant, status)).collect::<Vec<_>>(),
    })
}

fn dump_status(variant: Variant, status: &TypeStatus) -> Value {
    // CSDS's words (envoy/service/status/v3/csds.proto).
    let config_status = match (&status.refusal, status.sent_generation, status.is_settled) {
        (Some(_), ..) => "ERROR",
        // An incremental client is answered whatever it asks for: one that was sent nothing said that it holds it all.
        (None, None, true) if variant == Variant::Delta => "SYNCED",
        (None, None, _) => "NOT_SENT",
        (None, Some(_), true) => "SYNCED",
        (None, Some(_), false) => "STALE",
    };
    json!({
        "typeUrl": &*status.type_url,
        "configStatus": config_status,
        "isWildcard": status.is_wildcard,
        "names": status.names,
        "sentGeneration": status.sent_generation,
        "ackedGeneration": status.acked_generation,
        "error": status.refusal.as_ref().map(|refusal| &refusal.message),
    })
}
