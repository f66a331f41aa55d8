//! Names of maps, programs and loader-set globals, and the version of the whole layout.

/// Version of every layout in this crate. Pinned maps of another version are never adopted.
pub const ABI_VERSION: u32 = 2;

/// Names of the maps: symbols in the object and file names under the pin directory.
///
/// What an agent needs to know of another version, to take over from it or to remove it, stays the same
/// in every version: the names `PODS`, `ORIG_DST_BY_TUPLE`, `SOCKET_STATE`, `DNS_SOCKETS` (from 2), `ENDS`, `SOCKETS` and
/// `SETTINGS`; that `ENDS`
/// and `SOCKETS` have the same keys, and that such a key is what [`program::PARKED`] is run with; and
/// how [`crate::Settings`] begins.
pub mod map {
    /// `HASH`, netns cookie → [`crate::PodConfig`]. Linux 3.19.
    pub const PODS: &str = "PODS";
    /// `HASH`, v4-mapped address → netns cookie of the pod that owns it. Linux 3.19.
    pub const POD_ADDRS: &str = "POD_ADDRS";
    /// `HASH`, [`crate::PortKey`] → [`crate::RULE_PRESENT`]. Linux 3.19.
    pub const PORT_RULES: &str = "PORT_RULES";
    /// `HASH`, [`crate::GroupKey`] → [`crate::RULE_PRESENT`]. Linux 3.19.
    pub const GROUP_RULES: &str = "GROUP_RULES";
    /// `LPM_TRIE`, [`crate::CidrKey`] → [`crate::RULE_PRESENT`]. Linux 4.11.
    pub const CIDR_RULES: &str = "CIDR_RULES";
    /// `LPM_TRIE`, [`crate::CidrKey`] of [`crate::RuleList::ROUTES`] → number of the interface by which
    /// the range is left for, 0 if by none. Linux 4.11.
    pub const ROUTES: &str = "ROUTES";
    /// `HASH`, socket cookie of the connecting end → [`crate::Handshake`]. Linux 3.19.
    pub const HANDSHAKES: &str = "HANDSHAKES";
    /// `HASH`, [`crate::SockKey`] of the accepting end → [`crate::TupleEntry`]: by its tuple from the SYN on, by
    /// [`crate::SockKey::by_sequences`] from when the connecting end is established. Linux 3.19.
    pub const ORIG_DST_BY_TUPLE: &str = "ORIG_DST_BY_TUPLE";
    /// `SK_STORAGE`, socket → [`crate::SocketState`]. Linux 5.2; in `sk_msg` 5.10.
    pub const SOCKET_STATE: &str = "SOCKET_STATE";
    /// `SK_STORAGE`, UDP socket → [`crate::DnsSocket`]. Linux 5.2; in `cgroup/sendmsg4` 5.10.
    pub const DNS_SOCKETS: &str = "DNS_SOCKETS";
    /// `HASH`, [`crate::SockKey`] → [`crate::End`]. Linux 3.19.
    pub const ENDS: &str = "ENDS";
    /// `SOCKHASH`, [`crate::SockKey`] → socket. Linux 4.18.
    pub const SOCKETS: &str = "SOCKETS";
    /// `HASH`, [`crate::SockKey`] of a reader → [`crate::Parked`]. Linux 3.19.
    pub const PARKED: &str = "PARKED";
    /// `HASH`, netns cookie of the readers → [`crate::PodParked`]. Linux 5.1 (its spin lock).
    pub const POD_PARKED: &str = "POD_PARKED";
    /// `PERCPU_HASH`, [`crate::HopKey`] → [`crate::HopStats`]. Linux 4.6.
    pub const HOP_STATS: &str = "HOP_STATS";
    /// `PERCPU_HASH`, netns cookie → [`crate::PodVerdicts`]. Linux 4.6.
    pub const VERDICTS: &str = "VERDICTS";
    /// `PERCPU_HASH`, [`crate::LatencyKey`] → [`crate::Histogram`]. Linux 4.6.
    pub const LATENCY: &str = "LATENCY";
    /// `SK_STORAGE`, socket → [`crate::FlowFacts`]; only while flows are on. Linux 5.2.
    pub const FLOW_STATE: &str = "FLOW_STATE";
    /// `RINGBUF` of [`crate::FlowEvent`]; the agent is its one consumer. Linux 5.8.
    pub const FLOWS: &str = "FLOWS";
    /// `PERCPU_ARRAY`, [`crate::Counter`] → count of events. Linux 4.6.
    pub const COUNTERS: &str = "COUNTERS";
    /// `ARRAY` of one [`crate::Settings`]. Linux 3.19.
    pub const SETTINGS: &str = "SETTINGS";
    /// `HASH`, [`crate::InterfaceKey`] → [`crate::RULE_PRESENT`]. Linux 3.19.
    pub const EXCLUDED_INTERFACES: &str = "EXCLUDED_INTERFACES";
    /// `HASH`, [`crate::InterfaceKey`] → [`crate::RULE_PRESENT`]: there once the interface has its link, rule
    /// and routes. Linux 3.19.
    pub const VIRTUAL_INTERFACES: &str = "VIRTUAL_INTERFACES";
    /// `SOCKHASH`, [`crate::ListenerKey`] → listening socket. Linux 5.8 (listening sockets).
    pub const LISTENERS: &str = "LISTENERS";
    /// `SK_STORAGE`, inbound listener or what was accepted from it → [`crate::INBOUND_SOCKET`].
    /// Linux 5.3 (inherited by accepted sockets).
    pub const INBOUND_SOCKETS: &str = "INBOUND_SOCKETS";

