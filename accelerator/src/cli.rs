//! The command line: what can be asked, and nothing that answers.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use isthmus_accel_datapath::linux::DEFAULT_PIN_DIR;

use crate::runtime_dir::DEFAULT_RUNTIME_DIR;

const EXAMPLES: &str = "\
Examples:
  # What this machine can do, and what it lacks
  isthmus-accelerator probe

  # Accelerate the pods of a file; edit the file to add and remove pods
  isthmus-accelerator run --config /etc/isthmus/node.yaml

  # How much of each hop skips TCP/IP, as JSON
  isthmus-accelerator status -o json

  # What a pod dials from here on, and what becomes of it
  isthmus-accelerator flows --follow --pod default/client

  # Whether iptables does what the programs would do, on a node that runs in the shadow
  isthmus-accelerator run --config /etc/isthmus/node.yaml --shadow
  isthmus-accelerator shadow

  # Remove everything from the kernel
  isthmus-accelerator detach

Exit codes: 0 done, 1 failed, 2 used wrongly or a kernel feature or right is missing.";

const RUN_EXAMPLES: &str = "\
The file:
  apiVersion: isthmus.io/v1alpha1
  kind: NodeConfig
  pods:
    - name: default/client
      netns: /run/netns/client
      proxyUID: 1337            # what the sidecar runs as; 1337 if left out
      proxyGID: 1337
      annotations:              # Istio's own, all strings
        traffic.sidecar.istio.io/excludeOutboundPorts: \"3306\"

Prints one line to stdout when the pods are loaded, `ready: ...`; logs go to stderr (RUST_LOG=debug shows
more). SIGHUP reads the file again. SIGTERM and SIGINT end the agent and leave everything loaded: traffic goes
on to be accelerated, and the next `run` takes over.";

const FLOWS_EXAMPLES: &str = "\
Each connection is told of when it is decided upon, established and closed; where it is accepted by a pod of
this node, that end is told of too. The agent keeps the last 4,096. Unless it runs with --flows=on, the
programs tell only while somebody looks, so that what was before is not shown.

Examples:
  # Whatever was left alone, and by which of Istio's rules
  isthmus-accelerator flows --follow --verdict passed

  # The last 100, for jq
  isthmus-accelerator flows --last 100 -o json";

const DETACH_EXAMPLES: &str = "\
Removes programs, maps and pins. Connections go on by TCP. Asks for the agent to be stopped first: it would
hold on to its maps. Detaching twice is no error.

No byte is lost. Readers get --timeout to read what has skipped TCP/IP; sockets whose reader stalls longer keep
it, and one program with its maps, until they are closed. What is left then frees itself.";

/// Moves traffic between applications and sidecars of one node from socket to socket.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES, arg_required_else_help = true, name = "isthmus-accelerator", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load the programs and keep them fed with the pods of a file.
    Run(Run),
    /// Show programs, pods and how much of each hop skips TCP/IP. Needs no running agent.
    Status(ReportArgs),
    /// Show connections one by one: who dialled what, where it went and why.
    Flows(Flows),
    /// Show whether iptables does what the programs would do, found by `run --shadow`.
    Shadow(ReportArgs),
    /// Remove everything from the kernel.
    Detach(Detach),
    /// Show what the accelerator needs of this machine, and what is missing.
    Probe(ReportArgs),
}

/// Where this agent keeps what outlives it.
#[derive(Args, Clone, Debug)]
pub struct Places {
    /// Directory for pinned programs and maps, in a BPF filesystem.
    #[arg(default_value = DEFAULT_PIN_DIR, long, value_name = "DIR")]
    pub pin_dir: PathBuf,

    /// Directory for the lock and the names of the pods.
    #[arg(default_value = DEFAULT_RUNTIME_DIR, long, value_name = "DIR")]
    pub runtime_dir: PathBuf,
}

