//! What becomes of a refusal: it is traced to where the resource is written, kept and told.

use std::sync::Arc;
use std::time::SystemTime;

use isthmus_xds_core::stream::Refusal;
use isthmus_xds_core::{Name, TypeUrl, Version};
use tracing::warn;

use super::Plane;
use crate::clients::Client;
use crate::nacks::{Culprit, Nack, Nacks, named_in};
use crate::provenance::ResourceKey;

impl Plane {
    /// Takes note of a client's refusal.
    pub(crate) fn note_refusal(
        &self,
        stream: u64,
        client: &Client,
        type_url: &TypeUrl,
        refusal: &Refusal,
    ) {
        let scope = client.scope();
        let message = refusal.message.as_str();
        let generation = refusal.generation;
        let history = self.history();
        let culprits = named_in(message, &history, generation, scope.documents(), type_url);
        let written = culprits
            .iter()
            .map(|it| format!("{} at {}", it.name, it.origin));
        warn!(
            node = &*client.node_id,
            stream,
            r#type = &**type_url,
            generation,
            reason = message,
            culprits = written.collect::<Vec<_>>().join(", "),
            "the client refused its configuration and keeps what it had"
        );
        self.note_canary_refusal(stream, &scope, type_url, refusal);
        self.lock().nacks.record(Nack {
            at: SystemTime::now(),
            node_id: Arc::clone(&client.node_id),
            stream,
            type_url: TypeUrl::clone(type_url),
            generation,
            message: Arc::from(message),
            culprits,
        });
    }

    /// Takes note of the resource that a client turned out to refuse, alone, whether or not its
    /// words name it.
    pub(crate) fn note_culprit(
        &self,
        stream: u64,
        client: &Client,
        type_url: &TypeUrl,
        name: &Name,
        version: Version,
    ) {
        let scope = client.scope();
        let key = ResourceKey::new(type_url, name);
        let traced = self.history().trace(scope.documents(), &key, version);
        let culprit = traced.map(Culprit::from);
        let origin = culprit.as_ref().map(|it| it.origin.to_string());
        warn!(
            node = &*client.node_id,
            stream,
            r#type = &**type_url,
            name = &**name,
            %version,
            origin = origin.as_deref().unwrap_or("older than what is kept"),
            "this resource is what the client refuses; the others are sent without it"
        );
        if let Some(culprit) = culprit {
            self.set_aside(stream, &scope, type_url, &culprit);
            self.lock().nacks.blame(stream, type_url, culprit);
        }
    }

    /// The refusals that are kept.
    pub fn nacks(&self) -> Nacks {
        self.lock().nacks.clone()
    }
}
