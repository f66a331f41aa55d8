//! The configuration directory: files of `EnvoyResources` documents as encoded resources.
//!
//! [`load`] reads a directory once; [`watch`](watch::watch) keeps reading it. A directory is one commit: it
//! loads whole or, with one error in one file, not at all, so that a client never gets half of a change.
//!
//! ```text
//!  files ──read──▶ text ──yaml──▶ tree ──envelope──▶ selector, name
//!                                   └────encode────▶ bytes (by descriptor)
//! ```
//!
//! * Documents of all files together are one set; how they are spread over files means nothing.
//! * A `metadata.name` is given once. A resource, by type and name, is given once to any one client: two
//!   documents may both give it if their selectors cannot match the same client.
//! * A resource is a message with `@type`, or an `envoy.service.discovery.v3.Resource` around one: for aliases, for
//!   a time to live, and for a message that has no name. A type that no descriptor is known of is given as JSON
//!   gives bytes: `{"@type": type.googleapis.com/some.Type, value: BASE64}`.
//! * A selector that no client matches is no error: clients come and go.
//! * A directory without configuration files is an error, as is a file without a document. Both are what
//!   replacing a directory or a file looks like halfway. A document with `resources: []` serves nothing
//!   on purpose.

mod debounce;
mod encode;
mod envelope;
mod error;
pub mod limits;
mod links;
mod loader;
mod locate;
mod name;
mod path;
mod read;
mod suggest;
mod unique;
mod warning;
pub mod watch;
mod wrapper;
mod yaml;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isthmus_api::envoy_resources::Selector;

use self::loader::Loader;
use self::read::Fingerprint;

pub use self::error::{ConfigError, Io, Origin, Place, Problem, ResourceLabel, Suggestion};
pub(crate) use self::links::includes;
pub(crate) use self::name::name_field;
pub(crate) use self::path::{push_index, push_key};
pub use self::warning::{Concern, ConfigWarning};

/// Everything that a directory says, checked and encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadedConfig {
    /// By file name, then by position in the file.
    pub documents: Vec<LoadedDocument>,
    /// What is probably wrong, up to [`limits::MAX_WARNINGS`].
    pub warnings: Vec<ConfigWarning>,
}

/// One `EnvoyResources` document.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedDocument {
    /// `metadata.name`, unique in the directory.
    pub name: Arc<str>,
    /// Where it is written.
    pub origin: Origin,
    /// The clients that get the resources.
    pub selector: Selector,
    /// In the order of the document.
    pub resources: Vec<LoadedResource>,
}

/// One resource, ready to be served.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedResource {
    /// `type.googleapis.com/` and the full name of the message.
    pub type_url: Arc<str>,
    /// The name that clients ask for.
    pub name: Arc<str>,
    /// The canonical protobuf encoding of the message, which is an `Any`'s `value`: equal documents give
    /// equal bytes, always.
    pub value: Bytes,
    /// Other names under which clients may ask for it.
    pub aliases: Vec<Arc<str>>,
    /// How long a client may go on using it unheard of.
    pub ttl: Option<Duration>,
    /// Where it is written.
    pub origin: Origin,
}

/// Reads and checks a whole directory.
///
/// Blocks on file I/O and, for tens of megabytes, takes seconds of CPU: nothing for an async task.
///
/// # Errors
///
/// Everything that is wrong, up to [`limits::MAX_ERRORS`], by file and line. Nothing of the directory may
/// be used then.
pub fn load(dir: &Path) -> Result<LoadedConfig, Vec<ConfigError>> {
    load_with_fingerprint(dir).map(|(config, _)| config)
}

/// Checks the text of one file as [`load`] does, without what needs the other files.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn read_text(file: &str, text: &str) -> Result<Vec<LoadedDocument>, Vec<ConfigError>> {
    let mut loader = Loader::new();
    loader.file(&Arc::from(file), text);
    loader.finish().map(|config| config.documents)
}

/// A type URL, and the bytes of a message.
pub(crate) type TypedBytes = (Arc<str>, Vec<u8>);

/// Encodes the text of one resource: its type URL and its bytes, or each mistake, path and problem.
pub(crate) fn encode_text(text: &str) -> Result<TypedBytes, Vec<[String; 2]>> {
    let (documents, syntax_error) = yaml::parse_documents(text);
    let whole = |problem: &str| vec![[String::new(), problem.to_owned()]];
    if let Some(error) = syntax_error {
        let line = error.line;
        let problem = loader::from_syntax(&Arc::from(""), error).problem;
        return Err(whole(&format!("line {line}: {problem}")));
    }
    let [document] = &*documents else {
        return Err(whole("must be one JSON object with an @type"));
    };
    let pool = isthmus_proto::descriptor_pool();
    match encode::encode_resource(pool, &document.root, "") {
        Ok(encoded) => Ok((encoded.type_url, encoded.value)),
        Err(findings) => Err(findings
            .into_iter()
            .map(|finding| [finding.path, finding.problem.to_string()])
            .collect()),
    }
}

fn load_with_fingerprint(dir: &Path) -> Result<(LoadedConfig, Fingerprint), Vec<ConfigError>> {
    let whole: Arc<str> = dir.to_string_lossy().into();
    let of_directory = |problem| vec![ConfigError::of_file(&whole, problem)];
    let before = Fingerprint::take(dir).map_err(of_directory)?;
    let mut loader = Loader::new();
    for name in before.names() {
        if loader.is_full() {
            break;
        }
        let file: Arc<str> = name.to_string_lossy().into();
        match read::read_file(&dir.join(name)) {
            Ok(text) => loader.file(&file, &text),
            Err(problem) => loader.error(&file, problem),
        }
    }
    let after = Fingerprint::take(dir).map_err(of_directory)?;
    if before != after {
        return Err(vec![ConfigError::of_file(
            &whole,
            Problem::DirectoryChanging,
        )]);
    }
    Ok((loader.finish()?, after))
}
