//! What is wrong with a configuration directory, in one line each.
//!
//! An error names the file, the line, the document, the resource and the field, says what was expected and,
//! where there is one, the remedy. It never repeats a value: the value may be a private key. What it does
//! repeat are names (of files, documents, resources, fields, types, enum values), cut to
//! [`MAX_QUOTED_BYTES`] and escaped, so that a line stays a line.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::validate::requirement::Requirement;

use super::limits::{
    MAX_ALIASED_VALUES, MAX_DEPTH, MAX_FILE_BYTES, MAX_FILES, MAX_QUOTED_BYTES, MAX_TOTAL_BYTES,
};

/// One thing that is wrong, and where. Its `Display` is one line.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub problem: Problem,
}

/// Where something is wrong, as precisely as known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The file's name in the directory, or the directory's path.
    pub file: Arc<str>,
    /// 1-based line in the file.
    pub line: Option<usize>,
    /// 1-based column in the line; known for syntax errors only.
    pub column: Option<usize>,
    /// 1-based position of the document in the file.
    pub document: Option<usize>,
    /// The document's `metadata.name`.
    pub document_name: Option<Arc<str>>,
    /// From the document's root, such as `spec.resources[2].lbPolicy`.
    pub path: Option<String>,
    /// The resource that `path` leads into or to, such as `Cluster "backend"`.
    pub resource: Option<ResourceLabel>,
}

