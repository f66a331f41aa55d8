//! Header fields of responses: static names, literal values, nothing that a table must remember.

use http::{HeaderMap, StatusCode};

use super::table::STATIC;

/// `:status`, as a whole entry of the static table where there is one.
pub(crate) fn encode_status(status: StatusCode, out: &mut Vec<u8>) {
    let known = STATIC.iter().skip(FIRST_STATUS).take(STATUSES);
    let index = known
        .clone()
        .position(|(_, value)| *value == status.as_str());
    if let Some(index) = index {
        put_integer(FIRST_STATUS + index + 1, 7, 0x80, out);
    } else {
        put_integer(FIRST_STATUS + 1, 4, 0, out);
        put_string(status.as_str().as_bytes(), out);
    }
}

const FIRST_STATUS: usize = 7;
const STATUSES: usize = 7;

/// All fields but those that mean something on one connection of HTTP/1 only (RFC 9113, section
/// 8.2.2).
pub(crate) fn encode_fields(fields: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in fields {
        let name = name.as_str();
        if super::is_connection_specific(name.as_bytes()) {
            continue;
        }
        if let Some(index) = STATIC.iter().position(|(known, _)| *known == name) {
            put_integer(index + 1, 4, 0, out);
        } else {
            out.push(0);
            put_string(name.as_bytes(), out);
        }
        put_string(value.as_bytes(), out);
    }
}

fn put_integer(value: usize, prefix_bits: u8, flags: u8, out: &mut Vec<u8>) {
    let most = (1_usize << prefix_bits) - 1;
    let low = |value: usize| u8::try_from(value & 0x7f).unwrap_or_default();
    if value < most {
        out.push(flags | low(value));
        return;
    }
    out.push(flags | low(most));
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(0x80 | low(rest));
        rest >>= 7;
    }
    out.push(low(rest));
}

fn put_string(text: &[u8], out: &mut Vec<u8>) {
    put_integer(text.len(), 7, 0, out);
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::super::Decoder;
    use super::*;

    #[test]
    fn what_is_encoded_decodes() {
        for status in [200, 204, 404, 418, 500, 503] {
            let status = StatusCode::from_u16(status).unwrap();
            let mut fields = HeaderMap::new();
            fields.insert("content-type", HeaderValue::from_static("application/grpc"));
            fields.insert("grpc-status", HeaderValue::from_static("14"));
            fields.append("set-cookie", HeaderValue::from_static("a"));
            fields.append("set-cookie", HeaderValue::from_static("b"));
            fields.insert("connection", HeaderValue::from_static("close"));
            let long = "m".repeat(70_000);
            fields.insert("grpc-message", HeaderValue::from_str(&long).unwrap());
            let mut block = Vec::new();
            encode_status(status, &mut block);
            encode_fields(&fields, &mut block);

            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            decoder
                .decode(&block, |name, value| seen.push((text(name), text(value))))
                .unwrap();
            let mut expected = vec![(":status".to_owned(), status.as_str().to_owned())];
            fields.remove("connection");
            expected.extend(fields.iter().map(|(name, value)| {
                (name.as_str().to_owned(), value.to_str().unwrap().to_owned())
            }));
            assert_eq!(seen, expected);
            decoder.drop_table();
            assert!(decoder.decode(&[0xbe], |_, _| {}).is_err(), "no table");
        }
    }

    #[test]
    fn common_statuses_are_one_byte() {
        let mut out = Vec::new();
        encode_status(StatusCode::OK, &mut out);
        assert_eq!(out, [0x88]);
    }
}
