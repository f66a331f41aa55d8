//! The server over real sockets: h2's client, and clients that mean no good.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use isthmus_http2::{BoxError, RequestBody, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tower_service::Service;

/// Nothing here takes a second; a busy machine may.
const PATIENCE: Duration = Duration::from_secs(30);

const MIB: usize = 1 << 20;

/// Bytes of one chunk of `/endless`.
const CHUNK: usize = 64 * 1024;

type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// What the services count.
#[derive(Debug, Default)]
struct Counts {
    /// Chunks that `/endless` has made.
    chunks: AtomicUsize,
    /// Responses that are open.
    open: AtomicUsize,
}

/// Answers by path: `/echo`, `/length`, `/endless`, `/never`, `/fails`, `/breaks`.
#[derive(Clone, Debug, Default)]
struct Paths(Arc<Counts>);

impl Service<Request<RequestBody>> for Paths {
    type Response = Response<ResponseBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let counts = Arc::clone(&self.0);
        let open = Open::new(&counts);
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let body = match path.as_str() {
                "/echo" => Echo(request.into_body(), open).boxed_unsync(),
                "/length" => {
                    // Read by another task than that of the connection.
                    let body = tokio::spawn(request.into_body().collect()).await??;
                    let length = body.to_bytes().len().to_string();
                    let trailers = std::future::ready(Some(Ok(trailers("done"))));
                    let body = Full::new(Bytes::from(length)).with_trailers(trailers);
                    body.map_err(|never: Infallible| match never {})
                        .boxed_unsync()
                }
                "/endless" => Endless(counts, open).boxed_unsync(),
                "/never" => std::future::pending::<ResponseBody>().await,
                "/fails" => return Err("no".into()),
                _ => Breaks.boxed_unsync(),
            };
            Ok(Response::new(body))
        })
    }
}

struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Sends a request back, and trailers after it.
struct Echo(RequestBody, #[allow(dead_code, reason = "it counts")] Open);

impl Body for Echo {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.0).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(frame)) if frame.is_data() => Some(Ok(frame)),
            Some(Ok(_)) | None => Some(Ok(Frame::trailers(trailers("echoed")))),
            Some(Err(error)) => Some(Err(error.into())),
        })
    }
}

struct Endless(Arc<Counts>, #[allow(dead_code, reason = "it counts")] Open);

impl Body for Endless {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.chunks.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![7; CHUNK])))))
    }
}

struct Breaks;

impl Body for Breaks {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(Some(Err("half way".into())))
    }
}

fn trailers(text: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("status", http::HeaderValue::from_static(text));
    trailers
}

struct Server {
    addr: SocketAddr,
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let paths = Paths::default();
        let counts = Arc::clone(&paths.0);
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve(paths, TcpListenerStream::new(listener), async {
            stopped.await.unwrap_or(());
        }));
        Self {
            addr,
            counts,
            stop: Some(stop),
            served,
        }
    }

    async fn connect(&self) -> Client {
        let socket = TcpStream::connect(self.addr).await.unwrap();
        // A stream that is not read must not stop the others.
        let mut client = h2::client::Builder::new();
        client.initial_connection_window_size(16 << 20);
        let (requests, connection) = client.handshake(socket).await.unwrap();
        Client {
            requests: requests.ready().await.unwrap(),
            connection: tokio::spawn(connection),
        }
    }

    /// Preface and SETTINGS, without a client to answer for them.
    async fn connect_raw(&self) -> TcpStream {
        let mut socket = TcpStream::connect(self.addr).await.unwrap();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        socket.write_all(preface).await.unwrap();
        socket
    }

    async fn all_closed(&self) {
        let closed = async {
            while self.counts.open.load(Ordering::SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
        };
        within(closed).await;
    }
}

struct Client {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    async fn open(&mut self, path: &str, is_end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let requests = self.requests.clone().ready().await;
        let request = Request::post(format!("http://test{path}"))
            .body(())
            .unwrap();
        let opened = requests.and_then(|mut requests| requests.send_request(request, is_end));
        opened.unwrap()
    }

