//! System calls as observations: what came back, in words that can be compared between two sockets.

use std::{
    io,
    net::TcpStream,
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

const BUFFER_BYTES: usize = 256;
/// Longest wait of a poll that is to see something, in milliseconds.
pub(crate) const PATIENCE_MS: libc::c_int = 30_000;

/// Names an error as the manual pages do.
pub(crate) fn errno() -> String {
    let number = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    let name = match number {
        libc::EAGAIN => "EAGAIN",
        libc::ECONNRESET => "ECONNRESET",
        libc::EINVAL => "EINVAL",
        libc::EINTR => "EINTR",
        libc::ENOTCONN => "ENOTCONN",
        libc::EPIPE => "EPIPE",
        _ => return format!("errno {number}"),
    };
    name.to_owned()
}

/// Receives once: the bytes as text, `end` at the end of the stream, or the error.
pub(crate) fn recv(socket: &impl AsRawFd, len: usize, flags: libc::c_int) -> String {
    let mut buffer = [0_u8; BUFFER_BYTES];
    let len = len.min(BUFFER_BYTES);
    // SAFETY: a buffer that is at least `len` bytes long.
    let count = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), len, flags) };
    match usize::try_from(count) {
        Err(_) => errno(),
        Ok(0) => "end".to_owned(),
        Ok(count) => format!("{:?}", String::from_utf8_lossy(&buffer[..count])),
    }
}

/// Sends once: how many bytes were taken, or the error.
pub(crate) fn send(socket: &impl AsRawFd, bytes: &[u8], flags: libc::c_int) -> String {
    // SAFETY: a buffer and its length.
    let count = unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags | libc::MSG_NOSIGNAL,
        )
    };
    if count < 0 {
        errno()
    } else {
        count.to_string()
    }
}

/// Polls for `events`; says which of them, of errors and of hang-ups there are.
pub(crate) fn poll(socket: &impl AsRawFd, events: libc::c_short, wait_ms: libc::c_int) -> String {
    let mut entry = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one element.
    unsafe { libc::poll(&raw mut entry, 1, wait_ms) };
    let names = [
        (libc::POLLIN, "in"),
        (libc::POLLPRI, "pri"),
        (libc::POLLOUT, "out"),
        (libc::POLLERR, "err"),
        (libc::POLLHUP, "hup"),
        (libc::POLLRDHUP, "rdhup"),
    ];
    let seen: Vec<&str> = names
        .into_iter()
        .filter(|(bit, _)| entry.revents & bit != 0)
        .map(|(_, name)| name)
        .collect();
    if seen.is_empty() {
        "nothing".to_owned()
    } else {
        seen.join("+")
    }
}

/// Waits until the socket has something to read.
pub(crate) fn wait_readable(socket: &impl AsRawFd) {
    let seen = poll(socket, libc::POLLIN, PATIENCE_MS);
    assert_ne!(seen, "nothing", "something arrives");
}

/// Asks a socket for a number.
pub(crate) fn ioctl(socket: &impl AsRawFd, request: libc::Ioctl) -> libc::c_int {
    let mut value: libc::c_int = -1;
    // SAFETY: every request here writes one integer.
    unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut value) };
    value
}

/// Moves bytes from a socket into a pipe without waiting; says how many, or the error.
pub(crate) fn splice(socket: &impl AsRawFd, len: usize) -> String {
    let mut ends: [RawFd; 2] = [-1; 2];
    // SAFETY: room for two descriptors.
    let answer = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(answer, 0, "{}", errno());
    // SAFETY: just made, and owned by nobody else.
    let (_read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: two descriptors, no offsets.
    let count = unsafe {
        libc::splice(
            socket.as_raw_fd(),
            ptr::null_mut(),
            write.as_raw_fd(),
            ptr::null_mut(),
            len,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    match count {
        ..0 => errno(),
        0 => "end".to_owned(),
        _ => format!("{count} bytes"),
    }
}

/// Sends the first `len` bytes of this program from its file.
pub(crate) fn sendfile(socket: &impl AsRawFd, len: usize) -> String {
    let file = std::fs::File::open("/proc/self/exe").expect("a program has a file");
    // SAFETY: two descriptors, no offset.
    let count =
        unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), ptr::null_mut(), len) };
    if count < 0 {
        errno()
    } else {
        count.to_string()
    }
}

/// Makes the next close send a reset.
pub(crate) fn reset_on_close(socket: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: a pointer to the option's value and its length.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            8,
        )
    };
    assert_eq!(answer, 0, "{}", io::Error::last_os_error());
}
