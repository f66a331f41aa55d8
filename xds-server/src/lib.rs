//! The xDS control plane: sources, gRPC services, admin endpoint.
