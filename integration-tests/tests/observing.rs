//! What an operator sees of connections: the agent's programs on pods that are only namespaces.
//!
//! Needs root, BPF, iproute2 and iptables; fails with the reason where something is missing.

#[path = "observing/flows.rs"]
mod flows;
#[path = "observing/pod.rs"]
mod pod;
#[path = "observing/shadow.rs"]
mod shadow;
