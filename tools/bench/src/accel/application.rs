//! The application behind the sidecar: small HTTP/1.1 answers, bulk both ways, and a gRPC echo, all on one port.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::http1::{self, Reader};
use super::workload::{BULK_BYTES, SMALL_BYTES};

/// Path of the answer of a mebibyte.
pub(super) const BULK_PATH: &str = "/bulk";

/// First bytes of an HTTP/2 connection (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may take for its first bytes.
const FIRST_BYTES: Duration = Duration::from_secs(10);

/// What to serve.
#[derive(Debug, clap::Args)]
pub(crate) struct ApplicationArgs {
    /// Address to listen on.
    #[arg(long)]
    listen: SocketAddr,
}

/// Serves until it is killed.
pub(crate) fn run(args: &ApplicationArgs) -> Result<()> {
    crate::process::raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(args.listen))
}

async fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("{listen} is not free"))?;
    println!("listening on {listen}");
    loop {
        let (stream, _) = listener.accept().await?;
        // A client that goes away in the middle is its own matter.
        tokio::spawn(async move { answer(stream).await });
    }
}

async fn answer(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut start = [0; HTTP2_PREFACE.len()];
    let seen = tokio::time::timeout(FIRST_BYTES, stream.peek(&mut start)).await??;
    // Three bytes tell: no method of HTTP/1.1 begins so.
    if seen >= 3 && HTTP2_PREFACE.starts_with(&start[..seen]) {
        answer_http2(stream).await
    } else {
        answer_http1(stream).await
    }
}

async fn answer_http1(mut stream: TcpStream) -> Result<()> {
    let small = http1::response(&[b'x'; SMALL_BYTES]);
    let bulk = http1::response(&vec![b'x'; BULK_BYTES]);
    let mut reader = Reader::default();
    let mut discarded = vec![0; 64 << 10];
    loop {
        let Some(head) = reader.head(&mut stream).await? else {
            return Ok(());
        };
        let mut body = head
            .content_length
            .saturating_sub(reader.take(head.content_length));
        while body > 0 {
            let room = discarded.len().min(body);
            let read = stream.read(&mut discarded[..room]).await?;
            anyhow::ensure!(read > 0, "the request ends in its body");
            body -= read;
        }
        let is_bulk = head.start.contains(BULK_PATH) && head.start.starts_with("GET");
        stream
            .write_all(if is_bulk { &bulk } else { &small })
            .await?;
        if head.is_last {
            return Ok(());
        }
    }
}

async fn answer_http2(stream: TcpStream) -> Result<()> {
    let mut builder = h2::server::Builder::new();
    let mut connection = builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        tokio::spawn(async move { echo(request, respond).await });
    }
    Ok(())
}

async fn echo(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<()> {
    let response = Response::builder()
        .header("content-type", "application/grpc")
        .body(())?;
    let mut out = respond.send_response(response, false)?;
    let mut body = request.into_body();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        out.send_data(chunk, false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    out.send_trailers(trailers)?;
    Ok(())
}
