// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The maps, and the few ways in which the programs touch them.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type as kind,
        bpf_sock,
    },
    helpers::generated::{
        bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem, bpf_sk_storage_delete,
        bpf_sk_storage_get,
    },
};
use isthmus_accel_abi::{
    CidrKey, Counter, DnsSocket, End, FLOW_RING_BYTES, FlowFacts, GroupKey, Handshake, Histogram, HopKey,
    HopStats, InterfaceKey, LatencyKey, ListenerKey, MAX_CIDR_RULES, MAX_GROUP_RULES, MAX_HANDSHAKES, MAX_HOP_ROWS,
    MAX_INTERFACE_RULES, MAX_LATENCY_ROWS, MAX_LISTENERS, MAX_POD_ADDRS, MAX_PODS, MAX_PORT_RULES,
    MAX_ROUTES, MAX_SOCKETS, Parked, PodConfig, PodParked, PodVerdicts, PortKey, Settings, SettingsMode, SockKey, SocketState,
    TupleEntry,
};

const PREALLOC: usize = 0;
pub const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// Linux 5.3.
const INHERITED: usize = NO_PREALLOC | BPF_F_CLONE as usize;
const HASH: usize = kind::BPF_MAP_TYPE_HASH as usize;
const LPM_TRIE: usize = kind::BPF_MAP_TYPE_LPM_TRIE as usize;
const ARRAY: usize = kind::BPF_MAP_TYPE_ARRAY as usize;
const PERCPU_ARRAY: usize = kind::BPF_MAP_TYPE_PERCPU_ARRAY as usize;
pub const PERCPU_HASH: usize = kind::BPF_MAP_TYPE_PERCPU_HASH as usize;
const SK_STORAGE: usize = kind::BPF_MAP_TYPE_SK_STORAGE as usize;
const SOCKHASH: usize = kind::BPF_MAP_TYPE_SOCKHASH as usize;
const RINGBUF: usize = kind::BPF_MAP_TYPE_RINGBUF as usize;

/// A map definition as libbpf and aya read it from BTF: the numbers are lengths of array types.
#[repr(C)]
pub struct Map<K, V, const KIND: usize, const ENTRIES: usize, const FLAGS: usize> {
    r#type: *const [i32; KIND],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; ENTRIES],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are null and never read: the loader replaces references to the static by a map.
unsafe impl<K, V, const T: usize, const E: usize, const F: usize> Sync for Map<K, V, T, E, F> {}

impl<K, V, const T: usize, const E: usize, const F: usize> Map<K, V, T, E, F> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// Returns what helpers take as the map.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// Returns the value behind `key`, or null.
    #[inline(always)]
    pub fn lookup(&self, key: &K) -> *mut V {
        // SAFETY: the map is one of ours and the key is initialised memory of the map's key type.
        unsafe { bpf_map_lookup_elem(self.as_ptr(), ptr::from_ref(key).cast()).cast() }
    }

    /// Tells whether `key` is there.
    #[inline(always)]
    pub fn has(&self, key: &K) -> bool {
        !self.lookup(key).is_null()
    }

    /// Writes a value; returns the kernel's answer, 0 or a negative errno.
    #[inline(always)]
    pub fn update(&self, key: &K, value: &V, flags: u32) -> i64 {
        // SAFETY: as in `lookup`; the value is initialised memory of the map's value type.
        unsafe {
            bpf_map_update_elem(
                self.as_ptr(),
                ptr::from_ref(key).cast(),
                ptr::from_ref(value).cast(),
                flags.into(),
            )
        }
    }

    /// Removes a key, and tells whether it was there.
    #[inline(always)]
    pub fn delete(&self, key: &K) -> bool {
        // SAFETY: as in `lookup`.
        unsafe { bpf_map_delete_elem(self.as_ptr(), ptr::from_ref(key).cast()) == 0 }
    }

    /// Returns a copy of the value behind `key`.
    #[inline(always)]
    pub fn get(&self, key: &K) -> Option<V>
    where
        V: Copy,
    {
        let value = self.lookup(key);
        // SAFETY: not null, so it is a value of this map, which lives until the program ends.
        (!value.is_null()).then(|| unsafe { *value })
    }
}

macro_rules! maps {
    ($($name:ident: $kind:ident<$key:ty, $value:ty>, $entries:expr, $flags:expr;)*) => {
        $(
            #[unsafe(link_section = ".maps")]
            #[unsafe(no_mangle)]
            pub static $name: Map<$key, $value, $kind, { $entries as usize }, $flags> = Map::new();
        )*
    };
}

