//! The one reader of the ring, inside the agent: keeps the last flows and hands them to viewers.
//!
//! A ring has one place from which it is read, so that two readers would each get a part; therefore
//! viewers ask the agent, over a socket in the runtime directory. Request and answers are lines of JSON
//! ([`Request`], [`Answer`]). A viewer that is too slow is told how many flows it has missed; the ring
//! is emptied at the same speed whatever the viewers do.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use isthmus_accel_abi::{FLOW_RING_BYTES, FlowEvent, FlowMode};
use isthmus_accel_core::{Judge, Judgement};
use isthmus_accel_datapath::linux::{FlowReader, monotonic_ns};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, unix::AsyncFd},
    net::{UnixListener, UnixStream},
    sync::{broadcast, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Flow, Names, filter::Filter};
use crate::{
    runtime_dir::Roster,
    shadow::{Report, Tally},
};

/// Flows that are kept for viewers to come, and that a slow viewer may lag behind: 1 MiB, a second at
/// 1,000 connections a second.
const MAX_KEPT_FLOWS: usize = 4_096;
/// Viewers at a time: a few people and collectors.
const MAX_VIEWERS: usize = 16;
/// Events that are read before others get their turn.
const BATCH: usize = 512;
/// How often the ring is looked at while the programs tell: they wake the agent only when it fills up
/// ([`isthmus_accel_abi::FLOW_WAKEUP_BYTES`]).
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often calls whose time is up are judged.
const SHADOW_INTERVAL: Duration = Duration::from_secs(1);
/// A full ring, in batches.
const MAX_BATCHES: usize = FLOW_RING_BYTES as usize / size_of::<FlowEvent>() / BATCH + 1;
/// How long a viewer may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// A request is a few names and numbers.
const MAX_REQUEST_BYTES: u64 = 4_096;

/// When the programs tell about single connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Telling {
    /// While anybody looks.
    Auto,
    /// Always.
    Always,
    /// Always, and each call is compared with what iptables did.
    Shadow,
}

/// What a viewer asks for, one line.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Flows.
    Flows(FlowsRequest),
    /// What shadow mode has found.
    Shadow,
}

/// Which flows a viewer asks for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct FlowsRequest {
    /// Which flows.
    pub filter: Filter,
    /// How many of those that are kept.
    pub last: usize,
    /// Whether to go on with those that come.
    pub is_following: bool,
}

/// What a viewer is told, one line each.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A flow that meets the filter.
    Flow(Box<Flow>),
    /// What shadow mode has found, `None` if it is off.
    Shadow(Option<Box<Report>>),
    /// So many flows came faster than they were taken.
    Missed(u64),
    /// Too many look already.
    Busy {
        /// How many may.
        max_viewers: usize,
    },
}

/// Reads the ring as long as the runtime lives.
#[derive(Debug)]
pub struct Hub {
    kept: VecDeque<Told>,
    listener: UnixListener,
    live: broadcast::Sender<Told>,
    names: Arc<Names>,
    reader: AsyncFd<FlowReader>,
    roster: watch::Receiver<Arc<Roster>>,
    shadow: Option<Shadow>,
    telling: Telling,
    viewers: JoinSet<()>,
}

/// An event with what is needed to read it: that is left to the viewers, since there may be none.
#[derive(Clone, Debug)]
struct Told {
    boot_unix_ns: u64,
    event: FlowEvent,
    names: Arc<Names>,
}

impl Told {
    fn read(&self, filter: &Filter) -> Option<Box<Flow>> {
        let flow = Flow::new(&self.event, &self.names, self.boot_unix_ns);
        filter.matches(&flow).then(|| Box::new(flow))
    }
}

#[derive(Debug)]
struct Shadow {
    // Lost before it began.
    already_lost: u64,
    found: watch::Sender<Option<Arc<Report>>>,
    judge: Judge,
    tally: Tally,
}

