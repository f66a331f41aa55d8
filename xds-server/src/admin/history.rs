//! Generations, what differs between two, and rollbacks, as JSON. Names, versions and sizes; no
//! content.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use isthmus_xds_core::TypeUrl;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use super::Admin;
use crate::history::{Counts, Difference, Generation, Row, Turn};
use crate::metrics::short_name;
use crate::plane::{Plane, RollbackError};

/// `GET /history`
pub(super) async fn list(State(admin): State<Admin>) -> Json<Value> {
    let plane = &admin.plane;
    let (history, pin, nacks) = (plane.history(), plane.pin(), plane.nacks());
    let newest = history.newest().map(|it| it.number);
    let (converged, clients) = convergence(plane);
    let rows = history.generations().map(|generation| {
        let is_in_force = newest == Some(generation.number);
        json!({
            "generation": generation.number,
            "unixMillis": unix_millis(generation.at),
            "ageSeconds": age_seconds(generation.at),
            "source": generation.cause.to_string(),
            "documents": generation.documents_len(),
            "changes": changes(generation),
            "isInForce": is_in_force,
            "refusedBy": nacks.clients_refusing(generation.number),
            "converged": is_in_force.then_some(converged),
            "clients": is_in_force.then_some(clients),
        })
    });
    Json(json!({
        "generations": rows.collect::<Vec<_>>(),
        "rollback": pin.map(|pin| json!({
            "to": pin.to,
            "generation": pin.generation,
            "isDirectoryHeld": pin.is_directory_held,
        })),
    }))
}

// Streams that have all that they should have and accepted it, of all streams.
fn convergence(plane: &Plane) -> (usize, usize) {
    let clients = plane.clients.list();
    let converged = clients.iter().filter(|(_, client)| {
        !client.is_held_back() && client.types().iter().all(|it| it.is_settled)
    });
    (converged.count(), clients.len())
}

fn changes(generation: &Generation) -> Vec<Value> {
    let row = |(type_url, counts): (&TypeUrl, &Counts)| {
        json!({
            "type": short_name(type_url),
            "typeUrl": &**type_url,
            "added": counts.added,
            "changed": counts.changed,
            "removed": counts.removed,
        })
    };
    generation.counts.iter().map(row).collect()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Span {
    from: u64,
    to: u64,
}

/// `GET /history/diff?from=&to=`
pub(super) async fn diff(State(admin): State<Admin>, Query(span): Query<Span>) -> Response {
    let history = admin.plane.history();
    let find = |number| history.find(number).ok_or(RollbackError::NotKept(number));
    match find(span.from).and_then(|from| Ok((from, find(span.to)?))) {
        Ok((from, to)) => Json(render(&from.difference(to), span.from, span.to)).into_response(),
        Err(error) => refuse(StatusCode::NOT_FOUND, &error),
    }
}

fn render(difference: &Difference, from: u64, to: u64) -> Value {
    json!({
        "from": from,
        "to": to,
        "resources": difference.rows.iter().map(render_row).collect::<Vec<_>>(),
        "selectors": difference.selectors.iter().map(|name| &**name as &str).collect::<Vec<_>>(),
    })
}

fn render_row(row: &Row) -> Value {
    json!({
        "change": match row.turn {
            Turn::Added => "added",
            Turn::Changed => "changed",
            Turn::Removed => "removed",
        },
        "type": short_name(&row.key.type_url),
        "typeUrl": &*row.key.type_url,
        "name": &*row.key.name,
        "document": &*row.document,
        "version": row.version.to_string(),
        "bytes": row.size_bytes,
        "origin": row.origin.to_string(),
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    generation: u64,
    #[serde(default)]
    dry_run: bool,
}

/// `POST /rollback?generation=&dry_run=`
pub(super) async fn rollback(
    State(admin): State<Admin>,
    method: Method,
    headers: HeaderMap,
    Query(target): Query<Target>,
) -> Response {
    if let Err(denied) = admin.changes.check(&method, &headers) {
        return refuse(StatusCode::FORBIDDEN, &denied);
    }
    let history = admin.plane.history();
    let to = target.generation;
    let (Some(newest), Some(wanted)) = (history.newest(), history.find(to)) else {
        return refuse(StatusCode::NOT_FOUND, &RollbackError::NotKept(to));
    };
    let difference = render(&newest.difference(wanted), newest.number, to);
    if target.dry_run {
        return Json(json!({ "generation": null, "difference": difference })).into_response();
    }
    let plane = Arc::clone(&admin.plane);
    // Encoding thousands of resources takes milliseconds: not on a thread that serves streams.
    let done = tokio::task::spawn_blocking(move || plane.rollback(to)).await;
    match done {
        Ok(Ok(generation)) => {
            warn!(
                generation,
                to,
                "rolled back: the configuration directory is not followed until its content changes"
            );
            Json(json!({ "generation": generation, "difference": difference })).into_response()
        }
        Ok(Err(error)) => refuse(status_of(&error), &error),
        Err(panic) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &panic),
    }
}

/// `POST /rollback/release`
pub(super) async fn release(
    State(admin): State<Admin>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    if let Err(denied) = admin.changes.check(&method, &headers) {
        return refuse(StatusCode::FORBIDDEN, &denied);
    }
    let plane = Arc::clone(&admin.plane);
    match tokio::task::spawn_blocking(move || plane.release()).await {
        Ok(Ok(generation)) => {
            warn!(
                generation,
                "the rollback was released: the configuration directory is followed again"
            );
            Json(json!({ "generation": generation })).into_response()
        }
        Ok(Err(error)) => refuse(status_of(&error), &error),
        Err(panic) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &panic),
    }
}

fn status_of(error: &RollbackError) -> StatusCode {
    match error {
        RollbackError::NotKept(_) => StatusCode::NOT_FOUND,
        RollbackError::InForce(_) | RollbackError::NotPinned | RollbackError::Clash(_) => {
            StatusCode::CONFLICT
        }
    }
}

fn refuse(status: StatusCode, why: &dyn std::fmt::Display) -> Response {
    (status, Json(json!({ "error": why.to_string() }))).into_response()
}

pub(super) fn unix_millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn age_seconds(at: SystemTime) -> u64 {
    at.elapsed().unwrap_or_default().as_secs()
}
