// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Fields of `struct sock` and of what hangs on it, at the offsets that the loader found in the running
//! kernel's BTF. (Rust has no field relocations.)

use core::{ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use isthmus_accel_abi::{global::ABSENT, v4_mapped};

macro_rules! offsets {
    ($($name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            static $name: u32 = ABSENT;
        )*
    };
}

offsets! {
    SKC_COOKIE_OFFSET
    RECEIVE_QUEUE_LEN_OFFSET
    RMEM_ALLOC_OFFSET
    RCVBUF_OFFSET
    RCVLOWAT_OFFSET
    SK_FLAGS_OFFSET
    ZEROCOPY_BIT
    SND_UNA_OFFSET
    WRITE_SEQ_OFFSET
    ULP_OPS_OFFSET
    USER_DATA_OFFSET
    INGRESS_MSG_OFFSET
    IS_MPTCP_OFFSET
    SK_SOCKET_OFFSET
    SOCKET_FILE_OFFSET
    FILE_CRED_OFFSET
    CRED_FSUID_OFFSET
    CRED_FSGID_OFFSET
    SKC_FAMILY_OFFSET
    SKC_STATE_OFFSET
    SKC_NUM_OFFSET
    SKC_RCV_SADDR_OFFSET
    SKC_V6_RCV_SADDR_OFFSET
    SKC_NET_OFFSET
    NET_COOKIE_OFFSET
}

// `ZEROCOPY_BIT` is no offset, but found in the same place and as absent in the same way.

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Low bits of `sk_user_data` that are flags (Linux, `include/net/sock.h`, `SK_USER_DATA_PTRMASK`).
const USER_DATA_FLAGS: u64 = 7;

/// The address of a `struct sock` that may be stale: reading it can fail, or give what another object
/// holds by now, but can do no harm.
#[derive(Clone, Copy)]
pub struct KernelSock(pub u64);

impl KernelSock {
    /// Socket cookie.
    #[inline(always)]
    pub fn cookie(self) -> Option<u64> {
        self.read(&SKC_COOKIE_OFFSET)
    }

    /// Segments that TCP has delivered and nobody has read.
    #[inline(always)]
    pub fn receive_queue_len(self) -> Option<u32> {
        self.read(&RECEIVE_QUEUE_LEN_OFFSET)
    }

    /// Bytes charged to the receive buffer.
    #[inline(always)]
    pub fn rmem_alloc(self) -> Option<u32> {
        self.read(&RMEM_ALLOC_OFFSET)
    }

    /// Size of the receive buffer in bytes.
    #[inline(always)]
    pub fn rcvbuf(self) -> Option<u32> {
        self.read(&RCVBUF_OFFSET)
    }

    /// Tells whether less than some number of bytes shall not wake the reader. Unreadable counts as yes.
    #[inline(always)]
    pub fn has_low_water_mark(self) -> bool {
        self.read::<u32>(&RCVLOWAT_OFFSET)
            .is_none_or(|bytes| bytes > 1)
    }

    /// Tells whether the owner wants to hear when its pages are sent. Unreadable counts as yes.
    #[inline(always)]
    pub fn uses_zero_copy(self) -> bool {
        let (Some(flags), Some(bit)) = (self.read::<u64>(&SK_FLAGS_OFFSET), offset(&ZEROCOPY_BIT))
        else {
            return true;
        };
        flags >> (bit & 63) & 1 == 1
    }

    /// First byte that is not acknowledged.
    #[inline(always)]
    pub fn snd_una(self) -> Option<u32> {
        self.read(&SND_UNA_OFFSET)
    }

    /// Byte after the last one that was written.
    #[inline(always)]
    pub fn write_seq(self) -> Option<u32> {
        self.read(&WRITE_SEQ_OFFSET)
    }

    /// Tells whether kTLS or another protocol owns the socket's calls. Unreadable counts as yes.
    #[inline(always)]
    pub fn has_ulp(self) -> bool {
        self.read::<u64>(&ULP_OPS_OFFSET) != Some(0)
    }

    /// Tells whether redirected messages wait to be read.
    #[inline(always)]
    pub fn has_parked(self) -> Option<bool> {
        let psock = self.read::<u64>(&USER_DATA_OFFSET)? & !USER_DATA_FLAGS;
        if psock == 0 {
            return Some(false);
        }
        // An empty list points to itself.
        let head = psock.wrapping_add(offset(&INGRESS_MSG_OFFSET)?.into());
        let first = KernelSock(psock).read::<u64>(&INGRESS_MSG_OFFSET)?;
        Some(first != head)
    }

    /// Tells whether this is a subflow of an MPTCP connection. A kernel without the field has none.
    #[inline(always)]
    pub fn is_mptcp(self) -> bool {
        offset(&IS_MPTCP_OFFSET).is_some() && self.read::<u8>(&IS_MPTCP_OFFSET) != Some(0)
    }

    /// The file that a process has the socket by.
    #[inline(always)]
    pub fn file(self) -> Option<SocketFile> {
        let socket = self.read::<u64>(&SK_SOCKET_OFFSET)?;
        read(socket, &SOCKET_FILE_OFFSET).map(SocketFile)
    }

    /// TCP state, as the kernel numbers them.
    #[inline(always)]
    pub fn state(self) -> Option<u8> {
        self.read(&SKC_STATE_OFFSET)
    }

    /// Cookie of the network namespace.
    #[inline(always)]
    pub fn netns_cookie(self) -> Option<u64> {
        let net = self.read::<u64>(&SKC_NET_OFFSET)?;
        read(net, &NET_COOKIE_OFFSET)
    }

    /// Port that it is bound to, host order.
    #[inline(always)]
    pub fn local_port(self) -> Option<u16> {
        self.read(&SKC_NUM_OFFSET)
    }

    /// Address that it is bound to, v4-mapped.
    #[inline(always)]
    pub fn local_addr(self) -> Option<[u8; 16]> {
        match self.read::<u16>(&SKC_FAMILY_OFFSET)? {
            AF_INET => Some(v4_mapped(self.read(&SKC_RCV_SADDR_OFFSET)?)),
            AF_INET6 => self.read(&SKC_V6_RCV_SADDR_OFFSET),
            _ => None,
        }
    }

    #[inline(always)]
    fn read<T>(self, field: &'static u32) -> Option<T> {
        read(self.0, field)
    }
}

/// The address of the `struct file` of a socket, 0 for a socket that the kernel made for itself.
#[derive(Clone, Copy)]
pub struct SocketFile(pub u64);

impl SocketFile {
    /// User and group that the socket was made as, which netfilter's `owner` match goes by (Linux,
    /// `net/netfilter/xt_owner.c`). Supplementary groups do not count, and not who has the socket by now.
    #[inline(always)]
    pub fn owner(self) -> Option<(u32, u32)> {
        let cred = read::<u64>(self.0, &FILE_CRED_OFFSET)?;
        Some((
            read(cred, &CRED_FSUID_OFFSET)?,
            read(cred, &CRED_FSGID_OFFSET)?,
        ))
    }
}

#[inline(always)]
fn read<T>(base: u64, field: &'static u32) -> Option<T> {
    let at = base.wrapping_add(offset(field)?.into());
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes `size_of::<T>()` bytes or fails; it survives any address.
    let failed = unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            at as *const c_void,
        )
    };
    // SAFETY: on success the helper has written the value, and every `T` here is an integer.
    (failed == 0).then(|| unsafe { value.assume_init() })
}

#[inline(always)]
fn offset(field: &'static u32) -> Option<u32> {
    // SAFETY: a reference to a static. Volatile, because the loader changes it after compilation.
    let offset = unsafe { ptr::read_volatile(field) };
    (offset != ABSENT).then_some(offset)
}
