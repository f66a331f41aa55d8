//! The xDS control plane: sources, gRPC services, admin endpoint.

pub mod config_dir;
