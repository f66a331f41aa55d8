//! A change goes to some clients first: on to the others when they accept it, back when one refuses.

use std::collections::BTreeMap;

use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
use isthmus_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use isthmus_xds_core::type_rules::{CLUSTER, ENDPOINT};
use prost::Message;

use crate::support::{Client, Running, clusters};

const WORDS: &str = "Error adding/updating cluster(s) b: no such thing";
const NODES: [&str; 6] = ["n0", "n1", "n2", "n3", "n4", "n5"];

// A client and the clusters that it holds, by name and timeout.
struct Proxy {
    client: Client,
    held: BTreeMap<String, i64>,
    priorities: u32,
}

impl Proxy {
    async fn connect(running: &Running, node: &str) -> Self {
        let client = Client::connect(running, node).await;
        let request = DeltaDiscoveryRequest {
            type_url: ENDPOINT.to_owned(),
            resource_names_subscribe: vec!["a".to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        client.send(request).await;
        let (held, priorities) = (BTreeMap::new(), u32::MAX);
        Self {
            client,
            held,
            priorities,
        }
    }

    fn hold(&mut self, response: &DeltaDiscoveryResponse) {
        for resource in &response.resources {
            let value = &resource.resource.as_ref().unwrap().value[..];
            if response.type_url == CLUSTER {
                let cluster = Cluster::decode(value).unwrap();
                let seconds = cluster.connect_timeout.unwrap().seconds;
                self.held.insert(cluster.name, seconds);
            } else {
                self.priorities = priority_of(value);
            }
        }
        for name in &response.removed_resources {
            self.held.remove(name);
        }
    }

    // Accepts all that comes until it holds what is wanted.
    async fn reach(&mut self, clusters: &[(&str, i64)], priority: u32) {
        let wanted: BTreeMap<String, i64> = clusters
            .iter()
            .map(|(name, it)| ((*name).to_owned(), *it))
            .collect();
        while self.held != wanted || self.priorities != priority {
            let response = self.client.next().await;
            self.hold(&response);
            self.client.ack(&response).await;
        }
    }
}

fn priority_of(value: &[u8]) -> u32 {
    use isthmus_proto::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
    ClusterLoadAssignment::decode(value).unwrap().endpoints[0].priority
}

// Clusters, and endpoints of "a" that are told apart by their number.
fn document(some: &[(&str, u32)], endpoints: u32) -> String {
    let mut text = clusters(some);
    text += "    - \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n";
    text += "      clusterName: a\n      endpoints: [{priority: ";
    text += &endpoints.to_string();
    text += "}]\n";
    text
}

async fn fleet(running: &Running) -> Vec<Proxy> {
    let mut fleet = Vec::new();
    for node in NODES {
        let mut proxy = Proxy::connect(running, node).await;
        proxy.reach(&[("a", 1), ("b", 1)], 1).await;
        fleet.push(proxy);
    }
    fleet
}

// Which of the fleet are given a change first: they have it when its endpoints are with all.
async fn canaries(fleet: &mut [Proxy]) -> Vec<(usize, DeltaDiscoveryResponse)> {
    let mut canaries = Vec::new();
    for (number, proxy) in fleet.iter_mut().enumerate() {
        let mut tried = None;
        // Clusters come before endpoints.
        loop {
            let response = proxy.client.next().await;
            if response.type_url == CLUSTER {
                tried = Some(response);
                continue;
            }
            proxy.hold(&response);
            proxy.client.ack(&response).await;
            break;
        }
        canaries.extend(tried.map(|response| (number, response)));
    }
    canaries
}

fn trials(outcome: &str) -> String {
    format!("isthmus_xds_canary_trials_total{{outcome=\"{outcome}\"}} 1\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_goes_to_two_and_to_all_when_they_accept_it() {
    let old = [("a", 1), ("b", 1)];
    let running = Running::start(
        Some(&document(&old, 1)),
        &["--canary", "2", "--canary-timeout", "3600"],
    )
    .await;
    let mut fleet = fleet(&running).await;
    running.push(&document(&[("a", 2), ("b", 1)], 2), 2).await;
    let tried = canaries(&mut fleet).await;
    assert_eq!(tried.len(), 2, "two of six, and endpoints for all");

    // Endpoints flow on, and a newcomer gets what the rest has.
    running.push(&document(&[("a", 2), ("b", 1)], 3), 3).await;
    let is_tried = |number: usize| tried.iter().any(|(it, _)| *it == number);
    for (number, proxy) in fleet.iter_mut().enumerate() {
        if !is_tried(number) {
            proxy.reach(&[("a", 1), ("b", 1)], 3).await;
        }
    }
    let mut newcomer = Proxy::connect(&running, "newcomer").await;
    newcomer.reach(&[("a", 1), ("b", 1)], 3).await;
    // Who was not given it has not accepted it.
    running.wait_for_accepted(3, 4).await;
    let progress = running.plane.convergence.progress(2).unwrap();
    assert_eq!((progress.needed, progress.accepted), (6, 0), "{progress:?}");
    let list = running.answer(&["history"]).await;
    assert!(list.contains("in force, converged 0 of 7"), "{list}");

    for (number, response) in &tried {
        fleet[*number].hold(response);
        fleet[*number].client.ack(response).await;
    }
    for proxy in fleet.iter_mut().chain([&mut newcomer]) {
        proxy.reach(&[("a", 2), ("b", 1)], 3).await;
    }
    running
        .wait_for("/metrics", |it| it.contains(&trials("passed")))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_a_canary_refuses_reaches_nobody_else() {
    let old = [("a", 1), ("b", 1)];
    let running = Running::start(
        Some(&document(&old, 1)),
        &["--canary", "2", "--canary-timeout", "3600"],
    )
    .await;
    let mut fleet = fleet(&running).await;
    running.push(&document(&[("a", 2), ("b", 2)], 2), 2).await;
    let tried = canaries(&mut fleet).await;
    let [(accepting, accepted), (refusing, refused)] = &tried[..] else {
        panic!("two are tried on: {}", tried.len());
    };
    fleet[*accepting].hold(accepted);
    fleet[*accepting].client.ack(accepted).await;
    fleet[*refusing].client.nack(refused, WORDS).await;
    running
        .wait_for("/metrics", |it| it.contains(&trials("refused")))
        .await;
    fleet[*accepting].reach(&old_as_held(), 2).await;

    // All have what they had, and endpoints flow.
    running.push(&document(&[("a", 2), ("b", 2)], 3), 3).await;
    for proxy in &mut fleet {
        proxy.reach(&old_as_held(), 3).await;
    }
    let mut newcomer = Proxy::connect(&running, "newcomer").await;
    newcomer.reach(&old_as_held(), 3).await;

    // What was refused is not mended by a change of something else.
    running.push(&document(&[("a", 3), ("b", 2)], 4), 4).await;
    let tried = canaries(&mut fleet).await;
    let numbers: Vec<usize> = tried.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [*accepting, *refusing], "the same two again");
    for (number, response) in &tried {
        if number == refusing {
            fleet[*number].client.nack(response, WORDS).await;
        } else {
            fleet[*number].hold(response);
            fleet[*number].client.ack(response).await;
        }
    }
    let refusals = "isthmus_xds_canary_trials_total{outcome=\"refused\"} 2\n";
    running
        .wait_for("/metrics", |it| it.contains(refusals))
        .await;
    for proxy in fleet.iter_mut().chain([&mut newcomer]) {
        proxy.reach(&old_as_held(), 4).await;
    }

    running.push(&document(&[("a", 3), ("b", 3)], 4), 5).await;
    // Only the two can have it, until they accept it.
    for number in numbers {
        fleet[number].reach(&[("a", 3), ("b", 3)], 4).await;
    }
    for proxy in fleet.iter_mut().chain([&mut newcomer]) {
        proxy.reach(&[("a", 3), ("b", 3)], 4).await;
    }
    running
        .wait_for("/metrics", |it| it.contains(&trials("passed")))
        .await;
}

fn old_as_held() -> [(&'static str, i64); 2] {
    [("a", 1), ("b", 1)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canaries_that_are_silent_or_gone_keep_nobody_waiting() {
    let old = [("a", 1), ("b", 1)];
    let running = Running::start(
        Some(&document(&old, 1)),
        &["--canary", "2", "--canary-timeout", "1"],
    )
    .await;
    let mut fleet = fleet(&running).await;
    running.push(&document(&[("a", 2), ("b", 1)], 2), 2).await;
    let tried = canaries(&mut fleet).await;
    assert_eq!(tried.len(), 2);
    for (number, proxy) in fleet.iter_mut().enumerate() {
        if tried.iter().all(|(it, _)| *it != number) {
            proxy.reach(&[("a", 2), ("b", 1)], 2).await;
        }
    }
    running
        .wait_for("/metrics", |it| it.contains(&trials("timed_out")))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_place_of_a_canary_that_leaves_is_taken() {
    let old = [("a", 1), ("b", 1)];
    let running = Running::start(
        Some(&document(&old, 1)),
        &["--canary", "2", "--canary-timeout", "3600"],
    )
    .await;
    let mut fleet = fleet(&running).await;
    running.push(&document(&[("a", 2), ("b", 1)], 2), 2).await;
    let tried = canaries(&mut fleet).await;
    let [(first, response), (second, _)] = &tried[..] else {
        panic!("two are tried on: {}", tried.len());
    };
    fleet[*first].hold(response);
    fleet[*first].client.ack(response).await;
    // Gone without a word.
    fleet.remove(*second);
    // Accepts as its substitute, or as the rest after that one did.
    let mut waiting: Vec<_> = fleet
        .iter_mut()
        .map(|proxy| Box::pin(proxy.reach(&[("a", 2), ("b", 1)], 2)))
        .collect();
    let all = std::future::poll_fn(|context| {
        waiting.retain_mut(|it| it.as_mut().poll(context).is_pending());
        if waiting.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    });
    all.await;
    running
        .wait_for("/metrics", |it| it.contains(&trials("passed")))
        .await;
}
