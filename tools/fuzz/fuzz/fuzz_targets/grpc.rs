//! `isthmus_fuzz::grpc` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| isthmus_fuzz::grpc(data));
