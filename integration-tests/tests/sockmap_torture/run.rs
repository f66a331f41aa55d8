//! All scenarios on one leg, by two threads: the connecting end and the accepting one.

use std::{
    io,
    net::{Shutdown, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{Arc, mpsc},
    thread,
};

use crate::{
    fixture::{Pod, SOCKADDR_BYTES, set_sockopt, sockaddr, tcp_socket},
    scenario::{Ending, Exchange, Listener, Reader, Scenario},
    stream::{End, Heard, Source, wait_for},
};

/// Client and server, each without asking for a cookie (Linux, `ip-sysctl.rst`, `tcp_fastopen`).
const FAST_OPEN_WITHOUT_COOKIE: &str = "519";
/// Tells the bytes of one direction from those of the other.
const DOWN: u64 = 1 << 63;
const LAST_WORDS: &[u8] = b"last words";

/// What both ends heard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) connector: Heard,
    pub(crate) acceptor: Heard,
}

/// Where connections are made, and by whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) client: u32,
    pub(crate) server: u32,
    pub(crate) dials: SocketAddrV4,
    pub(crate) listens: SocketAddrV4,
}

/// Runs the scenarios one after the other; returns a handle to wait for them.
pub(crate) fn start(
    (client, server): (&Pod, &Pod),
    route: Route,
    scenarios: &Arc<Vec<Scenario>>,
) -> thread::JoinHandle<Vec<Outcome>> {
    for pod in [client, server] {
        pod.run_as(0, || {
            std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN_WITHOUT_COOKIE)
                .expect("a namespace has its own setting");
        });
    }
    // Two wires of signals: what one end does next may depend on what the other has done.
    let (to_connector, from_acceptor) = mpsc::channel();
    let (to_acceptor, from_connector) = mpsc::channel();
    let accepting = {
        let scenarios = scenarios.clone();
        let wire = Wire {
            to_connector,
            from_connector,
        };
        server.spawn_as(route.server, route.server, move || {
            let listener = TcpListener::bind(route.listens).expect("the address is free");
            set_sockopt(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 256);
            let run = |scenario| accept(&listener, scenario, &wire);
            scenarios.iter().map(run).collect::<Vec<_>>()
        })
    };
    let connecting = {
        let scenarios = scenarios.clone();
        let wire = Wire {
            to_connector: to_acceptor,
            from_connector: from_acceptor,
        };
        client.spawn_as(route.client, route.client, move || {
            let run = |scenario| connect(route.dials, scenario, &wire);
            scenarios.iter().map(run).collect::<Vec<_>>()
        })
    };
    thread::spawn(move || {
        let connectors = connecting
            .join()
            .expect("the connecting end does not panic");
        let acceptors = accepting.join().expect("the accepting end does not panic");
        let pairs = connectors.into_iter().zip(acceptors);
        let outcome = |(connector, acceptor)| Outcome {
            connector,
            acceptor,
        };
        pairs.map(outcome).collect()
    })
}

/// Signals to and from the other end's thread.
struct Wire {
    to_connector: mpsc::Sender<()>,
    from_connector: mpsc::Receiver<()>,
}

impl Wire {
    fn tell(&self) {
        self.to_connector.send(()).expect("the other end lives");
    }

    fn wait(&self) {
        self.from_connector.recv().expect("the other end lives");
    }
}

fn messages(seed: u64, sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut source = Source::new(seed);
    sizes.iter().map(|size| source.take(*size)).collect()
}

fn connect(to: SocketAddrV4, scenario: &Scenario, wire: &Wire) -> Heard {
    // The listener is set up for this scenario.
    wire.wait();
    let mut up = messages(scenario.seed, &scenario.up);
    let socket = match scenario.listener {
        Listener::Plain | Listener::DeferAccept => {
            TcpStream::connect(to).expect("somebody listens")
        }
        Listener::FastOpen => {
            let (socket, sent) = fast_open(to, &up[0]);
            up[0].drain(..sent);
            socket
        }
    };
    let mut end = End::new(socket, scenario.seed);
    let down = scenario.down.iter().sum();
    match scenario.exchange {
        Exchange::InTurns => {
            end.exchange(&up, 0, || wire.tell());
            end.exchange(&[], down, || ());
        }
        Exchange::Duplex => end.exchange(&up, down, || wire.tell()),
    }
    finish_connector(end, scenario.ending, wire)
}

