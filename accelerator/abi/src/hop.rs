//! Hops, the reasons for which a message stays on TCP, and counters.

use core::fmt;

/// One leg of the way from application to application, in one direction.
///
/// ```text
///  app ──1──▶ proxy ──3──▶ proxy ──5──▶ app
///  app ◀──2── proxy ◀──4── proxy ◀──6── app
/// ```
#[derive(
    Clone, Copy, Default, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(transparent)]
pub struct Hop(u32);

impl Hop {
    /// On no hop: a connection that is left alone.
    pub const NONE: Self = Self(0);
    /// Client application to its own proxy. May skip TCP if the application's pod has
    /// [`crate::PodFlags::APP_WRITES`].
    pub const APP_TO_PROXY: Self = Self(1);
    /// Outbound proxy back to the client application. May skip TCP if the application's pod has
    /// [`crate::PodFlags::APP_READS`].
    pub const PROXY_TO_APP_RETURN: Self = Self(2);
    /// Outbound proxy to inbound proxy. A proxy reads: may skip TCP.
    pub const PROXY_TO_PROXY_REQUEST: Self = Self(3);
    /// Inbound proxy back to outbound proxy. A proxy reads: may skip TCP.
    pub const PROXY_TO_PROXY_RESPONSE: Self = Self(4);
    /// Inbound proxy to the server application. May skip TCP if the application's pod has
    /// [`crate::PodFlags::APP_READS`].
    pub const PROXY_TO_APP: Self = Self(5);
    /// Server application back to its own proxy. May skip TCP if the application's pod has
    /// [`crate::PodFlags::APP_WRITES`].
    pub const APP_TO_PROXY_RETURN: Self = Self(6);

    /// Every hop, in the order of a request and its response.
    pub const ALL: [Self; 6] = [
        Self::APP_TO_PROXY,
        Self::PROXY_TO_PROXY_REQUEST,
        Self::PROXY_TO_APP,
        Self::APP_TO_PROXY_RETURN,
        Self::PROXY_TO_PROXY_RESPONSE,
        Self::PROXY_TO_APP_RETURN,
    ];

    /// Returns the number that the kernel stores.
    pub const fn id(self) -> u32 {
        self.0
    }

    /// Returns the name that `status`, metrics and documents use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::APP_TO_PROXY => "app_to_proxy",
            Self::PROXY_TO_APP_RETURN => "proxy_to_app_return",
            Self::PROXY_TO_PROXY_REQUEST => "proxy_to_proxy_request",
            Self::PROXY_TO_PROXY_RESPONSE => "proxy_to_proxy_response",
            Self::PROXY_TO_APP => "proxy_to_app",
            Self::APP_TO_PROXY_RETURN => "app_to_proxy_return",
            Self::NONE => "none",
            _ => "unknown",
        }
    }

    /// Returns the hop of what the other end of the same connection sends.
    #[must_use]
    #[inline]
    pub const fn reverse(self) -> Self {
        match self {
            Self::APP_TO_PROXY => Self::PROXY_TO_APP_RETURN,
            Self::PROXY_TO_APP_RETURN => Self::APP_TO_PROXY,
            Self::PROXY_TO_PROXY_REQUEST => Self::PROXY_TO_PROXY_RESPONSE,
            Self::PROXY_TO_PROXY_RESPONSE => Self::PROXY_TO_PROXY_REQUEST,
            Self::PROXY_TO_APP => Self::APP_TO_PROXY_RETURN,
            Self::APP_TO_PROXY_RETURN => Self::PROXY_TO_APP,
            other => other,
        }
    }

    /// Tells whether proxies are on both ends.
    #[must_use]
    #[inline]
    pub const fn is_between_proxies(self) -> bool {
        matches!(
            self,
            Self::PROXY_TO_PROXY_REQUEST | Self::PROXY_TO_PROXY_RESPONSE
        )
    }

    /// Tells whether a proxy reads what is sent on this hop.
    #[must_use]
    #[inline]
    pub const fn is_read_by_proxy(self) -> bool {
        !matches!(self, Self::PROXY_TO_APP | Self::PROXY_TO_APP_RETURN)
    }
}

impl fmt::Debug for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Key of `HOP_STATS`.
#[derive(
    Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(C)]
