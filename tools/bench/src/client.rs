//! The clients of one run as a process that takes commands: as many connections as streams, one
//! thread, so that the server has a core for itself.
//!
//! Commands, one a line, each answered by a line: `connect COUNT`; `expect START_NS INTERVAL_NS
//! FIRST COUNT MASK BYTES` (the changes that are planned); `wait MILLIS FILE` (until each client
//! has them all; samples in microseconds go to the file); `reconnect` (all at once, with the
//! versions they hold).

pub(crate) mod http2;
pub(crate) mod message;
pub(crate) mod session;

use std::cell::RefCell;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

use crate::{clock, process};
use session::Session;

/// Connections that are being opened at the same time: below the shortest queue of a listening
/// socket, which is the standard library's 128.
pub(crate) const CONNECTING: usize = 100;

/// Bytes that are read at once.
pub(crate) const READ_BYTES: usize = 256 * 1024;

/// After a reconnect, a server that was silent for so long has nothing to say.
const QUIET: Duration = Duration::from_secs(1);

/// How often a state that many streams make is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(2);

/// How long streams may take to be opened and answered: a thousand with five thousand clusters
/// each are gigabytes.
const CONNECT: Duration = Duration::from_mins(5);

/// What the clients speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Variant {
    Delta,
    Sotw,
    /// Reads as many bytes as it expects and answers with as many as an answer has.
    Floor,
}

/// Who connects where.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClientArgs {
    #[arg(long, value_enum)]
    variant: Variant,
    #[arg(long)]
    port: u16,
    /// `node.cluster` of each client, and the beginning of the names it asks for.
    #[arg(long)]
    group: String,
    /// The clusters whose endpoints it asks for, as `FIRST..END`.
    #[arg(long, value_parser = range)]
    endpoints: Range<usize>,
}

/// Reads `FIRST..END`.
pub(crate) fn range(text: &str) -> Result<Range<usize>, String> {
    let parts = text.split_once("..");
    let range = parts.and_then(|(start, end)| Some(start.parse().ok()?..end.parse().ok()?));
    range.ok_or_else(|| format!("{text} is not FIRST..END"))
}

/// Changes that are under way.
#[derive(Clone, Copy, Debug)]
struct Plan {
    start: Duration,
    interval: Duration,
    first: u32,
    count: u32,
    // Types that a client must hear of, as bits.
    mask: u8,
    // Of the floor: bytes of one change.
    bytes: usize,
}

#[derive(Debug, Default)]
struct Counters {
    bytes_in: u64,
    bytes_out: u64,
    resource_bytes: u64,
    responses: u64,
}

// As the answer to a command has them.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bytes_in,
            bytes_out,
            resource_bytes,
            responses,
        } = self;
        write!(f, "{bytes_in} {bytes_out} {resource_bytes} {responses}")
    }
}

/// What all streams share.
#[derive(Debug)]
pub(crate) struct Shared {
    args: ClientArgs,
    names: session::Names,
    plan: Option<Plan>,
    samples: Vec<u32>,
    converged: usize,
    ready: usize,
    opened: usize,
    // Clients that had a first response, by type.
    answered: [usize; 4],
    counters: Counters,
    last_response: Duration,
    failure: Option<String>,
}

type Clients = Rc<RefCell<Shared>>;

/// Runs until the end of standard input.
pub(crate) fn run(args: ClientArgs) -> anyhow::Result<()> {
    process::raise_open_files()?;
    let names = session::Names::new(&args);
    let clients = Rc::new(RefCell::new(Shared {
        args,
        names,
        plan: None,
        samples: Vec::new(),
        converged: 0,
        ready: 0,
        opened: 0,
        answered: [0; 4],
        counters: Counters::default(),
        last_response: Duration::ZERO,
        failure: None,
    }));
    let (epoch, _) = watch::channel(0);
    let mut count = 0;
    process::answer_commands(async |line| command(line, &clients, &epoch, &mut count).await)
}