// Preallocated where a connection waits for the insertion (`HANDSHAKES`, `ORIG_DST_BY_TUPLE`: room is
// exact, and an insertion cannot fail for want of memory); allocated on use where the bound is far
// above what a usual node has.
maps! {
    PODS: HASH<u64, PodConfig>, MAX_PODS, NO_PREALLOC;
    POD_ADDRS: HASH<[u8; 16], u64>, MAX_POD_ADDRS, NO_PREALLOC;
    PORT_RULES: HASH<PortKey, u32>, MAX_PORT_RULES, NO_PREALLOC;
    GROUP_RULES: HASH<GroupKey, u32>, MAX_GROUP_RULES, NO_PREALLOC;
    CIDR_RULES: LPM_TRIE<CidrKey, u32>, MAX_CIDR_RULES, NO_PREALLOC;
    ROUTES: LPM_TRIE<CidrKey, u32>, MAX_ROUTES, NO_PREALLOC;
    HANDSHAKES: HASH<u64, Handshake>, MAX_HANDSHAKES, PREALLOC;
    ORIG_DST_BY_TUPLE: HASH<SockKey, TupleEntry>, MAX_HANDSHAKES, PREALLOC;
    ENDS: HASH<SockKey, End>, MAX_SOCKETS, NO_PREALLOC;
    SOCKETS: SOCKHASH<SockKey, u32>, MAX_SOCKETS, PREALLOC;
    PARKED: HASH<SockKey, Parked>, MAX_SOCKETS, NO_PREALLOC;
    POD_PARKED: HASH<u64, PodParked>, MAX_PODS, NO_PREALLOC;
    HOP_STATS: PERCPU_HASH<HopKey, HopStats>, MAX_HOP_ROWS, NO_PREALLOC;
    VERDICTS: PERCPU_HASH<u64, PodVerdicts>, MAX_PODS, NO_PREALLOC;
    LATENCY: PERCPU_HASH<LatencyKey, Histogram>, MAX_LATENCY_ROWS, NO_PREALLOC;
    COUNTERS: PERCPU_ARRAY<u32, u64>, Counter::COUNT, PREALLOC;
    SETTINGS: ARRAY<u32, Settings>, 1, PREALLOC;
    EXCLUDED_INTERFACES: HASH<InterfaceKey, u32>, MAX_INTERFACE_RULES, NO_PREALLOC;
    VIRTUAL_INTERFACES: HASH<InterfaceKey, u32>, MAX_INTERFACE_RULES, NO_PREALLOC;
    LISTENERS: SOCKHASH<ListenerKey, u64>, MAX_LISTENERS, PREALLOC;
}

#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub static SOCKET_STATE: SocketStorage<SocketState> = Map::new();

#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub static DNS_SOCKETS: SocketStorage<DnsSocket> = Map::new();

#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub static FLOW_STATE: SocketStorage<FlowFacts> = Map::new();

/// Accepted sockets inherit the value of the one that listened.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub static INBOUND_SOCKETS: Map<i32, u32, SK_STORAGE, 0, INHERITED> = Map::new();

/// A map whose values live and die with their sockets.
pub type SocketStorage<V> = Map<i32, V, SK_STORAGE, 0, NO_PREALLOC>;

impl<V, const FLAGS: usize> Map<i32, V, SK_STORAGE, 0, FLAGS> {
    /// Returns the state of a socket, or null.
    #[inline(always)]
    pub fn of(&self, sk: *mut bpf_sock) -> *mut V {
        // SAFETY: the verifier accepts only a socket here; a null value asks for no creation.
        unsafe { bpf_sk_storage_get(self.as_ptr(), sk.cast(), ptr::null_mut(), 0).cast() }
    }

    /// Returns the state of a socket, making a zeroed one, or null if there is no memory.
    #[inline(always)]
    pub fn of_or_new(&self, sk: *mut bpf_sock) -> *mut V {
        // SAFETY: as in `of`.
        unsafe {
            bpf_sk_storage_get(
                self.as_ptr(),
                sk.cast(),
                ptr::null_mut(),
                BPF_SK_STORAGE_GET_F_CREATE.into(),
            )
            .cast()
        }
    }

    /// Forgets a socket.
    #[inline(always)]
    pub fn forget(&self, sk: *mut bpf_sock) {
        // SAFETY: as in `of`.
        unsafe { bpf_sk_storage_delete(self.as_ptr(), sk.cast()) };
    }
}

/// A ring buffer: it has neither keys nor values, and its bound is in bytes.
#[repr(C)]
pub struct Ring<const BYTES: usize> {
    r#type: *const [i32; RINGBUF],
    max_entries: *const [i32; BYTES],
}

// SAFETY: as for `Map`.
unsafe impl<const BYTES: usize> Sync for Ring<BYTES> {}

impl<const BYTES: usize> Ring<BYTES> {
    /// Returns what helpers take as the map.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub static FLOWS: Ring<{ FLOW_RING_BYTES as usize }> = Ring {
    r#type: ptr::null(),
    max_entries: ptr::null(),
};

impl Map<ListenerKey, u64, SOCKHASH, { MAX_LISTENERS as usize }, PREALLOC> {
    /// Puts a listening socket there, in place of another; returns the kernel's answer, 0 or a
    /// negative errno. For iterators: `sock_ops` has a helper of its own.
    #[inline(always)]
    pub fn update_socket(&self, key: &ListenerKey, sk: *mut c_void) -> i64 {
        // SAFETY: as in `lookup`; the verifier accepts only a socket as the value.
        unsafe { bpf_map_update_elem(self.as_ptr(), ptr::from_ref(key).cast(), sk, ANY.into()) }
    }
}

/// Tells whether sockets may enter the sockmap and messages may skip TCP.
#[inline(always)]
pub fn is_sockmap_on() -> bool {
    SETTINGS
        .get(&0)
        .is_some_and(|settings| settings.mode == SettingsMode::SOCKMAP)
}

/// Tells whether verdicts are only recorded, so that a program may change nothing.
#[inline(always)]
pub fn is_shadow() -> bool {
    SETTINGS
        .get(&0)
        .is_some_and(|settings| settings.mode == SettingsMode::SHADOW)
}

/// Flag of [`Map::update`]: create or replace.
pub const ANY: u32 = BPF_ANY;
