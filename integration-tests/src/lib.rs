//! Harness and tests that talk to a real kernel and a real Envoy.
//!
//! A [`lab::NetnsLab`] is a node with pods as network namespaces; a [`mesh::Mesh`] runs the control plane, a sidecar in
//! each pod and an application in it. Everything is removed when it is dropped, also after a panic, and what a killed
//! test left is removed by the next one.
//!
//! ```text
//!   node (198.18.0.1)            isthmus-xds :15010, admin :15014
//!     └─ bridge ─┬─ pod client   Envoy as 1337: 15001, 15006; load from here to 198.19.0.10:80
//!                └─ pod server   Envoy as 1337: 15001, 15006; nginx :8080
//! ```
//!
//! Invariant: nothing here touches the network of the machine; every address is of 198.18.0.0/15 inside a namespace
//! that the lab made, or on loopback.

#![forbid(unsafe_code)]

pub mod accelerator;
pub mod backend;
pub mod bpftool;
pub mod control_plane;
pub mod envoy;
pub mod grpc_peer;
pub mod http;
pub mod iptables;
pub mod istio;
pub mod lab;
pub mod load;
pub mod loopback;
pub mod mesh;
pub mod netns;
pub mod nginx;
pub mod process;
pub mod programs;
pub mod shell;
pub mod sidecar;
pub mod wait;
pub mod wrk;
