//! A running server, asked by way of its admin endpoint.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::admin::CHANGE_HEADER;

/// Where the admin endpoint is unless it is told otherwise.
pub(super) const DEFAULT_SERVER: &str = "http://127.0.0.1:15014";

/// Versions by type URL and name.
pub(super) type Held = BTreeMap<String, BTreeMap<String, String>>;

/// Time between two packets, so that a server that hangs is noticed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of an answer. A dump is several times the size of the largest directory's scope at most.
const MAX_BYTES: u64 = 1 << 30;

/// Why the server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunningError {
    /// It answers something else.
    #[error("{server} answers with something that isthmus-xds would not say")]
    Answer { server: String },

    /// It says why it will not.
    #[error("{server} refuses: {reason}")]
    Refused { server: String, reason: String },

    /// It answers that it will not.
    #[error("{server} answers with status {status:?}")]
    Status { server: String, status: String },

    /// It cannot be reached.
    #[error("{server} cannot be asked: {source}")]
    Unreachable { server: String, source: io::Error },

    /// The URL is not one.
    #[error("{server:?} is not an address of the admin endpoint, such as http://127.0.0.1:15014")]
    Url { server: String },
}

#[derive(Debug, Deserialize)]
struct Dump {
    clients: Vec<serde::de::IgnoredAny>,
    scopes: Vec<Scope>,
}

#[derive(Debug, Deserialize)]
struct Scope {
    types: Vec<Type>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Type {
    resources: Vec<Named>,
    type_url: String,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    version: String,
}

/// What a request is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// `GET`
    Look,
    /// `POST`
    Change,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    error: String,
}

/// Asks for what the client `node` is served; `None` if it is not connected.
pub(super) fn held_by(server: &str, node: &str) -> Result<Option<Held>, RunningError> {
    let path = format!("/config_dump?node={}", percent_encode(node));
    let dump: Dump = ask(server, Purpose::Look, &path)?;
    if dump.clients.is_empty() {
        return Ok(None);
    }
    let mut versions_held = Held::new();
    for of_type in dump.scopes.into_iter().flat_map(|scope| scope.types) {
        let versions = of_type
            .resources
            .into_iter()
            .map(|it| (it.name, it.version));
        versions_held
            .entry(of_type.type_url)
            .or_default()
            .extend(versions);
    }
    Ok(Some(versions_held))
}

/// Sends one request and reads the JSON of the answer.
pub(super) fn ask<T: DeserializeOwned>(
    server: &str,
    purpose: Purpose,
    path: &str,
) -> Result<T, RunningError> {
    let server_name = || server.to_owned();
    let address = server
        .strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/'));
    let address = address.filter(|rest| !rest.is_empty() && !rest.contains('/'));
    let address = address.ok_or_else(|| RunningError::Url {
        server: server_name(),
    })?;
    let answer = exchange(address, purpose, path).map_err(|source| RunningError::Unreachable {
        server: server_name(),
        source,
    })?;
    let no_answer = || RunningError::Answer {
        server: server_name(),
    };
    let (head, body) = split_head(&answer).ok_or_else(no_answer)?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return serde_json::from_slice(body).map_err(|_| no_answer());
    }
    let server = server_name();
    if let Ok(Refusal { error }) = serde_json::from_slice(body) {
        let reason = error;
        return Err(RunningError::Refused { server, reason });
    }
    let status = status.to_owned();
    Err(RunningError::Status { server, status })
}

/// HTTP/1.0, so that the answer ends with the connection and has no chunks.
fn exchange(address: &str, purpose: Purpose, path: &str) -> io::Result<Vec<u8>> {
    let with_port = if address
        .rsplit(']')
        .next()
        .is_some_and(|rest| rest.contains(':'))
    {
        address.to_owned()
    } else {
        format!("{address}:80")
    };
    let mut stream = TcpStream::connect(with_port)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let (method, header) = match purpose {
        Purpose::Look => ("GET", String::new()),
        Purpose::Change => (
            "POST",
            format!("{CHANGE_HEADER}: 1\r\nContent-Length: 0\r\n"),
        ),
    };
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\n{header}\r\n"
    )?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

fn split_head(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = str::from_utf8(&answer[..end]).ok()?;
    Some((head, &answer[end + 4..]))
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    encoded
}
