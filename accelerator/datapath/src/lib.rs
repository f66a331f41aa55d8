//! The kernel behind a trait: loading, pinning, probing.
