//! Bounds of the maps. A full map never breaks a connection: it only leaves it on plain TCP.

/// Pods per node. The kubelet's default is 110 and the largest documented setting is 500.
pub const MAX_PODS: u32 = 1_024;

/// Addresses per node: two families and a spare for each pod.
pub const MAX_POD_ADDRS: u32 = 4_096;

/// Port rules per node: every port there is once, and twice over while a policy changes. 128 for each of
/// [`MAX_PODS`] pods.
pub const MAX_PORT_RULES: u32 = 131_072;

/// CIDR rules per node: 128 for each of [`MAX_PODS`] pods.
pub const MAX_CIDR_RULES: u32 = 131_072;

/// Rules on groups of users per node: 16 for each of [`MAX_PODS`] pods.
pub const MAX_GROUP_RULES: u32 = 16_384;

/// Interfaces per node that are left alone: 4 for each of [`MAX_PODS`] pods.
pub const MAX_INTERFACE_RULES: u32 = 4_096;

/// Routes per node of pods that leave interfaces alone: 512 for each of 128 such pods, at 80 bytes each
/// when used.
pub const MAX_ROUTES: u32 = 65_536;

/// Listeners per node that connections are steered to: exactly what [`MAX_PODS`] pods can have, so that there is always room.
pub const MAX_LISTENERS: u32 = MAX_PODS * crate::LISTENER_SLOTS * crate::ListenerKind::COUNT;

/// Redirected connections whose accepting end is not established yet. At 1 ms from SYN to
/// established this is 16 million connections a second; it is reached only when SYNs get no answer.
pub const MAX_HANDSHAKES: u32 = 16_384;

/// Sockets (ends, not pairs) that `sk_msg` may look at. One entry costs about 200 bytes in
/// `ENDS` and `SOCKETS` together, allocated when used.
pub const MAX_SOCKETS: u32 = 65_536;

/// Rows of hop counters: 8 hops for each of [`MAX_PODS`] pods.
pub const MAX_HOP_ROWS: u32 = 8_192;

/// Rows of latency histograms: two for each row of hop counters.
pub const MAX_LATENCY_ROWS: u32 = 2 * MAX_HOP_ROWS;

/// Size of the ring of flow events: 19,000 of them, which is half a second at 8,000 new connections a
/// second. A full ring loses events.
pub const FLOW_RING_BYTES: u32 = 4 << 20;

/// Bytes in that ring from which the agent is woken. Below, it looks by itself, several times a second: to
/// wake it for each event costs more than everything else that a program does for a connection.
pub const FLOW_WAKEUP_BYTES: u32 = FLOW_RING_BYTES / 4;

/// Messages that one direction may park at its reader since the reader's queue was last seen empty.
/// Each costs about 1 KiB of kernel memory that `SO_RCVBUF` does not see (measured, Linux 6.18), so
/// the bound is 1 MiB per direction.
pub const MAX_PARKED_MESSAGES: u32 = 1_024;

/// Payload bytes that may be parked at all readers of one pod together: those of 64 readers that stall with
/// a full default buffer (128 KiB; `net.ipv4.tcp_rmem`).
pub const MAX_PARKED_BYTES_PER_POD: u64 = 8 << 20;

/// Messages that may be parked at all readers of one pod together: 8 MiB of kernel memory beside the payload.
pub const MAX_PARKED_MESSAGES_PER_POD: u64 = 8_192;

/// Age in seconds from which a handshake is given up: Linux retries a SYN for 127 s
/// (`net.ipv4.tcp_syn_retries` 6), so that an older entry has no SYN behind it.
pub const HANDSHAKE_MAX_AGE_SECONDS: u64 = 180;
