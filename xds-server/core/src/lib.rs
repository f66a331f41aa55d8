//! The xDS protocol as state machines that perform no I/O.
//!
//! Invariant: nothing in this crate reads a clock, opens a socket, spawns a task, takes a lock or
//! logs. Time comes in as an argument; what happened comes out as a value. The shell
//! (`isthmus-xds`) decodes requests, feeds them to [`Stream`], and writes out what it polls.
//!
//! ```text
//!  documents ─▶ Catalog ─▶ View (one per scope, immutable) ─▶ TypeSet per type ─▶ Resource
//!                                │                                                (encoded once)
//!  requests ──▶ Stream ──────────┘
//!                 ├─ TypeState per type   subscription, what was sent, what is in flight
//!                 └─ order                which type may go now (make before break)
//!                        │
//!                        ▼
//!                    Response             small header + the resources' shared bytes
//! ```
//!
//! Rule numbers such as `R21` in comments and test names are those of the protocol checklist in
//! `xds-server/ARCHITECTURE.md`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod catalog;
pub mod event;
pub mod features;
pub mod limits;
pub mod order;
pub mod request;
pub mod resource;
pub mod status;
pub mod stream;
pub mod subscription;
pub mod type_rules;
pub mod type_state;
pub mod view;
pub mod wire;
pub mod xdstp;

pub use catalog::{Catalog, Commit, CommitError, Document, Draft, ScopeKey, Source};
pub use event::Event;
pub use features::Features;
pub use request::{Request, RequestError};
pub use resource::{Extras, Name, Resource, TypeUrl, Version};
pub use status::{ConfigStatus, ResourceStatus, TypeStatus};
pub use stream::{Response, Stream, Variant};
pub use view::{TypeSet, View};
