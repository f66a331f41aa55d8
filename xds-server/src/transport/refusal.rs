//! Which connections were refused and why: a line in the log at a bounded rate, and a count that has no bound.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use rustls::{CertificateError, Error};
use tokio::time::Instant;
use tracing::warn;

use super::peer::BadSvid;
use crate::metrics::RefusedConnections;

/// Refusals that are logged in an interval: a flood of strangers must not fill a disk.
const LOGGED_REFUSALS: u32 = 20;
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Why a connection was refused. The words never hold what a peer or a file chose, but for the SPIFFE ID of a certificate
/// that the CA vouches for.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Label of the metric; one of a few.
    kind: &'static str,
    words: String,
}

impl Refusal {
    /// The operating system gave no connection.
    pub(super) fn accept(error: &io::Error) -> Self {
        Self {
            kind: "accept",
            words: error.to_string(),
        }
    }

    /// A call of the programmatic API by somebody who may not.
    pub(crate) fn api_call(words: String) -> Self {
        Self {
            kind: "api_call",
            words,
        }
    }

    /// The client took too long.
    pub(super) fn slow(patience: Duration) -> Self {
        Self {
            kind: "slow",
            words: format!("no handshake within {patience:?}"),
        }
    }

    /// The handshake failed.
    pub(super) fn handshake(error: &io::Error) -> Self {
        let cause = error.get_ref().and_then(|it| it.downcast_ref::<Error>());
        Self {
            kind: cause.map_or("disconnected", kind_of),
            words: error.to_string(),
        }
    }
}

impl From<BadSvid> for Refusal {
    fn from(error: BadSvid) -> Self {
        Self {
            kind: "spiffe_id",
            words: error.to_string(),
        }
    }
}

fn kind_of(error: &Error) -> &'static str {
    if let Error::InvalidCertificate(reason) = error {
        return kind_of_certificate(reason);
    }
    let kinds: [(bool, &str); 5] = [
        (
            matches!(error, Error::NoCertificatesPresented),
            "no_certificate",
        ),
        (matches!(error, Error::PeerIncompatible(_)), "tls_version"),
        (matches!(error, Error::NoApplicationProtocol), "not_http2"),
        (matches!(error, Error::InvalidMessage(_)), "not_tls"),
        // It does not like our certificate, or is asked for one that it does not have.
        (matches!(error, Error::AlertReceived(_)), "by_client"),
    ];
    let found = kinds.into_iter().find(|(is_it, _)| *is_it);
    found.map_or("handshake", |(_, kind)| kind)
}

fn kind_of_certificate(reason: &CertificateError) -> &'static str {
    use CertificateError as Bad;
    if matches!(reason, Bad::Expired | Bad::ExpiredContext { .. }) {
        "expired"
    } else if matches!(reason, Bad::NotValidYet | Bad::NotValidYetContext { .. }) {
        "not_yet_valid"
    } else if matches!(reason, Bad::UnknownIssuer | Bad::BadSignature) {
        "unknown_ca"
    } else if matches!(
        reason,
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. }
    ) {
        "purpose"
    } else {
        "certificate"
    }
}

/// Counts refusals, and says as many of them as a log can bear.
#[derive(Debug)]
pub(crate) struct RefusalLog {
    counts: RefusedConnections,
    since: Option<Instant>,
    logged: u32,
    left_out: u64,
}

impl RefusalLog {
    pub(crate) fn new(counts: RefusedConnections) -> Self {
        Self {
            counts,
            since: None,
            logged: 0,
            left_out: 0,
        }
    }

    pub(crate) fn note(&mut self, peer: &dyn Display, refusal: &Refusal) {
        self.counts.count(refusal.kind);
        let now = Instant::now();
        if self.since.is_none_or(|since| now - since >= LOG_INTERVAL) {
            self.since = Some(now);
            self.logged = 0;
        }
        if self.logged == LOGGED_REFUSALS {
            self.left_out += 1;
            return;
        }
        self.logged += 1;
        let left_out = std::mem::take(&mut self.left_out);
        let (kind, reason) = (refusal.kind, &*refusal.words);
        warn!(%peer, kind, reason, left_out, "connection refused");
    }
}
