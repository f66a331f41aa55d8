//! `GET /nacks`: the refusals that are kept, with what is to blame.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::Admin;
use super::history::{age_seconds, unix_millis};
use crate::history::History;
use crate::metrics::short_name;
use crate::nacks::Nack;
use crate::plane::Plane;
use crate::provenance::ResourceKey;

pub(super) async fn list(State(Admin { plane, answers, .. }): State<Admin>) -> Response {
    answers.make(move || render_all(&plane)).await
}

fn render_all(plane: &Plane) -> Value {
    let (history, nacks) = (plane.history(), plane.nacks());
    let rows = nacks
        .newest_first()
        .map(|nack| render(nack, plane, &history));
    json!({ "nacks": rows.collect::<Vec<_>>() })
}

fn render(nack: &Nack, plane: &Plane, history: &History) -> Value {
    let culprits = nack.culprits.iter().map(|it| {
        let key = ResourceKey::new(&nack.type_url, &it.name);
        json!({
            "name": &*it.name,
            "version": it.version.to_string(),
            "document": &*it.document,
            "origin": it.origin.to_string(),
            "isSetAside": plane.is_set_aside(&key, it.version),
            "isInForce": history.is_in_force(&key, it.version),
        })
    });
    json!({
        "unixMillis": unix_millis(nack.at),
        "ageSeconds": age_seconds(nack.at),
        "node": &*nack.node_id,
        "stream": nack.stream,
        "type": short_name(&nack.type_url),
        "typeUrl": &*nack.type_url,
        "generation": nack.generation,
        "message": &*nack.message,
        "culprits": culprits.collect::<Vec<_>>(),
    })
}
