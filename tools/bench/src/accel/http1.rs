//! As much of HTTP/1.1 as the load needs: heads, and bodies with a length.

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest head that is taken.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Room for what one read may bring.
const READ_BYTES: usize = 4 << 10;

/// A response with this body.
pub(super) fn response(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// What stands before a body.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Head {
    /// Request line or status line.
    pub(super) start: String,
    /// Bytes of the body.
    pub(super) content_length: usize,
    /// Whether the connection ends with this message.
    pub(super) is_last: bool,
}

/// Reads messages from a connection, and keeps what it has read too much.
#[derive(Debug, Default)]
pub(super) struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    /// Reads the next head; `None` if the connection ended before it began.
    pub(super) async fn head(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<Head>> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                let head = parse(&self.buffer[..end])?;
                self.buffer.drain(..end + 4);
                return Ok(Some(head));
            }
            ensure!(self.buffer.len() < MAX_HEAD_BYTES, "the head is too long");
            self.buffer.reserve(READ_BYTES);
            if stream.read_buf(&mut self.buffer).await? == 0 {
                ensure!(self.buffer.is_empty(), "the connection ends in a head");
                return Ok(None);
            }
        }
    }

    /// Takes up to `wanted` bytes of what was read already; returns how many.
    pub(super) fn take(&mut self, wanted: usize) -> usize {
        let taken = wanted.min(self.buffer.len());
        self.buffer.drain(..taken);
        taken
    }
}

fn parse(bytes: &[u8]) -> Result<Head> {
    let text = std::str::from_utf8(bytes).context("the head is no text")?;
    let mut lines = text.split("\r\n");
    let start = lines.next().unwrap_or_default().to_owned();
    let mut head = Head {
        start,
        content_length: 0,
        is_last: false,
    };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            head.content_length = value.parse().context("the length of the body")?;
        } else if name.eq_ignore_ascii_case("connection") {
            head.is_last = value.eq_ignore_ascii_case("close");
        } else {
            ensure!(
                !name.eq_ignore_ascii_case("transfer-encoding"),
                "a body without a length: the load measures none"
            );
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_read_one_by_one() {
        let mut bytes = response(b"abc");
        bytes.extend_from_slice(b"HTTP/1.1 503 No\r\nConnection: close\r\n\r\n");
        let mut stream = &bytes[..];
        let mut reader = Reader::default();
        let first = reader
            .head(&mut stream)
            .await
            .expect("a head")
            .expect("one");
        assert_eq!((first.content_length, first.is_last), (3, false));
        assert_eq!(reader.take(3), 3);
        let second = reader
            .head(&mut stream)
            .await
            .expect("a head")
            .expect("one");
        assert_eq!(second.start, "HTTP/1.1 503 No");
        assert!(second.is_last);
        assert_eq!(reader.head(&mut stream).await.expect("the end"), None);
    }

    #[tokio::test]
    async fn what_cannot_be_measured_is_refused() {
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(Reader::default().head(&mut &chunked[..]).await.is_err());
        let half = b"HTTP/1.1 200";
        assert!(Reader::default().head(&mut &half[..]).await.is_err());
    }
}
