//! What each subcommand does, up to its exit code.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use isthmus_accel_datapath::{linux, probe};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::{
    cli::{Cli, Command, Detach, LogFormat, Output, Probe, Run, Status},
    error::{CommandError, EXIT_MISSING},
    run,
    runtime_dir::RuntimeDir,
    status::{self, AgentStatus},
};
