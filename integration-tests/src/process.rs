//! A program under test: started in a namespace as a user, its output in a file, ended when dropped.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use crate::netns::command_in;
use crate::wait::{self, Hopeless};

/// How long a program gets to end by itself after SIGTERM, and to be gone after SIGKILL. A control plane gives its
/// streams five seconds; on a busy machine the kernel has been seen to take as long again for what is left of a process.
const EXIT_DEADLINE: Duration = Duration::from_secs(30);

/// Lines of a program's output that are shown when a test fails.
const TAIL_LINES: usize = 25;

/// Whether this process has done what it was started for.
static IS_SUCCESS: AtomicBool = AtomicBool::new(false);

/// Says that all went well: programs that end from here on do not show their logs.
pub fn declare_success() {
    IS_SUCCESS.store(true, Ordering::Relaxed);
}

/// Who a program runs as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum User {
    /// An application.
    Application,
    /// Whoever calls.
    Caller,
    /// A sidecar, with Istio's user and group.
    Proxy,
}

impl User {
    /// User and group, or `None` for the caller's own.
    pub fn ids(self) -> Option<u32> {
        match self {
            Self::Application => Some(1000),
            Self::Caller => None,
            Self::Proxy => Some(1337),
        }
    }
}

/// A command that runs `program` as a user, in the namespace of this file or in the caller's own. The kernel kills it when
/// the *thread* that started it ends.
pub fn command_as(user: User, netns: Option<&Path>, program: impl AsRef<OsStr>) -> Command {
    let mut command = netns.map_or_else(
        || Command::new("setpriv"),
        |path| command_in(path, "setpriv"),
    );
    command.arg("--pdeathsig=KILL");
    if let Some(id) = user.ids() {
        command
            .arg(format!("--reuid={id}"))
            .arg(format!("--regid={id}"))
            .arg("--clear-groups");
    }
    command.arg("--").arg(program);
    command
}

/// How to start a program.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Directory that gets `NAME.log`.
    pub log_dir: &'a Path,
    /// Name for the log and for messages.
    pub name: &'a str,
    /// File of the namespace to run in; the caller's own if left out.
    pub netns: Option<&'a Path>,
    /// What to run.
    pub path: &'a Path,
    /// Who to run it as.
    pub user: User,
}

/// A running program. Dropping it ends it and shows the end of its log, which libtest lets through
/// if the test failed.
///
/// The kernel kills it as well when the *thread* that started it ends, so that nothing outlives a test that is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    exit: Option<ExitStatus>,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts a program. Its output is appended to the log, so that restarts share one.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(program: &Program<'_>) -> Result<Self> {
        let log = program.log_dir.join(format!("{}.log", program.name));
        let output = File::options()
            .append(true)
            .create(true)
            .open(&log)
            .with_context(|| format!("{} could not be written", log.display()))?;
        // Envoy opens `/dev/stdout` anew for its access log, as its own user.
        output.set_permissions(Permissions::from_mode(0o666))?;

        let child = command_as(program.user, program.netns, program.path)
            .args(&program.args)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("the log could not be shared")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{} could not be started", program.name))?;
        Ok(Self {
            child,
            exit: None,
            log,
            name: program.name.to_owned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed, from all its starts.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log)
            .with_context(|| format!("{} could not be read", self.log.display()))
    }

    /// Fails, with the end of its log, if it has ended by itself.
    ///
    /// # Errors
    ///
    /// When the program is not running.
    pub fn check_running(&mut self) -> Result<()> {
        match self.poll_exit()? {
            None => Ok(()),
            Some(status) => {
                Err(Hopeless(format!("{} ended ({status}):\n{}", self.name, self.tail())).into())
            }
        }
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        self.wait_exit()
    }

    /// Ends it at once (SIGKILL) and waits.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.wait_exit()
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait::until(&format!("the end of {name}"), EXIT_DEADLINE, || {
            self.poll_exit()?
                .ok_or_else(|| anyhow!("it is still running"))
        })
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        let text = fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn poll_exit(&mut self) -> Result<Option<ExitStatus>> {
        if self.exit.is_none() {
            self.exit = self
                .child
                .try_wait()
                .with_context(|| format!("{} could not be waited for", self.name))?;
        }
        Ok(self.exit)
    }

    fn signal(&mut self, signal: Signal) {
        // Only while it is ours: after it was reaped, its id may belong to another process.
        if let (Ok(None), Ok(raw)) = (self.poll_exit(), i32::try_from(self.child.id()))
            && let Some(pid) = Pid::from_raw(raw)
        {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // libtest shows what a test printed only if it failed. One that was ended on purpose has said all it had to.
        if self.exit.is_none() && !IS_SUCCESS.load(Ordering::Relaxed) {
            eprintln!(
                "--- end of the log of {} ---\n{}\n---",
                self.name,
                self.tail()
            );
        }
        if self.terminate().is_err() && self.kill().is_err() {
            eprintln!("{} (process {}) does not end", self.name, self.child.id());
        }
    }
}
