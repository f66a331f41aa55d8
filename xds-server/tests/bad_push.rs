//! What a bad push does, and how it is undone: history and rollback, refusals traced to files,
//! what newcomers get meanwhile. Over real sockets, by the commands that people use.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "bad_push/canary.rs"]
mod canary;
#[path = "bad_push/history.rs"]
mod history;
#[path = "bad_push/nacks.rs"]
mod nacks;
#[path = "bad_push/quarantine.rs"]
mod quarantine;
#[path = "support/running.rs"]
mod running;
#[path = "bad_push/support.rs"]
mod support;
