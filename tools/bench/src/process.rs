//! The processes of a run: started, talked to, measured, and never left behind.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// How long a process may take to start listening.
const START: Duration = Duration::from_secs(20);

/// A process that answers each line with a line. It ends with this handle.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Process {
    /// Starts it.
    pub(crate) fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} could not be started"))?;
        let stdout = child.stdout.take().context("standard output is a pipe")?;
        let stdin = child.stdin.take();
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            name: name.to_owned(),
            child,
            stdin,
            answers,
        })
    }

    /// The port that a server says it listens on.
    pub(crate) fn port(&self) -> anyhow::Result<u16> {
        let line = self.answer(START)?;
        let port = line.strip_prefix("listening ").context("no port")?;
        Ok(port.parse()?)
    }

    /// Sends a command and does not wait for its answer.
    pub(crate) fn send(&mut self, command: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("standard input is a pipe")?;
        writeln!(stdin, "{command}")
            .and_then(|()| stdin.flush())
            .with_context(|| format!("{} does not read its commands: did it end?", self.name))
    }

    /// Waits for the answer to a command.
    pub(crate) fn answer(&self, patience: Duration) -> anyhow::Result<String> {
        match self.answers.recv_timeout(patience) {
            Ok(line) => Ok(line),
            Err(error) => bail!("{} gave no answer within {patience:?}: {error}", self.name),
        }
    }

    /// Sends a command and waits for its answer.
    pub(crate) fn ask(&mut self, command: &str, patience: Duration) -> anyhow::Result<String> {
        self.send(command)?;
        self.answer(patience)
            .with_context(|| command.chars().take(60).collect::<String>())
    }

    /// Processor time that all its threads used so far (user and system), in nanoseconds' steps:
    /// `/proc/PID/stat` counts the same in hundredths of a second.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(self.pid()))?;
        Ok(Duration::from(clock_gettime(clock)?))
    }

    /// Resident memory, and the most that it ever was, in bytes.
    pub(crate) fn memory(&self) -> anyhow::Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next());
            kib.and_then(|kib| kib.parse::<u64>().ok())
                .map(|kib| kib * 1024)
                .with_context(|| format!("{} has no {name}", self.name))
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// Whether [`Process::stop`] was not called.
    pub(crate) fn is_running(&self) -> bool {
        self.stdin.is_some()
    }

    /// Ends it; its connections break.
    pub(crate) fn stop(&mut self) {
        self.stdin = None;
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its number.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are positive")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Lets this process open as many files as it may.
pub(crate) fn raise_open_files() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("the limit of open files")?;
    Ok(())
}

/// Answers each line of standard input with a line, until it ends. What a command spawns on this
/// thread goes on between commands.
pub(crate) fn answer_commands(
    mut command: impl AsyncFnMut(&str) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (sender, mut lines) = tokio::sync::mpsc::channel::<String>(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        while let Some(line) = lines.recv().await {
            let answer = command(&line).await;
            println!("{}", answer.with_context(|| line.clone())?);
            std::io::stdout().flush()?;
        }
        Ok(())
    })
}
