//! What is sent: six kinds of traffic, each from connections that have one request in flight.

use clap::ValueEnum;

/// Bytes of one bulk transfer.
pub(super) const BULK_BYTES: usize = 1 << 20;

/// Bytes of the body of a small message, each way.
pub(super) const SMALL_BYTES: usize = 128;

/// A kind of traffic. A request of the bulk kinds is one transfer of [`BULK_BYTES`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Workload {
    /// HTTP/1.1, small answers, connections that stay.
    Http1Keepalive,
    /// HTTP/1.1, small answers, a connection for each request.
    Http1New,
    /// gRPC unary calls, one stream each, on HTTP/2 connections that stay.
    GrpcUnary,
    /// gRPC messages to and fro on one stream of each connection.
    GrpcStreaming,
    /// HTTP/1.1 answers of a mebibyte.
    BulkDown,
    /// HTTP/1.1 requests of a mebibyte.
    BulkUp,
}

impl Workload {
    /// All of them, in the order of the table.
    pub(crate) const ALL: [Self; 6] = [
        Self::Http1Keepalive,
        Self::Http1New,
        Self::GrpcUnary,
        Self::GrpcStreaming,
        Self::BulkDown,
        Self::BulkUp,
    ];

    /// Name in the table, in `accel.json` and on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Http1Keepalive => "http1-keepalive",
            Self::Http1New => "http1-new",
            Self::GrpcUnary => "grpc-unary",
            Self::GrpcStreaming => "grpc-streaming",
            Self::BulkDown => "bulk-down",
            Self::BulkUp => "bulk-up",
        }
    }

    /// Whether small messages on connections that stay dominate: where skipping TCP/IP should show.
    pub(crate) const fn is_small(self) -> bool {
        matches!(
            self,
            Self::Http1Keepalive | Self::GrpcUnary | Self::GrpcStreaming
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for workload in Workload::ALL {
            let value = workload.to_possible_value().expect("none is hidden");
            assert_eq!(value.get_name(), workload.name());
        }
    }
}
