//! Repository tasks: setup, demo, test, ebpf, tidy, bench.

fn main() {}
