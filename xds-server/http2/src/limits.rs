//! Bounds on what one connection may make the server hold and do, and what is announced of them.

use std::time::Duration;

/// Streams of one connection at a time. Envoy opens one for ADS, or one per type; a proxy of gRPC
/// clients some dozens.
pub const STREAMS_PER_CONNECTION: u32 = 256;

/// Bytes of one stream's request that may wait to be read: what tonic's server announces.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// The same for all streams of a connection: twice as much, so that one that is not read does not
/// stop the others.
pub const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;

/// Bytes that are read from a window before the peer is given as many again. Half of a window
/// keeps the peer sending, and costs one small frame for half a megabyte.
pub(crate) const RENEW_AT_BYTES: u32 = STREAM_WINDOW_BYTES / 2;

/// A body that is read elsewhere tells the connection after so many bytes: what all streams keep
/// to themselves, and what waits for [`RENEW_AT_BYTES`], stays below the connection's window.
pub(crate) const REPORT_READ_AT_BYTES: u32 = 4096;

/// Length of the longest frame that a peer may send: the default, which every peer may count on.
/// It is also the most that an unfinished frame holds.
pub const FRAME_BYTES: u32 = 16_384;

/// Bytes of a request's header list (names, values and 32 for each field), as hyper has it; above,
/// the request is answered with 431.
pub const HEADER_LIST_BYTES: u32 = 16_384;

/// Bytes of a header block before it is decoded. A list of [`HEADER_LIST_BYTES`] fits; one that
/// goes on and on (a flood of `CONTINUATION`) ends the connection.
pub const HEADER_BLOCK_BYTES: usize = 2 * HEADER_LIST_BYTES as usize;

/// Frames that cost the peer next to nothing and move nothing: PING, SETTINGS, PRIORITY, small
/// `WINDOW_UPDATE`, empty DATA, CONTINUATION, unknown ones cost a token each, a stream that is reset costs
/// [`RESET_TOKENS`]. A connection begins with so many tokens and never has more.
pub const BUDGET_TOKENS: u32 = 1000;

/// Tokens that come back with time.
pub const BUDGET_TOKENS_PER_SECOND: u32 = 50;

/// Tokens that a DATA frame of ours brings: the peer may well answer it with two `WINDOW_UPDATE`, a
/// PING to measure the bandwidth, and an empty frame.
pub const DATA_TOKENS: u32 = 4;

/// A `WINDOW_UPDATE` below this costs a token, as does one for a stream that has ended. Larger ones are
/// bounded by the data that they make room for; Go's client sends one for every 4 KiB.
pub const SMALL_INCREMENT_BYTES: u32 = 1024;

/// Price of a stream that ends by `RST_STREAM`, in either direction: 200 at once, then ten a second
/// (rapid reset, CVE-2023-44487). A stream that ends in order brings as many.
pub const RESET_TOKENS: u32 = 5;

/// Streams that we have reset of late, whose frames may still be under way and are ignored.
pub(crate) const REMEMBERED_RESETS: usize = STREAMS_PER_CONNECTION as usize;

/// Answers to PING, SETTINGS and errors that wait for the peer to read; above, nothing more is
/// read from it.
pub(crate) const UNREAD_ANSWERS_BYTES: usize = 64 * 1024;

/// How long a client may take for its preface and its first SETTINGS.
pub const FIRST_FRAME_PATIENCE: Duration = Duration::from_secs(10);

/// How often a silent connection is asked whether it lives, and how long it may think about it: a
/// peer that vanished without a word is forgotten after their sum.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// See [`KEEPALIVE_INTERVAL`].
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection that ends waits for the peer to take our last words and to close.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// Bytes that are gathered before they are written, and the most that a stream adds before the
/// next one has its turn.
pub(crate) const WRITE_BYTES: usize = 64 * 1024;

/// Bytes that are read at once, into a buffer that all connections of a thread share.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// Slices of one vectored write.
pub(crate) const WRITE_SLICES: usize = 64;

/// Data up to this length is copied behind its frame's head: cheaper than a slice of its own.
pub(crate) const COPIED_BYTES: usize = 512;

/// Rounds of reading, serving and writing before a busy connection lets others have the thread.
pub(crate) const ROUNDS: usize = 16;
