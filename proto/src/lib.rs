//! Wire types: Envoy's messages and the descriptors of all of them.
//!
//! [`pb`] holds the generated Rust types, for code that speaks one message it knows. [`descriptor_pool`]
//! holds the descriptors, for code that handles any message: configuration in proto3 JSON is read by
//! descriptor, so no message has to be mapped by hand and nothing falls behind when Envoy gains a field.
//!
//! # Where the descriptors come from
//!
//! `descriptors.binpb` is a `google.protobuf.FileDescriptorSet` that is generated and committed. It holds
//! the set that the pinned `envoy-types` was generated from, byte for byte, and then what that lacks, compiled
//! from `third_party/` (`TypedStruct` and Envoy's contrib extensions) and `include/` (Isthmus's own). `envoy-types` carries its set
//! (`src/generated/types.bin`) but does not export it, so the other ways were a build script that asks
//! `cargo metadata` where the dependency's source lies, or one that compiles 500 `.proto` files. Both make
//! every build slower, and break where cargo may not be called or sources are laid out in another way (nix,
//! bazel, distribution packages). A committed file costs 3.4 MB once and needs nothing at build time.
//! `tests/descriptor_set.rs` holds it to its sources and makes it anew:
//!
//! ```text
//! UPDATE_DESCRIPTORS=1 cargo test -p isthmus-proto --test descriptor_set
//! ```
//!
//! Options are kept as protoc wrote them, so extensions of options can be read:
//!
//! ```
//! use isthmus_proto::descriptor_pool;
//!
//! let rules = descriptor_pool().get_extension_by_name("validate.rules").expect("PGV is in the pool");
//! let cluster = descriptor_pool().get_message_by_name("envoy.config.cluster.v3.Cluster").expect("in the pool");
//! let name = cluster.get_field_by_name("name").expect("a field");
//! assert!(name.options().has_extension(&rules));
//! ```

#![warn(missing_docs)]

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// Envoy's messages and services, by package: `pb::envoy::config::cluster::v3::Cluster`.
pub use envoy_types::pb;

/// Isthmus's own messages and services: the programmatic API of the xDS server.
///
/// The code is generated from `include/isthmus/xds/v1/control.proto` and committed. A test holds it to that, and
/// makes it anew:
///
/// ```text
/// UPDATE_GENERATED=1 cargo test -p isthmus-proto --test generated
/// ```
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "generated"
)]
pub mod control {
    include!("generated/isthmus.xds.v1.rs");
}

static DESCRIPTOR_SET: &[u8] = include_bytes!("../descriptors.binpb");

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTOR_SET)
        .expect("the committed descriptor set is whole: a test decodes it")
});

/// Returns the descriptors of every message that Envoy can be configured with, and of the `google.protobuf`
/// types that they use.
///
/// Made on first use, in some tens of milliseconds; free after that.
pub fn descriptor_pool() -> &'static DescriptorPool {
    &POOL
}
