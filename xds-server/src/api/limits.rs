//! Bounds on what one call may ask, each with its reason. Callers are trusted with the fleet; these are against
//! accidents.

use std::time::Duration;

/// Bytes of one request: that of the largest file of a configuration directory. 5,000 clusters take some 10 MB.
pub const MAX_REQUEST_BYTES: usize = 64 << 20;

/// Changes in one commit: one for each client of a large fleet.
pub const MAX_OPERATIONS: usize = 10_000;

/// Resources of one document, and of one patch: several times the largest configuration on record.
pub const MAX_RESOURCES: usize = 20_000;

/// Documents of all sources: some for each client of a large fleet.
pub const MAX_DOCUMENTS: usize = 100_000;

/// Bytes of the name of a document; it stands in log lines and metrics of other programs.
pub const MAX_DOCUMENT_NAME_BYTES: usize = 253;

/// Entries of a selector's metadata.
pub const MAX_SELECTOR_METADATA: usize = 64;

/// Mistakes that are reported of one request; nobody reads more.
pub const MAX_MISTAKES: usize = 100;

/// Warnings of one answer, for the same reason.
pub const MAX_WARNINGS: usize = 100;

/// Changes that one answer lists: it must fit the 4 MiB that gRPC clients accept.
pub const MAX_LISTED_CHANGES: usize = 1000;

/// Documents on a page, and resources of a document that are shown.
pub const MAX_LISTED: usize = 1000;

/// Bytes of JSON in one answer, for the same 4 MiB.
pub const MAX_JSON_BYTES: usize = 3 << 20;

/// Bytes of an error's text and of its details. Both are headers, of which clients take 8 KiB.
pub const MAX_ERROR_BYTES: usize = 3000;

/// Generations that are followed at a time, over all callers.
pub const MAX_WATCHES: usize = 64;

/// Commits whose answers are kept from the first on, for who follows them: as many as a caller makes before it
/// looks.
pub const FOLLOWABLE_COMMITS: usize = 16;

/// How long the answers to a commit are kept at least, for a caller that has only just learned its generation.
pub const FOLLOWABLE_FOR: Duration = Duration::from_mins(1);

/// How long they are kept at most, though some client has not answered: as long as they are, each answer of the
/// fleet costs an allocation.
pub const FOLLOWABLE_AT_MOST: Duration = Duration::from_mins(10);

/// Events that wait for a caller; what comes meanwhile waits in the plane.
pub const EVENTS_BUFFERED: usize = 64;
