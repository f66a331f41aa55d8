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
#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
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
