//! `/load`: what clients report of the load that they put on clusters.

use axum::Json;
use axum::extract::State;
use prost_reflect::prost_types::Timestamp;
use serde_json::{Value, json};

use super::Admin;
use crate::loads::{ClusterKey, ClusterLoad, Counts, LOADS_KEPT, Locality, LocalityLoad};

pub(super) async fn load(State(Admin { plane, .. }): State<Admin>) -> Json<Value> {
    Json(plane.loads.with_table(|table| {
        let clusters = table.clusters().iter();
        json!({
            "reports": table.reports(),
            "sums": { "kept": table.kept(), "limit": LOADS_KEPT, "notKept": table.not_kept() },
            "clusters": clusters.map(|(key, load)| show_cluster(key, load)).collect::<Vec<_>>(),
        })
    }))
}

fn show_cluster(key: &ClusterKey, load: &ClusterLoad) -> Value {
    let localities = load.localities.iter();
    json!({
        "cluster": key.cluster,
        "service": key.service,
        "lastReport": Timestamp::from(load.last_report).to_string(),
        "droppedRequests": load.dropped,
        "droppedByCategory": load.dropped_by_category,
        "localities": localities.map(|(at, load)| show_locality(at, load)).collect::<Vec<_>>(),
    })
}

fn show_locality(at: &Locality, load: &LocalityLoad) -> Value {
    let metrics = load.metrics.iter().map(|(name, metric)| {
        json!({ "name": name, "requests": metric.requests, "total": metric.total })
    });
    let endpoints = load
        .endpoints
        .iter()
        .map(|(address, counts)| json!({ "address": address, "requests": show_counts(counts) }));
    json!({
        "region": at.region,
        "zone": at.zone,
        "subZone": at.sub_zone,
        "requests": show_counts(&load.counts),
        "metrics": metrics.collect::<Vec<_>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn show_counts(counts: &Counts) -> Value {
    json!({
        "issued": counts.issued,
        "successful": counts.successful,
        "errors": counts.errors,
    })
}
