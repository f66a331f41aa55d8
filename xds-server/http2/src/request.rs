//! Header fields as a request, or why they are none (RFC 9113, section 8).

use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri, Version};

use crate::hpack::is_connection_specific;
use crate::limits;

/// What is taken as the size of a field beside its bytes (section 6.5.2).
const FIELD_OVERHEAD_BYTES: usize = 32;

/// Why there is no request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// It breaks the rules of section 8.
    Malformed,
    /// The list is larger than [`limits::HEADER_LIST_BYTES`].
    TooLarge,
}

/// The fields of one block, as they are decoded.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Box<[u8]>>,
    path: Option<PathAndQuery>,
    has_pseudo: bool,
    headers: HeaderMap,
    size_bytes: usize,
    fault: Option<Fault>,
}

impl Fields {
    /// Takes the next field. After a fault the rest is counted and not kept.
    pub(crate) fn handle(&mut self, name: &[u8], value: &[u8]) {
        self.size_bytes += name.len() + value.len() + FIELD_OVERHEAD_BYTES;
        if self.size_bytes > limits::HEADER_LIST_BYTES as usize {
            self.fault.get_or_insert(Fault::TooLarge);
        }
        if self.fault.is_some() {
            return;
        }
        let taken = match name.split_first() {
            Some((b':', pseudo)) => self.take_pseudo(pseudo, value),
            _ => self.take_header(name, value),
        };
        if taken.is_none() {
            self.fault = Some(Fault::Malformed);
        }
    }

    /// The request, without its body.
    pub(crate) fn into_request(self) -> Result<Parts, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let (Some(method), Some(scheme), Some(path)) = (self.method, self.scheme, self.path) else {
            return Err(Fault::Malformed);
        };
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = Some(path);
        // gRPC clients of a Unix socket send its path, which is no authority: do without.
        let authority = self.authority.as_deref();
        if let Some(authority) = authority.and_then(|it| Authority::try_from(it).ok()) {
            uri.scheme = Some(scheme);
            uri.authority = Some(authority);
        }
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = method;
        parts.uri = Uri::from_parts(uri).map_err(|_| Fault::Malformed)?;
        parts.version = Version::HTTP_2;
        parts.headers = self.headers;
        Ok(parts)
    }

    /// The trailers, which have no pseudo-header fields (section 8.1).
    pub(crate) fn into_trailers(self) -> Result<HeaderMap, Fault> {
        match self.fault {
            Some(fault) => Err(fault),
            None if self.has_pseudo => Err(Fault::Malformed),
            None => Ok(self.headers),
        }
    }

    fn take_pseudo(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        // They come first, and once each (section 8.3).
        if !self.headers.is_empty() {
            return None;
        }
        self.has_pseudo = true;
        let is_repeated = match name {
            b"method" => {
                let method = Method::from_bytes(value).ok()?;
                // A tunnel has neither scheme nor path, and there is none to be had.
                if method == Method::CONNECT {
                    return None;
                }
                self.method.replace(method).is_some()
            }
            b"scheme" => self.scheme.replace(Scheme::try_from(value).ok()?).is_some(),
            b"authority" => self.authority.replace(value.into()).is_some(),
            b"path" if value.starts_with(b"/") || value == b"*" => {
                let path = PathAndQuery::try_from(value).ok()?;
                self.path.replace(path).is_some()
            }
            _ => return None,
        };
        (!is_repeated).then_some(())
    }

    fn take_header(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        let is_lower = !name.iter().any(u8::is_ascii_uppercase);
        if !is_lower || is_connection_specific(name) || (name == b"te" && value != b"trailers") {
            return None;
        }
        let name = HeaderName::from_bytes(name).ok()?;
        let value = HeaderValue::from_bytes(value).ok()?;
        self.headers.append(name, value);
        Some(())
    }
}

/// How long the body says it is; `Err` if it says so twice or in no number.
pub(crate) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Fault> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Fault::Malformed);
    }
    let digits = value.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Fault::Malformed);
    }
    let text = value.to_str().map_err(|_| Fault::Malformed)?;
    text.parse().map(Some).map_err(|_| Fault::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&str, &str)]) -> Result<Parts, Fault> {
        let mut all = Fields::default();
        for (name, value) in fields {
            all.handle(name.as_bytes(), value.as_bytes());
        }
        all.into_request()
    }

    const START: [(&str, &str); 3] = [(":method", "POST"), (":scheme", "http"), (":path", "/s/M")];

    #[test]
    fn requests_keep_what_they_say() {
        let parts =
            request(&[&START[..], &[(":authority", "a_b:80"), ("te", "trailers")]].concat());
        let parts = parts.unwrap();
        assert_eq!(parts.uri, "http://a_b:80/s/M");
        assert_eq!(parts.method, Method::POST);
        assert_eq!(parts.headers["te"], "trailers");
        let parts = request(&[&START[..], &[(":authority", "/run/xds.sock")]].concat()).unwrap();
        assert_eq!(parts.uri, "/s/M", "a socket's path is no authority");
    }

    #[test]
    fn what_is_no_request_is_malformed() {
        let cases: [(&str, &[(&str, &str)]); 12] = [
            ("nothing", &[]),
            ("no path", &[(":method", "POST"), (":scheme", "http")]),
            ("no scheme", &[(":method", "POST"), (":path", "/")]),
            ("no method", &[(":scheme", "http"), (":path", "/")]),
            ("an empty path", &[(":path", "")]),
            ("a pseudo-header twice", &[(":path", "/"), (":path", "/")]),
            (
                "a pseudo-header after a header",
                &[("a", "b"), (":path", "/")],
            ),
            ("one of responses", &[(":status", "200")]),
            ("upper case", &[("A", "b")]),
            ("connection", &[("connection", "close")]),
            ("te", &[("te", "gzip")]),
            ("a line break", &[("a", "b\r\nc: d")]),
        ];
        for (name, fields) in cases {
            let fields = match fields.first() {
                Some((first, _)) if !first.starts_with(':') => [&START[..], fields].concat(),
                _ => fields.to_vec(),
            };
            assert_eq!(request(&fields).unwrap_err(), Fault::Malformed, "{name}");
        }
    }

    #[test]
    fn long_lists_are_counted_and_not_kept() {
        let mut fields = Fields::default();
        for _ in 0..1000 {
            fields.handle(b"name", &[b'v'; 100]);
        }
        assert!(fields.headers.len() < 200);
        assert_eq!(fields.into_request().unwrap_err(), Fault::TooLarge);
    }

    #[test]
    fn trailers_have_no_pseudo_headers() {
        let mut fields = Fields::default();
        fields.handle(b":path", b"/");
        assert_eq!(fields.into_trailers().unwrap_err(), Fault::Malformed);
    }
}
