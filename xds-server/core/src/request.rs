//! What a client asks, and why it may not.

use crate::limits;
use crate::resource::{Name, TypeUrl};
use crate::subscription::SubscriptionChange;

/// A discovery request, decoded and without what only the first one says of the node.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Type asked for; may be empty on a stream of one type.
    pub type_url: String,
    /// `version_info` of the last response that the client accepted, on whatever stream; state of
    /// the world only.
    pub version: String,
    /// Nonce of the response that this answers; empty if none.
    pub nonce: String,
    /// The client's words if it refuses that response (R9).
    pub error: Option<String>,
    /// All names wanted; state of the world only.
    pub names: Vec<Name>,
    /// Names wanted from here on; incremental only.
    pub subscribe: Vec<Name>,
    /// Names not wanted any more; incremental only.
    pub unsubscribe: Vec<Name>,
    /// Names and versions that the client holds from an earlier stream; incremental only.
    pub initial_versions: Vec<(Name, String)>,
}

/// What a request made of the subscription to its type.
#[derive(Debug, Eq, PartialEq)]
pub struct Amended {
    /// The type.
    pub type_url: TypeUrl,
    /// What is asked for from here on, and what is not any more.
    pub change: SubscriptionChange,
}

/// Why a stream must end. The client is at fault, and no other stream is affected.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// An aggregated stream needs the type in every request (R2).
    #[error("type_url is empty: a request on an aggregated stream must name its type")]
    NoTypeUrl,
    /// A stream of one type was asked for another (R2).
    #[error("type_url {asked} does not belong on this stream, which serves {served} only")]
    WrongType {
        /// The type in the request.
        asked: String,
        /// The type of the service.
        served: TypeUrl,
    },
    /// A type URL is longer than [`limits::TYPE_URL_BYTES`].
    #[error(
        "a type_url of {size_bytes} bytes is over the limit of {}",
        limits::TYPE_URL_BYTES
    )]
    LongTypeUrl {
        /// Its length.
        size_bytes: usize,
    },
    /// A name is longer than [`limits::NAME_BYTES`].
    #[error(
        "a resource name of {size_bytes} bytes is over the limit of {}",
        limits::NAME_BYTES
    )]
    LongName {
        /// Its length.
        size_bytes: usize,
    },
    /// The stream holds more than [`limits::SUBSCRIBED_NAMES`].
    #[error(
        "{count} subscribed names are over the limit of {} per stream",
        limits::SUBSCRIBED_NAMES
    )]
    TooManyNames {
        /// How many there would be.
        count: usize,
    },
    /// The stream asks for more than [`limits::TYPES_PER_STREAM`].
    #[error("more than {} types on one stream", limits::TYPES_PER_STREAM)]
    TooManyTypes,
}
