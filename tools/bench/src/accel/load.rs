//! The load: connections with one request in flight each, from inside the client's pod.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http::Request;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::application::BULK_PATH;
use super::http1::Reader;
use super::usage::{self, Usage};
use super::workload::{BULK_BYTES, SMALL_BYTES, Workload};
use crate::statistics::percentile;

/// Load before the measurement: pools fill, windows open.
const WARM_UP: Duration = Duration::from_millis(400);
/// Most of a body that is read at once.
const BODY_CHUNK_BYTES: usize = 64 << 10;
/// A request that takes longer fails the measurement.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to send.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    #[arg(long)]
    target: SocketAddr,
    #[arg(long, value_enum)]
    workload: Workload,
    #[arg(long)]
    connections: u32,
    #[arg(long)]
    milliseconds: u64,
    /// Processes whose time is counted as well, NAME=PID.
    #[arg(long, value_parser = parse_watch)]
    watch: Vec<(String, u32)>,
}

fn parse_watch(text: &str) -> Result<(String, u32)> {
    let (name, pid) = text.split_once('=').context("expected NAME=PID")?;
    Ok((name.to_owned(), pid.parse()?))
}

/// What was measured, as one line of JSON.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct LoadReport {
    pub(super) requests: u64,
    pub(super) requests_per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// Of the whole machine, for one request.
    pub(super) cpu_us_per_request: f64,
    /// User and system time of processes, for one request.
    pub(super) processes: BTreeMap<String, (f64, f64)>,
}

/// Sends, measures, and prints the report.
pub(crate) fn run(args: &LoadArgs) -> Result<()> {
    crate::process::raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    let report = local.block_on(&runtime, measure(args))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// From when to when requests count.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: Instant,
    end: Instant,
}

async fn measure(args: &LoadArgs) -> Result<LoadReport> {
    let start = Instant::now() + WARM_UP;
    let window = Window {
        start,
        end: start + Duration::from_millis(args.milliseconds),
    };
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..args.connections {
        workers.spawn_local(work(args.target, args.workload, window));
    }
    tokio::time::sleep_until(window.start.into()).await;
    let before = Snapshot::take(&args.watch)?;
    tokio::time::sleep_until(window.end.into()).await;
    let after = Snapshot::take(&args.watch)?;

    let mut latencies = Vec::new();
    while let Some(worker) = workers.join_next().await {
        latencies.extend(worker??);
    }
    ensure!(!latencies.is_empty(), "no request was answered in time");
    Ok(summarise(latencies, args, &before, &after))
}

