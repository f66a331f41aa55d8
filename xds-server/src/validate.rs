//! What Envoy would refuse, found before it is sent: the rules in Envoy's own descriptors, and what
//! resources refer to.
//!
//! Everything here works on encoded messages, so it serves any source of configuration. Rules are those of
//! protoc-gen-validate as the C++ that Envoy is built with applies them; nothing is written by hand for a
//! message, so a newer set of descriptors brings its rules along.
//!
//! ```text
//!  descriptors ─plan─▶ rules per message (once a process)
//!                           │
//!  bytes ──wire──▶ fields ──┴─rules──▶ Violation { path, requirement }
//!         └───────────────── references ──▶ Reference { path, target, name }, Binding { path, address }
//! ```

pub mod path;
mod plan;
mod range;
pub mod references;
pub mod requirement;
pub mod rules;
mod text;
mod wire;

/// Levels of nested messages that are followed. Envoy's own parser stops there.
pub const MAX_DEPTH: usize = 100;

/// Violations reported of one resource; nobody reads more.
pub const MAX_VIOLATIONS: usize = 100;

/// The text in a field of an encoded message; empty if there is none.
pub(crate) fn wire_text(message: &[u8], number: u32) -> &str {
    let value = wire::last(message, number).map_or(&[][..], wire::Wire::bytes);
    str::from_utf8(value).unwrap_or_default()
}
