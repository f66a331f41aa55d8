//! The node agent: pods in, BPF state out.
