//! The targets for some seconds: inputs that broke something once, then mutations from a seed, so
//! that a failure comes again. `ISTHMUS_FUZZ_SECONDS` says how long each runs.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// How long a target runs by default, and how many inputs it takes at most in that time: what one
/// machine finds in CI another finds as well.
const SECONDS: u64 = 3;
const INPUTS: u64 = 20_000;

/// Length of an input at most.
const MAX_BYTES: usize = 600;

/// Inputs that others are made from.
const POOL: usize = 64;

#[test]
fn hostile_requests_neither_panic_nor_get_what_they_did_not_ask_for() {
    run(
        isthmus_fuzz::requests,
        include_str!("../corpus/requests.hex"),
    );
}

#[test]
fn hostile_frames_neither_panic_nor_make_a_connection_grow() {
    run(isthmus_fuzz::http2, include_str!("../corpus/http2.hex"));
}

#[test]
fn hostile_bodies_neither_panic_nor_break_the_framing() {
    run(isthmus_fuzz::grpc, include_str!("../corpus/grpc.hex"));
}

fn run(target: fn(&[u8]), corpus: &str) {
    let mut pool: Vec<Vec<u8>> = corpus.lines().map(bytes_of).collect();
    for input in &pool {
        try_one(target, input);
    }
    pool.push(vec![0; 32]);
    let asked = std::env::var("ISTHMUS_FUZZ_SECONDS").ok();
    let asked: Option<u64> = asked.map(|it| it.parse().expect("seconds"));
    let most = asked.map_or(INPUTS, |_| u64::MAX);
    let deadline = Instant::now() + Duration::from_secs(asked.unwrap_or(SECONDS));
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut tried = 0;
    while tried < most && Instant::now() < deadline {
        let input = mutated(&pool, &mut random);
        try_one(target, &input);
        // Without a measure of what is new, some are kept by chance.
        if random.below(16) == 0 {
            if pool.len() < POOL + corpus.lines().count() {
                pool.push(input);
            } else {
                let index = random.below(pool.len());
                pool[index] = input;
            }
        }
        tried += 1;
    }
    println!("{tried} inputs");
    assert!(tried > 100, "{tried} inputs are too few to mean anything");
}

fn try_one(target: fn(&[u8]), input: &[u8]) {
    let ended = std::panic::catch_unwind(|| target(input));
    if let Err(panic) = ended {
        let mut hex = String::new();
        for byte in input {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        eprintln!("for the corpus: {hex}");
        std::panic::resume_unwind(panic);
    }
}

fn mutated(pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = pool[random.below(pool.len())].clone();
    for _ in 0..=random.below(8) {
        let at = random.below(input.len() + 1);
        match random.below(6) {
            0 | 1 => {
                let added: Vec<u8> = (0..=random.below(12)).map(|_| random.byte()).collect();
                input.splice(at..at, added);
            }
            2 if at < input.len() => input[at] = random.byte(),
            3 if at < input.len() => input[at] ^= 1 << random.below(8),
            4 if at < input.len() => {
                let end = (at + 1 + random.below(8)).min(input.len());
                input.drain(at..end);
            }
            _ => {
                let other = &pool[random.below(pool.len())];
                let from = random.below(other.len() + 1);
                let part = other[from..].iter().take(40).copied();
                let part: Vec<u8> = part.collect();
                input.splice(at..at, part);
            }
        }
    }
    input.truncate(MAX_BYTES);
    input
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().as_chunks::<2>().0;
    let byte = |pair: &[u8; 2]| {
        let text = std::str::from_utf8(pair).expect("hexadecimal digits");
        u8::from_str_radix(text, 16).expect("hexadecimal digits")
    };
    digits.iter().map(byte).collect()
}

/// Marsaglia's xorshift: the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[1]
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % bound.max(1)
    }
}
