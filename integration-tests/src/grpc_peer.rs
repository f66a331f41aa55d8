//! A gRPC program in another language: a client that resolves `xds:///` targets by itself, or a backend for it.

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::process::{Process, Program, User};
use crate::{programs, wait};

/// How long a backend may take to listen: an interpreter has to load a library of some megabytes.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long a change over the API may take, until its last client has answered.
const PLATFORM_DEADLINE: Duration = Duration::from_mins(1);

/// A language whose gRPC library has an xDS client of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Language {
    /// `google.golang.org/grpc`, written in Go.
    Go,
    /// `@grpc/grpc-js-xds`, written in JavaScript.
    JavaScript,
    /// `grpcio`, on the C core.
    Python,
}

impl Language {
    /// How to run a role of this language.
    fn command(self, role: &str, settings: &[String]) -> Result<Vec<OsString>> {
        let program = match self {
            Self::Go => vec![
                programs::library("grpc-go")?.join("peer").into(),
                role.into(),
            ],
            Self::JavaScript => {
                let library = programs::library("grpc-javascript/node_modules")?;
                script("javascript", role, "js", "node", "NODE_PATH", &library)
            }
            Self::Python => {
                let library = programs::library("grpc-python")?;
                script("python", role, "py", "python3", "PYTHONPATH", &library)
            }
        };
        // A proxy that the machine uses for the world outside knows no loopback of ours.
        let without_proxy = ["grpc_proxy", "http_proxy", "https_proxy"]
            .iter()
            .flat_map(|name| [OsString::from("-u"), OsString::from(name)]);
        Ok(without_proxy
            .chain(settings.iter().map(OsString::from))
            .chain(program)
            .collect())
    }
}

/// Arguments of `env`, which finds the interpreter that `cargo xtask setup` found.
fn script(
    dir: &str,
    role: &str,
    extension: &str,
    interpreter: &str,
    search_path: &str,
    library: &Path,
) -> Vec<OsString> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("peers")
        .join(dir)
        .join(role)
        .with_extension(extension);
    let mut library_setting = OsString::from(format!("{search_path}="));
    library_setting.push(library);
    vec![library_setting, interpreter.into(), script.into()]
}

/// What a call came to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(untagged)]
pub enum Outcome {
    /// A backend answered with its name.
    Answer {
        /// The name.
        backend: String,
    },
    /// The call failed.
    Failure {
        /// Name of the gRPC status code.
        code: String,
        /// What the library says of it.
        details: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { backend } => write!(f, "an answer by {backend}"),
            Self::Failure { code, details } => write!(f, "{code} ({details})"),
        }
    }
}

/// A backend that answers with its name.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddrV4,
    _process: Process,
}

impl Backend {
    /// Starts it on a free port of loopback.
    ///
    /// # Errors
    ///
    /// When it does not listen in time.
    pub fn start(language: Language, name: &str, log_dir: &Path) -> Result<Self> {
        let mut args = language.command("backend", &[])?;
        args.push(name.into());
        let mut process = start(&format!("backend-{name}"), args, log_dir)?;
        let port = wait::until("a port of a backend", START_DEADLINE, || {
            process.check_running()?;
            let log = process.log()?;
            let line = json_lines(&log).next().context("it has printed nothing")?;
            Ok(serde_json::from_str::<Listening>(line)?.port)
        })?;
        Ok(Self {
            address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
            _process: process,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }
}

#[derive(Debug, Deserialize)]
struct Listening {
    port: u16,
}

/// A client that calls one target again and again.
#[derive(Debug)]
pub struct Client {
    process: Process,
}

impl Client {
    /// Starts it as node `node_id` of this control plane.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(
        language: Language,
        node_id: &str,
        control_plane: SocketAddrV4,
        target: &str,
        log_dir: &Path,
    ) -> Result<Self> {
        let bootstrap = json!({
            // grpc-js refuses a node without locality.
            "node": {"id": node_id, "locality": {"region": "loopback"}},
            "xds_servers": [{
                "server_uri": control_plane.to_string(),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }],
        });
        let mut settings = vec![format!("GRPC_XDS_BOOTSTRAP_CONFIG={bootstrap}")];
        if language == Language::JavaScript {
            // The only place where it says what does not exist.
            settings.extend(["GRPC_TRACE=xds_resolver", "GRPC_VERBOSITY=DEBUG"].map(str::to_owned));
        }
        let mut args = language.command("client", &settings)?;
        args.push(target.into());
        let process = start("client", args, log_dir)?;
        Ok(Self { process })
    }

    /// What its calls came to, from the first to the last that has ended.
    ///
    /// # Errors
    ///
    /// When it has ended, or printed what is no result.
    pub fn outcomes(&mut self) -> Result<Vec<Outcome>> {
        self.process.check_running()?;
        let log = self.process.log()?;
        json_lines(&log)
            .map(|line| outcome(line).with_context(|| format!("not a result: {line}")))
            .collect()
    }

    /// All that it has printed.
    ///
    /// # Errors
    ///
    /// When its log cannot be read.
    pub fn log(&self) -> Result<String> {
        self.process.log()
    }
}

/// Sets a document over the programmatic API of a control plane from a Python program, and returns the events of its
/// way to the clients, as the program prints them. `name` is that of its log, which no other run has.
///
/// # Errors
///
/// When the program fails, or does not end in time.
pub fn set_from_python(
    name: &str,
    api: SocketAddrV4,
    document: &str,
    resources: &[Value],
    log_dir: &Path,
) -> Result<Vec<Value>> {
    let mut args = Language::Python.command("platform", &[])?;
    args.extend([api.to_string().into(), document.into()]);
    args.extend(resources.iter().map(|it| it.to_string().into()));
    let mut process = start(name, args, log_dir)?;
    wait::until(
        "an end of the platform's program",
        PLATFORM_DEADLINE,
        || {
            let log = process.log()?;
            let events: Result<Vec<Value>, _> =
                json_lines(&log).map(serde_json::from_str).collect();
            let mut events = events?;
            if events.pop() == Some(json!({"is_done": true})) {
                return Ok(events);
            }
            process.check_running()?;
            bail!("it has printed {log}")
        },
    )
}

fn start(name: &str, args: Vec<OsString>, log_dir: &Path) -> Result<Process> {
    Process::start(&Program {
        args,
        log_dir,
        name,
        netns: None,
        path: &PathBuf::from("env"),
        user: User::Caller,
    })
}

// What the library logs goes to the same file, and may follow a result on its line.
fn outcome(line: &str) -> Result<Outcome> {
    let mut values = serde_json::Deserializer::from_str(line).into_iter();
    Ok(values.next().context("an empty line")??)
}

/// Whole lines of JSON: the log has what the libraries print as well.
fn json_lines(log: &str) -> impl Iterator<Item = &str> {
    log.split_inclusive('\n')
        .filter(|line| line.starts_with('{') && line.ends_with('\n'))
}
