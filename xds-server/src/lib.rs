//! The xDS control plane: a configuration source, the discovery services and an admin endpoint
//! around the pure core of `isthmus-xds-core`.
//!
//! Invariant: what decides which bytes a client gets is in the core; this crate reads, decodes,
//! times, counts and logs.
//!
//! ```text
//!  DIR ──config_dir──▶ documents ──▶ Plane ──(who wants what)──▶ grpc::session ──▶ Envoy
//!                                      └──▶ admin: /livez /readyz /metrics /config_dump
//! ```
//!
//! # As a library
//!
//! A program can have the control plane built in, and say what is served by itself, as others do with
//! go-control-plane's cache. [`Server`] binds and serves, [`Plane`] is what it serves: a [`Commit`](core::Commit) of
//! documents is in force whole, as one generation, or not at all. [`resources`] names and checks what goes into a
//! document, and [`convergence`] tells which clients have it.
//!
//! ```
//! use isthmus_proto::pb::envoy::config::cluster::v3::Cluster;
//! use isthmus_xds::core::{Commit, Document, Name, Source};
//! use isthmus_xds::{Plane, Selector, resources};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! const SOURCE: Source = Source::named("my-program");
//!
//! let cluster = Cluster { name: "backend".to_owned(), ..Cluster::default() };
//! let document = Document {
//!     name: Name::from("web"),
//!     // Every client; else those of an id, a cluster, an identity, a locality, metadata.
//!     selector: Selector::default(),
//!     resources: vec![resources::draft_of(&cluster)?],
//! };
//! let plane = Plane::new();
//! let set = plane.commit(Commit::new(SOURCE).set(document))?;
//! assert_eq!((set.generation, set.resources.len()), (1, 1));
//!
//! // What is so already changes nothing and wakes nobody.
//! let same = Commit::new(SOURCE).patch("web", vec![resources::draft_of(&cluster)?], Vec::new());
//! assert_eq!(plane.commit(same)?.generation, 1);
//!
//! let progress = plane.convergence.progress(1).expect("it is among the last");
//! assert!(progress.is_converged, "there are no clients to wait for");
//! # Ok(())
//! # }
//! ```
//!
//! `examples/embedded.rs` serves it on loopback, changes an endpoint and waits for the client's ACK. The same calls over
//! gRPC, from any language, are [`api`].
#![forbid(unsafe_code)]

pub mod admin;
mod admission;
pub mod api;
mod canary;
pub mod cli;
pub mod clients;
pub mod commands;
pub mod config_dir;
pub mod convergence;
pub mod documents;
pub mod grpc;
mod heap;
pub mod history;
pub mod http2;
mod interest;
pub mod loads;
pub mod metrics;
pub mod nacks;
pub mod plane;
pub mod provenance;
pub mod quarantine;
pub mod redact;
pub mod reload;
pub mod resources;
mod scope;
pub mod server;
pub mod services;
pub mod transport;
pub mod validate;

pub use isthmus_api::envoy_resources::Selector;
pub use isthmus_xds_core as core;

pub use cli::Cli;
pub use plane::Plane;
pub use server::Server;