pub struct HopKey {
    /// Namespace of the sender.
    pub netns_cookie: u64,
    /// Which leg.
    pub hop: Hop,
    /// Always zero.
    pub reserved: u32,
}

impl HopKey {
    /// Returns the key of one hop of one sending namespace.
    #[must_use]
    #[inline]
    pub const fn new(netns_cookie: u64, hop: Hop) -> Self {
        Self {
            netns_cookie,
            hop,
            reserved: 0,
        }
    }
}

/// Why a message was left to TCP. The number is an index into [`HopStats::passes`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
#[repr(u32)]
pub enum PassReason {
    /// The socket has sent by TCP before, so that it does for good.
    Latched = 0,
    /// An application reads, and nobody has promised that it uses no call that a redirected message
    /// breaks.
    ReaderIsApp = 1,
    /// The other end is not (yet, or any longer) in the sockmap.
    PeerUnknown = 2,
    /// The other end's socket is a different one by now.
    PeerGone = 3,
    /// Bytes sent by TCP lie unread at the other end.
    PeerHasTcpBytes = 4,
    /// Bytes sent by TCP are not acknowledged yet.
    BytesInFlight = 5,
    /// The other end's receive buffer is full: TCP's flow control takes over.
    PeerBufferFull = 6,
    /// [`crate::MAX_PARKED_MESSAGES`] reached.
    TooManyParked = 7,
    /// The kernel refused the redirect.
    RedirectFailed = 8,
    /// The sockmap is switched off.
    SockmapOff = 9,
    /// The writer has `SO_ZEROCOPY`: only TCP tells it when its pages are free.
    WriterUsesZeroCopy = 10,
    /// The reader has a low-water mark (`SO_RCVLOWAT`), which only TCP keeps.
    ReaderHasLowWaterMark = 11,
    /// So much is parked at all readers of the pod that there is no room for more
    /// ([`crate::MAX_PARKED_BYTES_PER_POD`], [`crate::MAX_PARKED_MESSAGES_PER_POD`]).
    PodBudgetSpent = 12,
    /// The writer has ended its direction, or the connection has: TCP answers with an error, and a redirect would
    /// deliver the bytes behind the end.
    WriterHasEnded = 13,
    /// The reader sends in bulk, by TCP, and wants to leave the sockmap: nothing may be parked there any more.
    ReaderLeaves = 14,
}

impl PassReason {
    /// Number of reasons.
    pub const COUNT: usize = 15;

    /// Every reason, by index.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Latched,
        Self::ReaderIsApp,
        Self::PeerUnknown,
        Self::PeerGone,
        Self::PeerHasTcpBytes,
        Self::BytesInFlight,
        Self::PeerBufferFull,
        Self::TooManyParked,
        Self::RedirectFailed,
        Self::SockmapOff,
        Self::WriterUsesZeroCopy,
        Self::ReaderHasLowWaterMark,
        Self::PodBudgetSpent,
        Self::WriterHasEnded,
        Self::ReaderLeaves,
    ];

    /// Returns the name that `status`, metrics and documents use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latched => "latched",
            Self::ReaderIsApp => "reader_is_app",
            Self::PeerUnknown => "peer_unknown",
            Self::PeerGone => "peer_gone",
            Self::PeerHasTcpBytes => "peer_has_tcp_bytes",
            Self::BytesInFlight => "bytes_in_flight",
            Self::PeerBufferFull => "peer_buffer_full",
            Self::TooManyParked => "too_many_parked",
            Self::RedirectFailed => "redirect_failed",
            Self::SockmapOff => "sockmap_off",
            Self::WriterUsesZeroCopy => "writer_uses_zero_copy",
            Self::ReaderHasLowWaterMark => "reader_has_low_water_mark",
            Self::PodBudgetSpent => "pod_budget_spent",
            Self::WriterHasEnded => "writer_has_ended",
            Self::ReaderLeaves => "reader_leaves",
        }
    }

    /// Returns the index into [`HopStats::passes`].
    #[must_use]
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Value of `HOP_STATS`, one per CPU: sums since the pod was added.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct HopStats {
    /// Connections whose sending end was put into the sockmap.
    pub connections: u64,
    /// Messages (roughly: write calls).
    pub messages: u64,
    /// Payload bytes, either way.
    pub bytes_total: u64,
    /// Payload bytes that went from socket to socket, past TCP and IP.
    pub bytes_redirected: u64,
    /// Messages that TCP carried, by [`PassReason`].
    pub passes: [u64; PassReason::COUNT],
    /// Connections that have gone over to TCP for good, by the first [`PassReason`].
    pub connections_on_tcp: [u64; PassReason::COUNT],
}

