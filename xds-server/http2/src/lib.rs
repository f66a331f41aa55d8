//! A lean HTTP/2 server: little memory for a stream that waits, few cycles for a message.
//!
//! One task a connection polls the bodies of its streams; a stream has none. A connection that
//! waits holds no buffer: it reads into one that its thread shares, and its outbox is empty. A
//! response body is asked for more only when the last bytes have left and both windows have room.
//!
//! Invariant: whatever a peer sends, what a connection holds for it is bounded by `limits`, and
//! nothing in `connection` (the protocol) does I/O or reads a clock.
//!
//! ```text
//!  socket ──read──▶ Connection ──events──▶ streams: service future, then response body
//!     ▲              frames, HPACK,          │ polled when woken, in turn, when there is room
//!     └──writev── outbox ◀──frames───────────┘
//! ```
//!
//! It does not speak HTTP/1, upgrade, push, or prioritise. `Trailers` and `1xx` heads other than
//! the final one are not sent.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod body;
mod budget;
pub mod connection;
mod driver;
mod exchange;
mod frame;
mod hpack;
pub mod limits;
mod outbox;
mod request;
mod serve;
mod signals;
mod transport;

pub use body::{BodyError, RequestBody};
pub use frame::ErrorCode;
pub use serve::serve;
pub use transport::Transport;

/// Any error, as services and bodies have them.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
