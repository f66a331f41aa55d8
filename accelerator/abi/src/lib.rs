//! Map keys, values, names, limits and the redirect decision, shared by the kernel programs and the
//! agent.
//!
//! Every type here that crosses into the kernel is `#[repr(C)]`, has no implicit padding, holds no
//! enum, bool, reference or `Option`, and stores addresses and ports as byte arrays in network
//! order, so that neither side can read them with the wrong endianness. IPv4 addresses are kept
//! v4-mapped in 16 bytes.
//!
//! ```text
//!  agent ── PODS, POD_ADDRS, …_RULES, ROUTES ──▶ connect: decide()
//!                                                          │ HANDSHAKES (reservation)
//!                                                          ▼
//!                              ORIG_DST_BY_TUPLE ◀── sock_ops ──▶ ENDS, SOCKETS
//!                                                          │
//!  agent ◀── FLOWS, VERDICTS, LATENCY ── connect4, sock_ops
//!  agent ◀── HOP_STATS, COUNTERS ── sk_msg ◀── SOCKET_STATE ──▶ getsockopt
//! ```
//!
//! Invariant: this crate performs no I/O and is the only place where a layout is written down.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod addr;
mod decision;
mod dns;
mod flow;
mod hop;
mod latency;
mod limits;
mod listener;
mod names;
mod parked;
mod pod;
mod rules;
mod socket;

pub use addr::{
    ENVOY_INBOUND_SOURCE, ENVOY_INBOUND_SOURCE_V6, LOOPBACK, LOOPBACK_V6, is_loopback,
    is_unspecified, is_v4, is_v6_link_local, v4_mapped, v4_of,
};
pub use decision::{Dial, PassCause, Redirect, Rules, Source, Verdict, decide};
pub use dns::{
    DNS_AGENT_PORT, DNS_PORT, DnsPass, DnsSocket, DnsVerdict, decide_datagram, dns_agent_addr,
    query_source,
};
pub use flow::{FlowEvent, FlowFacts, FlowKind, PodVerdicts, VerdictCode};
pub use hop::{Counter, Hop, HopKey, HopStats, PassReason};
pub use latency::{Histogram, LatencyKey, Measure};
pub use limits::{
    FLOW_RING_BYTES, FLOW_WAKEUP_BYTES, HANDSHAKE_MAX_AGE_SECONDS, MAX_CIDR_RULES, MAX_GROUP_RULES,
    MAX_HANDSHAKES, MAX_HOP_ROWS, MAX_INTERFACE_RULES, MAX_LATENCY_ROWS, MAX_LISTENERS,
    MAX_PARKED_BYTES_PER_POD, MAX_PARKED_MESSAGES, MAX_PARKED_MESSAGES_PER_POD, MAX_POD_ADDRS,
    MAX_PODS, MAX_PORT_RULES, MAX_ROUTES, MAX_SOCKETS,
};
pub use listener::{
    Arrival, INBOUND_SOCKET, InboundPass, InboundVerdict, InterfaceKey, LISTENER_SLOTS,
    LOOPBACK_IFINDEX, ListenerKey, ListenerKind, VIRTUAL_MARK, decide_inbound,
};
pub use names::{ABI_VERSION, global, map, program};
pub use parked::{Leave, Parked, ParkedSum, PodParked, bpf_spin_lock};
pub use pod::{PodConfig, PodFlags};
pub use rules::{CIDR_DATA_BITS, CidrKey, GroupKey, PortKey, RULE_PRESENT, RuleList};
pub use socket::{
    BULK_MESSAGES, End, EndFlags, FlowMode, Handshake, LARGE_MESSAGE_BYTES, OriginalDst, Sequences,
    Settings, SettingsMode, SockKey, SocketFlags, SocketState, TupleEntry,
};
