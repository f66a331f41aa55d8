//! Why a document is no `NodeConfig`.

use std::fmt;

use super::{AnnotationError, KIND, MAX_DOCUMENT_BYTES, PodName};
use crate::API_VERSION;

/// Why a document is not a `NodeConfig`. The reader keeps what it had.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NodeConfigError {
    /// Nothing but white space and comments: more often a write cut short than a wish for no pods.
    #[error(
        "the document is empty: to accelerate no pod, write `pods: []` under its apiVersion and kind"
    )]
    Empty,

    /// A field is well-formed YAML but holds what it must not.
    #[error("{path}: {error}")]
    Field {
        /// Path of the field, such as `pods[1].netns`.
        path: String,
        /// What is wrong with it. It is part of this message, so it is no `source()`.
        error: FieldError,
    },

    /// The bytes are not text.
    #[error("byte {offset_bytes} is not UTF-8: a NodeConfig is a YAML text file")]
    NotUtf8 {
        /// Where the first wrong byte is.
        offset_bytes: usize,
    },

    /// The text is not YAML, or its shape is not that of a `NodeConfig`.
    #[error("line {line}, column {column}: {}{reason}", Prefix(path))]
    Shape {
        /// Line, from 1; 0 if it is not known.
        line: u64,
        /// Column, from 1; 0 if it is not known.
        column: u64,
        /// Path of the field, empty if it is the document.
        path: String,
        /// What was found and what was expected.
        reason: String,
    },

    /// The document is too large to be one.
    #[error(
        "the document takes {size_bytes} bytes or more, over the limit of {MAX_DOCUMENT_BYTES}"
    )]
    TooLarge {
        /// Its size.
        size_bytes: usize,
    },
}

/// What is wrong with one field.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FieldError {
    /// An annotation cannot be read; Istio's injector would refuse the pod.
    #[error("pod {pod}: {error}")]
    Annotation {
        /// The pod that carries it.
        pod: PodName,
        /// What is wrong with it.
        error: AnnotationError,
    },

    /// Not a name server.
    #[error("{item:?} is no name server: expected the IP address of a host, such as 10.96.0.10")]
    BadDnsServer {
        /// What stands there.
        item: String,
    },

    /// Nothing says which servers `dnsCapture: resolvers` is about.
    #[error(
        "pod {pod}: dnsCapture is resolvers, and no dnsServers are given: list those of its /etc/resolv.conf"
    )]
    NoDnsServers {
        /// Whose they are.
        pod: PodName,
    },

    /// Not a pod's name.
    #[error(
        "{name:?} is no pod name: expected namespace/name in lower case, such as default/client"
    )]
    BadPodName {
        /// What stands there.
        name: String,
    },

    /// Two pods have one name.
    #[error("pod {name} is listed twice: pods[{first}] has this name too")]
    DuplicateName {
        /// Index of the other one.
        first: usize,
        /// Their name.
        name: PodName,
    },

    /// Two pods claim one network namespace.
    #[error("pod {pod}: {netns} is the network namespace of pod {other} already")]
    DuplicateNetns {
        /// The path.
        netns: String,
        /// Who has it.
        other: PodName,
        /// Who claims it too.
        pod: PodName,
    },

    /// No path.
    #[error(
        "pod {pod}: netns is empty: expected the file of its network namespace, such as /run/netns/client"
    )]
    EmptyNetns {
        /// The pod without one.
        pod: PodName,
    },

    /// A relative path would mean something else for each directory the agent is started in.
    #[error("pod {pod}: netns {netns:?} is not an absolute path without `..`")]
    RelativeNetns {
        /// The path.
        netns: String,
        /// Whose it is.
        pod: PodName,
    },

    /// An owner that would make every process of root, or none, the sidecar.
    #[error("pod {pod}: the sidecar cannot run as {id}: expected 1 to 4294967294")]
    BadProxyId {
        /// The number.
        id: u32,
        /// Whose it is.
        pod: PodName,
    },

    /// Another version of this kind.
    #[error("{found:?} is not known: expected {API_VERSION:?}")]
    WrongApiVersion {
        /// What stands there.
        found: String,
    },

    /// Another kind of document.
    #[error("{found:?} is not for the accelerator: expected {KIND:?}")]
    WrongKind {
        /// What stands there.
        found: String,
    },
}

// Paths of whole documents are empty, and then no colon is wanted.
struct Prefix<'a>(&'a str);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(formatter, "{}: ", self.0)
        }
    }
}