/// Names a resource for a reader.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResourceLabel {
    /// Full name of the message, without `type.googleapis.com/`.
    pub message: Arc<str>,
    /// The resource's own name, when it could be read.
    pub name: Option<Arc<str>>,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// An alias names the collection it is in.
    #[error("the alias refers to the collection that contains it")]
    AliasLoop,

    /// A string is not base64.
    #[error("expected bytes as a base64 string, found a string that is not base64")]
    BadBase64,

    /// A string does not have the form that the type has in proto3 JSON.
    #[error("expected {expected}, found a string of another form")]
    BadFormat {
        /// The form, with an example.
        expected: &'static str,
    },

    /// `apiVersion` is not one that this program reads.
    #[error("unknown apiVersion {found}, expected {expected}", found = Quoted(.found), expected = Quoted(.expected))]
    BadApiVersion {
        /// What is supported.
        expected: &'static str,
        /// What is there.
        found: String,
    },

    /// `kind` is not one that this program reads.
    #[error("unknown kind {found}, expected {expected}", found = Quoted(.found), expected = Quoted(.expected))]
    BadKind {
        /// What is supported.
        expected: &'static str,
        /// What is there.
        found: String,
    },

    /// The directory cannot be listed.
    #[error("the directory cannot be read: {0}")]
    Directory(#[source] Io),

    /// Two members of a oneof are set.
    #[error("only one of the fields of {oneof} may be set, and {other} is set on line {line}", oneof = Quoted(.oneof), other = Quoted(.other))]
    ConflictingFields {
        /// Line of the member that comes first.
        line: usize,
        /// Name of the oneof.
        oneof: String,
        /// The member that comes first.
        other: String,
    },

    /// A mapping gives a key twice, or a field by both of its names.
    #[error("duplicate {what}, given before on line {line}; remove one")]
    DuplicateKey {
        /// Line of the first.
        line: usize,
        /// "field" or "key".
        what: &'static str,
    },

    /// The directory kept changing while it was read.
    #[error("the directory changed while it was read; it is read again when it is quiet")]
    DirectoryChanging,

    /// Two documents share a `metadata.name`.
    #[error("the name is taken by {other}; rename one of the two documents")]
    DuplicateDocument {
        /// The document that comes first.
        other: Origin,
    },

    /// One client would get two resources of one type and name.
    #[error(
        "the same type and name as {other}, and a client may match both selectors; rename one or make the selectors exclude each other"
    )]
    DuplicateResource {
        /// The resource that comes first.
        other: Origin,
    },

    /// Empty files are what a writer that truncates and then writes leaves for a moment.
    #[error("the file holds no document; write one, or delete the file")]
    EmptyFile,

    /// A required name is there and empty.
    #[error("must not be empty")]
    EmptyName,

    /// A file cannot be read.
    #[error("the file cannot be read: {0}")]
    File(#[source] Io),

    /// A file kept changing while it was read.
    #[error("the file changed while it was read; write to another name and rename")]
    FileChanging,

    /// A file is over [`MAX_FILE_BYTES`].
    #[error("the file has {found} bytes, over the limit of {MAX_FILE_BYTES}; split it")]
    FileTooLarge {
        /// Its size, or what was read of it.
        found: u64,
    },

    /// A mapping lacks a required key.
    #[error("missing {key}", key = Quoted(.key))]
    MissingKey {
        /// The key.
        key: &'static str,
    },

    /// A resource lacks its name.
    #[error("missing {field}, the name that clients ask for", field = Quoted(.field))]
    MissingName {
        /// The field that holds it.
        field: String,
    },

    /// A resource or an `Any` does not say what it is.
    #[error("missing \"@type\", such as \"type.googleapis.com/envoy.config.cluster.v3.Cluster\"")]
    MissingType,

    /// A wrapper names a resource otherwise than it names itself.
    #[error(
        "the resource calls itself {own}, and clients look for that; give the same name, or leave this one out",
        own = Quoted(.own)
    )]
    MisnamedWrapper {
        /// The name in the message.
        own: String,
    },

    /// A message of this type cannot be a resource.
    #[error(
        "{message} has no name that a client could ask for; write it inside a resource, or under `resource` of a \
         type.googleapis.com/envoy.service.discovery.v3.Resource that has a `name`"
    )]
    Nameless {
        /// Full name of the type.
        message: String,
    },

    /// A wrapper in a wrapper.
    #[error("a Resource cannot hold another Resource; write what is in it here")]
    NestedWrapper,

    /// Not a directory, socket, pipe or device: something one can read.
    #[error("not a regular file; remove it or give it another extension")]
    NotAFile,

    /// Removing everything at once is more likely a mistake, or a directory that is being replaced.
    #[error(
        "the directory holds no .yaml, .yml or .json file; to serve nothing on purpose, write a document with `resources: []`"
    )]
    NoFiles,

    /// A field of a wrapper that is not for people to set.
    #[error("must not be set: {what}; {remedy}")]
    NotToBeSet {
        /// Why.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },

    /// Not text.
    #[error("not UTF-8 text (byte {offset}); expected YAML or JSON")]
    NotUtf8 {
        /// 0-based offset of the first byte that is not UTF-8.
        offset: usize,
    },

    /// A number with a fraction, or one of YAML's numbers that are no finite number.
    #[error("expected {expected}, found another number")]
    NotWhole {
        /// What the field takes.
        expected: &'static str,
    },

    /// A number does not fit.
    #[error("the number is out of the range of {expected}")]
    OutOfRange {
        /// The type, with its range.
        expected: &'static str,
    },

    /// Refused by the type of a document for another reason.
    #[error("{reason}")]
    Rejected {
        /// What the type says.
        reason: String,
    },

    /// An alias is there twice, or is the name.
    #[error("the name is given already; remove one")]
    RepeatedAlias,

    /// Two listeners of one client want one address.
    #[error(
        "the address {address} is also that of {other}, and one client gets both listeners; change one of the two"
    )]
    SharedAddress {
        /// The address.
        address: String,
        /// The listener that comes first.
        other: Origin,
    },

    /// A time to live that nobody can keep.
    #[error("must be at least {least:?}: clients hear of the resource twice in that time")]
    ShortTtl {
        /// The least.
        least: Duration,
    },

    /// Text that is not YAML.
    #[error("syntax error: {reason}")]
    Syntax {
        /// What the parser says.
        reason: String,
    },

    /// Nested over [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,

    /// Aliases expand to more than [`MAX_ALIASED_VALUES`].
    #[error("aliases expand to more than {MAX_ALIASED_VALUES} values")]
    TooManyAliases,

    /// More than [`MAX_FILES`].
    #[error("the directory holds {found} configuration files, over the limit of {MAX_FILES}")]
    TooManyFiles {
        /// How many there are.
        found: usize,
    },

    /// More than [`MAX_TOTAL_BYTES`].
    #[error(
        "the directory holds {found} bytes of configuration, over the limit of {MAX_TOTAL_BYTES}"
    )]
    TotalTooLarge {
        /// How many there are.
        found: u64,
    },

    /// A name that is not one of a closed set.
    #[error("unknown {what} {found}{of}{suggestion}", found = Quoted(.found), of = Of(.of.as_deref()))]
    Unknown {
        /// What is there.
        found: String,
        /// Full name of the message or enum that lacks it.
        of: Option<String>,
        /// The closest, or all there are.
        suggestion: Suggestion,
        /// "field", "value", "message type" or "key".
        what: &'static str,
    },

    /// A feature of YAML or protobuf that is not read.
    #[error("{what} are not supported")]
    Unsupported {
        /// Plural.
        what: &'static str,
    },

    /// Envoy's descriptors ask something of a field that it does not satisfy: Envoy would refuse it.
    #[error("{0}")]
    Violation(Box<Requirement>),

    /// A value of another type.
    #[error("expected {expected}, found {found}{hint}")]
    WrongType {
        /// What the field takes.
        expected: String,
        /// What is there: a type, never a value.
        found: &'static str,
        /// Empty, or what to do about it.
        hint: &'static str,
    },
}