fn summarise(
    mut latencies_us: Vec<u32>,
    args: &LoadArgs,
    before: &Snapshot,
    after: &Snapshot,
) -> LoadReport {
    latencies_us.sort_unstable();
    let count = latencies_us.len();
    let at = |quantile| f64::from(percentile(&latencies_us, quantile).unwrap_or(0));
    let requests = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let each = |time_us: u64| Duration::from_micros(time_us).as_secs_f64() * 1e6 / requests;
    let process = |(name, usage): (&String, &Usage)| {
        let used = usage.since(before.processes.get(name).copied().unwrap_or_default());
        (name.clone(), (each(used.user_us), each(used.system_us)))
    };
    LoadReport {
        requests: count as u64,
        requests_per_s: requests / Duration::from_millis(args.milliseconds).as_secs_f64(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        cpu_us_per_request: each(after.machine.since(before.machine).total_us()),
        processes: after.processes.iter().map(process).collect(),
    }
}

#[derive(Debug)]
struct Snapshot {
    machine: Usage,
    processes: BTreeMap<String, Usage>,
}

impl Snapshot {
    fn take(watch: &[(String, u32)]) -> Result<Self> {
        let own = [("load".to_owned(), std::process::id())];
        let processes = watch.iter().chain(&own);
        Ok(Self {
            machine: usage::of_machine()?,
            processes: processes
                .map(|(name, pid)| Ok((name.clone(), usage::of_process(*pid)?)))
                .collect::<Result<_>>()?,
        })
    }
}

/// One connection's requests; returns their latencies in microseconds.
async fn work(target: SocketAddr, workload: Workload, window: Window) -> Result<Vec<u32>> {
    let mut client = Client::connect(target, workload).await?;
    let mut latencies_us = Vec::new();
    loop {
        let sent = Instant::now();
        if sent >= window.end {
            return Ok(latencies_us);
        }
        tokio::time::timeout(PATIENCE, client.request())
            .await
            .with_context(|| format!("no answer within {PATIENCE:?}"))??;
        // What straddles an edge of the window is left out at the start and counted at the end, like any other rate.
        if sent >= window.start {
            let latency = sent.elapsed().as_micros();
            latencies_us.push(u32::try_from(latency).unwrap_or(u32::MAX));
        }
    }
}

enum Client {
    Http1(Http1),
    Http1New(SocketAddr, Rc<[u8]>),
    Unary(h2::client::SendRequest<Bytes>, Bytes),
    Streaming(Streaming),
}

struct Http1 {
    stream: TcpStream,
    reader: Reader,
    request: Rc<[u8]>,
    // Where bodies go.
    discarded: Vec<u8>,
}

struct Streaming {
    // Dropping it would end the connection.
    _sender: h2::client::SendRequest<Bytes>,
    answers: h2::RecvStream,
    calls: h2::SendStream<Bytes>,
    message: Bytes,
}

impl Client {
    async fn connect(target: SocketAddr, workload: Workload) -> Result<Self> {
        Ok(match workload {
            Workload::Http1Keepalive | Workload::BulkDown | Workload::BulkUp => {
                Self::Http1(Http1::connect(target, request_bytes(workload)).await?)
            }
            Workload::Http1New => Self::Http1New(target, request_bytes(workload)),
            Workload::GrpcUnary => Self::Unary(connect_http2(target).await?, message()),
            Workload::GrpcStreaming => Self::Streaming(Streaming::open(target).await?),
        })
    }

    async fn request(&mut self) -> Result<()> {
        match self {
            Self::Http1(client) => client.request().await,
            Self::Http1New(target, request) => {
                let mut client = Http1::connect(*target, Rc::clone(request)).await?;
                client.request().await?;
                // The other end closes: its port is the one that waits.
                let rest = client.reader.head(&mut client.stream).await?;
                ensure!(rest.is_none(), "two answers to one request");
                Ok(())
            }
            Self::Unary(sender, message) => unary(sender, message).await,
            Self::Streaming(stream) => stream.exchange().await,
        }
    }
}

fn request_bytes(workload: Workload) -> Rc<[u8]> {
    let head = |line: &str, more: &str| {
        format!("{line} HTTP/1.1\r\nhost: server.default\r\n{more}\r\n").into_bytes()
    };
    let bytes = match workload {
        Workload::BulkDown => head(&format!("GET {BULK_PATH}"), ""),
        Workload::BulkUp => {
            let length = format!("content-length: {BULK_BYTES}\r\n");
            let mut bytes = head("POST /", &length);
            bytes.resize(bytes.len() + BULK_BYTES, b'x');
            bytes
        }
        Workload::Http1New => head("GET /", "connection: close\r\n"),
        Workload::Http1Keepalive | Workload::GrpcUnary | Workload::GrpcStreaming => {
            head("GET /", "")
        }
    };
    bytes.into()
}

impl Http1 {
    async fn connect(target: SocketAddr, request: Rc<[u8]>) -> Result<Self> {
        let stream = TcpStream::connect(target)
            .await
            .with_context(|| format!("{target} takes no connection"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            reader: Reader::default(),
            request,
            discarded: vec![0; BODY_CHUNK_BYTES],
        })
    }

    async fn request(&mut self) -> Result<()> {
        self.stream.write_all(&self.request).await?;
        let head = self.reader.head(&mut self.stream).await?;
        let head = head.context("the connection ended before an answer")?;
        ensure!(head.start.contains(" 200 "), "{}", head.start);
        let mut left = head.content_length - self.reader.take(head.content_length);
        while left > 0 {
            let room = self.discarded.len().min(left);
            let read = self.stream.read(&mut self.discarded[..room]).await?;
            ensure!(read > 0, "the answer ends in its body");
            left -= read;
        }
        Ok(())
    }
}

async fn connect_http2(target: SocketAddr) -> Result<h2::client::SendRequest<Bytes>> {
    let stream = TcpStream::connect(target)
        .await
        .with_context(|| format!("{target} takes no connection"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            eprintln!("an HTTP/2 connection ended: {error}");
        }
    });
    Ok(sender.ready().await?)
}

// gRPC's frame: not compressed, length, message.
fn message() -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(SMALL_BYTES).expect("a small number"));
    frame.put_bytes(b'x', SMALL_BYTES);
    frame.freeze()
}

fn call(path: &str) -> Result<Request<()>> {
    Ok(Request::post(format!("http://server.default{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?)
}

async fn unary(sender: &mut h2::client::SendRequest<Bytes>, message: &Bytes) -> Result<()> {
    let mut ready = sender.clone().ready().await?;
    let (response, mut body) = ready.send_request(call("/isthmus.bench.Echo/Unary")?, false)?;
    body.send_data(message.clone(), true)?;
    let response = response.await?;
    ensure!(response.status() == 200, "status {}", response.status());
    let mut answer = response.into_body();
    let mut bytes = 0;
    while let Some(chunk) = answer.data().await {
        let chunk = chunk?;
        bytes += chunk.len();
        answer.flow_control().release_capacity(chunk.len())?;
    }
    ensure!(bytes == message.len(), "{bytes} bytes came back");
    let trailers = answer
        .trailers()
        .await?
        .context("a call ends with trailers")?;
    let status = trailers.get("grpc-status").map(http::HeaderValue::as_bytes);
    ensure!(status == Some(b"0"), "grpc-status {status:?}");
    Ok(())
}

impl Streaming {
    async fn open(target: SocketAddr) -> Result<Self> {
        let mut sender = connect_http2(target).await?;
        let (response, calls) =
            sender.send_request(call("/isthmus.bench.Echo/Streaming")?, false)?;
        let response = response.await?;
        ensure!(response.status() == 200, "status {}", response.status());
        Ok(Self {
            _sender: sender,
            answers: response.into_body(),
            calls,
            message: message(),
        })
    }

    async fn exchange(&mut self) -> Result<()> {
        self.calls.send_data(self.message.clone(), false)?;
        let mut left = self.message.len();
        while left > 0 {
            let chunk = self.answers.data().await.context("the stream ended")??;
            self.answers.flow_control().release_capacity(chunk.len())?;
            left = left
                .checked_sub(chunk.len())
                .context("more came back than was sent")?;
        }
        Ok(())
    }
}
