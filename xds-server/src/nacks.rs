//! The last refusals: who refused what, in which words, and where that is written.
//!
//! Invariant: no clock, no I/O, and no secret: a client's words lose theirs where they are read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use isthmus_xds_core::{Name, TypeUrl, Version};

use crate::history::{History, Traced};
use crate::provenance::{Origin, ResourceKey};

/// Refusals that are kept: with 4 KiB of words each, 4 MiB.
pub const NACKS: usize = 1024;

/// Resources that one refusal is traced to; Envoy names each that it refuses.
pub const CULPRITS: usize = 32;

/// One refusal.
#[derive(Clone, Debug)]
pub struct Nack {
    /// When it came.
    pub at: SystemTime,
    /// `node.id` of the client.
    pub node_id: Arc<str>,
    /// Number of its stream.
    pub stream: u64,
    /// Type of what was refused.
    pub type_url: TypeUrl,
    /// Generation of what was refused.
    pub generation: u64,
    /// The client's words.
    pub message: Arc<str>,
    /// What is to blame, as far as it is known.
    pub culprits: Vec<Culprit>,
}

/// A resource that was refused.
#[derive(Clone, Debug)]
pub struct Culprit {
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// The document that has it.
    pub document: Name,
    /// Where it is written.
    pub origin: Arc<Origin>,
}

impl From<Traced> for Culprit {
    fn from(traced: Traced) -> Self {
        Self {
            name: Name::clone(traced.resource.name()),
            version: traced.resource.version(),
            document: traced.document,
            origin: traced.origin,
        }
    }
}

/// The newest [`NACKS`] refusals.
#[derive(Clone, Debug, Default)]
pub struct Nacks(VecDeque<Nack>);

impl Nacks {
    /// Adds a refusal.
    pub fn record(&mut self, nack: Nack) {
        if self.0.len() == NACKS {
            self.0.pop_front();
        }
        self.0.push_back(nack);
    }

    /// Adds what is to blame to the last refusal of a type on a stream, once that is found.
    pub fn blame(&mut self, stream: u64, type_url: &TypeUrl, culprit: Culprit) {
        let of_stream = |nack: &&mut Nack| nack.stream == stream && nack.type_url == *type_url;
        let Some(nack) = self.0.iter_mut().rev().find(of_stream) else {
            return;
        };
        let is_known = |it: &Culprit| (&it.name, it.version) == (&culprit.name, culprit.version);
        if nack.culprits.len() < CULPRITS && !nack.culprits.iter().any(is_known) {
            nack.culprits.push(culprit);
        }
    }

    /// The refusals that are kept, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Nack> {
        self.0.iter().rev()
    }

    /// Clients that refused something of a generation.
    pub fn clients_refusing(&self, generation: u64) -> usize {
        let of_generation = self.0.iter().filter(|nack| nack.generation == generation);
        let mut clients: Vec<&str> = of_generation.map(|it| &*it.node_id).collect();
        clients.sort_unstable();
        clients.dedup();
        clients.len()
    }
}

/// Finds the resources that a client names in its words, of those that it was sent: in a
/// generation, as a client that gets `documents`.
pub fn named_in(
    message: &str,
    history: &History,
    generation: u64,
    documents: &[Name],
    type_url: &TypeUrl,
) -> Vec<Culprit> {
    let Some(generation) = history.find(generation) else {
        return Vec::new();
    };
    let mut culprits: Vec<Culprit> = Vec::new();
    for word in message.split_whitespace() {
        // Envoy writes `name:`, `'name'`, `"name"`, `(name)`; a name may end in none of these.
        let bare = word.trim_matches(|it: char| ":,;.'\"`()[]{}".contains(it));
        for name in [word.trim_end_matches([':', ',']), bare] {
            if culprits.len() == CULPRITS || culprits.iter().any(|it| &*it.name == name) {
                continue;
            }
            let key = ResourceKey {
                type_url: TypeUrl::clone(type_url),
                name: Name::from(name),
            };
            culprits.extend(generation.resource(documents, &key).map(Culprit::from));
        }
    }
    culprits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_are_kept() {
        let mut nacks = Nacks::default();
        for stream in 0..NACKS as u64 + 5 {
            nacks.record(Nack {
                at: SystemTime::UNIX_EPOCH,
                node_id: Arc::from(format!("n{}", stream % 2)),
                stream,
                type_url: TypeUrl::from("t"),
                generation: 7,
                message: Arc::from("no"),
                culprits: Vec::new(),
            });
        }
        assert_eq!(nacks.newest_first().count(), NACKS);
        let newest = nacks.newest_first().next().map(|it| it.stream);
        assert_eq!(newest, Some(NACKS as u64 + 4));
        assert_eq!(nacks.clients_refusing(7), 2);
        assert_eq!(nacks.clients_refusing(8), 0);
    }
}
