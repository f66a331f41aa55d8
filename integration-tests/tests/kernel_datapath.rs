//! The programs on the running kernel, without a proxy: plain threads play application and proxy.
//!
//! Needs root, BPF and iproute2; fails with the reason where something is missing.

#[path = "kernel_datapath/fixture.rs"]
mod fixture;
#[path = "kernel_datapath/share.rs"]
mod share;
