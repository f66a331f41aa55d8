//! The Huffman code of HPACK (RFC 7541, section 5.2 and appendix B), decoding only: what we send is sent as it is.
//!
//! The code is canonical: codes of one length are consecutive and ordered by symbol, so that the lengths say it all.

/// Symbols: the bytes, and the end of string.
const SYMBOLS: usize = 257;

/// The symbol that pads; whole, it is an error.
const END_OF_STRING: u16 = 256;

/// Lengths of the shortest and of the longest code.
const SHORTEST_BITS: usize = 5;
const LONGEST_BITS: usize = 30;

/// Bits of each symbol's code.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// Codes of one length: where they begin, how many there are, and where their symbols are.
#[derive(Clone, Copy)]
struct Run {
    first: u32,
    count: u32,
    offset: u32,
}

const RUNS: [Run; LONGEST_BITS + 1] = runs();
const ORDERED: [u16; SYMBOLS] = ordered();

const fn runs() -> [Run; LONGEST_BITS + 1] {
    let mut runs = [Run {
        first: 0,
        count: 0,
        offset: 0,
    }; LONGEST_BITS + 1];
    let mut symbol = 0;
    while symbol < SYMBOLS {
        runs[LENGTHS[symbol] as usize].count += 1;
        symbol += 1;
    }
    let mut bits = 1;
    while bits <= LONGEST_BITS {
        let shorter = runs[bits - 1];
        runs[bits].first = (shorter.first + shorter.count) << 1;
        runs[bits].offset = shorter.offset + shorter.count;
        bits += 1;
    }
    runs
}

#[allow(clippy::cast_possible_truncation, reason = "symbols are below 257")]
const fn ordered() -> [u16; SYMBOLS] {
    let mut ordered = [0; SYMBOLS];
    let mut next = 0;
    let mut bits = 1;
    while bits <= LONGEST_BITS {
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == bits {
                ordered[next] = symbol as u16;
                next += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    ordered
}

/// Appends what `coded` stands for; `None` if it is no code, or not padded as it must be.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut bits: u64 = 0;
    let mut held = 0;
    let mut input = coded.iter();
    loop {
        while held <= 32
            && let Some(&byte) = input.next()
        {
            bits = bits << 8 | u64::from(byte);
            held += 8;
        }
        let Some((symbol, used)) = first_symbol(bits, held) else {
            break;
        };
        if symbol == END_OF_STRING {
            return None;
        }
        out.push(u8::try_from(symbol).ok()?);
        held -= used;
    }
    // What is left is the beginning of the end of string: fewer than eight ones.
    let rest = bits & ((1 << held) - 1);
    (held < 8 && rest == (1 << held) - 1).then_some(())
}

// The symbol that the upper of `held` low bits begin with, and its length.
fn first_symbol(bits: u64, held: usize) -> Option<(u16, usize)> {
    for (length, run) in RUNS.iter().enumerate().take(held + 1).skip(SHORTEST_BITS) {
        let code = u32::try_from(bits >> (held - length) & ((1 << length) - 1)).ok()?;
        if let Some(index) = code.checked_sub(run.first)
            && index < run.count
        {
            return Some((ORDERED[(run.offset + index) as usize], length));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(hex: &str) -> Option<String> {
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        let mut out = Vec::new();
        decode(&bytes, &mut out)?;
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn strings_of_the_rfc_decode() {
        // RFC 7541, appendix C.4 and C.6.
        let cases = [
            ("", ""),
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("6402", "302"),
            ("aec3771a4b", "private"),
            (
                "d07abe941054d444a8200595040b8166e082a62d1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            ("9bd9ab", "gzip"),
            (
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ),
        ];
        for (hex, text) in cases {
            assert_eq!(decoded(hex).as_deref(), Some(text), "{hex}");
        }
    }

    #[test]
    fn wrong_padding_is_refused() {
        let cases = [
            ("a whole end of string", "ffffffff"),
            ("eight bits of padding", "1fff"),
            ("padding of zeros", "18"),
        ];
        for (name, hex) in cases {
            assert_eq!(decoded(hex), None, "{name}");
        }
    }

    #[test]
    fn every_symbol_is_found_by_its_own_code() {
        for (length, run) in RUNS.iter().enumerate() {
            for index in 0..run.count {
                let code = u64::from(run.first + index);
                let symbol = ORDERED[(run.offset + index) as usize];
                assert_eq!(first_symbol(code, length), Some((symbol, length)));
            }
        }
        assert_eq!(
            first_symbol((1 << 30) - 1, 30),
            Some((END_OF_STRING, 30)),
            "the code is complete"
        );
    }
}
