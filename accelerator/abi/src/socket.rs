//! State that belongs to a connection or to one of its sockets.

use crate::Hop;

/// Key of `ENDS`, `SOCKETS` and `ORIG_DST_BY_TUPLE`: one end of a connection inside one network
/// namespace.
///
/// The cookie is part of the key because pods reuse loopback addresses and ports.
#[derive(
    Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(C)]
pub struct SockKey {
    /// Namespace that this end lives in.
    pub netns_cookie: u64,
    /// Address of this end.
    pub local_addr: [u8; 16],
    /// Address of the other end, as this end sees it.
    pub peer_addr: [u8; 16],
    /// Port of this end, network order.
    pub local_port: [u8; 2],
    /// Port of the other end, network order.
    pub peer_port: [u8; 2],
    /// Zero in the key of an end, [`SockKey::BY_SEQUENCES`] in one that holds numbers. Spelled out: the
    /// verifier rejects keys built from uninitialised bytes.
    pub reserved: [u8; 4],
}

impl SockKey {
    /// Value of `reserved` in what [`SockKey::by_sequences`] returns, so that it is the key of no end.
    pub const BY_SEQUENCES: [u8; 4] = [1, 0, 0, 0];

    /// Returns a key of this end, which accepts, that says nothing of where the other end is: NAT changes
    /// addresses and ports, and not where the two streams begin.
    #[must_use]
    #[inline]
    pub fn by_sequences(&self, sequences: Sequences) -> Self {
        Self {
            peer_addr: bytemuck::cast([sequences.dialler, sequences.acceptor, 0, 0]),
            peer_port: [0; 2],
            reserved: Self::BY_SEQUENCES,
            ..*self
        }
    }

    /// Returns the key of the other end, which lives in the namespace `netns_cookie`.
    #[must_use]
    #[inline]
    pub const fn flipped(&self, netns_cookie: u64) -> Self {
        Self {
            netns_cookie,
            local_addr: self.peer_addr,
            peer_addr: self.local_addr,
            local_port: self.peer_port,
            peer_port: self.local_port,
            reserved: [0; 4],
        }
    }
}

/// Numbers of the first byte of each direction of a connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Sequences {
    /// First byte that the connecting end sends.
    pub dialler: u32,
    /// First byte that the accepting end sends.
    pub acceptor: u32,
}

/// Where an application wanted to connect before the destination was rewritten.
#[derive(Clone, Copy, Debug, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct OriginalDst {
    /// Address, IPv4 v4-mapped.
    pub addr: [u8; 16],
    /// Port, network order.
    pub port: [u8; 2],
    /// Always zero.
    pub reserved: [u8; 6],
}

/// Value of `HANDSHAKES`: room that a connection has reserved in `ORIG_DST_BY_TUPLE`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Handshake {
    /// Destination that the application asked for.
    pub original: OriginalDst,
    /// `CLOCK_MONOTONIC` of the connect call, in nanoseconds: what is much older than a handshake can
    /// last belongs to a connect that failed before it sent anything.
    pub started_ns: u64,
}

/// Value of `ORIG_DST_BY_TUPLE`: what the accepting end will want to know.
#[derive(Clone, Copy, Debug, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TupleEntry {
    /// Destination that the application asked for.
    pub original: OriginalDst,
    /// Socket cookie of the connecting end.
    pub client_cookie: u64,
    /// Namespace of the connecting end.
    pub client_netns: u64,
    /// Address of the connecting end, as it sees itself.
    pub client_addr: [u8; 16],
    /// Hop of what the *accepting* end sends.
    pub accepted_hop: Hop,
    /// Port of the connecting end, as it sees itself, network order.
    pub client_port: [u8; 2],
    /// Always zero.
    pub reserved: [u8; 2],
}

impl TupleEntry {
    /// Room for an entry.
    pub const NOTHING: Self = Self {
        original: OriginalDst {
            addr: [0; 16],
            port: [0; 2],
            reserved: [0; 6],
        },
        client_cookie: 0,
        client_netns: 0,
        client_addr: [0; 16],
        accepted_hop: Hop::NONE,
        client_port: [0; 2],
        reserved: [0; 2],
    };
}

/// Bits of [`SocketState::flags`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct SocketFlags(u32);

