//! A name server that answers every question for an address with one of its own, so that an answer tells
//! who gave it. Over UDP and TCP.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::fixture::Pod;

/// How often a server looks whether it shall end.
const TICK: Duration = Duration::from_millis(20);
/// Length of the header (RFC 1035, section 4.1.1).
const HEADER_BYTES: u8 = 12;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;

/// A server on one address, in one pod, until it is dropped.
#[derive(Debug)]
pub(crate) struct NameServer {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl NameServer {
    /// Serves in `pod` as user `id`; `identity` is the address in its answers.
    pub(crate) fn start(pod: &Pod, id: u32, addr: SocketAddr, identity: Ipv4Addr) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (udp, tcp) = pod.run_as(id, move || {
            let udp = UdpSocket::bind(addr).expect("the address is free");
            let tcp = TcpListener::bind(addr).expect("the address is free");
            (udp, tcp)
        });
        udp.set_read_timeout(Some(TICK))
            .expect("a timeout can be set");
        tcp.set_nonblocking(true).expect("a listener can poll");
        let (udp_over, tcp_over) = (Arc::clone(&is_over), Arc::clone(&is_over));
        // As that user: each packet is the sender's, not the socket's maker's, to iptables and to us.
        let threads = vec![
            pod.spawn_as(id, id, move || serve_udp(&udp, identity, &udp_over)),
            pod.spawn_as(id, id, move || serve_tcp(&tcp, identity, &tcp_over)),
        ];
        Self { is_over, threads }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It has panicked and said why.
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, identity: Ipv4Addr, is_over: &AtomicBool) {
    let mut buffer = [0; 512];
    while !is_over.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let answer = answer(&buffer[..len], identity);
        socket
            .send_to(&answer, from)
            .expect("an answer can be sent");
    }
}

fn serve_tcp(listener: &TcpListener, identity: Ipv4Addr, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false).expect("a stream can block");
                while let Ok(query) = read_tcp(&mut stream) {
                    if write_tcp(&mut stream, &answer(&query, identity)).is_err() {
                        break;
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(TICK),
            Err(error) => panic!("the listener is broken: {error}"),
        }
    }
}

/// Reads one message behind its length (RFC 1035, section 4.2.2).
pub(crate) fn read_tcp(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut message = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// Writes one message behind its length.
pub(crate) fn write_tcp(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).expect("a short message");
    stream.write_all(&[&len.to_be_bytes(), message].concat())
}

/// A question for the IPv4 address of `who.example`.
pub(crate) fn question(id: u16) -> Vec<u8> {
    let mut message = Vec::from(id.to_be_bytes());
    // Recursion desired; one question.
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(b"\x03who\x07example\x00");
    message.extend(TYPE_A.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    message
}

/// The id of a message.
pub(crate) fn id_of(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

/// The identity of who gave an answer: its last four bytes.
pub(crate) fn identity_of(answer: &[u8]) -> IpAddr {
    let octets: [u8; 4] = *answer.last_chunk().expect("an answer has an address");
    Ipv4Addr::from(octets).into()
}

/// Answers a query of one question; a question for anything else than an IPv4 address has no answers.
fn answer(query: &[u8], identity: Ipv4Addr) -> Vec<u8> {
    let question = question_of(query).expect("a query has one question");
    let is_for_v4 = question.ends_with(&[TYPE_A.to_be_bytes(), CLASS_IN.to_be_bytes()].concat());
    let mut message = query[..2].to_vec();
    // An answer, recursion available; one question, and one answer or none.
    message.extend([0x81, 0x80, 0, 1, 0, is_for_v4.into(), 0, 0, 0, 0]);
    message.extend(question);
    if is_for_v4 {
        // The name of the question, by pointer; 60 seconds; four bytes of address.
        message.extend([0xc0, HEADER_BYTES, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        message.extend(identity.octets());
    }
    message
}

/// Name, type and class of the first question.
fn question_of(query: &[u8]) -> Option<&[u8]> {
    let start = usize::from(HEADER_BYTES);
    let mut end = start;
    loop {
        match *query.get(end)? {
            0 => break,
            label => end += usize::from(label) + 1,
        }
    }
    query.get(start..end + 5)
}
