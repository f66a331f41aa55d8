//! Who is at the other end of a connection.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_api::envoy_resources::{Identity, SpiffeId};
use rustls::pki_types::CertificateDer;
use tokio::net::unix::UCred;
use webpki::EndEntityCert;

/// The other end of a connection: where it is, and who it is if that was verified.
#[derive(Clone, Debug, Default)]
pub struct ConnectedPeer {
    place: Place,
    identity: Option<Arc<Identity>>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Place {
    #[default]
    Unknown,
    Tcp(SocketAddr),
    Unix {
        uid: u32,
        gid: u32,
        pid: Option<i32>,
    },
}

/// Why a certificate that the CA vouches for names no one client.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadSvid {
    /// The SPIFFE ID is malformed; the error says how.
    #[error(transparent)]
    Id(#[from] isthmus_api::envoy_resources::BadIdentity),
    /// An X.509-SVID has exactly one URI (X509-SVID, section 2).
    #[error("the client certificate has a SPIFFE ID and {others} more URIs; it must have one")]
    Ambiguous { others: usize },
}

impl ConnectedPeer {
    /// The verified identity.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_deref()
    }

    /// The user of the process at the other end of a Unix socket.
    pub fn uid(&self) -> Option<u32> {
        match self.place {
            Place::Unix { uid, .. } => Some(uid),
            Place::Unknown | Place::Tcp(_) => None,
        }
    }

    /// Whether it came over the loopback interface.
    pub fn is_loopback(&self) -> bool {
        match self.place {
            Place::Tcp(addr) => addr.ip().to_canonical().is_loopback(),
            Place::Unknown | Place::Unix { .. } => false,
        }
    }

    pub(super) fn tcp(addr: SocketAddr) -> Self {
        Self {
            place: Place::Tcp(addr),
            identity: None,
        }
    }

    pub(super) fn unix(process: UCred) -> Self {
        let uid = process.uid();
        Self {
            place: Place::Unix {
                uid,
                gid: process.gid(),
                pid: process.pid(),
            },
            identity: Identity::of_uid(uid).map(Arc::new),
        }
    }

    /// Adds the identity in a certificate that was verified; a certificate without a SPIFFE ID gives none.
    pub(super) fn with_certificate(
        mut self,
        verified: &CertificateDer<'_>,
    ) -> Result<Self, BadSvid> {
        self.identity = spiffe_id(verified)?.map(|id| Arc::new(Identity::Spiffe(id)));
        Ok(self)
    }
}

fn spiffe_id(verified: &CertificateDer<'_>) -> Result<Option<SpiffeId>, BadSvid> {
    // Verified certificates parse: the verifier did it with the same parser.
    let Ok(certificate) = EndEntityCert::try_from(verified) else {
        return Ok(None);
    };
    let is_spiffe = |uri: &str| {
        let scheme = uri.split(':').next().unwrap_or_default();
        scheme.eq_ignore_ascii_case("spiffe")
    };
    let Some(id) = certificate.valid_uri_names().find(|uri| is_spiffe(uri)) else {
        return Ok(None);
    };
    match certificate.valid_uri_names().count() - 1 {
        0 => Ok(Some(id.parse()?)),
        others => Err(BadSvid::Ambiguous { others }),
    }
}

impl fmt::Display for ConnectedPeer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Unknown => Ok(()),
            Place::Tcp(addr) => addr.fmt(out),
            Place::Unix { uid, gid, pid } => {
                write!(out, "unix:uid={uid},gid={gid}")?;
                pid.map_or(Ok(()), |pid| write!(out, ",pid={pid}"))
            }
        }
    }
}
