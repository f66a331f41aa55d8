//! Half of the clients of a soak: those that read and accept, and those that never read.
//!
//! Commands, one a line, each answered by a line: `connect`; `expect START_NS INTERVAL_NS FIRST
//! COUNT GROUPS` (changes that are planned; number N concerns group N modulo GROUPS); `wait MILLIS
//! FILE` (until each healthy client has the last change of its group; how late each was with each
//! change, in microseconds, goes to the file); `undeaf` (those that never read go away);
//! `group-size` (healthy clients of the first group).

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpMaxSeg;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::client::http2::{Connection, Windows};
use crate::client::message::{name_fields, parse_response};
use crate::client::session::{DELTA, head, node_field};
use crate::client::{CONNECTING, LOOK, READ_BYTES, range};
use crate::resources::{Kind, cluster_name};
use crate::{clock, process};

/// The scope that all clients belong to.
pub(crate) const SCOPE: &str = "soak";

/// How long a client that never reads stays before it comes again. The server's keepalive breaks
/// off after 50 s: every second one leaves before, every second one does not.
const DEAF_STAY: [Duration; 2] = [Duration::from_secs(40), Duration::from_secs(75)];

/// Receive buffer and segment of a client that never reads: as small as the kernel allows, so
/// that it is the server whose bytes find no place.
const DEAF_BUFFER_BYTES: u32 = 4096;
const DEAF_SEGMENT_BYTES: u32 = 1000;

/// How long all may take to be connected and served.
const CONNECT: Duration = Duration::from_mins(5);

/// Who connects where.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClientsArgs {
    #[arg(long)]
    port: u16,
    /// Groups of these clients, as `FIRST..END`; the clients take turns in them.
    #[arg(long, value_parser = range)]
    groups: Range<usize>,
    #[arg(long)]
    clusters_per_group: usize,
    /// Clients that read and accept.
    #[arg(long)]
    healthy: usize,
    /// Clients that ask for everything and never read.
    #[arg(long)]
    deaf: usize,
}

impl ClientsArgs {
    fn group_of(&self, index: usize) -> usize {
        self.groups.start + index % self.groups.len()
    }
}

/// Changes that are planned.
#[derive(Clone, Copy, Debug)]
struct Plan {
    start: Duration,
    interval: Duration,
    first: u32,
    count: u32,
    groups: u32,
}

impl Plan {
    fn concerns(&self, group: usize, change: u32) -> bool {
        (change % self.groups) as usize == group
    }

    // The last change that concerns a group, if any does.
    fn last_of(&self, group: usize) -> Option<u32> {
        let mut changes = (self.first..self.first + self.count).rev();
        changes.find(|change| self.concerns(group, *change))
    }
}

#[derive(Debug)]
struct Shared {
    args: ClientsArgs,
    plan: Option<Plan>,
    samples: Vec<u32>,
    // Newest change that each healthy client has.
    newest: Vec<u32>,
    ready: usize,
    failure: Option<String>,
}

type Clients = Rc<RefCell<Shared>>;

/// Runs until the end of standard input.
pub(crate) fn run(args: ClientsArgs) -> anyhow::Result<()> {
    process::raise_open_files()?;
    let clients = Rc::new(RefCell::new(Shared {
        newest: vec![0; args.healthy],
        args,
        plan: None,
        samples: Vec::new(),
        ready: 0,
        failure: None,
    }));
    let (deaf, _) = watch::channel(());
    let mut deaf = Some(deaf);
    process::answer_commands(async |line| command(line, &clients, &mut deaf).await)
}

