//! What Envoy accepts and an operator would still want to know.

use std::fmt;

use crate::validate::references::Target;

use super::error::{Origin, Place, Quoted};

/// One thing that is probably wrong, and where. Its `Display` is one line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigWarning {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub concern: Concern,
}

/// What is probably wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Concern {
    /// A client that gets both listeners refuses one of them.
    MayShareAddress {
        /// The address.
        address: String,
        /// The listener that comes first.
        other: Origin,
    },

    /// No document gives what a name stands for to a client that gets the name.
    Missing {
        /// The name.
        name: String,
        /// What it names.
        target: Target,
    },
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.place, self.concern)
    }
}

impl fmt::Display for Concern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MayShareAddress { address, other } => write!(
                out,
                "the address {address} is also that of {other}; a client that matches both selectors refuses one of the two listeners"
            ),
            Self::Missing { name, target } => {
                let (kind, otherwise) = consequence(*target);
                write!(
                    out,
                    "no document gives {kind} {} to the same clients; {otherwise}",
                    Quoted(name)
                )
            }
        }
    }
}

/// The kind of thing, and what happens without it.
fn consequence(target: Target) -> (&'static str, &'static str) {
    match target {
        Target::Cluster => (
            "a cluster",
            "unless the bootstrap or another control plane has it, what is sent there fails (HTTP: 503)",
        ),
        Target::Endpoints => (
            "a ClusterLoadAssignment",
            "the cluster waits for it and then has no endpoints",
        ),
        Target::ExtensionConfig => (
            "a TypedExtensionConfig",
            "unless there is a default, what it extends waits for it and then fails",
        ),
        Target::Route => (
            "a RouteConfiguration",
            "the listener waits for it and then answers 404",
        ),
        Target::Secret => (
            "a Secret",
            "what uses it waits for it and then takes no connections",
        ),
    }
}