impl Shadow {
    fn record(&mut self, judgements: &[Judgement], names: &Names) {
        let boot_unix_ns = boot_unix_ns();
        for judgement in judgements {
            self.tally.record(judgement, names, boot_unix_ns);
        }
    }

    fn report(&self, reader: &FlowReader) -> Report {
        let lost = reader.lost().unwrap_or(self.already_lost);
        self.tally.report(lost.saturating_sub(self.already_lost))
    }
}

impl Hub {
    /// Listens at `socket`, in place of an agent that has not removed its own. Call it with the agent's
    /// lock held, inside a runtime.
    ///
    /// # Errors
    ///
    /// Returns the kernel's answer if the socket cannot be made or the ring not be waited for.
    pub fn new(
        reader: FlowReader,
        socket: &Path,
        roster: watch::Receiver<Arc<Roster>>,
        telling: Telling,
        found: watch::Sender<Option<Arc<Report>>>,
    ) -> io::Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let shadow = (telling == Telling::Shadow).then(|| Shadow {
            already_lost: reader.lost().unwrap_or(0),
            found,
            judge: Judge::default(),
            tally: Tally::new(boot_unix_ns().saturating_add(monotonic_ns())),
        });
        Ok(Self {
            kept: VecDeque::new(),
            listener: UnixListener::bind(socket)?,
            live: broadcast::channel(MAX_KEPT_FLOWS).0,
            names: Arc::default(),
            reader: wait_on(reader)?,
            roster,
            shadow,
            telling,
            viewers: JoinSet::new(),
        })
    }

    /// Works until it is dropped.
    pub async fn run(mut self) {
        let mut ticks = interval(SHADOW_INTERVAL);
        let mut looks = interval(LOOK_INTERVAL);
        for interval in [&mut ticks, &mut looks] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                connection = self.listener.accept() => match connection {
                    Ok((stream, _)) => self.admit(stream),
                    Err(error) => {
                        tracing::warn!(%error, "a viewer of flows cannot be accepted");
                        // Out of descriptors, most likely: it would fail again at once.
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                _ = ticks.tick(), if self.shadow.is_some() => self.expire(),
                _ = looks.tick(), if self.is_on() => while !self.read_batch() {
                    tokio::task::yield_now().await;
                },
                Some(_) = self.viewers.join_next() => self.switch(),
                Ok(()) = self.roster.changed() => {
                    let names = Names::from(&**self.roster.borrow_and_update());
                    self.names = Arc::new(names);
                }
                ready = self.reader.readable_mut() => match ready {
                    Ok(mut ready) => {
                        ready.clear_ready();
                        while !self.read_batch() {
                            tokio::task::yield_now().await;
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "flows can no longer be read");
                        return;
                    }
                },
            }
        }
    }

    fn is_on(&self) -> bool {
        self.telling != Telling::Auto || !self.viewers.is_empty()
    }

    // Tells whether the ring is empty by then.
    fn read_batch(&mut self) -> bool {
        let (events, is_empty) = take(self.reader.get_mut());
        self.publish(&events);
        self.judge(&events);
        is_empty
    }

    fn publish(&mut self, events: &[FlowEvent]) {
        let boot_unix_ns = boot_unix_ns();
        for event in events {
            let told = Told {
                boot_unix_ns,
                event: *event,
                names: Arc::clone(&self.names),
            };
            if self.kept.len() == MAX_KEPT_FLOWS {
                self.kept.pop_front();
            }
            self.kept.push_back(told.clone());
            // Nobody may be looking.
            let _ = self.live.send(told);
        }
    }

    fn judge(&mut self, events: &[FlowEvent]) {
        if let Some(shadow) = &mut self.shadow {
            let known = events.iter().filter_map(|event| shadow.judge.handle(event));
            let known: Vec<Judgement> = known.collect();
            shadow.record(&known, &self.names);
        }
    }

    // What is known because nothing more came, which an unread event may contradict.
    fn expire(&mut self) {
        for _ in 0..MAX_BATCHES {
            if self.read_batch() {
                break;
            }
        }
        if let Some(shadow) = &mut self.shadow {
            let known = shadow.judge.expire(monotonic_ns());
            shadow.record(&known, &self.names);
            let report = shadow.report(self.reader.get_ref());
            shadow.found.send_replace(Some(Arc::new(report)));
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        let is_allowed = stream
            .peer_cred()
            .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw());
        if !is_allowed {
            return;
        }
        if self.viewers.len() >= MAX_VIEWERS {
            let refusal = Answer::Busy {
                max_viewers: MAX_VIEWERS,
            };
            // Small enough for the empty buffer of a new socket.
            let _ = stream.try_write(&line(&refusal));
            return;
        }
        let kept: Vec<Told> = self.kept.iter().cloned().collect();
        let live = self.live.subscribe();
        let shadow = self.shadow.as_ref();
        let report = shadow.map(|shadow| Box::new(shadow.report(self.reader.get_ref())));
        self.viewers.spawn(async move {
            if let Err(error) = serve(stream, report, kept, live).await {
                tracing::debug!(%error, "a viewer of flows has gone");
            }
        });
        self.switch();
    }

    // What is off costs nothing, and nobody would see it.
    fn switch(&self) {
        if self.telling != Telling::Auto {
            return;
        }
        let flows = if self.is_on() {
            FlowMode::ON
        } else {
            FlowMode::OFF
        };
        if let Err(error) = self.reader.get_ref().switch(flows) {
            let error = crate::error::render_chain(&error);
            tracing::warn!("flows cannot be switched: {error}");
        }
    }
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe, for types that name one descriptor and close another; this one owns its own"
)]
fn wait_on(reader: FlowReader) -> io::Result<AsyncFd<FlowReader>> {
    AsyncFd::new(reader)
}

