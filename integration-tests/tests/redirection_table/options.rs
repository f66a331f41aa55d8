//! Case 2: getsockopt(2) answers one question, and every other call is what it was.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::fixture::{APP, PROXY, Pod, SO_ORIGINAL_DST, sockopt};
use crate::modes::{Mode, Redirection};
use crate::net::{Addr, Family, NO_MAPPED, Net};
use crate::row::row;
use crate::servers::OUTBOUND_PORT;
use crate::socket;

/// `IPT_SO_GET_INFO`; `IP6T_SO_GET_INFO` is the same number.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// More than the kernel shows to a program of its own: one page.
const LARGE: usize = 16 << 10;

type Question = (libc::c_int, libc::c_int, usize);
type Answer = Result<Vec<u8>, Option<i32>>;

const QUESTIONS: [Question; 19] = [
    (libc::SOL_IP, SO_ORIGINAL_DST, 16),
    (libc::SOL_IP, SO_ORIGINAL_DST, 4),
    (libc::SOL_IP, SO_ORIGINAL_DST, 128),
    (libc::SOL_IP, SO_ORIGINAL_DST, LARGE),
    (libc::IPPROTO_IPV6, SO_ORIGINAL_DST, 28),
    (libc::IPPROTO_IPV6, SO_ORIGINAL_DST, 16),
    (libc::IPPROTO_IPV6, SO_ORIGINAL_DST, LARGE),
    (libc::IPPROTO_TCP, SO_ORIGINAL_DST, 16),
    (libc::SOL_SOCKET, SO_ORIGINAL_DST, 16),
    (libc::SOL_IP, GET_INFO, 84),
    (libc::SOL_IP, GET_INFO, LARGE),
    (libc::SOL_IP, GET_ENTRIES, LARGE),
    (libc::IPPROTO_IPV6, GET_INFO, LARGE),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION, LARGE),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG, 4),
    (libc::SOL_SOCKET, libc::SO_RCVBUF, LARGE),
    (libc::SOL_SOCKET, libc::SO_ERROR, 4),
    (libc::SOL_IP, libc::IP_TTL, 1),
    (libc::SOL_IP, libc::IP_TTL, LARGE),
];

#[test]
fn case_02_other_socket_options_are_what_they_were() {
    let net = Net::new();
    let settings = row("2").settings;
    let sockets = Sockets::open(&net.pod);
    compare("without iptables", &net, &sockets.all(), |accelerated| {
        accelerated.apply(&settings);
    });

    // Conntrack knows connections that are not redirected, and answers for those that iptables did.
    let mut oracle = Redirection::new(&net, Mode::IptablesAlone);
    oracle.apply(&settings);
    let sockets = Sockets::open(&net.pod);
    let redirected = NO_MAPPED
        .iter()
        .flat_map(|family| redirect(&net.pod, *family));
    let redirected: Vec<OwnedFd> = redirected.collect();
    let mut all = sockets.all();
    all.extend(redirected.iter().map(AsRawFd::as_raw_fd));
    compare("with iptables", &net, &all, |accelerated| {
        accelerated.apply(&settings);
    });
}

fn compare(what: &str, net: &Net, sockets: &[RawFd], govern: impl Fn(&mut Redirection<'_>)) {
    let ask = || -> Vec<(RawFd, Question, Answer)> {
        let questions = sockets.iter().flat_map(|socket| {
            QUESTIONS.map(|(level, name, len)| {
                let answer = sockopt(socket, level, name, len);
                let answer = answer.map_err(|error| error.raw_os_error());
                (*socket, (level, name, len), answer)
            })
        });
        questions.collect()
    };
    let without = ask();
    let mut accelerated = Redirection::new(net, Mode::AcceleratorAlone);
    govern(&mut accelerated);
    for (before, after) in without.iter().zip(ask()) {
        assert!(*before == after, "{what}: {before:?} became {after:?}");
    }
}

/// Sockets that nobody redirects.
struct Sockets {
    listeners: Vec<TcpListener>,
    streams: Vec<TcpStream>,
    datagrams: Vec<OwnedFd>,
}

impl Sockets {
    fn open(pod: &Pod) -> Self {
        pod.run_as(APP, || {
            let mut sockets = Self {
                listeners: Vec::new(),
                streams: Vec::new(),
                datagrams: Vec::new(),
            };
            for family in NO_MAPPED {
                let listener = socket::listen(SocketAddr::new(Addr::Pod.of(*family), 0));
                let at = listener.local_addr().expect("it is bound");
                let client = TcpStream::connect(at).expect("it listens");
                let (accepted, _) = listener.accept().expect("a connection");
                sockets.listeners.push(listener);
                sockets.streams.extend([client, accepted]);
                let datagrams = socket::socket(*family, libc::SOCK_DGRAM);
                sockets.datagrams.push(datagrams);
            }
            sockets
        })
    }

    fn all(&self) -> Vec<RawFd> {
        let listeners = self.listeners.iter().map(AsRawFd::as_raw_fd);
        let streams = self.streams.iter().map(AsRawFd::as_raw_fd);
        let datagrams = self.datagrams.iter().map(AsRawFd::as_raw_fd);
        listeners.chain(streams).chain(datagrams).collect()
    }
}

// Both ends of a connection that iptables redirects.
fn redirect(pod: &Pod, family: Family) -> [OwnedFd; 2] {
    let any = if family == Family::V4 {
        "0.0.0.0"
    } else {
        "[::]"
    };
    let at: SocketAddr = format!("{any}:{OUTBOUND_PORT}")
        .parse()
        .expect("an address");
    let listener = pod.run_as(PROXY, move || socket::listen(at));
    let vip = SocketAddr::new(Addr::Vip.of(family), 80);
    let client = pod.run_as(APP, move || TcpStream::connect(vip).expect("15001 listens"));
    let (accepted, _) = listener.accept().expect("iptables redirects it");
    [client.into(), accepted.into()]
}
