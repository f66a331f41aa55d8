//! The protocol, rule by rule, against the real stream machine. A test's name says which rule or
//! which of the 24 nasty behaviours it holds.

#[path = "protocol/delta.rs"]
mod delta;
#[path = "protocol/hostile.rs"]
mod hostile;
#[path = "protocol/isolation.rs"]
mod isolation;
#[path = "protocol/model.rs"]
mod model;
#[path = "protocol/order.rs"]
mod order;
#[path = "protocol/removals.rs"]
mod removals;
#[path = "protocol/rules.rs"]
mod rules;
#[path = "protocol/sotw.rs"]
mod sotw;
#[path = "protocol/status.rs"]
mod status;
#[path = "protocol/support.rs"]
mod support;
#[path = "protocol/ttl.rs"]
mod ttl;
