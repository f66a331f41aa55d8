//! rtnetlink(7): messages as bytes, and a socket that carries them.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    libc::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST,
        NLMSG_DONE, NLMSG_ERROR,
    },
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv,
            send, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

/// The kernel fills datagrams up to this size in a dump (Linux, `netlink_recvmsg`).
const DATAGRAM_BYTES: usize = 32 * 1024;

/// Far more than the kernel takes for the next part of an answer.
const PATIENCE_SECONDS: i64 = 2;

/// Messages that a dump may have: the kernel leaves out no table. Forty times the routes of a pod.
const MAX_MESSAGES: usize = 20_000;

/// Sizes of `struct nlmsghdr` and `rtattr` (Linux, `include/uapi/linux`).
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;

/// Bits of an attribute's type that are not flags (`NLA_TYPE_MASK`).
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// A message to the kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// Asks for everything of a kind (`RTM_GET…`). `fixed` is the kind's own header.
    #[must_use]
    pub fn dump(kind: u16, fixed: &[u8]) -> Self {
        Self::new(kind, NLM_F_REQUEST | NLM_F_DUMP, fixed)
    }

    /// Adds something that must not be there yet (`RTM_NEW…`).
    #[must_use]
    pub fn add(kind: u16, fixed: &[u8]) -> Self {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        Self::new(kind, flags, fixed)
    }

    /// Removes something (`RTM_DEL…`).
    #[must_use]
    pub fn remove(kind: u16, fixed: &[u8]) -> Self {
        Self::new(kind, NLM_F_REQUEST | NLM_F_ACK, fixed)
    }

    fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let flags = u16::try_from(flags).expect("bits of 16");
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Number and port, which a single question needs not.
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Self { bytes }.sealed()
    }

    /// Appends an attribute.
    ///
    /// # Panics
    ///
    /// If the value is longer than an attribute may be (64 KiB).
    #[must_use]
    pub fn with(mut self, name: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).expect("values are short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(name.to_ne_bytes());
        self.bytes.extend(value);
        self.sealed()
    }

    fn sealed(mut self) -> Self {
        let aligned = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(aligned, 0);
        let length = u32::try_from(aligned).expect("a request is short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Returns the message as it is sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a datagram of a dump turned out to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// More will come.
    More,
    /// It is complete, or as much of it as is wanted.
    Done,
}

/// Whether the reader of a dump wants the next message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Appetite {
    /// Go on.
    More,
    /// The rest does not matter.
    Enough,
}

/// An answer that comes in datagrams. Performs no I/O.
#[derive(Debug, Default)]
pub struct Dump {
    messages: usize,
}

impl Dump {
    /// Takes in one datagram and gives the kind and the body of each message to `take`.
    ///
    /// # Errors
    ///
    /// Returns what the kernel answers, `Interrupted` if what is asked for changed while it was read,
    /// `InvalidData` for what is no message, and what `take` returns.
    pub fn handle(
        &mut self,
        mut datagram: &[u8],
        take: &mut dyn FnMut(u16, &[u8]) -> io::Result<Appetite>,
    ) -> io::Result<Progress> {
        while !datagram.is_empty() {
            let (header, body, rest) = message(datagram).ok_or_else(malformed)?;
            datagram = rest;
            if header.flags & NLM_F_DUMP_INTR != 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match i32::from(header.kind) {
                NLMSG_DONE => return Ok(Progress::Done),
                NLMSG_ERROR => {
                    return refusal(body)?.map_or(Ok(Progress::Done), Err);
                }
                _ => {
                    if take(header.kind, body)? == Appetite::Enough {
                        return Ok(Progress::Done);
                    }
                }
            }
            self.messages += 1;
            if self.messages > MAX_MESSAGES {
                let error = format!("the kernel's answer has more than {MAX_MESSAGES} entries");
                return Err(io::Error::other(error));
            }
        }
        Ok(Progress::More)
    }
}

/// Puts a question to the network namespace of the calling thread.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens a socket that is connected to the kernel, so that nobody else in the namespace can answer.
    ///
    /// # Errors
    ///
    /// Returns the kernel's answer.
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd })
    }

    /// Reads a dump to its end. A socket that has read only a part of one is of no further use.
    ///
    /// # Errors
    ///
    /// As [`Dump::handle`].
    pub fn read(
        &self,
        request: &Request,
        take: &mut dyn FnMut(u16, &[u8]) -> io::Result<Appetite>,
    ) -> io::Result<()> {
        self.send(request)?;
        let mut dump = Dump::default();
        let mut datagram = vec![0; DATAGRAM_BYTES];
        while dump.handle(self.receive(&mut datagram)?, take)? == Progress::More {}
        Ok(())
    }

    /// Changes something and waits until it is done.
    ///
    /// # Errors
    ///
    /// Returns the kernel's answer.
    pub fn change(&self, request: &Request) -> io::Result<()> {
        self.send(request)?;
        let mut datagram = vec![0; DATAGRAM_BYTES];
        let received = self.receive(&mut datagram)?;
        let (header, body, _) = message(received).ok_or_else(malformed)?;
        if i32::from(header.kind) != NLMSG_ERROR {
            return Err(malformed());
        }
        refusal(body)?.map_or(Ok(()), Err)
    }

    fn send(&self, request: &Request) -> io::Result<()> {
        send(self.fd.as_raw_fd(), request.as_bytes(), MsgFlags::empty())?;
        Ok(())
    }

    fn receive<'a>(&self, datagram: &'a mut [u8]) -> io::Result<&'a [u8]> {
        // With the flag the kernel says how long the datagram was, whether it fitted or not.
        let length = recv(self.fd.as_raw_fd(), datagram, MsgFlags::MSG_TRUNC)?;
        let received = datagram.get(..length);
        received.ok_or_else(|| io::Error::other("a netlink datagram is too long"))
    }
}

/// Returns the name and value of the first attribute, and what comes behind it; `None` for what is none.
#[must_use]
pub fn attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16_at(bytes, 0)?);
    let name = u16_at(bytes, 2)? & ATTRIBUTE_TYPE;
    let value = bytes.get(ATTRIBUTE_BYTES..length)?;
    Some((name, value, behind(bytes, length)))
}

/// Returns what comes behind the first `length` bytes. Everything is aligned to four bytes, except for the
/// end of the last one.
#[must_use]
pub fn behind(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(length.next_multiple_of(4)..).unwrap_or_default()
}

/// Returns the number at an offset, `None` behind the end.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

/// Returns the number at an offset, `None` behind the end.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// The error for an answer that is not what the protocol says.
#[must_use]
pub fn malformed() -> io::Error {
    let text = "the kernel's answer by rtnetlink is not understood";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

struct Header {
    flags: i32,
    kind: u16,
}

// A message's header and body, and what comes behind it.
fn message(datagram: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
    let header = Header {
        kind: u16_at(datagram, 4)?,
        flags: u16_at(datagram, 6)?.into(),
    };
    let body = datagram.get(HEADER_BYTES..length)?;
    Some((header, body, behind(datagram, length)))
}

// What an `NLMSG_ERROR` says: nothing if all is well.
fn refusal(body: &[u8]) -> io::Result<Option<io::Error>> {
    let bytes = body.first_chunk().ok_or_else(malformed)?;
    let error = i32::from_ne_bytes(*bytes);
    Ok((error != 0).then(|| io::Error::from_raw_os_error(error.wrapping_neg())))
}

#[cfg(test)]
mod tests;