    /// What `/length` says of a body.
    async fn length_of(&mut self, body: Vec<u8>) -> String {
        let (response, mut send) = self.open("/length", false).await;
        let sending = tokio::spawn(async move { send_all(&mut send, body.into(), true).await });
        let response = within(response).await.unwrap();
        let (bytes, trailers) = read_all(response.into_body()).await.unwrap();
        sending.await.unwrap();
        assert_eq!(trailers.unwrap()["status"], "done");
        String::from_utf8(bytes).unwrap()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.expect("the server gets there")
}

/// Sends as the windows allow; returns how much that was when the stream ended.
async fn send_all(stream: &mut SendStream<Bytes>, mut body: Bytes, is_end: bool) -> usize {
    let mut sent = 0;
    if body.is_empty() && is_end {
        stream.send_data(Bytes::new(), true).unwrap();
    }
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let Some(Ok(capacity)) = poll_fn(|context| stream.poll_capacity(context)).await else {
            return sent;
        };
        let piece = body.split_to(capacity.min(body.len()));
        sent += piece.len();
        let is_last = is_end && body.is_empty();
        stream.send_data(piece, is_last).unwrap();
    }
    sent
}

async fn read_all(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = within(body.data()).await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    let trailers = within(body.trailers()).await?;
    Ok((bytes, trailers))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_one_connection_do_not_mix() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let mut streams = Vec::new();
    for index in 0..100_u8 {
        let (response, mut send) = client.open("/echo", false).await;
        let body = Bytes::from(vec![index; 200_000 + usize::from(index)]);
        streams.push(tokio::spawn(async move {
            let expected = body.clone();
            let sending = tokio::spawn(async move { send_all(&mut send, body, true).await });
            let response = within(response).await.unwrap();
            let (bytes, trailers) = read_all(response.into_body()).await.unwrap();
            sending.await.unwrap();
            assert!(bytes == expected, "stream {index}");
            assert_eq!(trailers.unwrap()["status"], "echoed");
        }));
    }
    for stream in streams {
        within(stream).await.unwrap();
    }
    server.all_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_request_that_another_task_reads_arrives_whole() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let length = 12 * MIB + 1;
    assert_eq!(client.length_of(vec![1; length]).await, length.to_string());
    assert_eq!(client.length_of(Vec::from(*b"abc")).await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_not_read_is_held_up_and_others_are_not() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let (_response, mut send) = client.open("/never", false).await;
    let sending =
        tokio::spawn(async move { send_all(&mut send, vec![1; 4 * MIB].into(), true).await });
    for _ in 0..8 {
        let length = client.length_of(vec![1; MIB]).await;
        assert_eq!(length, MIB.to_string());
    }
    assert!(!sending.is_finished());
    client.connection.abort();
    assert_eq!(sending.await.unwrap(), MIB, "the window, and no byte more");
    server.all_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n19_a_response_is_made_as_its_reader_takes_it() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let (response, _) = client.open("/endless", true).await;
    let mut body = within(response).await.unwrap().into_body();
    for _ in 0..20 {
        client.length_of(Vec::new()).await;
    }
    let made = || server.counts.chunks.load(Ordering::SeqCst);
    assert!(made() <= 2, "{}: the window is less than a chunk", made());

    let mut read = 0;
    while read < 100 * CHUNK {
        let data = within(body.data()).await.unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        read += data.len();
    }
    assert!(made() <= 104, "{}", made());
    drop(body);
    server.all_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_is_not_read_stops_its_responses_and_nobody_elses() {
    let server = Server::start().await;
    let mut deaf = server.connect_raw().await;
    // Windows of 2 GiB, then a request for `/endless`.
    let bytes = [
        &b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff"[..],
        b"\0\0\x04\x08\0\0\0\0\0\x7f\0\0\0",
        b"\0\0\x0c\x01\x05\0\0\0\x01\x83\x86\x04\x08/endless",
    ]
    .concat();
    deaf.write_all(&bytes).await.unwrap();
    let made = || server.counts.chunks.load(Ordering::SeqCst);
    let mut client = server.connect().await;
    // Until the socket's buffers are full: as long as it makes progress while others are served.
    let mut seen = usize::MAX;
    let filled = async {
        while seen != made() || seen == 0 {
            seen = made();
            for _ in 0..50 {
                client.length_of(Vec::from(*b"x")).await;
            }
        }
    };
    within(filled).await;
    assert!(made() < 1000, "{}", made());
    drop(deaf);
    server.all_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_reset_is_dropped() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for path in ["/never", "/echo"] {
        let (response, mut send) = client.open(path, false).await;
        if path == "/echo" {
            within(response).await.unwrap();
        } else {
            client.length_of(Vec::new()).await;
        }
        send.send_reset(Reason::CANCEL);
        server.all_closed().await;
    }
    assert_eq!(client.length_of(Vec::from(*b"x")).await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_fail_reset_their_own_stream() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let (response, _send) = client.open("/fails", true).await;
    let failed = within(response).await.unwrap_err();
    assert_eq!(failed.reason(), Some(Reason::INTERNAL_ERROR));
    let (response, _send) = client.open("/breaks", true).await;
    let body = match within(response).await {
        Ok(response) => read_all(response.into_body()).await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert_eq!(body.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
    assert_eq!(client.length_of(Vec::from(*b"x")).await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_lets_open_streams_end_and_takes_no_new_ones() {
    let mut server = Server::start().await;
    let mut client = server.connect().await;
    let idle = server.connect().await;
    let (response, mut send) = client.open("/echo", false).await;
    let body = within(response).await.unwrap().into_body();
    server.stop.take().unwrap().send(()).unwrap();
    // GOAWAY comes at once: the client finds that it may open nothing.
    let refused = async {
        while client.requests.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    within(refused).await;
    // h2 calls it an error that there are handles left when the server has gone.
    let _ = within(idle.connection).await.unwrap();
    assert!(!server.served.is_finished(), "a stream is open");

    send_all(&mut send, Bytes::from_static(b"last words"), true).await;
    let (bytes, _) = read_all(body).await.unwrap();
    assert_eq!(bytes, b"last words");
    within(server.served).await.unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_dropped_closes_its_connections() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let (response, _send) = client.open("/echo", false).await;
    let body = within(response).await.unwrap().into_body();
    server.served.abort();
    assert!(read_all(body).await.is_err());
    server.all_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_are_told_why_and_cut_off() {
    struct Case {
        name: &'static str,
        bytes: Vec<u8>,
        code: u8,
    }
    let server = Server::start().await;
    let reset = |stream: u32| {
        let head = [
            &b"\0\0\x03\x01\x05"[..],
            &stream.to_be_bytes(),
            b"\x83\x86\x84",
        ];
        let reset = [&b"\0\0\x04\x03\0"[..], &stream.to_be_bytes(), b"\0\0\0\x08"];
        [head.concat(), reset.concat()].concat()
    };
    let cases = [
        Case {
            name: "rapid reset",
            bytes: (0..5000).flat_map(|index| reset(1 + 2 * index)).collect(),
            code: 11,
        },
        Case {
            name: "a flood of PING",
            bytes: b"\0\0\x08\x06\0\0\0\0\0........".repeat(5000),
            code: 11,
        },
        Case {
            name: "a block of headers without an end",
            bytes: [
                b"\0\0\x03\x01\0\0\0\0\x01\x83\x86\x84".to_vec(),
                b"\0\0\x02\x09\0\0\0\0\x01\x83\x86".repeat(5000),
            ]
            .concat(),
            code: 11,
        },
        Case {
            name: "a frame that is too long",
            bytes: b"\xff\xff\xff\0\0\0\0\0\x01".to_vec(),
            code: 6,
        },
    ];
    for Case { name, bytes, code } in cases {
        let mut socket = server.connect_raw().await;
        // Fails if the server has closed half way.
        let _ = socket.write_all(&bytes).await;
        let mut answer = Vec::new();
        // What was sent in vain may end the connection with an error instead of its end.
        let _ = within(socket.read_to_end(&mut answer)).await;
        let goaway = answer
            .windows(9)
            .any(|it| it[3..5] == [7, 0] && it[..3] == [0, 0, 8]);
        assert!(goaway, "{name}");
        assert_eq!(answer.last(), Some(&code), "{name}");
    }
    server.all_closed().await;
    let mut client = server.connect().await;
    assert_eq!(
        client.length_of(Vec::from(*b"x")).await,
        "1",
        "others are served"
    );
}
