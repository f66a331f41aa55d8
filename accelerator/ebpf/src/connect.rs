// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `cgroup/connect4` and `6`: decide where a connection goes, before it has a tuple.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_EXIST, BPF_NOEXIST, bpf_sock},
    helpers::generated::{bpf_bind, bpf_get_socket_cookie, bpf_ktime_get_ns},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use isthmus_accel_abi::{
    CidrKey, Counter, DNS_AGENT_PORT, Dial, GroupKey, Handshake, Hop, InterfaceKey, OriginalDst,
    PodConfig, PortKey, Rules, SockKey, SocketFlags, SocketState, Source, Verdict, VerdictCode, decide,
    is_unspecified, is_v4, query_source, v4_mapped,
};

use crate::{
    counters::count,
    flow,
    maps::{
        CIDR_RULES, EXCLUDED_INTERFACES, GROUP_RULES, HANDSHAKES, POD_ADDRS, PODS, PORT_RULES, ROUTES,
        SOCKET_STATE, VIRTUAL_INTERFACES, is_shadow,
    },
    sock_addr::{self, Family, dial, source},
    udp::{self, udp_socket},
};

const ALLOW: i32 = 1;
/// `EPERM` for the caller.
const REFUSE: i32 = 0;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const EEXIST: i64 = 17;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCKADDR_IN_BYTES: usize = 16;
const SOCKADDR_IN6_BYTES: usize = 28;

/// Rewrites the destination of connections that a proxy should get. Linux 5.10 (socket storage).
#[cgroup_sock_addr(connect4)]
pub fn isthmus_connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V4)
}

/// The same for IPv6 sockets, also for those that dial IPv4. Linux 5.10 (socket storage).
#[cgroup_sock_addr(connect6)]
pub fn isthmus_connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V6)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: reads of context fields of their own width, which the verifier checks.
    let (kind, protocol, sk) = unsafe {
        (
            read_volatile(addr_of!((*addr).type_)),
            read_volatile(addr_of!((*addr).protocol)),
            read_volatile(addr_of!((*addr).__bindgen_anon_1.sk)),
        )
    };
    if let Some(sk) = udp_socket(addr) {
        if let Some(query) = dial(ctx, sk, family, source(sk, family))
            && let Some(agent) = udp::connect(sk, &query)
        {
            come_from(ctx, family, &query, query_source(&query, &Loaded));
            sock_addr::write(addr, family, agent, DNS_AGENT_PORT);
        }
        return ALLOW;
    }
    if kind != SOCK_STREAM || protocol != IPPROTO_TCP || sk.is_null() {
        return ALLOW;
    }

    // What the kernel dials for itself is nothing that an application or a proxy could answer for.
    let Some(dial) = dial(ctx, sk, family, source(sk, family)) else {
        return ALLOW;
    };
    let verdict = decide(&dial, &Loaded);
    let outcome = if is_shadow() {
        // The socket may be of the time before.
        SOCKET_STATE.forget(sk);
        VerdictCode::of(&verdict)
    } else {
        carry_out(ctx, sk, family, &dial, &verdict)
    };
    flow::decided(addr, sk, &dial, &verdict, outcome);
    if outcome == VerdictCode::NO_ROOM && verdict.must_be_followed(&dial) {
        return REFUSE;
    }
    ALLOW
}

/// Does what was decided, if there is room for it.
#[inline(always)]
fn carry_out(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    family: Family,
    dial: &Dial,
    verdict: &Verdict,
) -> VerdictCode {
    let is_done = match verdict {
        Verdict::Pass(_) => {
            // The socket may have been followed in an earlier attempt that failed.
            SOCKET_STATE.forget(sk);
            true
        }
        Verdict::Follow => follow(ctx, sk, dial, dial.netns_cookie, Hop::PROXY_TO_APP),
        Verdict::Redirect(redirect) => {
            let is_followed = follow(ctx, sk, dial, redirect.peer_netns, redirect.hop);
            if is_followed {
                come_from(ctx, family, dial, redirect.source);
                sock_addr::write(ctx.sock_addr, family, redirect.addr, redirect.port);
                count(Counter::Redirects);
            }
            is_followed
        }
    };
    if is_done {
        VerdictCode::of(verdict)
    } else {
        VerdictCode::NO_ROOM
    }
}

#[inline(always)]
fn come_from(ctx: &SockAddrContext, family: Family, dial: &Dial, source: Source) {
    match source {
        Source::DESTINATION => bind(ctx, family, &dial.destination),
        Source::DEFAULT => bind_to_default(ctx, family, dial),
        _ => {}
    }
}

#[inline(never)]
fn bind_to_default(ctx: &SockAddrContext, family: Family, dial: &Dial) {
    let source = default_source(dial);
    if !is_unspecified(&source) {
        bind(ctx, family, &source);
    }
}

