//! What happens on a stream that is worth counting, or telling an operator.

use std::sync::Arc;
use std::time::Duration;

use crate::resource::{Name, TypeUrl, Version};
use crate::type_state::Refusal;

/// Something worth counting or telling an operator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A response was accepted.
    Acked {
        /// Its type.
        type_url: TypeUrl,
        /// Generation of its content.
        generation: u64,
        /// From sending to the answer.
        after: Duration,
    },
    /// A response was refused. What of it was not to blame is sent again (R10).
    Nacked {
        /// Its type.
        type_url: TypeUrl,
        /// What the client said.
        refusal: Refusal,
    },
    /// The resource that a refusal was about is found: the client named it in Envoy's words, or
    /// refused it when it came alone. This version is not sent to the client again.
    Isolated {
        /// Type of the resource.
        type_url: TypeUrl,
        /// Its name.
        name: Name,
        /// The version that was refused.
        version: Version,
        /// Generation of the response that was refused.
        generation: u64,
        /// What the client said.
        message: Arc<str>,
    },
    /// A request named a nonce that is answered already, or was never issued here.
    StaleNonce {
        /// The type of the request.
        type_url: TypeUrl,
    },
    /// A response is larger than gRPC's own clients take ([`crate::limits::CLIENT_MESSAGE_BYTES`],
    /// R66), and the protocol does not let the server split it.
    Oversized {
        /// Its type.
        type_url: TypeUrl,
        /// Length of the message.
        size_bytes: usize,
    },
}
