//! The viewer: asks the agent and prints what it says.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use super::{
    Flow,
    hub::{Answer, FlowsRequest, Request},
    hubble, table,
};
use crate::{cli::Output, shadow::Report};

/// Why flows could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Nobody listens.
    #[error("no agent answers at {}: flows are read by the agent, start it with `isthmus-accelerator run`", path.display())]
    NoAgent {
        /// The agent's socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The agent serves as many as it may.
    #[error("{max_viewers} look at flows already, which is as many as may")]
    Busy {
        /// How many may.
        max_viewers: usize,
    },
    /// There is no shadow.
    #[error(
        "the agent does not run in the shadow: start it with `isthmus-accelerator run --shadow`"
    )]
    NoShadow,
    /// The agent ended, or is of another version.
    #[error("the agent's answer cannot be read")]
    Answer(#[source] io::Error),
    /// The reader of our output has gone.
    #[error("the answer cannot be written")]
    Output(#[source] io::Error),
}

/// Asks the agent that listens at `socket` and prints a line for each flow, until the agent or the
/// reader of `out` ends.
///
/// # Errors
///
/// Returns [`ViewError`].
pub fn view(
    socket: &Path,
    request: FlowsRequest,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), ViewError> {
    let answers = ask(socket, &Request::Flows(request))?;
    let node_name = node_name();
    if output == Output::Table {
        print(out, &table::render_head())?;
    }
    for answer in answers {
        match answer? {
            Answer::Flow(flow) => print(out, &render(&flow, output, &node_name))?,
            Answer::Missed(count) => eprintln!("{count} flows came too fast and were missed"),
            Answer::Busy { max_viewers } => return Err(ViewError::Busy { max_viewers }),
            Answer::Shadow(_) => return Err(ViewError::Answer(io::ErrorKind::InvalidData.into())),
        }
    }
    Ok(())
}

/// Asks the agent that listens at `socket` what it has found in the shadow.
///
/// # Errors
///
/// Returns [`ViewError`].
pub fn shadow(socket: &Path) -> Result<Report, ViewError> {
    match ask(socket, &Request::Shadow)?.next() {
        Some(Ok(Answer::Shadow(report))) => Ok(*report.ok_or(ViewError::NoShadow)?),
        Some(Ok(Answer::Busy { max_viewers })) => Err(ViewError::Busy { max_viewers }),
        Some(Ok(Answer::Flow(_) | Answer::Missed(_))) => {
            Err(ViewError::Answer(io::ErrorKind::InvalidData.into()))
        }
        Some(Err(error)) => Err(error),
        None => Err(ViewError::Answer(io::ErrorKind::UnexpectedEof.into())),
    }
}

fn ask(
    socket: &Path,
    request: &Request,
) -> Result<impl Iterator<Item = Result<Answer, ViewError>> + use<>, ViewError> {
    let mut stream = UnixStream::connect(socket).map_err(|source| ViewError::NoAgent {
        path: socket.to_owned(),
        source,
    })?;
    let mut line = serde_json::to_vec(request).unwrap_or_default();
    line.push(b'\n');
    stream.write_all(&line).map_err(ViewError::Answer)?;
    Ok(BufReader::new(stream).lines().map(|line| {
        let line = line.map_err(ViewError::Answer)?;
        serde_json::from_str(&line).map_err(|error| ViewError::Answer(error.into()))
    }))
}

fn render(flow: &Flow, output: Output, node_name: &str) -> String {
    match output {
        Output::Json => hubble::render(flow, node_name).to_string(),
        Output::Table => table::render(flow),
    }
}

fn print(out: &mut dyn Write, line: &str) -> Result<(), ViewError> {
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(ViewError::Output)
}

fn node_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
