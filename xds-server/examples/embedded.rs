//! A control plane inside another program: serves a cluster and its endpoints on loopback, changes one endpoint, and waits
//! until the client has it.
//!
//! ```text
//! cargo run -p isthmus-xds --example embedded             # with a client of its own; ends by itself
//! cargo run -p isthmus-xds --example embedded -- --serve  # waits for an Envoy, until Ctrl-C
//! ```

use std::env;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
use isthmus_proto::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use isthmus_proto::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use isthmus_proto::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use isthmus_proto::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ConfigSource, Node, SocketAddress, address,
};
use isthmus_proto::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use isthmus_proto::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use isthmus_proto::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use isthmus_proto::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_xds::core::type_rules::{CLUSTER, ENDPOINT};
use isthmus_xds::core::{Commit, Document, Name, Source};
use isthmus_xds::{Cli, Plane, Selector, Server, resources};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

/// Whose documents these are. A configuration directory beside them would have its own.
const SOURCE: Source = Source::named("embedded");

const BACKEND: &str = "backend";

#[tokio::main]
async fn main() -> Result<()> {
    if env::args().any(|arg| arg == "--serve") {
        serve().await
    } else {
        run().await
    }
}

/// Serves a client of its own and follows a change to it.
pub(crate) async fn run() -> Result<()> {
    let (server, plane, xds) = start().await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(async {
        // Told, or dropped: an end in either case.
        let _ = stopped.await;
    }));
    let first = plane.commit(Commit::new(SOURCE).set(document()?))?;
    println!("generation {} is in force on {xds}", first.generation);

    let client = tokio::spawn(accept_everything(xds));
    while plane
        .clients
        .list()
        .iter()
        .all(|(_, it)| it.types().len() < 2)
    {
        tokio::task::yield_now().await;
    }

    let changed = resources::draft_of(&endpoints(9001))?;
    let patch = Commit::new(SOURCE).patch(BACKEND, vec![changed], Vec::new());
    let patched = plane.commit(patch)?;
    for change in &patched.resources {
        println!(
            "generation {}: {:?} {}",
            patched.generation, change.kind, change.name
        );
    }
    let progress = plane.convergence.watch(patched.generation);
    let mut progress = progress.context("the newest generation is followed")?;
    let done = progress.wait_for(|it| it.pending == 0).await?.clone();
    println!(
        "{} of {} clients accepted generation {} within {:?}",
        done.accepted, done.needed, done.generation, done.elapsed
    );
    ensure!(done.is_converged, "a client refused it: {:?}", done.refused);

    client.abort();
    drop(stop);
    serving.await??;
    Ok(())
}

/// Serves until Ctrl-C.
async fn serve() -> Result<()> {
    let (server, plane, xds) = start().await?;
    plane.commit(Commit::new(SOURCE).set(document()?))?;
    println!("serving on {xds}; point the cluster of an Envoy's ads_config there. Ctrl-C ends it.");
    server
        .serve(async {
            // Fails if there are no signals to wait for; then there is nothing to wait for.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}

async fn start() -> Result<(Server, std::sync::Arc<Plane>, SocketAddr)> {
    let any_port: SocketAddr = "127.0.0.1:0".parse()?;
    let cli = Cli {
        xds_listen: any_port,
        admin_listen: any_port,
        ..Cli::default()
    };
    let server = Server::bind(&cli).await?;
    let (plane, xds) = (server.plane(), server.xds_addr()?);
    Ok((server, plane, xds))
}

/// A cluster and its endpoints, for every client.
fn document() -> Result<Document> {
    Ok(Document {
        name: Name::from(BACKEND),
        selector: Selector::default(),
        resources: vec![
            resources::draft_of(&cluster())?,
            resources::draft_of(&endpoints(9000))?,
        ],
    })
}

fn cluster() -> Cluster {
    Cluster {
        name: BACKEND.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(
                    AggregatedConfigSource::default(),
                )),
                ..ConfigSource::default()
            }),
            ..EdsClusterConfig::default()
        }),
        ..Cluster::default()
    }
}

fn endpoints(port: u32) -> ClusterLoadAssignment {
    let address = Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "127.0.0.1".to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    };
    let endpoint = Endpoint {
        address: Some(address),
        ..Endpoint::default()
    };
    ClusterLoadAssignment {
        cluster_name: BACKEND.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                ..LbEndpoint::default()
            }],
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
}

/// What an Envoy does: asks for clusters and endpoints, and accepts what it gets.
async fn accept_everything(xds: SocketAddr) -> Result<()> {
    let (requests, outbound) = mpsc::channel(8);
    for type_url in [CLUSTER, ENDPOINT] {
        let request = DeltaDiscoveryRequest {
            node: Some(Node {
                id: "example-client".to_owned(),
                ..Node::default()
            }),
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(request).await?;
    }
    let channel = tonic::transport::Channel::from_shared(format!("http://{xds}"))?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel.connect().await?);
    let responses = client.delta_aggregated_resources(ReceiverStream::new(outbound));
    let mut responses = responses.await?.into_inner();
    while let Some(response) = responses.message().await? {
        for resource in &response.resources {
            println!("the client got {} {}", response.type_url, resource.name);
        }
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(answer).await?;
    }
    Ok(())
}
