//! Requests from the client's application to the server's, through both sidecars, each checked.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use isthmus_integration_tests::{process::User, wait};

use crate::mesh::{Faults, MESSAGE_BYTES, Mesh, VIP, become_user_in, connect, read_message};

/// Requests on one connection: so many that most are sent on established ones, so few that there is a new
/// connection at every moment.
const REQUESTS_PER_CONNECTION: u64 = 200;
/// Longest wait for a number of requests.
const DEADLINE: Duration = Duration::from_mins(2);

/// Traffic that runs until it is told to finish.
#[derive(Debug)]
pub(crate) struct Traffic {
    completed: Arc<AtomicU64>,
    faults: Faults,
    is_stopping: Arc<AtomicBool>,
    started: Instant,
    workers: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts so many connections at a time, with a pause after each request.
    pub(crate) fn start(mesh: &Mesh, workers: usize, pause: Duration) -> Self {
        let completed = Arc::new(AtomicU64::new(0));
        let is_stopping = Arc::new(AtomicBool::new(false));
        let worker = |_| {
            let (path, completed) = (mesh.client.path(), Arc::clone(&completed));
            let is_stopping = Arc::clone(&is_stopping);
            let faults = mesh.faults.clone();
            thread::spawn(move || {
                let work = || {
                    become_user_in(&path, User::Application)?;
                    while !is_stopping.load(Ordering::Relaxed) {
                        one_connection(&completed, pause)?;
                    }
                    Ok(())
                };
                faults.note("the application", work());
            })
        };
        Self {
            workers: (0..workers).map(worker).collect(),
            completed: Arc::clone(&completed),
            faults: mesh.faults.clone(),
            is_stopping: Arc::clone(&is_stopping),
            started: Instant::now(),
        }
    }

    /// Waits until `more` further requests are answered.
    pub(crate) fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.completed.load(Ordering::Relaxed) + more;
        wait::until(&format!("request {goal}"), DEADLINE, || {
            self.faults.check()?;
            let completed = self.completed.load(Ordering::Relaxed);
            ensure!(completed >= goal, "{completed} are answered");
            Ok(())
        })
    }

    /// Lets every connection finish; returns the number of requests, of which none has failed, and how
    /// many there were in a second.
    pub(crate) fn finish(mut self) -> Result<(u64, u64)> {
        self.is_stopping.store(true, Ordering::Relaxed);
        let elapsed = self.started.elapsed();
        for worker in self.workers.drain(..) {
            worker.join().expect("a worker does not panic");
        }
        self.faults.check()?;
        let completed = self.completed.load(Ordering::Relaxed);
        let rate = u128::from(completed) * 1000 / elapsed.as_millis().max(1);
        Ok((completed, u64::try_from(rate)?))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }
}

fn one_connection(completed: &AtomicU64, pause: Duration) -> Result<()> {
    let mut stream = connect(VIP)?;
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    ensure!(peer == VIP.into(), "the application sees {peer}");
    for request in 0..REQUESTS_PER_CONNECTION {
        let mut message = [0; MESSAGE_BYTES];
        message[..8].copy_from_slice(&request.to_le_bytes());
        stream
            .write_all(&message)
            .with_context(|| format!("sending request {request} from {local}"))?;
        let mut answer = [1; MESSAGE_BYTES];
        let is_answered = read_message(&mut stream, &mut answer)
            .with_context(|| format!("waiting for answer {request} at {local}"))?;
        ensure!(is_answered, "the sidecar closed");
        ensure!(answer == message, "the answer is another one");
        completed.fetch_add(1, Ordering::Relaxed);
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
    Ok(())
}
