//! What load balancers and `grpcurl` ask before anything else.

use prost::Message;
use prost_reflect::DescriptorPool;
use prost_reflect::prost_types::{FileDescriptorProto, FileDescriptorSet};
use tonic::{Code, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tonic_reflection::pb::v1alpha;

use crate::support::{PATIENCE, Running};

const DOCUMENT: &str = r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: edge}
spec:
  resources:
    - {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: backend}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_that_of_readyz_and_ends_with_the_server() {
    let mut running = Running::start(None, &[]).await;
    let mut client = HealthClient::new(running.channel().await);
    let ads = "envoy.service.discovery.v3.AggregatedDiscoveryService";
    let request = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut watched = client.watch(request(ads)).await.unwrap().into_inner();
    let first = watched.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::NotServing);
    running.write(DOCUMENT);
    let then = watched.message().await.unwrap().unwrap();
    assert_eq!(then.status(), ServingStatus::Serving);
    for service in ["", ads, "grpc.health.v1.Health"] {
        let checked = client.check(request(service)).await.unwrap();
        let status = checked.into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    let unknown = client.check(request("some.Other")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    running.stop.take().unwrap().send(()).unwrap();
    let last = watched.message().await.unwrap().unwrap();
    assert_eq!(last.status(), ServingStatus::NotServing);
    assert_eq!(
        watched.message().await.unwrap_err().code(),
        Code::Unavailable
    );
    drop(client);
    let ended = tokio::time::timeout(PATIENCE, running.served).await;
    ended.expect("a watch does not keep the server").unwrap();
}

/// What a tool does that knows nothing: list the services, then get the files of each, and of all
/// that they import.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_tells_enough_to_build_every_service() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut asked = Reflected::open(&running).await;
    let list = asked.ask(MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(list) = list else {
        panic!("a list of services: {list:?}");
    };
    let names: Vec<String> = list.service.into_iter().map(|it| it.name).collect();
    assert!(names.len() > 12, "{names:?}");

    let mut files: Vec<FileDescriptorProto> = Vec::new();
    for name in &names {
        let found = asked
            .file(MessageRequest::FileContainingSymbol(name.clone()))
            .await;
        let mut wanted = vec![found];
        while let Some(file) = wanted.pop() {
            if files.iter().any(|known| known.name == file.name) {
                continue;
            }
            for import in &file.dependency {
                let request = MessageRequest::FileByFilename(import.clone());
                if !files.iter().any(|known| known.name() == import) {
                    wanted.push(asked.file(request).await);
                }
            }
            files.push(file);
        }
    }
    let set = FileDescriptorSet { file: files };
    let pool = DescriptorPool::from_file_descriptor_set(set).expect("whole");
    for name in names {
        assert!(pool.get_service_by_name(&name).is_some(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_is_there_for_older_tools_and_says_what_it_does_not_know() {
    let running = Running::start(None, &[]).await;
    let channel = running.channel().await;
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let symbol = "no.such.Symbol".to_owned();
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(symbol),
        ),
    };
    let requests = tokio_stream::iter([request]);
    let responses = client.server_reflection_info(requests).await.unwrap();
    let response = responses.into_inner().message().await.unwrap().unwrap();
    let Some(v1alpha::server_reflection_response::MessageResponse::ErrorResponse(error)) =
        response.message_response
    else {
        panic!("an error");
    };
    assert_eq!(error.error_code, i32::from(Code::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_served_is_unimplemented() {
    let running = Running::start(Some(DOCUMENT), &[]).await;
    let mut grpc = tonic::client::Grpc::new(running.channel().await);
    for path in [
        "/grpc.health.v1.Health/Nothing",
        "/some.Other/Method",
        "/",
        "/nothing",
    ] {
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
        let request = tonic::Request::new(HealthCheckRequest::default());
        let refused = grpc.unary(request, path.parse().unwrap(), codec).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
}

struct Reflected {
    requests: tokio::sync::mpsc::Sender<ServerReflectionRequest>,
    responses: Streaming<ServerReflectionResponse>,
}

impl Reflected {
    async fn open(running: &Running) -> Self {
        let (requests, outbound) = tokio::sync::mpsc::channel(1);
        let outbound = tokio_stream::wrappers::ReceiverStream::new(outbound);
        let mut client = ServerReflectionClient::new(running.channel().await);
        let opened = client.server_reflection_info(outbound).await.unwrap();
        let responses = opened.into_inner();
        Self {
            requests,
            responses,
        }
    }

    async fn ask(&mut self, question: MessageRequest) -> MessageResponse {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(question),
        };
        self.requests.send(request).await.unwrap();
        let response = self.responses.message().await.unwrap().unwrap();
        response.message_response.unwrap()
    }

    async fn file(&mut self, question: MessageRequest) -> FileDescriptorProto {
        let asked = format!("{question:?}");
        let answer = self.ask(question).await;
        let MessageResponse::FileDescriptorResponse(found) = answer else {
            panic!("{asked}: {answer:?}");
        };
        FileDescriptorProto::decode(&*found.file_descriptor_proto[0]).unwrap()
    }
}