fn take(reader: &mut FlowReader) -> (Vec<FlowEvent>, bool) {
    let mut events = Vec::new();
    while events.len() < BATCH {
        match reader.next_event() {
            Some(event) => events.push(event),
            None => return (events, true),
        }
    }
    (events, false)
}

// Anew each time, since the clock of the day may be set.
fn boot_unix_ns() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let unix_ns = since_1970.map_or(0, |duration| duration.as_nanos());
    u64::try_from(unix_ns)
        .unwrap_or(u64::MAX)
        .saturating_sub(monotonic_ns())
}

async fn serve(
    mut stream: UnixStream,
    report: Option<Box<Report>>,
    kept: Vec<Told>,
    mut live: broadcast::Receiver<Told>,
) -> io::Result<()> {
    let (reading, mut writing) = stream.split();
    let mut reading = BufReader::new(reading.take(MAX_REQUEST_BYTES));
    let mut text = String::new();
    timeout(PATIENCE, reading.read_line(&mut text)).await??;
    let request = match serde_json::from_str(&text)? {
        Request::Flows(request) => request,
        Request::Shadow => return writing.write_all(&line(&Answer::Shadow(report))).await,
    };

    let mut wanted: Vec<Box<Flow>> = kept
        .iter()
        .rev()
        .filter_map(|told| told.read(&request.filter))
        .take(request.last)
        .collect();
    wanted.reverse();
    for flow in wanted {
        writing.write_all(&line(&Answer::Flow(flow))).await?;
    }
    drop(kept);
    if !request.is_following {
        return Ok(());
    }

    // The viewer says nothing more: an answer to this read is its end.
    let mut end = [0; 1];
    loop {
        let answer = tokio::select! {
            _ = reading.read(&mut end) => return Ok(()),
            told = live.recv() => match told {
                Ok(told) => match told.read(&request.filter) {
                    Some(flow) => Answer::Flow(flow),
                    None => continue,
                },
                Err(broadcast::error::RecvError::Lagged(missed)) => Answer::Missed(missed),
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
        };
        writing.write_all(&line(&answer)).await?;
    }
}

fn line(answer: &Answer) -> Vec<u8> {
    // Numbers and strings: there is nothing in it that JSON has no form for.
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}
