//! What hostile bytes must not do to the xDS server: one function a target, which takes any bytes
//! and panics if an invariant is broken.
//!
//! `tests/targets.rs` runs them for seconds, from a seed, on every build. With libFuzzer, which
//! needs nightly and `cargo install cargo-fuzz`, they run for as long as one likes:
//!
//! ```text
//! cd tools/fuzz && cargo +nightly fuzz run requests -- -max_total_time=600
//! ```
//!
//! An input that broke something goes into `corpus/<target>.hex`, a line each; tests replay them.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod grpc;
mod http2;
mod input;
mod requests;

pub use grpc::grpc;
pub use http2::http2;
pub use requests::requests;