async fn command(
    line: &str,
    clients: &Clients,
    epoch: &watch::Sender<u64>,
    count: &mut usize,
) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match *words {
        ["connect", wanted] => {
            *count = wanted.parse()?;
            let connecting = Rc::new(Semaphore::new(CONNECTING));
            for index in 0..*count {
                let stream = stream(
                    Rc::clone(clients),
                    index,
                    epoch.subscribe(),
                    Rc::clone(&connecting),
                );
                tokio::task::spawn_local(stream);
            }
            until(clients, CONNECT, |shared| shared.ready == *count).await?;
            Ok("ok".to_owned())
        }
        ["expect", start, interval, first, planned, mask, bytes] => {
            let mut shared = clients.borrow_mut();
            shared.plan = Some(Plan {
                start: Duration::from_nanos(start.parse()?),
                interval: Duration::from_nanos(interval.parse()?),
                first: first.parse()?,
                count: planned.parse()?,
                mask: mask.parse()?,
                bytes: bytes.parse()?,
            });
            shared.samples.clear();
            shared.converged = 0;
            shared.counters = Counters::default();
            Ok("ok".to_owned())
        }
        ["wait", millis, file] => {
            let patience = Duration::from_millis(millis.parse()?);
            // Those that are missing are counted, not an error.
            let waited = until(clients, patience, |shared| shared.converged == *count).await;
            let mut shared = clients.borrow_mut();
            if let Some(failure) = &shared.failure {
                bail!("{failure}");
            }
            drop(waited);
            let bytes: Vec<u8> = shared
                .samples
                .iter()
                .flat_map(|sample| sample.to_le_bytes())
                .collect();
            std::fs::write(file, bytes)?;
            shared.plan = None;
            let missing = *count - shared.converged;
            Ok(format!("{missing} {}", shared.counters))
        }
        ["reconnect"] => {
            let started = clock::now();
            {
                let mut shared = clients.borrow_mut();
                shared.counters = Counters::default();
                (shared.opened, shared.last_response) = (0, started);
            }
            epoch.send_modify(|epoch| *epoch += 1);
            until(clients, CONNECT, |shared| {
                shared.opened == *count && clock::now() > shared.last_response + QUIET
            })
            .await?;
            let shared = clients.borrow();
            let took = shared.last_response.saturating_sub(started);
            Ok(format!("{} {}", took.as_micros(), shared.counters))
        }
        _ => bail!("no such command"),
    }
}

async fn until(
    clients: &Clients,
    patience: Duration,
    is_so: impl Fn(&Shared) -> bool,
) -> anyhow::Result<()> {
    let deadline = clock::now() + patience;
    loop {
        {
            let shared = clients.borrow();
            if let Some(failure) = &shared.failure {
                bail!("{failure}");
            }
            if is_so(&shared) {
                return Ok(());
            }
            if clock::now() > deadline {
                bail!(
                    "not within {patience:?}: {} opened, {:?} answered (clusters, endpoints, listeners, routes), {} ready, {} converged",
                    shared.opened,
                    shared.answered,
                    shared.ready,
                    shared.converged
                );
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn stream(
    clients: Clients,
    index: usize,
    mut epoch: watch::Receiver<u64>,
    connecting: Rc<Semaphore>,
) {
    loop {
        let ended = one_connection(&clients, index, &mut epoch, &connecting).await;
        if let Err(error) = ended {
            let failure = format!("stream {index}: {error:#}");
            clients.borrow_mut().failure.get_or_insert(failure);
            return;
        }
    }
}

// Runs until all are told to reconnect.
async fn one_connection(
    clients: &Clients,
    index: usize,
    epoch: &mut watch::Receiver<u64>,
    connecting: &Semaphore,
) -> anyhow::Result<()> {
    let port = clients.borrow().args.port;
    let permit = connecting.acquire().await?;
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    socket.set_nodelay(true)?;
    // A reset instead of TIME_WAIT: ports are fewer than reconnects.
    socket.set_zero_linger()?;
    let mut session = Session::open(&clients.borrow(), index, *epoch.borrow_and_update() > 0);
    send(&mut socket, &mut session, clients).await?;
    clients.borrow_mut().opened += 1;
    drop(permit);
    loop {
        tokio::select! {
            biased;
            ready = socket.readable() => ready?,
            changed = epoch.changed() => {
                changed?;
                return Ok(());
            }
        }
        let is_over = READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.is_empty() {
                buffer.resize(READ_BYTES, 0);
            }
            match socket.try_read(buffer) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(length) => {
                    session.feed(&buffer[..length], &mut clients.borrow_mut());
                    Ok(session.ended().map(ToOwned::to_owned))
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        send(&mut socket, &mut session, clients).await?;
        if let Some(reason) = is_over {
            bail!("{reason}");
        }
    }
}

async fn send(
    socket: &mut TcpStream,
    session: &mut Session,
    clients: &Clients,
) -> anyhow::Result<()> {
    let out = session.take_out();
    if !out.is_empty() {
        clients.borrow_mut().counters.bytes_out += out.len() as u64;
        socket.write_all(&out).await?;
    }
    Ok(())
}

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
