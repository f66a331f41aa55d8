//! What users write and read: configuration documents, and nothing that acts on them.
//!
//! Invariant: no I/O, no clock, no log. A type here says what a document may hold; what it means to the
//! running system is the business of whoever reads it.

#![warn(missing_docs)]

pub mod envoy_resources;
pub mod node_config;

/// The `apiVersion` of every document of this crate.
pub const API_VERSION: &str = "isthmus.io/v1alpha1";