/// Returns the address that what leaves the caller's pod comes from, unspecified if it has none.
#[inline(always)]
pub fn default_source(dial: &Dial) -> [u8; 16] {
    let is_v4 = is_v4(&dial.destination);
    let pod = PODS.lookup(&dial.netns_cookie);
    if pod.is_null() {
        return [0; 16];
    }
    // SAFETY: not null, so it is a value of this map, which lives until the program ends.
    let pod = unsafe { &*pod };
    if is_v4 {
        v4_mapped(pod.source_v4)
    } else {
        pod.source_v6
    }
}

/// Gives a socket that is bound to no address one, and leaves the choice of its port to the kernel. What
/// fails stays as it is: the connection then comes from loopback.
#[inline(never)]
fn bind(ctx: &SockAddrContext, family: Family, source: &[u8; 16]) {
    let mut addr = [0_u8; SOCKADDR_IN6_BYTES];
    let len = match family {
        Family::V4 => {
            addr[..2].copy_from_slice(&AF_INET.to_ne_bytes());
            addr[4..8].copy_from_slice(&source[12..]);
            SOCKADDR_IN_BYTES
        }
        Family::V6 => {
            addr[..2].copy_from_slice(&AF_INET6.to_ne_bytes());
            addr[8..24].copy_from_slice(source);
            SOCKADDR_IN6_BYTES
        }
    };
    // SAFETY: an address of this length.
    unsafe { bpf_bind(ctx.as_ptr().cast(), addr.as_mut_ptr().cast(), len as i32) };
}

/// Reserves room for what the accepting end will ask, and marks the socket. Tells whether both worked:
/// if not, the connection must stay as it is.
///
/// A function of its own in the object too: what it needs of the stack and what the decision needs are
/// not needed at once.
#[inline(never)]
fn follow(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    dial: &Dial,
    peer_netns: u64,
    hop: Hop,
) -> bool {
    // SAFETY: helpers without further arguments.
    let (cookie, started_ns) = unsafe { (bpf_get_socket_cookie(ctx.as_ptr()), bpf_ktime_get_ns()) };
    let original = OriginalDst {
        addr: dial.destination,
        port: dial.port,
        reserved: [0; 6],
    };
    let handshake = Handshake {
        original,
        started_ns,
    };
    let mut refused = HANDSHAKES.update(&cookie, &handshake, BPF_NOEXIST);
    if refused == -EEXIST {
        refused = HANDSHAKES.update(&cookie, &handshake, BPF_EXIST);
    }
    if refused != 0 {
        count(Counter::HandshakesFull);
        SOCKET_STATE.forget(sk);
        return false;
    }

    let flags = if hop == Hop::PROXY_TO_APP {
        SocketFlags::HAS_CONNECTED
    } else {
        SocketFlags::HAS_CONNECTED.with(SocketFlags::HAS_ORIGINAL_DST)
    };
    let peer = SockKey {
        netns_cookie: peer_netns,
        local_addr: [0; 16],
        peer_addr: [0; 16],
        local_port: [0; 2],
        peer_port: [0; 2],
        reserved: [0; 4],
    };
    let state = SOCKET_STATE.of_or_new(sk);
    if state.is_null() {
        HANDSHAKES.delete(&cookie);
        return false;
    }
    // SAFETY: not null, so it is this socket's state, and connect holds its lock.
    unsafe { *state = SocketState::new(original, peer, dial.netns_cookie, hop, flags) };
    true
}

/// The rules in the maps.
pub struct Loaded;

impl Rules for Loaded {
    #[inline(always)]
    fn pod(&self, netns_cookie: u64) -> Option<PodConfig> {
        PODS.get(&netns_cookie)
    }

    #[inline(always)]
    fn owner(&self, addr: &[u8; 16]) -> Option<u64> {
        POD_ADDRS.get(addr)
    }

    #[inline(always)]
    fn has_port(&self, key: &PortKey) -> bool {
        PORT_RULES.has(key)
    }

    #[inline(always)]
    fn has_group(&self, key: &GroupKey) -> bool {
        GROUP_RULES.has(key)
    }

    #[inline(always)]
    fn has_addr(&self, key: &CidrKey) -> bool {
        CIDR_RULES.has(key)
    }

    #[inline(always)]
    fn has_interface(&self, key: &InterfaceKey) -> bool {
        EXCLUDED_INTERFACES.has(key)
    }

    #[inline(always)]
    fn is_virtual(&self, key: &InterfaceKey) -> bool {
        VIRTUAL_INTERFACES.has(key)
    }

    #[inline(always)]
    fn exit(&self, key: &CidrKey) -> Option<u32> {
        ROUTES.get(key)
    }
}