fn finish_connector(mut end: End, ending: Ending, wire: &Wire) -> Heard {
    // The other end has read everything.
    wire.wait();
    match ending {
        Ending::Close => end.heard,
        Ending::HalfClose => {
            end.socket()
                .shutdown(Shutdown::Write)
                .expect("it is connected");
            end.read_to_the_end();
            end.heard
        }
        Ending::AcceptorCloses => {
            end.read_to_the_end();
            end.write_until_it_fails();
            end.heard
        }
        Ending::Reset => end.reset(),
        Ending::ResetUnread => {
            assert_eq!(end.send(LAST_WORDS, 0), LAST_WORDS.len());
            wire.wait();
            let heard = end.reset();
            wire.tell();
            heard
        }
        Ending::CloseUnread => {
            assert_eq!(end.send(LAST_WORDS, 0), LAST_WORDS.len());
            end.read_to_the_end();
            end.heard
        }
    }
}

fn accept(listener: &TcpListener, scenario: &Scenario, wire: &Wire) -> Heard {
    let defer = i32::from(scenario.listener == Listener::DeferAccept) * 5;
    set_sockopt(listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, defer);
    set_sockopt(
        listener,
        libc::SOL_SOCKET,
        libc::SO_RCVBUF,
        scenario.rcvbuf.unwrap_or(DEFAULT_RCVBUF),
    );
    wire.tell();
    // Not for ever: the other end may have panicked.
    wait_for(listener, libc::POLLIN);
    let (socket, _) = listener.accept().expect("a connection");
    let mut end = End::new(socket, !scenario.seed);
    // Everything is written by then, or the writer can write no more.
    if scenario.reader == Reader::Late {
        wire.wait();
    }
    let up = scenario.up.iter().sum();
    let down = messages(scenario.seed ^ DOWN, &scenario.down);
    match scenario.exchange {
        Exchange::InTurns => {
            end.exchange(&[], up, || ());
            end.exchange(&down, 0, || ());
        }
        Exchange::Duplex => end.exchange(&down, up, || ()),
    }
    if scenario.reader == Reader::Prompt {
        wire.wait();
    }
    finish_acceptor(end, scenario.ending, wire)
}

fn finish_acceptor(mut end: End, ending: Ending, wire: &Wire) -> Heard {
    wire.tell();
    match ending {
        Ending::Close | Ending::Reset => end.read_to_the_end(),
        Ending::HalfClose => {
            end.read_to_the_end();
            assert_eq!(end.send(LAST_WORDS, 0), LAST_WORDS.len());
        }
        Ending::AcceptorCloses => {}
        Ending::ResetUnread => {
            end.poll(libc::POLLIN);
            wire.tell();
            wire.wait();
            end.poll(0);
            end.read_to_the_end();
        }
        Ending::CloseUnread => end.poll(libc::POLLIN),
    }
    end.heard
}

/// Receive buffer of the scenarios that do not ask for a small one: Linux' default.
const DEFAULT_RCVBUF: libc::c_int = 65_536;

/// Connects with as much data in the SYN as fits; says how much was taken.
fn fast_open(to: SocketAddrV4, bytes: &[u8]) -> (TcpStream, usize) {
    let socket = tcp_socket(libc::SOCK_NONBLOCK);
    let to = sockaddr(to);
    // SAFETY: a buffer and an address with their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_FASTOPEN,
            (&raw const to).cast(),
            SOCKADDR_BYTES,
        )
    };
    let sent = usize::try_from(sent).unwrap_or_else(|_| {
        // The kernel sends a plain SYN while too many of these wait to be accepted.
        let error = io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
        0
    });
    wait_for(&socket, libc::POLLOUT);
    (socket.into(), sent)
}