    /// Every map, in the order in which they are listed and removed.
    pub const ALL: [&str; 25] = [
        PODS,
        POD_ADDRS,
        PORT_RULES,
        GROUP_RULES,
        CIDR_RULES,
        ROUTES,
        HANDSHAKES,
        ORIG_DST_BY_TUPLE,
        SOCKET_STATE,
        DNS_SOCKETS,
        ENDS,
        SOCKETS,
        PARKED,
        POD_PARKED,
        HOP_STATS,
        VERDICTS,
        LATENCY,
        FLOW_STATE,
        FLOWS,
        COUNTERS,
        SETTINGS,
        EXCLUDED_INTERFACES,
        VIRTUAL_INTERFACES,
        LISTENERS,
        INBOUND_SOCKETS,
    ];
}

/// Names of the programs: symbols in the object and file names under the pin directory.
pub mod program {
    /// `cgroup/connect4`: decides and rewrites the destination. Linux 4.17.
    pub const CONNECT4: &str = "isthmus_connect4";
    /// `cgroup/connect6`: the same for IPv6 sockets, also those that dial IPv4. Linux 4.17.
    pub const CONNECT6: &str = "isthmus_connect6";
    /// `cgroup/sendmsg4`: decides where an IPv4 datagram of an unconnected socket goes. Linux 4.18.
    pub const SENDMSG4: &str = "isthmus_sendmsg4";
    /// `cgroup/sendmsg6`: the same for IPv6. Linux 4.18.
    pub const SENDMSG6: &str = "isthmus_sendmsg6";
    /// `cgroup/recvmsg4`: shows as the source of an answer whom the query was for. Linux 5.2.
    pub const RECVMSG4: &str = "isthmus_recvmsg4";
    /// `cgroup/recvmsg6`: the same for IPv6. Linux 5.2.
    pub const RECVMSG6: &str = "isthmus_recvmsg6";
    /// `cgroup/getpeername4`: shows a caller what it dialled. Linux 5.8.
    pub const GETPEERNAME4: &str = "isthmus_getpeername4";
    /// `cgroup/getpeername6`: the same for IPv6 sockets. Linux 5.8.
    pub const GETPEERNAME6: &str = "isthmus_getpeername6";
    /// `cgroup/getsockopt`: answers `SO_ORIGINAL_DST`. Linux 5.3.
    pub const GETSOCKOPT: &str = "isthmus_getsockopt";
    /// `sock_ops`: pairs the two ends of a connection. Linux 4.13; its netns cookie 5.15.
    pub const SOCK_OPS: &str = "isthmus_sockops";
    /// `sk_msg`: the latch. Linux 4.17; its netns cookie 5.15.
    pub const SK_MSG: &str = "isthmus_skmsg";

    /// Attached nowhere; run by the agent to ask how many bytes lie unread at a socket. Linux 5.10.
    pub const PARKED: &str = "isthmus_parked";
    /// Attached nowhere; run by the agent to count the sockets that have a state. Linux 5.9.
    pub const LIVE: &str = "isthmus_live";

    /// `iter/tcp`: attached nowhere; run by the agent in a pod's namespace to find the proxy's inbound
    /// listeners. Linux 5.8; what it calls 5.15.
    pub const LISTENERS: &str = "isthmus_listeners";

    /// Every program that the agent runs.
    pub const ON_DEMAND: [&str; 3] = [PARKED, LIVE, LISTENERS];

    /// `sk_lookup`: gives arriving connections to the proxy. One instance for each pod. Linux 5.9; the
    /// interface that a packet came in by 5.17.
    pub const SK_LOOKUP: &str = "isthmus_sk_lookup";

    /// `tcx/ingress`: marks what virtual machines send to the proxy. One instance for each of their
    /// interfaces. Linux 6.6.
    pub const VIRTUAL: &str = "isthmus_virtual";

    /// Every attached program, in the order in which they are attached.
    pub const ALL: [&str; 13] = [
        SK_MSG,
        SOCK_OPS,
        GETSOCKOPT,
        GETPEERNAME4,
        GETPEERNAME6,
        RECVMSG4,
        RECVMSG6,
        SENDMSG4,
        SENDMSG6,
        CONNECT4,
        CONNECT6,
        SK_LOOKUP,
        VIRTUAL,
    ];
}

