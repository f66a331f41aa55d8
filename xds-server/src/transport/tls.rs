//! The certificates: read, made into a configuration of TLS 1.3, and read again when a file changes.
//!
//! No error here carries what was in a file: the text of a PEM error may be a piece of a key.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use tracing::{error, info};

use crate::cli::Cli;

/// How often the files are looked at. A change is taken when two looks agree: certificate and key are two files.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Larger than any chain or bundle of CAs that is one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {} of {flag}; it must exist and be readable", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The option that names it.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} of {flag} holds no {wanted} in PEM (-----BEGIN {label}-----)", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The option that names it.
        flag: &'static str,
        /// What it should hold.
        wanted: &'static str,
        /// How that begins.
        label: &'static str,
    },
    /// A CA certificate is none.
    #[error("certificate {number} in {} of --tls-client-ca cannot be a CA: it is not well-formed", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Which one, from 1.
        number: usize,
    },
    /// The certificate is not the key's, or the key is of a kind that cannot sign.
    #[error(
        "{} of --tls-key is not the key of the certificate in {} of --tls-cert, or neither RSA, ECDSA nor Ed25519; \
         give files that were issued together", key.display(), cert.display()
    )]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

/// The files.
#[derive(Clone, Debug)]
pub(super) struct TlsPaths {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: Option<PathBuf>,
}

/// The files, and the newest good configuration that was in them.
#[derive(Debug)]
pub(super) struct TlsFiles {
    paths: TlsPaths,
    stamps: Stamps,
    config: watch::Sender<Arc<ServerConfig>>,
}

type Stamps = Vec<Option<Stamp>>;

/// What changes when a file does: it is written, or replaced, or a link on the way to it is (`..data` in Kubernetes).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    changed: (i64, i64),
}

impl TlsFiles {
    /// Reads the files.
    pub(super) fn open(paths: TlsPaths) -> Result<Self, TlsError> {
        let stamps = paths.stamps();
        let config = watch::Sender::new(paths.load()?);
        Ok(Self {
            paths,
            stamps,
            config,
        })
    }

    pub(super) fn verifies_clients(&self) -> bool {
        self.paths.client_ca.is_some()
    }

    /// The configuration for connections, as it changes.
    pub(super) fn config(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }

    /// Looks at the files for ever. Connections that exist keep the keys that they have.
    pub(super) async fn watch(mut self) {
        let mut seen = self.stamps.clone();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            // Off the runtime's threads: a file system may hang.
            let looked = tokio::task::spawn_blocking(move || {
                let now = self.look(&seen);
                (self, now)
            });
            // Fails only when the runtime ends.
            let Ok((files, now)) = looked.await else {
                return;
            };
            (self, seen) = (files, now);
        }
    }

    fn look(&mut self, seen: &Stamps) -> Stamps {
        let stamps = self.paths.stamps();
        if stamps != *seen || stamps == self.stamps {
            return stamps;
        }
        self.stamps.clone_from(&stamps);
        let cert = self.paths.cert.display();
        match self.paths.load() {
            Ok(config) => {
                self.config.send_replace(config);
                info!(%cert, "certificates were read again; new connections use them");
            }
            Err(error) => {
                let reason = std::error::Error::source(&error).map(ToString::to_string);
                error!(%error, reason, "the changed certificates cannot be used; the last good ones stay in force");
            }
        }
        stamps
    }
}

impl TlsPaths {
    /// The files that the command line names, if it asks for TLS.
    pub(super) fn of(cli: &Cli) -> Option<Self> {
        Some(Self {
            cert: cli.tls_cert.clone()?,
            key: cli.tls_key.clone()?,
            client_ca: cli.tls_client_ca.clone(),
        })
    }

    fn stamps(&self) -> Stamps {
        let paths = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        let stamp = |path: &PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some(Stamp {
                device: found.dev(),
                inode: found.ino(),
                size_bytes: found.len(),
                changed: (found.ctime(), found.ctime_nsec()),
            })
        };
        paths.into_iter().flatten().map(stamp).collect()
    }

    fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = certificates(&self.cert, "--tls-cert")?;
        let key = read(&self.key, "--tls-key")?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| TlsError::Content {
            path: self.key.clone(),
            flag: "--tls-key",
            wanted: "private key",
            label: "PRIVATE KEY",
        })?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has cipher suites of TLS 1.3");
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots(path)?, provider);
                let verifier = verifier.build().expect("there is a root, and no CRL");
                builder.with_client_cert_verifier(verifier)
            }
        };
        let built = builder.with_single_cert(chain, key);
        let mut config = built.map_err(|_| TlsError::Pair {
            cert: self.cert.clone(),
            key: self.key.clone(),
        })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session is not verified again: it would outlive its CA and its certificate. Connections are few and
        // long, so that full handshakes cost little.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(path, "--tls-client-ca")?
        .into_iter()
        .enumerate()
    {
        roots.add(certificate).map_err(|_| TlsError::Ca {
            path: path.to_owned(),
            number: index + 1,
        })?;
    }
    Ok(Arc::new(roots))
}

fn certificates(path: &Path, flag: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path, flag)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(TlsError::Content {
            path: path.to_owned(),
            flag,
            wanted: "certificate",
            label: "CERTIFICATE",
        }),
    }
}

fn read(path: &Path, flag: &'static str) -> Result<Vec<u8>, TlsError> {
    let mut content = Vec::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut content));
    match read {
        Ok(_) => Ok(content),
        Err(source) => Err(TlsError::Read {
            path: path.to_owned(),
            flag,
            source,
        }),
    }
}