async fn command(
    line: &str,
    clients: &Clients,
    deaf: &mut Option<watch::Sender<()>>,
) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match *words {
        ["connect"] => {
            connect(clients, deaf.as_ref()).await?;
            Ok("ok".to_owned())
        }
        ["expect", start, interval, first, count, groups] => {
            let mut shared = clients.borrow_mut();
            shared.samples.clear();
            shared.plan = Some(Plan {
                start: Duration::from_nanos(start.parse()?),
                interval: Duration::from_nanos(interval.parse()?),
                first: first.parse()?,
                count: count.parse()?,
                groups: groups.parse()?,
            });
            Ok("ok".to_owned())
        }
        ["wait", millis, file] => {
            let deadline = clock::now() + Duration::from_millis(millis.parse()?);
            while missing(clients)? > 0 && clock::now() < deadline {
                tokio::time::sleep(LOOK).await;
            }
            let shared = clients.borrow();
            let samples = shared.samples.iter();
            let bytes: Vec<u8> = samples.flat_map(|sample| sample.to_le_bytes()).collect();
            std::fs::write(file, bytes)?;
            drop(shared);
            Ok(missing(clients)?.to_string())
        }
        ["undeaf"] => {
            // Their tasks end with the channel.
            drop(deaf.take());
            Ok("ok".to_owned())
        }
        ["group-size"] => {
            let ClientsArgs {
                ref groups,
                healthy,
                ..
            } = clients.borrow().args;
            Ok(healthy.div_ceil(groups.len()).to_string())
        }
        _ => bail!("no such command"),
    }
}

// Healthy clients that do not have the last change of their group.
fn missing(clients: &Clients) -> anyhow::Result<usize> {
    let shared = clients.borrow();
    if let Some(failure) = &shared.failure {
        bail!("{failure}");
    }
    let plan = shared.plan.context("no changes are planned")?;
    let newest = shared.newest.iter().enumerate();
    let missing = newest.filter(|(index, newest)| {
        let last = plan.last_of(shared.args.group_of(*index));
        last.is_some_and(|last| **newest < last)
    });
    Ok(missing.count())
}

async fn connect(clients: &Clients, deaf: Option<&watch::Sender<()>>) -> anyhow::Result<()> {
    let connecting = Rc::new(Semaphore::new(CONNECTING));
    let (healthy, never_read) = {
        let args = &clients.borrow().args;
        (args.healthy, args.deaf)
    };
    for index in 0..healthy {
        let (clients, connecting) = (Rc::clone(clients), Rc::clone(&connecting));
        tokio::task::spawn_local(async move {
            if let Err(error) = listen(&clients, index, &connecting).await {
                let failure = format!("client {index}: {error:#}");
                clients.borrow_mut().failure.get_or_insert(failure);
            }
        });
    }
    for index in 0..never_read {
        let Some(deaf) = deaf else { break };
        let (args, connecting) = (clients.borrow().args.clone(), Rc::clone(&connecting));
        let mut over = deaf.subscribe();
        tokio::task::spawn_local(async move {
            tokio::select! {
                // Fails, as it should, when there is nobody to change it.
                _ = over.changed() => {}
                () = never_listen(&args, index, &connecting) => {}
            }
        });
    }
    let deadline = clock::now() + CONNECT;
    while clients.borrow().ready < healthy {
        if let Some(failure) = &clients.borrow().failure {
            bail!("{failure}");
        }
        if clock::now() > deadline {
            let ready = clients.borrow().ready;
            bail!("{ready} of {healthy} were served within {CONNECT:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

// One healthy client; never returns unless it fails.
async fn listen(clients: &Clients, index: usize, connecting: &Semaphore) -> anyhow::Result<()> {
    let args = clients.borrow().args.clone();
    let group = args.group_of(index);
    let mut connection = Connection::open(DELTA, Windows::Endless);
    let first = group * args.clusters_per_group;
    connection.send(request(
        &args,
        index,
        first..first + args.clusters_per_group,
    ));
    let permit = connecting.acquire().await?;
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, args.port)).await?;
    socket.set_nodelay(true)?;
    socket.set_zero_linger()?;
    socket.write_all(&connection.take_out()).await?;
    drop(permit);
    let mut is_ready = false;
    loop {
        socket.readable().await?;
        let mut accepts = Vec::new();
        READ_BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(READ_BYTES, 0);
            let length = match socket.try_read(buffer) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            connection.feed(&buffer[..length], |message| {
                let response = parse_response(message);
                note(&mut clients.borrow_mut(), index, response.newest_change);
                accepts.push(head(true, Kind::Endpoints as usize, response.nonce, b""));
            });
            Ok(())
        })?;
        if !accepts.is_empty() && !is_ready {
            is_ready = true;
            clients.borrow_mut().ready += 1;
        }
        for accept in accepts {
            connection.send([accept]);
        }
        let out = connection.take_out();
        if !out.is_empty() {
            socket.write_all(&out).await?;
        }
        if let Some(reason) = connection.ended() {
            bail!("{reason}");
        }
    }
}

