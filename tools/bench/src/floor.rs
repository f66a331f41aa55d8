//! The least that a server can do: `write()` as many bytes to as many sockets, read the answers.
//!
//! Takes `schedule START_NS INTERVAL_NS COUNT BYTES`, one a line, and answers when all is
//! written; a command of one thread, one epoll.

use std::collections::BTreeMap;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::bail;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::{clock, process};

/// Longest wait for events, so that commands are seen.
const TICK: Duration = Duration::from_millis(50);

/// Events that are taken at once.
const EVENTS: usize = 1024;

struct Peer {
    socket: TcpStream,
    // Bytes that did not fit the socket's buffer.
    owed: usize,
}

/// Serves until the end of standard input.
pub(crate) fn run() -> anyhow::Result<()> {
    process::raise_open_files()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    println!("listening {}", listener.local_addr()?.port());
    let (sender, commands) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    Floor {
        listener,
        epoll,
        peers: BTreeMap::new(),
        message: Vec::new(),
    }
    .serve(&commands)
}

struct Floor {
    listener: TcpListener,
    epoll: Epoll,
    peers: BTreeMap<u64, Peer>,
    message: Vec<u8>,
}

impl Floor {
    fn serve(&mut self, commands: &Receiver<String>) -> anyhow::Result<()> {
        loop {
            self.handle_events(TICK)?;
            let line = match commands.try_recv() {
                Ok(line) => line,
                Err(std::sync::mpsc::TryRecvError::Empty) => continue,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return Ok(()),
            };
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["schedule", start, interval, count, bytes] = *words else {
                bail!("no such command: {line}");
            };
            self.message.resize(bytes.parse()?, 7);
            let mut planned = Duration::from_nanos(start.parse()?);
            for _ in 0..count.parse::<u32>()? {
                while clock::now() < planned {
                    self.handle_events(planned.saturating_sub(clock::now()))?;
                }
                self.push()?;
                planned += Duration::from_nanos(interval.parse()?);
            }
            println!("ok");
            std::io::stdout().flush()?;
        }
    }

    fn push(&mut self) -> anyhow::Result<()> {
        let Self {
            peers,
            message,
            epoll,
            ..
        } = self;
        for (id, peer) in peers {
            peer.owed += message.len();
            peer.write(message)?;
            if peer.owed > 0 {
                let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
                epoll.modify(&peer.socket, &mut EpollEvent::new(flags, *id))?;
            }
        }
        Ok(())
    }

    fn handle_events(&mut self, patience: Duration) -> anyhow::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let timeout = EpollTimeout::try_from(patience.min(TICK))?;
        let count = self.epoll.wait(&mut events, timeout)?;
        for event in &events[..count] {
            if event.data() == 0 {
                self.accept()?;
                continue;
            }
            let Some(peer) = self.peers.get_mut(&event.data()) else {
                continue;
            };
            if event.events().contains(EpollFlags::EPOLLOUT) {
                peer.write(&self.message)?;
                if peer.owed == 0 {
                    let mut reading = EpollEvent::new(EpollFlags::EPOLLIN, event.data());
                    self.epoll.modify(&peer.socket, &mut reading)?;
                }
            }
            if event.events().contains(EpollFlags::EPOLLIN) && !peer.read()? {
                self.peers.remove(&event.data());
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        loop {
            let (socket, _) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            (&socket).write_all(&[1])?;
            let id = u64::try_from(socket.as_raw_fd())?;
            self.epoll
                .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, id))?;
            self.peers.insert(id, Peer { socket, owed: 0 });
        }
    }
}

impl Peer {
    fn write(&mut self, message: &[u8]) -> anyhow::Result<()> {
        while self.owed > 0 {
            // Which bytes they are does not matter, so a part of the message will do.
            let part = &message[..self.owed.min(message.len())];
            match self.socket.write(part) {
                Ok(written) => self.owed -= written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    // False when the peer is gone.
    fn read(&mut self) -> anyhow::Result<bool> {
        let mut answer = [0; 4096];
        match self.socket.read(&mut answer) {
            Ok(0) => Ok(false),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