impl HopStats {
    /// Nothing was sent.
    pub const EMPTY: Self = Self {
        connections: 0,
        messages: 0,
        bytes_total: 0,
        bytes_redirected: 0,
        passes: [0; PassReason::COUNT],
        connections_on_tcp: [0; PassReason::COUNT],
    };

    /// Adds the counts of another CPU.
    pub fn add(&mut self, other: &Self) {
        self.connections = self.connections.wrapping_add(other.connections);
        self.messages = self.messages.wrapping_add(other.messages);
        self.bytes_total = self.bytes_total.wrapping_add(other.bytes_total);
        self.bytes_redirected = self.bytes_redirected.wrapping_add(other.bytes_redirected);
        let sums = self.passes.iter_mut().zip(other.passes);
        let on_tcp = self.connections_on_tcp.iter_mut();
        for (sum, count) in sums.chain(on_tcp.zip(other.connections_on_tcp)) {
            *sum = sum.wrapping_add(count);
        }
    }
}

const _: () = assert!(size_of::<HopKey>() == 16);
const _: () = assert!(size_of::<HopStats>() == 272);

/// Events of the whole node. The number is an index into `COUNTERS`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
#[repr(u32)]
pub enum Counter {
    /// Destinations rewritten.
    Redirects = 0,
    /// Not rewritten because `HANDSHAKES` was full.
    HandshakesFull = 1,
    /// A tuple entry could not be written although room was reserved: a defect if it is not zero.
    TuplesFull = 2,
    /// A socket did not get into `ENDS` or `SOCKETS`: full, or an older connection still has its place.
    SocketsRefused = 3,
    /// Answers given to `SO_ORIGINAL_DST`.
    OriginalDstAnswers = 4,
    /// UDP queries, and sockets connected for them, that went to the agent of their pod.
    DnsQueries = 5,
    /// Flow events that found the ring full.
    FlowsLost = 6,
    /// A socket did not get into `SOCKETS` because another sockmap has it, such as that of Envoy's own socket interface.
    SocketsTaken = 7,
    /// Arriving connections given to a proxy (SYNs: a repeated one counts again).
    InboundSteered = 8,
    /// Arriving connections refused because their proxy did not listen.
    InboundRefused = 9,
    /// A listener did not get into `LISTENERS`: another program owns the socket.
    ListenersRefused = 10,
    /// A socket left `SOCKETS` before it was closed: both of its directions had gone over to TCP.
    SocketsLeft = 11,
}

impl Counter {
    /// Number of counters.
    pub const COUNT: u32 = 12;

    /// Every counter, by index.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Redirects,
        Self::HandshakesFull,
        Self::TuplesFull,
        Self::SocketsRefused,
        Self::OriginalDstAnswers,
        Self::DnsQueries,
        Self::FlowsLost,
        Self::SocketsTaken,
        Self::InboundSteered,
        Self::InboundRefused,
        Self::ListenersRefused,
        Self::SocketsLeft,
    ];

    /// Returns the name that `status`, metrics and documents use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redirects => "redirects",
            Self::HandshakesFull => "handshakes_full",
            Self::TuplesFull => "tuples_full",
            Self::SocketsRefused => "sockets_refused",
            Self::OriginalDstAnswers => "original_dst_answers",
            Self::DnsQueries => "dns_queries",
            Self::FlowsLost => "flows_lost",
            Self::SocketsTaken => "sockets_taken",
            Self::InboundSteered => "inbound_steered",
            Self::InboundRefused => "inbound_refused",
            Self::ListenersRefused => "listeners_refused",
            Self::SocketsLeft => "sockets_left",
        }
    }

    /// Returns the index into `COUNTERS`.
    #[must_use]
    #[inline]
    pub const fn index(self) -> u32 {
        self as u32
    }
}
