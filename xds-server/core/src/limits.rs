//! Bounds on what one client may make the server hold. Each is far above what a real Envoy asks
//! for, and low enough that a hostile stream costs megabytes, not gigabytes.

use std::time::Duration;

/// Names that one stream may subscribe to, over all types: about 30 times the largest sidecar
/// configuration on record (3,186 clusters and as many endpoints).
pub const SUBSCRIBED_NAMES: usize = 200_000;

/// Bytes of one resource name. Envoy itself puts no bound; xdstp names with context parameters
/// stay below 1 KiB.
pub const NAME_BYTES: usize = 4096;

/// Bytes of one type URL. The longest of Envoy's are about 80.
pub const TYPE_URL_BYTES: usize = 512;

/// Types on one aggregated stream. Envoy knows ten.
pub const TYPES_PER_STREAM: usize = 64;

/// Bytes of a client's error text that are kept; Envoy repeats whole resources in some.
pub const ERROR_TEXT_BYTES: usize = 4096;

/// Encoded bytes of one response, where the protocol lets the server split: below the 4 MiB
/// that gRPC implementations accept by default, with room for the header.
pub const RESPONSE_BYTES: usize = 3_500_000;

/// What gRPC's own clients take in one message unless they are told otherwise (R66).
pub const CLIENT_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Refusals of one type, with no sign of an end, after which the search for the culprits is given
/// up and all that is suspect is set aside. One culprit among 200,000 takes 18, without a word
/// from the client; a client that refuses everything is sent everything this often at most.
pub const ISOLATION_REFUSALS: u32 = 256;

/// Responses of one type that may be unanswered at once. One is the rule; more only after
/// [`ANSWER_PATIENCE`] each, so that the fix for a stuck cluster can reach the client (R46a).
pub const IN_FLIGHT: usize = 8;

/// How long a type waits for an answer before a newer generation is sent all the same (R46a).
pub const ANSWER_PATIENCE: Duration = Duration::from_millis(1500);

/// How long routes and listeners wait for the clusters they may refer to (R46): Envoy withholds
/// the answer while a cluster warms, for up to its `initial_fetch_timeout` of 15 s.
pub const MAKE_PATIENCE: Duration = Duration::from_secs(2);

/// How long a removal waits for those that may still refer to it, when they do not answer (R44).
pub const BREAK_PATIENCE: Duration = Duration::from_secs(10);

/// Generations that a type remembers name by name. A stream further behind compares whole sets.
pub const CHANGE_LOG_ENTRIES: usize = 64;

/// Names that the change log of one type holds over all its entries.
pub const CHANGE_LOG_NAMES: usize = 8192;