impl SocketFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The latch: this socket has sent by TCP and does so for the rest of its life.
    pub const SLOW: Self = Self(1);
    /// [`SocketState::original`] answers `SO_ORIGINAL_DST` on this socket.
    pub const HAS_ORIGINAL_DST: Self = Self(1 << 1);
    /// This end has connected, so that `HANDSHAKES` and `ORIG_DST_BY_TUPLE` may hold entries of it.
    pub const HAS_CONNECTED: Self = Self(1 << 2);
    /// The application at the other end takes redirected messages ([`crate::PodFlags::APP_READS`]).
    pub const READER_OPTED_IN: Self = Self(1 << 3);
    /// The entry of this end, which has connected, is under [`SocketState::sequences`].
    pub const FILED_BY_SEQUENCES: Self = Self(1 << 4);
    /// This socket was in the sockmap and has left it.
    pub const HAS_LEFT: Self = Self(1 << 5);

    /// Tells whether every bit of `other` is set.
    #[must_use]
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns both sets together.
    #[must_use]
    #[inline]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Value of `SOCKET_STATE`: freed with its socket, written only under that socket's lock.
#[derive(Clone, Copy, Debug, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SocketState {
    /// Answer to `SO_ORIGINAL_DST` (accepting end), or what was asked for (connecting end).
    pub original: OriginalDst,
    /// Key of the other end, as the connecting end sees the two: NAT may show the accepting end something
    /// else. Until the socket has a tuple, only its namespace is filled in.
    pub peer: SockKey,
    /// Namespace of this socket.
    pub netns_cookie: u64,
    /// Address of this `struct sock`. Only ever read with `bpf_probe_read_kernel`.
    pub own_sk: u64,
    /// Address of the other end's `struct sock`, 0 until known. Only ever read with
    /// `bpf_probe_read_kernel`, and trusted only after the cookie behind it matched.
    pub peer_sk: u64,
    /// Socket cookie of the other end, 0 until known: an accepting end knows it from the start.
    pub peer_cookie: u64,
    /// `CLOCK_MONOTONIC` of the SYN in nanoseconds, 0 on an accepting end.
    pub started_ns: u64,
    /// Bytes that this socket has sent past TCP.
    pub bytes_redirected: u64,
    /// Bytes of it that TCP had seen acknowledged when it left the sockmap, if [`SocketFlags::HAS_LEFT`].
    pub bytes_when_left: u64,
    /// Numbers that the other end is to be found by, if [`SocketFlags::FILED_BY_SEQUENCES`].
    pub sequences: Sequences,
    /// Hop of what this socket sends.
    pub hop: Hop,
    /// What is known about this socket.
    pub flags: SocketFlags,
    /// What has set [`SocketFlags::SLOW`]: a [`crate::PassReason::index`] + 1, 0 if nothing has.
    pub on_tcp_because: u16,
    /// How much TCP has carried in bulk of late: see [`SocketState::is_bulk_with`].
    pub large_messages: u16,
    /// Thread that has redirected, 0 if none has, [`SocketState::SEVERAL_THREADS`] if more than one.
    pub thread: u32,
}

/// Least size in bytes of a message that counts as large.
pub const LARGE_MESSAGE_BYTES: u32 = 16 << 10;
/// Large messages by TCP, less the small ones between them, after which a socket is one of bulk traffic.
pub const BULK_MESSAGES: u16 = 64;

impl SocketState {
    /// Returns the state of a socket that has sent nothing yet and is not in the sockmap.
    #[must_use]
    #[inline]
    pub const fn new(
        original: OriginalDst,
        peer: SockKey,
        netns_cookie: u64,
        hop: Hop,
        flags: SocketFlags,
    ) -> Self {
        Self {
            original,
            peer,
            netns_cookie,
            own_sk: 0,
            peer_sk: 0,
            peer_cookie: 0,
            started_ns: 0,
            bytes_redirected: 0,
            bytes_when_left: 0,
            sequences: Sequences {
                dialler: 0,
                acceptor: 0,
            },
            hop,
            flags,
            on_tcp_because: 0,
            large_messages: 0,
            thread: 0,
        }
    }

    /// [`Self::thread`] of a socket that several threads have used.
    pub const SEVERAL_THREADS: u32 = u32::MAX;

