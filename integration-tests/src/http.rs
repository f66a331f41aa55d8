//! A blocking HTTP/1.1 client, small enough that a test knows what it sends and why a request failed.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};

/// Longest body that is read: the admin interface of a proxy prints its whole configuration.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Most header lines of a response.
const MAX_HEADERS: usize = 200;

/// A connection that requests are sent over, one after the other.
#[derive(Debug)]
pub struct HttpConnection<S> {
    stream: BufReader<S>,
}

/// What came back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Whether the connection takes another request.
    pub is_reusable: bool,
    /// Status code.
    pub status: u16,
}

impl Response {
    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl<S: Read + Write> HttpConnection<S> {
    /// Uses a connected stream.
    pub fn new(stream: S) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Sends a request without a body and reads the whole response.
    ///
    /// # Errors
    ///
    /// What the stream says, or `InvalidData` when the peer does not speak HTTP/1.1.
    pub fn request(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        headers: &str,
    ) -> io::Result<Response> {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n");
        self.stream.get_mut().write_all(head.as_bytes())?;
        self.response()
    }

    fn response(&mut self) -> io::Result<Response> {
        let status_line = self.line()?;
        let status =
            parse_status(&status_line).ok_or_else(|| malformed("status line", &status_line))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| malformed("header", &line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            if headers.len() > MAX_HEADERS {
                return Err(malformed("number of headers", &line));
            }
        }
        let mut response = Response {
            body: Vec::new(),
            headers,
            is_reusable: true,
            status,
        };
        response.is_reusable = response.header("connection") != Some("close");
        self.read_body(&mut response)?;
        Ok(response)
    }

    fn read_body(&mut self, response: &mut Response) -> io::Result<()> {
        if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.line()?;
                let size =
                    usize::from_str_radix(&line, 16).map_err(|_| malformed("chunk size", &line))?;
                self.read_exactly(size, &mut response.body)?;
                self.line()?;
                if size == 0 {
                    return Ok(());
                }
            }
        }
        let length = response.header("content-length").unwrap_or("0");
        let length = length
            .parse()
            .map_err(|_| malformed("content-length", length))?;
        self.read_exactly(length, &mut response.body)
    }

    fn read_exactly(&mut self, length: usize, body: &mut Vec<u8>) -> io::Result<()> {
        let start = body.len();
        if length > MAX_BODY_BYTES - start.min(MAX_BODY_BYTES) {
            return Err(malformed("body length", &length.to_string()));
        }
        body.resize(start + length, 0);
        self.stream.read_exact(&mut body[start..])
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "the peer closed the connection",
            ));
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}

fn parse_status(line: &str) -> Option<u16> {
    line.strip_prefix("HTTP/1.1 ")?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

fn malformed(what: &str, found: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{what} {found:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Canned {
        reply: io::Cursor<Vec<u8>>,
    }

    impl Read for Canned {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.reply.read(buffer)
        }
    }

    impl Write for Canned {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn responses_are_read_to_their_end() {
        struct Case {
            name: &'static str,
            reply: &'static str,
            expected: Option<(u16, &'static str, bool)>,
        }
        let cases = [
            Case {
                name: "length",
                reply: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
                expected: Some((200, "abc", true)),
            },
            Case {
                name: "chunks",
                reply: "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
                expected: Some((200, "abc", true)),
            },
            Case {
                name: "no body, last on its connection",
                reply: "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\n",
                expected: Some((503, "", false)),
            },
            Case {
                name: "cut",
                reply: "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
                expected: None,
            },
            Case {
                name: "closed",
                reply: "",
                expected: None,
            },
            Case {
                name: "not HTTP",
                reply: "SSH-2.0-x\r\n\r\n",
                expected: None,
            },
        ];
        for Case {
            name,
            reply,
            expected,
        } in cases
        {
            let mut connection = HttpConnection::new(Canned {
                reply: io::Cursor::new(reply.into()),
            });
            let response = connection.request("GET", "a", "/", "").ok();
            let found =
                response.map(|response| (response.status, response.text(), response.is_reusable));
            assert_eq!(
                found,
                expected.map(|(status, body, reusable)| (status, body.to_owned(), reusable)),
                "{name}"
            );
        }
    }
}
