//! Wire types: Envoy's messages and the descriptors of all of them.
//!
//! [`pb`] holds the generated Rust types, for code that speaks one message it knows. [`descriptor_pool`]
//! holds the descriptors, for code that handles any message: configuration in proto3 JSON is read by
//! descriptor, so no message has to be mapped by hand and nothing falls behind when Envoy gains a field.

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

pub use envoy_types::pb;
pub use prost_reflect;

static DESCRIPTOR_SET: &[u8] = include_bytes!("../descriptors/envoy.binpb");

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTOR_SET)
        .expect("the committed descriptor set is whole: a test decodes it")
});

/// Returns the descriptors of every message that Envoy can be configured with, made on first use.
pub fn descriptor_pool() -> &'static DescriptorPool {
    &POOL
}