    /// Remembers who redirects a message.
    #[inline]
    pub fn redirects_by(&mut self, thread: u32) {
        self.thread = if self.thread == 0 || self.thread == thread {
            thread
        } else {
            Self::SEVERAL_THREADS
        };
    }

    /// Tells whether everything that this socket has redirected has reached the reader's queue, asked by a
    /// thread that is about to write. The kernel hands a message over after it has run the program and has let
    /// go of the lock (Linux, `tcp_bpf_send_verdict`), so only whoever has redirected all of them knows.
    #[must_use]
    #[inline]
    pub const fn has_handed_over(&self, thread: u32) -> bool {
        self.thread == 0 || self.thread == thread
    }

    /// Counts a message of `size_bytes` that TCP carries, and tells whether the socket has just turned out to be
    /// one of bulk traffic.
    #[inline]
    pub fn is_bulk_with(&mut self, size_bytes: u32) -> bool {
        if self.large_messages >= BULK_MESSAGES {
            return false;
        }
        self.large_messages = if size_bytes >= LARGE_MESSAGE_BYTES {
            self.large_messages + 1
        } else {
            self.large_messages.saturating_sub(1)
        };
        self.large_messages == BULK_MESSAGES
    }

    /// Tells whether the other end may ever redirect a message to this one.
    #[must_use]
    #[inline]
    pub fn may_be_redirected_to(&self) -> bool {
        // An application has opted in for both ends: they are of its pod.
        self.hop.reverse().is_read_by_proxy() || self.flags.has(SocketFlags::READER_OPTED_IN)
    }
}

/// Bits of [`End::flags`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct EndFlags(u32);

impl EndFlags {
    /// No flag: an application reads from this end.
    pub const NONE: Self = Self(0);
    /// A proxy reads from this end.
    pub const READER_IS_PROXY: Self = Self(1);

    /// Tells whether every bit of `other` is set.
    #[must_use]
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Value of `ENDS`: a socket that is in `SOCKETS`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct End {
    /// Address of the `struct sock`. May be stale: trust it only after the cookie matched.
    pub sk: u64,
    /// Socket cookie, unique on the machine until reboot.
    pub cookie: u64,
    /// Socket cookie of the other end, 0 if this end has connected and so does not know it. A key alone is
    /// not enough: an accepting end may outlive the other, whose port then is free for the next one.
    pub peer_cookie: u64,
    /// Who reads here.
    pub flags: EndFlags,
    /// Hop of what this end sends.
    pub hop: Hop,
}

/// Value of [`Settings::mode`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct SettingsMode(u16);

impl SettingsMode {
    /// Connections are redirected; no socket enters the sockmap and every message passes. Also what
    /// a map that nobody has written says.
    pub const REDIRECT_ONLY: Self = Self(0);
    /// Messages towards proxies may skip TCP.
    pub const SOCKMAP: Self = Self(1);
    /// Nothing is changed: verdicts are recorded, and iptables does what it does.
    pub const SHADOW: Self = Self(2);
}

/// Value of [`Settings::flows`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct FlowMode(u16);

impl FlowMode {
    /// No event is written.
    pub const OFF: Self = Self(0);
    /// Every step of every connection of a pod is an event in `FLOWS`.
    pub const ON: Self = Self(1);
}

/// The one element of `SETTINGS`. Every version of it begins with these two fields.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Settings {
    /// [`crate::ABI_VERSION`] of the agent that made the maps.
    pub abi_version: u32,
    /// What the programs may do.
    pub mode: SettingsMode,
    /// Whether they tell about single connections.
    pub flows: FlowMode,
}

// The layouts are an ABI: a pinned map may outlive the agent that made it.
const _: () = assert!(size_of::<SockKey>() == 48);
const _: () = assert!(align_of::<SockKey>() == 8);
const _: () = assert!(size_of::<Sequences>() == 8);
const _: () = assert!(size_of::<OriginalDst>() == 24);
const _: () = assert!(size_of::<TupleEntry>() == 64);
const _: () = assert!(size_of::<SocketState>() == 152);
const _: () = assert!(size_of::<End>() == 32);
const _: () = assert!(size_of::<Settings>() == 8);

#[cfg(test)]
mod tests;