/// Names of the `u32` globals that the loader sets from the running kernel's BTF. A field that the
/// kernel lacks is [`ABSENT`](global::ABSENT).
pub mod global {
    /// Value of an offset whose field the running kernel does not have.
    pub const ABSENT: u32 = u32::MAX;

    /// Offset of `sock_common.skc_cookie` in `struct sock`.
    pub const SKC_COOKIE_OFFSET: &str = "SKC_COOKIE_OFFSET";
    /// Offset of `sock.sk_receive_queue.qlen`.
    pub const RECEIVE_QUEUE_LEN_OFFSET: &str = "RECEIVE_QUEUE_LEN_OFFSET";
    /// Offset of `sock.sk_backlog.rmem_alloc`, which is `sk_rmem_alloc`.
    pub const RMEM_ALLOC_OFFSET: &str = "RMEM_ALLOC_OFFSET";
    /// Offset of `sock.sk_rcvbuf`.
    pub const RCVBUF_OFFSET: &str = "RCVBUF_OFFSET";
    /// Offset of `sock.sk_rcvlowat`.
    pub const RCVLOWAT_OFFSET: &str = "RCVLOWAT_OFFSET";
    /// Offset of `sock_common.skc_flags` in `struct sock`: a word of bits.
    pub const SK_FLAGS_OFFSET: &str = "SK_FLAGS_OFFSET";
    /// Number of the bit `SOCK_ZEROCOPY` in that word.
    pub const ZEROCOPY_BIT: &str = "ZEROCOPY_BIT";
    /// Offset of `tcp_sock.snd_una`.
    pub const SND_UNA_OFFSET: &str = "SND_UNA_OFFSET";
    /// Offset of `tcp_sock.write_seq`.
    pub const WRITE_SEQ_OFFSET: &str = "WRITE_SEQ_OFFSET";
    /// Offset of `inet_connection_sock.icsk_ulp_ops`.
    pub const ULP_OPS_OFFSET: &str = "ULP_OPS_OFFSET";
    /// Offset of `sock.sk_user_data`, which leads to the socket's `sk_psock`.
    pub const USER_DATA_OFFSET: &str = "USER_DATA_OFFSET";
    /// Offset of `sk_psock.ingress_msg`, the list of redirected messages that are not read.
    pub const INGRESS_MSG_OFFSET: &str = "INGRESS_MSG_OFFSET";
    /// Offset of `sock.sk_socket`.
    pub const SK_SOCKET_OFFSET: &str = "SK_SOCKET_OFFSET";
    /// Offset of `socket.file`.
    pub const SOCKET_FILE_OFFSET: &str = "SOCKET_FILE_OFFSET";
    /// Offset of `file.f_cred`.
    pub const FILE_CRED_OFFSET: &str = "FILE_CRED_OFFSET";
    /// Offset of `cred.fsuid`.
    pub const CRED_FSUID_OFFSET: &str = "CRED_FSUID_OFFSET";
    /// Offset of `cred.fsgid`.
    pub const CRED_FSGID_OFFSET: &str = "CRED_FSGID_OFFSET";
    /// Offset of the byte that holds `tcp_sock.is_mptcp`; absent without `CONFIG_MPTCP`.
    pub const IS_MPTCP_OFFSET: &str = "IS_MPTCP_OFFSET";
    /// Offset of `sock_common.skc_family` in `struct sock`.
    pub const SKC_FAMILY_OFFSET: &str = "SKC_FAMILY_OFFSET";
    /// Offset of `sock_common.skc_state`.
    pub const SKC_STATE_OFFSET: &str = "SKC_STATE_OFFSET";
    /// Offset of `sock_common.skc_num`, the port that a socket is bound to.
    pub const SKC_NUM_OFFSET: &str = "SKC_NUM_OFFSET";
    /// Offset of `sock_common.skc_rcv_saddr`, the IPv4 address that a socket is bound to.
    pub const SKC_RCV_SADDR_OFFSET: &str = "SKC_RCV_SADDR_OFFSET";
    /// Offset of `sock_common.skc_v6_rcv_saddr`; absent without `CONFIG_IPV6`.
    pub const SKC_V6_RCV_SADDR_OFFSET: &str = "SKC_V6_RCV_SADDR_OFFSET";
    /// Offset of `sock_common.skc_net`, which leads to the network namespace.
    pub const SKC_NET_OFFSET: &str = "SKC_NET_OFFSET";
    /// Offset of `net.net_cookie`.
    pub const NET_COOKIE_OFFSET: &str = "NET_COOKIE_OFFSET";

    /// Namespace of the pod whose connections an instance of [`super::program::SK_LOOKUP`] or
    /// [`super::program::VIRTUAL`] is for: the only global that differs from one instance to another, and a
    /// `u64`.
    pub const NETNS_COOKIE: &str = "NETNS_COOKIE";
}
