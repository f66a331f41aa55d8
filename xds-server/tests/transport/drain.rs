//! A server that stops: streams end one after the other, and what their clients hold is not sent again elsewhere.

use std::time::{Duration, Instant};

use isthmus_proto::pb::envoy::service::discovery::v3::Resource;
use tokio::task::JoinSet;

use super::support::{Client, Running};

/// Clients of the server that stops, each with a connection of its own.
const CLIENTS: usize = 200;

/// The server ends its streams over four seconds: a quarter of that is no herd.
const SPREAD: Duration = Duration::from_secs(1);

#[tokio::test]
async fn clients_of_a_stopping_server_move_one_after_the_other_and_receive_nothing_they_hold() {
    let leaving = Running::start(&[], None).await;
    let staying = Running::start(&[], None).await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let node = format!("node-{number}");
        let mut client = Client::plain(&leaving, &node).await;
        let first = client.next().await.unwrap();
        client.ack(&first).await;
        clients.push((node, client, first.resources));
    }

    let mut ends = JoinSet::new();
    for (node, mut client, held) in clients {
        ends.spawn(async move {
            let end = client.next().await.expect_err("nothing is sent any more");
            (end, Instant::now(), node, held)
        });
    }
    leaving.stop().await;
    let ended: Vec<(String, Instant, String, Vec<Resource>)> = ends.join_all().await;
    for (reason, _, node, _) in &ended {
        assert!(
            reason.contains("shutting down; reconnect"),
            "{node}: {reason}"
        );
    }
    let times = || ended.iter().map(|(_, at, ..)| *at);
    let spread = times().max().unwrap() - times().min().unwrap();
    assert!(spread > SPREAD, "all streams ended within {spread:?}");

    let mut moved = Vec::new();
    for (_, _, node, held) in &ended {
        moved.push(Client::plain_holding(&staying, node, held).await);
    }
    let all = format!("isthmus_xds_requests_total{{type=\"cds\",kind=\"subscribe\"}} {CLIENTS}\n");
    staying.wait_for_page("/metrics", &all).await;
    // A change reaches each of them, and it alone: what came before is all that was sent.
    let metrics = staying.get("/metrics").await;
    assert!(
        !metrics.contains("isthmus_xds_resources_sent_total{"),
        "{metrics}"
    );
    staying.change("2s");
    for client in &mut moved {
        let change = client.next().await.unwrap();
        assert_eq!(change.resources.len(), 1, "{change:?}");
    }
}
