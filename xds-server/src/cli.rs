//! The command line of `isthmus-xds`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use isthmus_api::envoy_resources::IdentityPattern;

use crate::commands::Command;

const EXAMPLES: &str = "\
Examples:
  Serve what is in ./config to the Envoys of this machine:
    isthmus-xds --config-dir ./config

  Point an Envoy at it (bootstrap):
    dynamic_resources:
      ads_config:
        api_type: DELTA_GRPC
        transport_api_version: V3
        grpc_services: [{envoy_grpc: {cluster_name: isthmus-xds}}]
      cds_config: {resource_api_version: V3, ads: {}}
      lds_config: {resource_api_version: V3, ads: {}}

  Serve other machines, to clients with certificates of a CA:
    isthmus-xds --config-dir ./config --xds-listen 0.0.0.0:15012 \\
      --tls-cert tls.crt --tls-key tls.key --tls-client-ca ca.crt

  Be told what to serve by a program, over gRPC:
    isthmus-xds --api-listen 127.0.0.1:15016

  Check a directory, and see what it would send to a client:
    isthmus-xds validate ./config
    isthmus-xds diff ./config --node web-1

  See what is served, and to whom:
    curl -s http://127.0.0.1:15014/config_dump?type=cds

  See what changed when, and put an earlier generation in force again:
    isthmus-xds history
    isthmus-xds rollback 41

A change in DIR is served at once. While a file in it is wrong, the log says what and where, and
the last good configuration stays in force. RUST_LOG sets what is logged (default: info).";

/// Everything that the program can be told: to serve, or to answer one question.
#[derive(Debug, Parser)]
#[command(name = "isthmus-xds", version, about = ABOUT, long_about = None, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Program {
    /// How to serve; absent with a command.
    #[command(flatten)]
    pub serve: Option<Cli>,

    /// What to answer instead.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const ABOUT: &str = "Serves Envoy configuration from a directory over xDS";

#[allow(clippy::doc_markdown, reason = "the comments are the text of --help")]
/// Serves Envoy configuration from a directory over xDS.
#[derive(Clone, Debug, Parser)]
#[command(name = "isthmus-xds", version, after_help = EXAMPLES)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct Cli {
    /// Directory of EnvoyResources documents (*.yaml, *.yml, *.json), watched for changes.
    /// May be left out where --api-listen or --api-socket is given.
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,

    /// Address of the xDS services (gRPC). Plaintext without --tls-cert, and then on loopback only.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15010")]
    pub xds_listen: SocketAddr,

    /// Unix socket of the same services, mode 0660. A client's user is its identity, as uid:NUMBER.
    #[arg(long, value_name = "PATH")]
    pub xds_socket: Option<PathBuf>,

    /// Serve TLS 1.3 with this certificate chain (PEM). Read again when it changes, as are the two below.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Demand client certificates of these CAs (PEM); the SPIFFE ID in one is the client's identity.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,

    /// Allow plaintext xDS on an address that other machines reach: they can read all secrets.
    #[arg(long, conflicts_with = "tls_cert")]
    pub insecure: bool,

    /// Address of the programmatic API (gRPC, isthmus.xds.v1.ResourceService). On loopback in plaintext, so that
    /// everybody on this machine may change what is served; with --tls-cert over TLS, to those of --api-allow.
    /// Its documents are kept in memory: after a start nothing is served until the first commit.
    #[arg(long, value_name = "ADDR")]
    pub api_listen: Option<SocketAddr>,

    /// Unix socket of the programmatic API, for the user that the server runs as and for no other.
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,

    /// Identity that may call the programmatic API over TLS: a SPIFFE ID, exact or ending in /*, as a certificate of
    /// --tls-client-ca proves it. May be given again.
    #[arg(
        long,
        value_name = "IDENTITY",
        requires = "api_listen",
        requires = "tls_client_ca"
    )]
    pub api_allow: Vec<IdentityPattern>,

    /// Streams that may open in a second, over what 2.5 seconds of quiet let in at once. The others
    /// wait for their turn, for 10 seconds at most. 0: no limit.
    #[arg(long, value_name = "NUMBER", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub max_stream_opens_per_second: u32,

    /// Clients of a scope that are given a change first; the others get it when those accepted it, and
    /// all keep what they had when one refuses it. Endpoints and secrets never wait. 0: to all at once.
    #[arg(long, value_name = "CLIENTS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub canary: u32,

    /// Seconds that --canary clients may leave a change unanswered. After that it goes to all the same,
    /// with a warning: who is silent has not refused it.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub canary_timeout: u32,

    /// Identity that may read the status of every client over CSDS: a SPIFFE ID, exact or ending in
    /// /*, or uid:NUMBER. May be given again. Other identities see their own streams.
    #[arg(long = "status-reader", value_name = "IDENTITY")]
    pub status_readers: Vec<IdentityPattern>,

    /// Seconds from one load report of a client (LRS) to the next.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub load_report_interval: u32,

    /// Ask clients to report the load of each endpoint, not of each locality only.
    #[arg(long)]
    pub load_report_endpoints: bool,

    /// Export reported load as metrics, with labels for cluster and locality (1,000 of them at most).
    #[arg(long)]
    pub load_metrics: bool,

    /// Address of /livez, /readyz, /metrics, /config_dump and /load (HTTP).
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15014")]
    pub admin_listen: SocketAddr,

    /// Let the admin endpoint roll back for other machines too, if it is not on loopback. It asks nobody who they are.
    #[arg(long)]
    pub admin_changes: bool,

    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Default for Cli {
    fn default() -> Self {
        Self::parse_from(["isthmus-xds"])
    }
}

impl Cli {
    /// Whether the command line names a source of configuration. A program may do without.
    pub fn has_source(&self) -> bool {
        self.config_dir.is_some() || self.api_listen.is_some() || self.api_socket.is_some()
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
