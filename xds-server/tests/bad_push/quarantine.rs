//! Who connects after a bad push gets what was accepted last.

use crate::support::{Client, Running, clusters};

const WORDS: &str = "Error adding/updating cluster(s) b: no such thing";

// The connect timeout of a cluster in a response, in the bytes of its duration.
fn has_timeout(
    response: &isthmus_proto::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse,
    name: &str,
    seconds: i64,
) -> bool {
    use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
    use prost::Message;
    let mut resources = response.resources.iter().filter(|it| it.name == name);
    resources.any(|it| {
        let message = &it.resource.as_ref().unwrap().value[..];
        let cluster = Cluster::decode(message).unwrap();
        cluster.connect_timeout.unwrap().seconds == seconds
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_gets_the_version_that_was_accepted_last_until_it_is_mended() {
    let running = Running::start(Some(&clusters(&[("a", 1), ("b", 1)])), &[]).await;
    let mut first = Client::connect(&running, "first").await;
    first.accept().await;
    running
        .push(&clusters(&[("a", 2), ("b", 2), ("c", 1)]), 2)
        .await;
    let bad = first.next().await;
    first.nack(&bad, WORDS).await;
    running
        .wait_for("/nacks", |it| it.contains("\"isSetAside\":true"))
        .await;

    let mut second = Client::connect(&running, "second").await;
    let response = second.next().await;
    assert!(
        has_timeout(&response, "b", 1),
        "the old version of what was refused"
    );
    assert!(
        has_timeout(&response, "a", 2) && has_timeout(&response, "c", 1),
        "the rest is new"
    );
    second.ack(&response).await;

    // A change of something else leaves it where it is.
    running
        .push(&clusters(&[("a", 3), ("b", 2), ("c", 1)]), 3)
        .await;
    let response = second.next().await;
    assert!(has_timeout(&response, "a", 3));
    assert_eq!(response.resources.len(), 1);
    second.ack(&response).await;

    running
        .push(&clusters(&[("a", 3), ("b", 4), ("c", 1)]), 4)
        .await;
    let response = second.next().await;
    assert!(has_timeout(&response, "b", 4), "the mended version");
    second.ack(&response).await;
    loop {
        let response = first.next().await;
        first.ack(&response).await;
        if has_timeout(&response, "b", 4) {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_client_accepts_goes_to_newcomers_all_the_same() {
    let running = Running::start(Some(&clusters(&[("b", 1)])), &[]).await;
    let mut first = Client::connect(&running, "first").await;
    let mut second = Client::connect(&running, "second").await;
    first.accept().await;
    second.accept().await;
    running.push(&clusters(&[("b", 2)]), 2).await;
    let refused = first.next().await;
    let accepted = second.next().await;
    first.nack(&refused, WORDS).await;
    running
        .wait_for("/nacks", |it| it.contains("\"isSetAside\":true"))
        .await;
    let mut third = Client::connect(&running, "third").await;
    let response = third.next().await;
    assert!(has_timeout(&response, "b", 1));
    third.ack(&response).await;

    second.ack(&accepted).await;
    let response = third.next().await;
    assert!(has_timeout(&response, "b", 2), "somebody accepted it");
    let mut fourth = Client::connect(&running, "fourth").await;
    assert!(has_timeout(&fourth.next().await, "b", 2));
}

// To give none would take a working version from a client that holds one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_was_ever_accepted_newcomers_are_left_to_themselves() {
    let running = Running::start(Some(&clusters(&[("a", 1), ("b", 1)])), &[]).await;
    let mut first = Client::connect(&running, "first").await;
    let response = first.next().await;
    first.nack(&response, WORDS).await;
    running
        .wait_for("/nacks", |it| it.contains("\"isSetAside\":true"))
        .await;
    let mut second = Client::connect(&running, "second").await;
    assert_eq!(second.accept().await, ["a", "b"]);
    running
        .wait_for("/nacks", |it| it.contains("\"isSetAside\":false"))
        .await;
}

// Two bad pushes in a row: the first of them is no version to go back to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_bad_push_leads_back_past_the_first() {
    let running = Running::start(Some(&clusters(&[("b", 1)])), &[]).await;
    let mut first = Client::connect(&running, "first").await;
    first.accept().await;
    for seconds in [2, 3] {
        let document = clusters(&[("b", seconds), ("d", seconds)]);
        running.push(&document, u64::from(seconds)).await;
        let mut is_refused = false;
        let mut is_accepted = false;
        while !(is_refused && is_accepted) {
            let response = first.next().await;
            if response.resources.iter().any(|it| it.name == "b") {
                first.nack(&response, WORDS).await;
                is_refused = true;
            } else {
                first.ack(&response).await;
                is_accepted = true;
            }
        }
    }
    let set_aside = "\"isSetAside\":true";
    running
        .wait_for("/nacks", |it| it.matches(set_aside).count() == 2)
        .await;
    let mut second = Client::connect(&running, "second").await;
    let response = second.next().await;
    assert!(has_timeout(&response, "b", 1), "neither of the bad ones");
    assert!(has_timeout(&response, "d", 3));
}