impl ConfigError {
    /// Something that is wrong with a whole file, or with the directory.
    pub(super) fn of_file(file: &Arc<str>, problem: Problem) -> Self {
        Self {
            place: Place::of_file(file),
            problem,
        }
    }
}

impl Place {
    /// A file, and nothing more precise.
    pub(super) fn of_file(file: &Arc<str>) -> Self {
        Self {
            file: Arc::clone(file),
            line: None,
            column: None,
            document: None,
            document_name: None,
            path: None,
            resource: None,
        }
    }
}

impl Problem {
    /// Whether it is likely gone when the directory is read again at once: somebody is changing it.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::DirectoryChanging | Self::FileChanging)
    }
}

/// An input/output error; shows its kind, whose text is the same on every system.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.kind())]
pub struct Io(#[from] pub io::Error);

/// Where a document or a resource was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// The file's name in the directory.
    pub file: Arc<str>,
    /// 1-based position of the document in the file.
    pub document: usize,
    /// 1-based line in the file.
    pub line: usize,
    /// 0-based position in `spec.resources`; `None` for a document.
    pub resource: Option<usize>,
}

/// What to write instead of an unknown name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Suggestion {
    /// Nothing is close.
    Nothing,
    /// The closest name.
    DidYouMean(String),
    /// All names, when they are few.
    OneOf(Vec<String>),
}

impl fmt::Display for Suggestion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::DidYouMean(name) => write!(out, ", did you mean {}?", Quoted(name)),
            Self::OneOf(names) => {
                out.write_str(", expected ")?;
                for (index, name) in names.iter().enumerate() {
                    let separator = match index {
                        0 => "",
                        _ if index + 1 == names.len() => " or ",
                        _ => ", ",
                    };
                    write!(out, "{separator}{}", Quoted(name))?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{}:{} (document {}",
            Escaped(&self.file),
            self.line,
            self.document
        )?;
        if let Some(index) = self.resource {
            write!(out, ", spec.resources[{index}]")?;
        }
        out.write_str(")")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", Escaped(&self.file))?;
        if let Some(line) = self.line {
            write!(out, ":{line}")?;
        }
        if let Some(column) = self.column {
            write!(out, ":{column}")?;
        }
        if let Some(document) = self.document {
            write!(out, ": document {document}")?;
        }
        if let Some(name) = &self.document_name {
            write!(out, " {}", Quoted(name))?;
        }
        if let Some(path) = self.path.as_deref().filter(|path| !path.is_empty()) {
            write!(out, ": {path}")?;
        }
        if let Some(label) = &self.resource {
            write!(out, " ({label})")?;
        }
        Ok(())
    }
}

impl fmt::Display for ResourceLabel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.message.rsplit('.').next().unwrap_or(&self.message);
        out.write_str(short)?;
        match &self.name {
            Some(name) => write!(out, " {}", Quoted(name)),
            None => Ok(()),
        }
    }
}

/// A name in quotes, cut and escaped so that it stays on one line.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= MAX_QUOTED_BYTES {
            return write!(out, "{:?}", self.0);
        }
        let end = self.0.floor_char_boundary(MAX_QUOTED_BYTES);
        write!(out, "{:?}...", &self.0[..end])
    }
}

/// " of " and the name of a set, if there is one.
struct Of<'a>(Option<&'a str>);

impl fmt::Display for Of<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |name| write!(out, " of {name}"))
    }
}

/// A file name, which may hold line breaks like any other byte.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0.escape_debug())
    }
}
