//! The programs on the running kernel, without a proxy: plain threads play application and proxy.
//!
//! Needs root, BPF and iproute2; fails with the reason where something is missing.

#[path = "kernel_datapath/backpressure.rs"]
mod backpressure;
#[path = "kernel_datapath/budget.rs"]
mod budget;
#[path = "kernel_datapath/cable.rs"]
mod cable;
#[path = "kernel_datapath/closing.rs"]
mod closing;
#[path = "kernel_datapath/conntrack.rs"]
mod conntrack;
#[path = "kernel_datapath/dns.rs"]
mod dns;
#[path = "kernel_datapath/dns_lab.rs"]
mod dns_lab;
#[path = "kernel_datapath/dns_resolvers.rs"]
mod dns_resolvers;
#[path = "kernel_datapath/families.rs"]
mod families;
#[path = "kernel_datapath/fixture.rs"]
mod fixture;
#[path = "kernel_datapath/flows.rs"]
mod flows;
#[path = "kernel_datapath/foreign.rs"]
mod foreign;
#[path = "kernel_datapath/full_maps.rs"]
mod full_maps;
#[path = "kernel_datapath/inbound.rs"]
mod inbound;
#[path = "kernel_datapath/leaving.rs"]
mod leaving;
#[path = "kernel_datapath/lifecycle.rs"]
mod lifecycle;
#[path = "kernel_datapath/listeners.rs"]
mod listeners;
#[path = "kernel_datapath/nameserver.rs"]
mod nameserver;
#[path = "kernel_datapath/order.rs"]
mod order;
#[path = "kernel_datapath/other_sockmap.rs"]
mod other_sockmap;
#[path = "kernel_datapath/owners.rs"]
mod owners;
#[path = "kernel_datapath/parked.rs"]
mod parked;
#[path = "kernel_datapath/policy_routing.rs"]
mod policy_routing;
#[path = "kernel_datapath/redirect.rs"]
mod redirect;
#[path = "kernel_datapath/share.rs"]
mod share;
#[path = "kernel_datapath/socket_lb.rs"]
mod socket_lb;
#[path = "kernel_datapath/succession.rs"]
mod succession;
#[path = "kernel_datapath/versions.rs"]
mod versions;
