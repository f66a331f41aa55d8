//! Killing a program at its n-th change of the world outside, by strace: no hook in the program, and no
//! step that somebody forgot to mark.

use std::{
    ffi::OsString,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use isthmus_integration_tests::{programs, wait};
use rustix::process::{Pid, Signal, kill_process};

use crate::mesh::PATIENCE;

/// Calls that may change what outlives the process.
const CALLS: &str = "bpf,mkdir,mkdirat,unlink,unlinkat,rmdir,rename,renameat,renameat2";
/// Commands of bpf(2) that do.
const COMMANDS: [&str; 6] = [
    "BPF_LINK_CREATE",
    "BPF_LINK_UPDATE",
    "BPF_MAP_DELETE_ELEM",
    "BPF_MAP_UPDATE_ELEM",
    "BPF_OBJ_PIN",
    "BPF_PROG_ATTACH",
];

/// One change: the call, and which call of that name it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Step {
    call: String,
    index: usize,
    /// The call with its arguments, for messages.
    pub(crate) line: String,
}

/// Runs the agent's program to `until` and returns the changes that it made on the way.
pub(crate) fn record(dir: &Path, args: &[OsString], until: &Until) -> Result<Vec<Step>> {
    let trace = dir.join("strace.log");
    let mut traced = Traced::start(dir, args, &trace, None)?;
    ensure!(traced.wait(until)? == End::Done, "it was killed");
    let text = fs::read_to_string(&trace).context("strace has written a log")?;
    Ok(parse(&text))
}

/// Runs the agent's program to `until`, or up to a step, which it does not live to make if it comes to it.
pub(crate) fn run_up_to(dir: &Path, args: &[OsString], step: &Step, until: &Until) -> Result<End> {
    let trace = dir.join("strace-killed.log");
    let mut traced = Traced::start(dir, args, &trace, Some(step))?;
    traced.wait(until)
}

/// When a run is over.
#[derive(Clone, Debug)]
pub(crate) enum Until {
    /// It ends by itself.
    Done,
    /// It prints that it is ready, and is asked to end.
    Ready,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// Successfully.
    Done,
    /// By SIGKILL.
    Killed,
}

struct Traced {
    child: Child,
    output: PathBuf,
    trace: PathBuf,
}

impl Traced {
    fn start(dir: &Path, args: &[OsString], trace: &Path, kill_at: Option<&Step>) -> Result<Self> {
        let output = dir.join("traced.log");
        let file = fs::File::create(&output)?;
        let _ = fs::remove_file(trace);
        // Both end with this program, however it ends.
        let mut command = Command::new(programs::system("setpriv")?);
        command
            .arg("--pdeathsig=KILL")
            .arg(programs::system("strace")?);
        command.args(["-f", "-q", "-o"]).arg(trace);
        command.arg("-e").arg(format!("trace={CALLS}"));
        if let Some(Step { call, index, .. }) = kill_at {
            command.arg("-e");
            command.arg(format!("inject={call}:signal=KILL:when={index}"));
        }
        command
            .arg(programs::system("setpriv")?)
            .arg("--pdeathsig=KILL");
        command
            .arg(programs::own("isthmus-accelerator")?)
            .args(args);
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("strace is installed (`cargo xtask setup`)")?;
        Ok(Self {
            child,
            output,
            trace: trace.to_owned(),
        })
    }

    fn wait(&mut self, until: &Until) -> Result<End> {
        let mut is_asked = false;
        let status = wait::until("the end of the traced program", PATIENCE, || {
            if matches!(until, Until::Ready)
                && !is_asked
                && fs::read_to_string(&self.output)?.contains("ready: ")
            {
                is_asked = true;
                kill_process(self.traced_pid()?, Signal::TERM)?;
            }
            self.child.try_wait()?.context("it still runs")
        })?;
        match status.signal() {
            Some(9) => Ok(End::Killed),
            _ if status.success() => Ok(End::Done),
            _ => bail!(
                "it ended with {status}: {}",
                fs::read_to_string(&self.output)?
            ),
        }
    }

    fn traced_pid(&self) -> Result<Pid> {
        let text = fs::read_to_string(&self.trace)?;
        let pid = text.split_whitespace().next().context("a line")?.parse()?;
        Pid::from_raw(pid).context("a process has a number")
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Finds the changes in a trace: those of the first thread, which makes all of them.
fn parse(trace: &str) -> Vec<Step> {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    let mut steps = Vec::new();
    let first = trace.split_whitespace().next();
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        let Some((call, args)) = rest.split_once('(') else {
            continue;
        };
        let is_call = call.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if Some(pid) != first || !is_call {
            continue;
        }
        let count = counts.entry(call).or_default();
        *count += 1;
        if call != "bpf" || COMMANDS.iter().any(|command| args.starts_with(command)) {
            steps.push(Step {
                call: call.to_owned(),
                index: *count,
                line: rest.to_owned(),
            });
        }
    }
    steps
}

#[test]
fn traces_are_read() -> Result<()> {
    const TRACE: &str = "\
12  bpf(BPF_PROG_LOAD, {prog_type=1}, 152) = 3
12  mkdir(\"/sys/fs/bpf/x\", 0777) = 0
13  unlink(\"/run/y\") = 0
12  bpf(BPF_OBJ_PIN, {pathname=\"/sys/fs/bpf/x/y\"}, 152 <unfinished ...>
13  --- SIGCHLD ---
12  <... bpf resumed>) = 0
12  bpf(BPF_LINK_CREATE, {link_create={prog_fd=9}}, 64) = 9
12  +++ exited with 0 +++
";
    let steps: Vec<_> = parse(TRACE)
        .into_iter()
        .map(|step| (step.call, step.index))
        .collect();
    let expected = [("mkdir", 1), ("bpf", 2), ("bpf", 3)];
    ensure!(
        steps == expected.map(|(call, index)| (call.to_owned(), index)),
        "{steps:?}"
    );
    Ok(())
}
