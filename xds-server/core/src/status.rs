//! Where a client stands: type by type for lists and dashboards, resource by resource for CSDS.

use std::sync::Arc;

use crate::resource::{Name, TypeUrl, Version};
use crate::type_state::Refusal;

/// Where a client stands with one type.
#[derive(Clone, Debug)]
pub struct TypeStatus {
    /// The type.
    pub type_url: TypeUrl,
    /// Whether everything is asked for.
    pub is_wildcard: bool,
    /// How many names are asked for.
    pub names: usize,
    /// Generation of the newest content that was sent.
    pub sent_generation: Option<u64>,
    /// Generation of the newest content that was accepted.
    pub acked_generation: Option<u64>,
    /// Whether all content was sent and accepted.
    pub is_settled: bool,
    /// The refusal in force, if any.
    pub refusal: Option<Refusal>,
}

/// Where a client stands with one resource that it asked for (R58).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResourceStatus {
    /// Type of the resource.
    pub type_url: TypeUrl,
    /// Its name; the one that was asked for if nothing answers to it.
    pub name: Name,
    /// The version that the client should have; `None` if there is no such resource: because it
    /// was asked for and never was, or because it is gone and the client may still hold it.
    pub version: Option<Version>,
    /// How far that version came.
    pub status: ConfigStatus,
    /// The client's words if it refused that version.
    pub error: Option<Arc<str>>,
}

/// How far a version of a resource came, in the terms of CSDS's `ConfigStatus`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ConfigStatus {
    /// It was sent and accepted, or the client said that it holds it.
    Synced,
    /// It was not sent, or its removal was not.
    NotSent,
    /// It was sent and is not answered.
    Stale,
    /// It was refused.
    Error,
}
