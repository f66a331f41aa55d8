//! The agent's own life under traffic: killed at every step, upgraded, downgraded, taken out and brought
//! back, while requests go on and a thousand connections keep bytes that nobody has read.
//!
//! The kernel, the agent and Istio's rules are real; plain threads play applications and sidecars, so that
//! the rate is that of the datapath. Needs root, BPF, iproute2, iptables, bpftool and strace.

#[path = "lifecycle/agent.rs"]
mod agent;
#[path = "lifecycle/agents.rs"]
mod agents;
#[path = "lifecycle/crashes.rs"]
mod crashes;
#[path = "lifecycle/idle.rs"]
mod idle;
#[path = "lifecycle/mesh.rs"]
mod mesh;
#[path = "lifecycle/objects.rs"]
mod objects;
#[path = "lifecycle/steps.rs"]
mod steps;
#[path = "lifecycle/traffic.rs"]
mod traffic;
#[path = "lifecycle/under_load.rs"]
mod under_load;
#[path = "kernel_datapath/versions.rs"]
mod versions;
