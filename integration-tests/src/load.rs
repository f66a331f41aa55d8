//! Load that accounts for every request: what failed and why, and which configuration answered.
//!
//! For rates and latencies there is [`crate::wrk`]; this client is for "no request failed".

use std::collections::BTreeMap;
use std::net::{SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::http::HttpConnection;
use crate::sidecar::REVISION_HEADER;
use crate::{netns, wait};

/// No load runs longer, whatever its owner forgets.
const MAX_DURATION: Duration = Duration::from_mins(2);

/// A request that takes longer has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a failed request, so that a broken mesh does not make a million of them.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// Reasons that are kept of failed requests; all are counted.
const MAX_REASONS: usize = 10;

/// What to send.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Host of the requests.
    pub host: String,
    /// File of the namespace to send from; the caller's own if left out.
    pub netns: Option<PathBuf>,
    /// Where to send them.
    pub target: SocketAddrV4,
}

/// Load that runs until it is told to finish.
#[derive(Debug)]
pub struct Load {
    completed: Arc<AtomicU64>,
    is_stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<LoadReport>>>,
}

/// What became of the requests.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LoadReport {
    /// Answers by the revision of the route that gave them.
    pub by_revision: BTreeMap<String, u64>,
    /// Requests that got no answer, or one other than 200.
    pub failed: u64,
    /// The first few reasons.
    pub reasons: Vec<String>,
    /// Times that a connection saw an older revision after a newer one (revisions sort as text).
    pub reversals: u64,
    /// Requests that were sent.
    pub requests: u64,
}

impl LoadReport {
    /// Fails unless all of at least `minimum` requests were answered with 200.
    ///
    /// # Errors
    ///
    /// Names the first reasons.
    pub fn expect_no_failure(&self, minimum: u64) -> Result<()> {
        ensure!(
            self.failed == 0,
            "{} of {} requests failed: {}",
            self.failed,
            self.requests,
            self.reasons.join("; ")
        );
        ensure!(
            self.requests >= minimum,
            "only {} requests were sent, not {minimum}",
            self.requests
        );
        Ok(())
    }

    fn add(&mut self, other: Self) {
        self.failed += other.failed;
        self.requests += other.requests;
        self.reversals += other.reversals;
        for (revision, answers) in other.by_revision {
            *self.by_revision.entry(revision).or_default() += answers;
        }
        self.reasons.extend(other.reasons);
        self.reasons.truncate(MAX_REASONS);
    }
}

impl Load {
    /// Starts the connections.
    pub fn start(plan: &LoadPlan) -> Self {
        let completed = Arc::new(AtomicU64::new(0));
        let is_stopping = Arc::new(AtomicBool::new(false));
        let threads = (0..plan.connections)
            .map(|_| {
                let worker = Worker {
                    completed: Arc::clone(&completed),
                    is_stopping: Arc::clone(&is_stopping),
                    plan: plan.clone(),
                    report: LoadReport::default(),
                };
                std::thread::spawn(move || worker.run())
            })
            .collect();
        Self {
            completed,
            is_stopping,
            threads,
        }
    }

    /// Requests that were answered or failed so far.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// Waits until `more` further requests are done.
    ///
    /// # Errors
    ///
    /// When that takes longer than any load may.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.completed() + more;
        wait::until(&format!("request {goal}"), MAX_DURATION, || {
            let completed = self.completed();
            if completed >= goal {
                Ok(())
            } else {
                Err(anyhow!("{completed} are done"))
            }
        })
    }

    /// Lets every connection finish its request and sums up.
    ///
    /// # Errors
    ///
    /// When a namespace could not be entered.
    ///
    /// # Panics
    ///
    /// When a connection's thread did.
    pub fn finish(mut self) -> Result<LoadReport> {
        self.is_stopping.store(true, Ordering::Relaxed);
        let mut total = LoadReport::default();
        for thread in self.threads.drain(..) {
            total.add(
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            );
        }
        Ok(total)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // A test that panics does not wait, but the threads end.
        self.is_stopping.store(true, Ordering::Relaxed);
    }
}

/// One connection.
struct Worker {
    completed: Arc<AtomicU64>,
    is_stopping: Arc<AtomicBool>,
    plan: LoadPlan,
    report: LoadReport,
}

impl Worker {
    fn run(mut self) -> Result<LoadReport> {
        if let Some(path) = &self.plan.netns {
            netns::enter_thread(path)?;
        }
        let start = Instant::now();
        let mut connection = None;
        let mut newest = String::new();
        while !self.is_stopping.load(Ordering::Relaxed) && start.elapsed() < MAX_DURATION {
            self.report.requests += 1;
            match self.request(&mut connection) {
                Ok(revision) => {
                    if revision < newest {
                        self.report.reversals += 1;
                    }
                    newest.clone_from(&revision);
                    *self.report.by_revision.entry(revision).or_default() += 1;
                }
                Err(error) => {
                    connection = None;
                    self.report.failed += 1;
                    if self.report.reasons.len() < MAX_REASONS {
                        self.report
                            .reasons
                            .push(format!("request {}: {error:#}", self.report.requests));
                    }
                    std::thread::sleep(PAUSE_AFTER_FAILURE);
                }
            }
            self.completed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(self.report)
    }

    fn request(&self, kept: &mut Option<HttpConnection<TcpStream>>) -> Result<String> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let response = connection.request("GET", &self.plan.host, "/", "")?;
        ensure!(
            response.status == 200,
            "status {}: {}",
            response.status,
            response.text().trim()
        );
        if response.is_reusable {
            *kept = Some(connection);
        }
        Ok(response
            .header(REVISION_HEADER)
            .unwrap_or_default()
            .to_owned())
    }

    fn connect(&self) -> Result<HttpConnection<TcpStream>> {
        let stream = TcpStream::connect(self.plan.target)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
        stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
        Ok(HttpConnection::new(stream))
    }
}
