//! Wire types: Envoy's messages and the descriptors of all of them.
