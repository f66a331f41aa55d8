//! HPACK (RFC 7541): a decoder with the table that the RFC asks for, and an encoder without one.

mod encode;
mod huffman;
mod table;

pub(crate) use encode::{encode_fields, encode_status};
use table::DynamicTable;

/// Size of a peer's table before it has heard of our settings (RFC 9113, section 6.5.2).
const DEFAULT_TABLE_BYTES: usize = 4096;

/// A block of header fields cannot be read, and nothing on the connection can from here on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a header block that is not HPACK")]
pub(crate) struct CompressionError;

/// Reads header blocks. Idle it holds what the peer has put into its table, which is nothing once
/// the peer has acknowledged [`Decoder::drop_table`].
#[derive(Debug)]
pub(crate) struct Decoder {
    table: DynamicTable,
    limit_bytes: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            table: DynamicTable::new(DEFAULT_TABLE_BYTES),
            limit_bytes: DEFAULT_TABLE_BYTES,
        }
    }
}

impl Decoder {
    /// The peer has acknowledged that there is no table: its next block says so first, thus
    /// nothing can refer to what is in it.
    pub(crate) fn drop_table(&mut self) {
        self.limit_bytes = 0;
        self.table.resize(0);
    }

    /// Reads a whole block and hands out each field, name and value.
    pub(crate) fn decode(
        &mut self,
        mut block: &[u8],
        mut on_field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), CompressionError> {
        let (mut name, mut value) = (Vec::new(), Vec::new());
        let mut is_at_start = true;
        while let Some(&first) = block.first() {
            match first {
                // Indexed.
                0x80.. => {
                    let number = take_integer(&mut block, 7)?;
                    let (name, value) = self.table.get(number).ok_or(CompressionError)?;
                    on_field(name, value);
                    is_at_start = false;
                }
                // The size of the table, at the beginning of a block only.
                0x20..=0x3f => {
                    let size_bytes = take_integer(&mut block, 5)?;
                    if !is_at_start || size_bytes > self.limit_bytes {
                        return Err(CompressionError);
                    }
                    self.table.resize(size_bytes);
                }
                // Literal: to be added to the table, not to be added, never to be.
                0x00..=0x1f | 0x40..=0x7f => {
                    let is_added = first >= 0x40;
                    let number = take_integer(&mut block, if is_added { 6 } else { 4 })?;
                    name.clear();
                    if number == 0 {
                        take_string(&mut block, &mut name)?;
                    } else {
                        let (known, _) = self.table.get(number).ok_or(CompressionError)?;
                        name.extend_from_slice(known);
                    }
                    value.clear();
                    take_string(&mut block, &mut value)?;
                    if is_added {
                        self.table.insert(&name, &value);
                    }
                    on_field(&name, &value);
                    is_at_start = false;
                }
            }
        }
        Ok(())
    }
}

/// Whether a field means something on one connection of HTTP/1 only (RFC 9113, section 8.2.2).
pub(crate) fn is_connection_specific(name: &[u8]) -> bool {
    matches!(
        name,
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade"
    )
}

// RFC 7541, section 5.1. Bounded at 28 bits beyond the prefix: nothing here is that long.
fn take_integer(block: &mut &[u8], prefix_bits: u8) -> Result<usize, CompressionError> {
    let most = (1 << prefix_bits) - 1;
    let (first, mut rest) = block.split_first().ok_or(CompressionError)?;
    let mut value = usize::from(first & most);
    if value == usize::from(most) {
        let mut shift = 0;
        loop {
            let (byte, after) = rest.split_first().ok_or(CompressionError)?;
            rest = after;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return Err(CompressionError);
            }
        }
    }
    *block = rest;
    Ok(value)
}

fn take_string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let is_coded = block.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = take_integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or(CompressionError)?;
    if is_coded {
        huffman::decode(text, out).ok_or(CompressionError)?;
    } else {
        out.extend_from_slice(text);
    }
    *block = rest;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let hex: String = hex.split_whitespace().collect();
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    fn decode(decoder: &mut Decoder, hex: &str) -> Result<Vec<String>, CompressionError> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.decode(&bytes(hex), |name, value| {
            fields.push(format!("{}={}", text(name), text(value)));
        })?;
        Ok(fields)
    }

    #[test]
    fn three_requests_of_the_rfc_use_the_table() {
        // RFC 7541, appendix C.3 and, with Huffman codes, C.4.
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let coded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::default();
            assert_eq!(
                decode(&mut decoder, blocks[0]).unwrap(),
                [
                    ":method=GET",
                    ":scheme=http",
                    ":path=/",
                    ":authority=www.example.com"
                ]
            );
            assert_eq!(
                decode(&mut decoder, blocks[1]).unwrap()[3..],
                [":authority=www.example.com", "cache-control=no-cache"]
            );
            assert_eq!(
                decode(&mut decoder, blocks[2]).unwrap()[1..],
                [
                    ":scheme=https",
                    ":path=/index.html",
                    ":authority=www.example.com",
                    "custom-key=custom-value"
                ]
            );
            decoder.drop_table();
            assert_eq!(decode(&mut decoder, "be"), Err(CompressionError));
        }
    }

    #[test]
    fn blocks_that_are_not_hpack_are_refused() {
        let cases = [
            ("number 0", "80"),
            ("a number above both tables", "be"),
            ("a number that never ends", "ff ff ff ff ff ff ff ff 7f"),
            ("a number without its end", "ff"),
            ("a string longer than the block", "00 05 61"),
            ("a name above both tables", "7f 10 00"),
            ("a table larger than allowed", "3f e2 1f"),
            ("a size of the table after a field", "82 20"),
            ("wrong padding", "00 81 00 00"),
        ];
        for (name, block) in cases {
            let mut decoder = Decoder::default();
            assert_eq!(decode(&mut decoder, block), Err(CompressionError), "{name}");
        }
    }

    #[test]
    fn sizes_up_to_the_limit_are_taken() {
        let mut decoder = Decoder::default();
        assert_eq!(
            decode(&mut decoder, "20 3f e1 1f 82").unwrap(),
            [":method=GET"]
        );
        decoder.drop_table();
        assert_eq!(decode(&mut decoder, "20 82").unwrap(), [":method=GET"]);
        assert!(decode(&mut decoder, "21 82").is_err(), "there is no table");
        assert_eq!(
            decode(&mut decoder, "40 01 61 01 62").unwrap(),
            ["a=b"],
            "what is too large for the table is read all the same"
        );
        assert!(decode(&mut decoder, "be").is_err());
    }
}