fn note(shared: &mut Shared, index: usize, newest: u32) {
    let before = shared.newest[index];
    shared.newest[index] = before.max(newest);
    let Some(plan) = shared.plan else { return };
    let group = shared.args.group_of(index);
    let now = clock::now();
    let last = newest.min(plan.first + plan.count - 1);
    for change in before.max(plan.first - 1) + 1..=last {
        if plan.concerns(group, change) {
            let planned = plan.start + plan.interval * (change - plan.first);
            let micros = now.saturating_sub(planned).as_micros();
            let micros = u32::try_from(micros).unwrap_or(u32::MAX);
            shared.samples.push(micros);
        }
    }
}

// One client that asks for everything and never reads; it comes again and again.
async fn never_listen(args: &ClientsArgs, index: usize, connecting: &Semaphore) {
    // Not all at the same time: the first stay ends anywhere in it.
    let mut part = f64::from(u32::try_from(index % 100).unwrap_or(0)) / 100.0;
    loop {
        let stay = DEAF_STAY[index / 2 % DEAF_STAY.len()].mul_f64(part);
        // The server may refuse or break off: whoever never reads does not see that either.
        let _ = never_listen_once(args, index, stay, connecting).await;
        part = 1.0;
    }
}

async fn never_listen_once(
    args: &ClientsArgs,
    index: usize,
    stay: Duration,
    connecting: &Semaphore,
) -> anyhow::Result<()> {
    // Every second one shuts HTTP/2's windows, the others leave it to TCP to be full.
    let is_held_by_tcp = index.is_multiple_of(2);
    let windows = if is_held_by_tcp {
        Windows::Endless
    } else {
        Windows::Narrow
    };
    let mut connection = Connection::open(DELTA, windows);
    connection.send(clusters_request(args, args.healthy + index));
    let every = 0..args.clusters_per_group * args.groups.end;
    connection.send(request(args, args.healthy + index, every));
    let permit = connecting.acquire().await?;
    let socket = TcpSocket::new_v4()?;
    if is_held_by_tcp {
        socket.set_recv_buffer_size(DEAF_BUFFER_BYTES)?;
        setsockopt(&socket, TcpMaxSeg, &DEAF_SEGMENT_BYTES)?;
    }
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    let mut socket = socket.connect(addr).await?;
    socket.set_zero_linger()?;
    socket.write_all(&connection.take_out()).await?;
    drop(permit);
    tokio::time::sleep(stay).await;
    Ok(())
}

fn request(args: &ClientsArgs, index: usize, clusters: Range<usize>) -> [Bytes; 3] {
    let id = args.groups.start * 1_000_000 + index;
    [
        node_field(SCOPE, id, 1),
        head(true, Kind::Endpoints as usize, b"", b""),
        name_fields(3, clusters.map(|cluster| cluster_name(SCOPE, cluster))),
    ]
}

fn clusters_request(args: &ClientsArgs, index: usize) -> [Bytes; 2] {
    let id = args.groups.start * 1_000_000 + index;
    [
        node_field(SCOPE, id, 1),
        head(true, Kind::Cluster as usize, b"", b""),
    ]
}

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
