//! Why a command failed, and what that makes of its exit code.

use std::{error::Error, io, net::SocketAddr, path::PathBuf};

use isthmus_accel_datapath::DatapathError;

use crate::{
    config_file::ConfigFileError, exclusive::ExclusiveError, flows::view::ViewError,
    runtime_dir::RuntimeDirError,
};

/// Exit code for a machine, or a user, that lacks something.
pub const EXIT_MISSING: u8 = 2;
/// Exit code for everything else that goes wrong.
pub const EXIT_FAILED: u8 = 1;

/// Why a command failed. Audience: the operator, as one line.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The admin endpoint.
    #[error("{addr} cannot be listened on; give another address with --admin-listen")]
    Admin {
        /// The address.
        addr: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file to follow.
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    /// Another agent runs.
    #[error(transparent)]
    Exclusive(#[from] ExclusiveError),
    /// The kernel.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The socket at which the agent tells of connections.
    #[error("{} cannot be listened on, --runtime-dir names another directory", socket.display())]
    Flows {
        /// The socket.
        socket: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Flows, asked for.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The answer could not be printed.
    #[error("the answer cannot be written to stdout")]
    Output(#[source] io::Error),
    /// The tokio runtime could not be made.
    #[error("the process cannot get its event loop")]
    Runtime(#[source] io::Error),
    /// The lock or the roster.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// Signals.
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
}

impl CommandError {
    /// Returns the exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let is_missing = matches!(self, Self::Datapath(DatapathError::Missing { .. }));
        if is_missing || is_refused(self) {
            EXIT_MISSING
        } else {
            EXIT_FAILED
        }
    }
}

// Whatever step it was that the kernel refused: a right is missing.
fn is_refused(error: &(dyn Error + 'static)) -> bool {
    let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    error.downcast_ref::<io::Error>().is_some_and(is_denied)
        || error.source().is_some_and(is_refused)
}

/// Renders an error and its sources in one line.
#[must_use]
pub fn render_chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line.replace('\n', " ")
}
