//! Who may call.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use isthmus_proto::control::resource_service_client::ResourceServiceClient;
use isthmus_proto::control::{CommitRequest, ListDocumentsRequest};
use isthmus_xds::api::{Access, ResourceApi};
use isthmus_xds::server::Server;
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};
use tonic::{Code, Status};

use super::support::{Authority, Caller, Running, channel, parse};

async fn call(mut caller: Caller) -> Result<(), Status> {
    caller.commit(CommitRequest::default()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_those_who_are_named_call_over_tls() {
    let (ours, others) = (Authority::new(), Authority::new());
    let dir = TempDir::new().unwrap();
    let mut args = ours.server_args(dir.path());
    let more = [
        "--api-listen",
        "127.0.0.1:0",
        "--api-allow",
        "spiffe://acme/ns/platform/*",
    ];
    args.extend(more.map(ToOwned::to_owned));
    let args: Vec<&str> = args.iter().map(|it| &**it).collect();
    let running = Running::start_with(dir, &args).await;
    let cases = [
        (
            "one of the allowed",
            Some("spiffe://acme/ns/platform/sa/deploy"),
            None,
        ),
        (
            "another identity",
            Some("spiffe://acme/ns/web/sa/cart"),
            Some("is not among"),
        ),
        ("no identity", None, Some("no SPIFFE ID")),
    ];
    let mut refused = 0;
    for (name, uri, reason) in cases {
        let caller = ours.caller(&running, &ours.client(uri)).await;
        match (call(caller).await, reason) {
            (Ok(()), None) => {}
            (Err(status), Some(reason)) => {
                refused += 1;
                assert_eq!(status.code(), Code::PermissionDenied, "{name}: {status}");
                assert!(status.message().contains(reason), "{name}: {status}");
            }
            (result, _) => panic!("{name}: {result:?}"),
        }
    }
    let count = format!(r#"reason="api_call"}} {refused}"#);
    running.wait_for_page("/metrics", &count).await;

    // A certificate of another CA does not get so far.
    let stranger = others.client(Some("spiffe://acme/ns/platform/sa/deploy"));
    let caller = ours.caller(&running, &stranger).await;
    assert_ne!(
        call(caller).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    // Nor is the API where the fleet is served.
    let stream = TcpStream::connect(running.xds).await.unwrap();
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_its_owners() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("api.sock");
    let args = ["--api-socket", path.to_str().unwrap()];
    let running = Running::start_with(dir, &args).await;
    assert!(running.api.is_none());
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let stream = UnixStream::connect(&path).await.unwrap();
    call(ResourceServiceClient::new(channel(stream).await))
        .await
        .unwrap();

    // The same peer at a socket that somebody else owns.
    let owner = Some(found.uid() + 1);
    let refused = call_as(owner, running.dir.path()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("does not own the socket"),
        "{refused}"
    );
    call_as(Some(found.uid()), running.dir.path())
        .await
        .unwrap();
}

// Serves the API to a Unix socket as if `owner` owned it, and calls it.
async fn call_as(owner: Option<u32>, dir: &std::path::Path) -> Result<(), Status> {
    let path = dir.join("other.sock");
    let cli = parse(&["--api-socket", path.to_str().unwrap()]).unwrap();
    let bound = isthmus_xds::transport::Listeners::bind_api(&cli)
        .await
        .unwrap();
    let (listeners, access) = bound.unwrap();
    let plane = std::sync::Arc::new(isthmus_xds::plane::Plane::new());
    let access = Access {
        socket_owner: owner,
        ..access
    };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let incoming = listeners.accept(&plane.metrics.refused_connections());
    let api = ResourceApi::new(plane, stopped.clone());
    let served = tokio::spawn(isthmus_xds::api::serve(incoming, api, access, stopped));
    let stream = UnixStream::connect(&path).await.unwrap();
    let answer = call(ResourceServiceClient::new(channel(stream).await)).await;
    stop.send_replace(true);
    served.await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_not_where_the_clients_are() {
    let running = Running::start().await;
    call(running.caller().await).await.unwrap();
    let stream = TcpStream::connect(running.xds).await.unwrap();
    let mut caller = ResourceServiceClient::new(channel(stream).await);
    let refused = caller
        .list_documents(ListDocumentsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_let_strangers_in_does_not_start() {
    let dir = TempDir::new().unwrap();
    let tls = Authority::new().server_args(dir.path());
    let tls: Vec<&str> = tls.iter().map(|it| &**it).collect();
    let free = "127.0.0.1:0";
    let listen = ["--xds-listen", free, "--admin-listen", free];
    let cases: [(&str, Vec<&str>, &str); 4] = [
        (
            "plaintext beyond loopback",
            vec!["--api-listen", "0.0.0.0:0"],
            "in plaintext on",
        ),
        (
            "plaintext beyond loopback, xDS allowed",
            vec!["--insecure", "--api-listen", "0.0.0.0:0"],
            "in plaintext on",
        ),
        (
            "TLS and nobody named",
            [&["--api-listen", free], &tls[..]].concat(),
            "--api-allow",
        ),
        (
            "TLS without a client CA",
            [&["--api-listen", free], &tls[..4]].concat(),
            "--tls-client-ca",
        ),
    ];
    for (name, args, words) in cases {
        let cli = parse(&[&listen, &args[..]].concat()).unwrap();
        let error = Server::bind(&cli).await.expect_err(name).to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
    let unproven = parse(&["--api-listen", free, "--api-allow", "spiffe://a/b"]);
    assert!(unproven.unwrap_err().contains("--tls-client-ca"));
}
