//! The kernel's name for a network namespace.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Returns the cookie of the network namespace that a socket was created in: unique until reboot, and
/// what `bpf_get_netns_cookie` returns to the programs. Linux 5.14.
///
/// # Errors
///
/// Returns `ENOPROTOOPT` on an older kernel, `ENOTSOCK` for another kind of file.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size_bytes = COOKIE_BYTES;
    // SAFETY: both pointers are to locals that outlive the call, and `size_bytes` is the size of the
    // one that the kernel writes to.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size_bytes,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

const COOKIE_BYTES: libc::socklen_t = 8;
const _: () = assert!(COOKIE_BYTES as usize == size_of::<u64>());

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd};

    use super::*;

    #[test]
    fn sockets_of_one_namespace_have_one_cookie() {
        let cookie = || {
            let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("loopback is there");
            netns_cookie(socket.as_fd()).expect("this kernel has it")
        };
        assert_eq!(cookie(), cookie());
        assert_ne!(cookie(), 0);
    }

    #[test]
    fn a_file_has_none() {
        let file = std::fs::File::open("/dev/null").expect("it is always there");
        let error = netns_cookie(file.as_fd()).expect_err("it is no socket");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }
}
