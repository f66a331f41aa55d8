//! `isthmus_fuzz::http2` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| isthmus_fuzz::http2(data));