/// Loads the programs, or takes over what is loaded, and keeps them fed with the pods of a file.
#[derive(Args, Debug)]
#[command(after_help = RUN_EXAMPLES)]
pub struct Run {
    /// The file to follow, a YAML document of kind `NodeConfig`.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// Whether messages between sockets of this node may skip TCP/IP.
    #[arg(default_value = "auto", long, value_enum, value_name = "WHEN")]
    pub sockmap: Sockmap,

    /// Change nothing: record what the programs would do, and compare it with what iptables does. See
    /// `isthmus-accelerator shadow`. A `run` without it begins in earnest, without a gap.
    #[arg(conflicts_with_all = ["flows", "sockmap"], long)]
    pub shadow: bool,

    /// When the programs tell about single connections, for `isthmus-accelerator flows`.
    #[arg(default_value = "auto", long, value_enum, value_name = "WHEN")]
    pub flows: FlowsWhen,

    /// Address for /livez, /readyz and /metrics; none if left out.
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,

    /// How to write logs.
    #[arg(default_value = "text", long, value_enum, value_name = "FORMAT")]
    pub log_format: LogFormat,

    /// Run although another agent uses the same hooks: its pods must be others, and its pins too.
    #[arg(long)]
    pub share_hooks: bool,

    #[command(flatten)]
    #[allow(
        missing_docs,
        reason = "a doc comment would replace the one of the flattened options"
    )]
    pub places: Places,
}

/// What every subcommand that prints a report can be told.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// How to print the answer; `json` is stable across minor versions.
    #[arg(
        default_value = "table",
        long,
        short,
        value_enum,
        value_name = "FORMAT"
    )]
    pub output: Output,

    #[command(flatten)]
    #[allow(
        missing_docs,
        reason = "a doc comment would replace the one of the flattened options"
    )]
    pub places: Places,
}

/// Shows connections one by one, as the running agent is told of them.
#[derive(Args, Debug)]
#[command(after_help = FLOWS_EXAMPLES)]
pub struct Flows {
    /// Go on with those that come.
    #[arg(long, short)]
    pub follow: bool,

    /// How many of those that the agent has kept come first.
    #[arg(default_value_t = 20, long, value_name = "NUMBER")]
    pub last: usize,

    /// The pod at either end, as NAMESPACE/NAME; NAMESPACE/ stands for all of a namespace.
    #[arg(long, value_name = "POD")]
    pub pod: Option<String>,

    /// The port at either end, as dialled or as rewritten.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,

    /// What was decided when it was dialled.
    #[arg(long, value_enum, value_name = "VERDICT")]
    pub verdict: Option<FlowVerdict>,

    /// How to print a flow: a line of columns, or of JSON in the fields of Hubble's flows.
    #[arg(
        default_value = "table",
        long,
        short,
        value_enum,
        value_name = "FORMAT"
    )]
    pub output: Output,

    #[command(flatten)]
    #[allow(
        missing_docs,
        reason = "a doc comment would replace the one of the flattened options"
    )]
    pub places: Places,
}

/// What was decided about a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum FlowVerdict {
    /// Sent to a proxy.
    Redirected,
    /// The proxy's own dial to its application, left as it is.
    Followed,
    /// Left alone.
    Passed,
    /// Left alone because a map was full.
    NoRoom,
}

/// When the programs tell about single connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum FlowsWhen {
    /// While anybody looks.
    Auto,
    /// Never.
    Off,
    /// Always.
    On,
}

/// Removes programs, maps and pins.
#[derive(Args, Debug)]
#[command(after_help = DETACH_EXAMPLES)]
pub struct Detach {
    /// How long to wait for readers that stall.
    #[arg(default_value_t = 10, long, value_name = "SECONDS")]
    pub timeout: u64,

    #[command(flatten)]
    #[allow(
        missing_docs,
        reason = "a doc comment would replace the one of the flattened options"
    )]
    pub places: Places,
}

/// When messages may skip TCP/IP.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Sockmap {
    /// Where the kernel is known to do it right.
    Auto,
    /// Never: connections are redirected, and every byte goes by TCP.
    Off,
}

/// How to write logs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Lines for people.
    Text,
}

/// How to print an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// One JSON document.
    Json,
    /// Columns for people.
    Table,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
