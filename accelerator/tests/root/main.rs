//! Tests on real network namespaces. Need root and iproute2.

mod following;
mod lookups;
mod netns;
