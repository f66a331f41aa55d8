//! Bounds on what a configuration directory may hold, each with its reason.

/// Files read from one directory. Far above what people keep by hand or what a `ConfigMap` can hold.
pub const MAX_FILES: usize = 10_000;

/// Bytes of one file. A generated file with 5,000 clusters takes some 10 MB; parsed, a file takes several
/// times its size in memory.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// Bytes of all files together, so that many large files cannot exhaust memory.
pub const MAX_TOTAL_BYTES: u64 = 256 << 20;

/// Levels of nesting in one document. Protobuf parsers, Envoy's among them, stop at 100.
pub const MAX_DEPTH: usize = 100;

/// Values that YAML aliases may add to one file, which is what stops an alias bomb.
pub const MAX_ALIASED_VALUES: usize = 1_000_000;

/// Errors reported of one load; a broken generator makes one per resource, and nobody reads more.
pub const MAX_ERRORS: usize = 100;

/// Warnings reported of one load, for the same reason.
pub const MAX_WARNINGS: usize = 100;

/// Bytes of a name, key or enum value that an error repeats.
pub const MAX_QUOTED_BYTES: usize = 80;
