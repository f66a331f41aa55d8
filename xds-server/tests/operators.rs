//! How the server is run, and what it serves beside discovery (health, reflection, client status, load reports), asked over
//! real sockets as the tools of operators ask it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "operators/admission.rs"]
mod admission;
#[path = "operators/health_and_reflection.rs"]
mod health_and_reflection;
#[path = "operators/load.rs"]
mod load;
#[path = "support/running.rs"]
mod running;
#[path = "operators/status.rs"]
mod status;
#[path = "operators/support.rs"]
mod support;
