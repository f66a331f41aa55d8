//! Which map entries the kernel should have, and how to get there from what it has.
//!
//! ```text
//!  ResolvedPod ──plan()──▶ State (desired) ─┐
//!                                           ├──diff()──▶ [MapOp] ──▶ whoever applies them
//!                 maps ──▶ State (loaded) ──┘
//! ```
//!
//! and, beside it, [`Judge`]: whether iptables does what the programs would do.
//!
//! Invariant: no I/O, no clock, no log, no map type of a loader. Whatever is computed here can be
//! replayed, and any prefix of the operations leaves every connection on a path that works.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod diff;
mod plan;
mod shadow;
mod state;

pub use self::{
    diff::diff,
    plan::{
        MAX_ADDRS_PER_POD, MAX_ROUTES_PER_POD, Plan, Refusal, ResolvedPod, Routes, Sources, plan,
    },
    shadow::{
        ACCEPT_PATIENCE_NS, CONNECT_PATIENCE_NS, Call, Difference, Endpoint, Judge, Judgement,
        MAX_WATCHED_CALLS, Observed,
    },
    state::{MapOp, State},
};
