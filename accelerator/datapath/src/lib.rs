//! The kernel behind a trait: loading, pinning, adopting, detaching, probing.
//!
//! ```text
//!  agent ──▶ trait Datapath ──┬── linux::LinuxDatapath   programs, links and maps pinned in bpffs
//!                             └── fake::FakeDatapath     the same maps as values, for tests
//!  probe() ──▶ what this machine offers, and what to do about what it lacks
//! ```
//!
//! Invariant: nothing here decides what should be loaded; it applies operations and reads back. It is
//! the only crate that talks to bpf(2).

#![warn(missing_docs)]

mod defects;
pub mod fake;
pub mod linux;
mod mechanism;
pub mod netlink;
mod netns;
pub mod policy_routing;
mod probe;
mod rows;

pub use self::defects::{DEFECTS, Defect, Exposure, check_sockmap, floor};
pub use self::mechanism::{Mechanism, MechanismRow};
pub use self::netns::netns_cookie;
pub use self::probe::{Probe, ProbeRow, probe};
pub use self::rows::{
    CounterRow, Datapath, DatapathError, HopRow, LatencyRow, MapUsage, PairRow, ParkedRow,
    ProgramRow, RetiredRow, VerdictRow,
};
