//! What the server allocates, counted and not timed: for a change that a stream needs, for a
//! change that it does not need, and for a stream that is idle.
//!
//! The server has a thread of its own; clients and the writer of changes share the test's thread.
//! So what the server allocated is what the process allocated less what this thread did, and what
//! a change costs before it reaches any stream is what this thread allocates to publish it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use isthmus_api::envoy_resources::Selector;
use isthmus_heap::{CountingAllocator, Counts};
use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use isthmus_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_proto::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use isthmus_xds::grpc::DiscoveryService;
use isthmus_xds::http2;
use isthmus_xds::plane::Plane;
use isthmus_xds_core::catalog::Draft;
use isthmus_xds_core::type_rules::ENDPOINT;
use isthmus_xds_core::{Commit, Document, Extras, Name, Source, TypeUrl};
use prost::Message;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

/// Streams of a test, each with a connection of its own.
const STREAMS: usize = 50;

/// Names that each stream asks for.
const NAMES: usize = 100;

/// Allocations of the server for each stream that a change of one endpoint goes to, from waking
/// it to having read its ACK.
const ALLOCATIONS_PER_CHANGE: u64 = 28;

/// Allocations of the server for each stream of the scope that a change does not concern: it is
/// not woken.
const ALLOCATIONS_PER_IDLE_WAKE: u64 = 0;

/// Allocations of publishing a change of one endpoint among [`NAMES`], for all streams together.
const ALLOCATIONS_PER_PUBLICATION: u64 = 88;

/// What the server holds on the heap for an idle stream: its connection, its task, its names.
const IDLE_STREAM_BYTES: i64 = 7_500;

/// How long the server must have allocated nothing to be at rest, and how long that may take.
const REST: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_mins(1);

// One test at a time: all count the same process.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_change_of_one_endpoint_costs_each_stream_a_bounded_number_of_allocations() {
    let _alone = alone();
    let mut fleet = Fleet::start(STREAMS);
    // The first change makes what lasts: buffers and metrics.
    fleet.change(0, "1");
    fleet.receive_and_accept();
    let (published, spent) = fleet.spent_on(|fleet| {
        let published = fleet.change(0, "2");
        fleet.receive_and_accept();
        published
    });
    let each = spent.allocations / STREAMS as u64;
    println!("{each} allocations for each stream, {published} to publish");
    assert!(each <= ALLOCATIONS_PER_CHANGE, "{each}: {spent:?}");
    assert!(published <= ALLOCATIONS_PER_PUBLICATION, "{published}");
}

#[test]
fn a_change_that_a_stream_does_not_need_costs_it_next_to_nothing() {
    let _alone = alone();
    let mut fleet = Fleet::start(STREAMS);
    fleet.change(NAMES, "1");
    fleet.rest();
    let (_, spent) = fleet.spent_on(|fleet| fleet.change(NAMES, "2"));
    let each = spent.allocations.div_ceil(STREAMS as u64);
    println!("{each} allocations for each stream");
    assert_eq!(each, ALLOCATIONS_PER_IDLE_WAKE, "{spent:?}");
}

#[test]
fn an_idle_stream_holds_a_bounded_number_of_bytes() {
    let _alone = alone();
    // None is dropped in between: what one thread allocates and another frees would be counted.
    let nothing = server_bytes();
    let one = Fleet::start(1);
    let of_one = server_bytes() - nothing;
    let many = Fleet::start(1 + STREAMS);
    let of_many = server_bytes() - nothing - of_one;
    let each = (of_many - of_one) / i64::try_from(STREAMS).unwrap();
    drop((one, many));
    println!("{each} bytes for each idle stream of {NAMES} names");
    assert!(each > 0, "the allocator counts");
    assert!(each <= IDLE_STREAM_BYTES, "{each}");
}

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server, and clients that are settled.
struct Fleet {
    plane: Arc<Plane>,
    clients: Vec<Client>,
    here: Runtime,
    // Last, so that the clients are gone before it.
    _server: Runtime,
}

struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Fleet {
    fn start(streams: usize) -> Self {
        let server = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let here = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let plane = Arc::new(Plane::new());
        let selector = Selector {
            cluster: Some("fleet".to_owned()),
            ..Selector::default()
        };
        // One more than the streams ask for.
        let first = plane.publish(vec![Document {
            name: Name::from("fleet"),
            selector,
            resources: (0..=NAMES).map(|index| draft(index, "0")).collect(),
        }]);
        first.unwrap();
        let addr = serve(&server, Arc::clone(&plane));
        let mut fleet = Self {
            plane,
            clients: Vec::new(),
            here,
            _server: server,
        };
        for _ in 0..streams {
            let client = fleet.here.block_on(Client::connect(addr));
            fleet.clients.push(client);
        }
        fleet.receive_and_accept();
        fleet
    }

    /// Puts a change of one resource in force; returns how many allocations that took.
    fn change(&self, index: usize, text: &str) -> u64 {
        let draft = draft(index, text);
        let before = Counts::of_thread();
        let commit = Commit::new(Source::CONFIG_DIR).patch("fleet", vec![draft], Vec::new());
        self.plane.commit(commit).unwrap();
        (Counts::of_thread() - before).allocations
    }

    /// Waits until every client has its response and the server all their ACKs.
    fn receive_and_accept(&mut self) {
        let clients = &mut self.clients;
        self.here.block_on(async {
            for client in clients {
                let response = client.responses.message().await.unwrap().unwrap();
                let accept = DeltaDiscoveryRequest {
                    type_url: response.type_url,
                    response_nonce: response.nonce,
                    ..DeltaDiscoveryRequest::default()
                };
                client.requests.send(accept).await.unwrap();
            }
        });
        self.rest();
    }

    /// Waits until the server has nothing to do, while the clients go on.
    fn rest(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = (server_counts(), Instant::now());
        while seen.1.elapsed() < REST {
            assert!(Instant::now() < deadline, "the server never rests");
            self.here
                .block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
            let counts = server_counts();
            if counts.allocations != seen.0.allocations {
                seen = (counts, Instant::now());
            }
        }
    }

    /// What the server allocates until what `work` does has come to rest.
    fn spent_on<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> (T, Counts) {
        let before = server_counts();
        let result = work(self);
        self.rest();
        (result, server_counts() - before)
    }
}

impl Client {
    async fn connect(addr: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{addr}")).unwrap();
        let channel = channel.connect().await.unwrap();
        let (requests, outbound) = mpsc::channel(4);
        let first = DeltaDiscoveryRequest {
            node: Some(Node {
                id: "sidecar~198.18.0.1~pod.ns~ns.svc.cluster.local".to_owned(),
                cluster: "fleet".to_owned(),
                ..Node::default()
            }),
            type_url: ENDPOINT.to_owned(),
            resource_names_subscribe: (0..NAMES).map(name).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first).await.unwrap();
        let responses = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(ReceiverStream::new(outbound))
            .await
            .unwrap();
        Self {
            requests,
            responses: responses.into_inner(),
        }
    }
}

fn serve(runtime: &Runtime, plane: Arc<Plane>) -> SocketAddr {
    let listener = runtime
        .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .unwrap();
    let addr = listener.local_addr().unwrap();
    runtime.spawn(async move {
        // Its sender lives as long as the server.
        let (_stopping, stopped) = watch::channel(false);
        let service = DiscoveryService::new(plane, "isthmus-test".into(), stopped);
        http2::serve(service, http2::tcp(listener), std::future::pending()).await;
    });
    addr
}

fn name(index: usize) -> String {
    format!("outbound|80||service-{index:05}.ns.svc.cluster.local")
}

fn draft(index: usize, text: &str) -> Draft {
    let name = name(index);
    let value = ClusterLoadAssignment {
        cluster_name: format!("{name}{text}"),
        ..ClusterLoadAssignment::default()
    };
    Draft {
        type_url: TypeUrl::from(ENDPOINT),
        name: Name::from(name),
        value: Bytes::from(value.encode_to_vec()),
        extras: Extras::default(),
    }
}

fn server_counts() -> Counts {
    Counts::of_process() - Counts::of_thread()
}

fn server_bytes() -> i64 {
    let signed = |counts: Counts| {
        i64::try_from(counts.allocated_bytes).unwrap() - i64::try_from(counts.freed_bytes).unwrap()
    };
    signed(Counts::of_process()) - signed(Counts::of_thread())
}
