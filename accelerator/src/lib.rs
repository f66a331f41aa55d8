//! The node agent: pods in, BPF state out.
//!
//! ```text
//!  FILE ─▶ config_file ─▶ NodeConfig ─┐                 ┌─▶ accel-core: plan(), diff()
//!                                     ├─▶ agent (pure) ─┤
//!  netns files ─▶ resolve ─▶ Lookups ─┘                 └─▶ accel-datapath: loaded(), apply()
//!       ▲
//!  watch, signals, clock: run          status, detach, probe: no agent needed
//! ```
//!
//! Invariant: the agent is never on the way of traffic. Whatever fails here leaves connections where
//! they are, at worst on iptables; a dead agent leaves everything loaded.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod admin;
pub mod agent;
pub mod cli;
pub mod commands;
pub mod config_file;
pub mod dir_lock;
pub mod error;
pub mod exclusive;
pub mod flows;
pub mod metrics;
pub mod probe;
pub mod resolve;
pub mod rights;
mod routes;
pub mod run;
pub mod runtime_dir;
pub mod shadow;
pub mod status;
pub mod watch;
