//! Harness and tests that talk to a real kernel and a real Envoy.
