//! Certificates, keys and authorities, read from PEM files, each with the flag that named it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::{CertificateError, Error as RustlsError, RootCertStore};

/// A file and the flag by which it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub flag: &'static str,
    pub path: PathBuf,
}

impl File {
    pub fn new(flag: &'static str, path: impl Into<PathBuf>) -> File {
        File { flag, path: path.into() }
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// Why files cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "cannot read certificates from {file}: {error}\n\
         hint: {} is a PEM file, the certificate itself first, then those that signed it", file.flag
    )]
    Certificates { file: File, error: PemError },
    #[error("{file} holds no certificate\nhint: {} is a PEM file with -----BEGIN CERTIFICATE-----", file.flag)]
    NoCertificate { file: File },
    #[error(
        "cannot read a private key from {file}: {error}\n\
         hint: {} is a PEM file with -----BEGIN PRIVATE KEY-----, not encrypted", file.flag
    )]
    Key { file: File, error: PemError },
    #[error(
        "the certificate in {cert} and the key in {key} do not serve: {}\nhint: they must belong together",
        unfit(error)
    )]
    Unfit { cert: File, key: File, error: Box<RustlsError> },
    #[error("the certificate in {file} {}\nhint: renew it, or look at this machine's clock", dates(error))]
    Dates { file: File, error: CertificateError },
    #[error("{file} holds no authority that can be used: {error}\nhint: {} is the authority's certificate", file.flag)]
    Authority { file: File, error: String },
}

fn unfit(error: &RustlsError) -> String {
    match error {
        RustlsError::InconsistentKeys(_) => "the key is not that of the certificate".into(),
        error => error.to_string(),
    }
}

fn dates(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "is not valid yet",
        _ => "has expired",
    }
}

pub type Chain = Vec<CertificateDer<'static>>;

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// A certificate chain that is valid today, and its key.
pub fn identity(cert: &File, key: &File) -> Result<(Chain, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(cert)?;
    check_dates(&chain[0], cert)?;
    let private = PrivateKeyDer::from_pem_file(&key.path)
        .map_err(|error| TlsError::Key { file: key.clone(), error })?;
    Ok((chain, private))
}

/// Those whose certificates are believed.
pub fn authority(file: &File) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::Authority { file: file.clone(), error: error.to_string() })?;
    }
    Ok(Arc::new(roots))
}

fn certificates(file: &File) -> Result<Chain, TlsError> {
    let unread = |error| TlsError::Certificates { file: file.clone(), error };
    let chain = CertificateDer::pem_file_iter(&file.path).map_err(unread)?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(unread)?;
    if chain.is_empty() { Err(TlsError::NoCertificate { file: file.clone() }) } else { Ok(chain) }
}

/// Whether an authority of `ca` signed it, for a server or for a client.
pub fn check_signed(ca: &File, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
    use CertificateError::{InvalidPurpose, InvalidPurposeContext};
    let unfit = |error: String| TlsError::Authority { file: ca.clone(), error };
    let roots = authority(ca)?;
    let algorithms = provider().signature_verification_algorithms.all;
    let as_server = ParsedCertificate::try_from(certificate).and_then(|parsed| {
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], UnixTime::now(), algorithms)
    });
    let looked_at = match as_server {
        Err(RustlsError::InvalidCertificate(InvalidPurpose | InvalidPurposeContext { .. })) => {
            let clients = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            let clients = clients.map_err(|error| unfit(error.to_string()))?;
            clients.verify_client_cert(certificate, &[], UnixTime::now()).map(drop)
        }
        as_server => as_server,
    };
    looked_at.map_err(|error| unfit(error.to_string()))
}

/// When it ends, in seconds since 1970: what is told of it long after.
pub fn ends_at(certificate: &CertificateDer<'static>) -> Option<u64> {
    // The year 10000, which no certificate reaches.
    const LONG_AFTER: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(253_402_300_800));
    match look_at_dates(certificate, LONG_AFTER) {
        Err(RustlsError::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Some(not_after.as_secs())
        }
        _ => None,
    }
}

/// The dates are looked at before the issuer, of which nothing is known here, so that this is all that it tells.
fn check_dates(certificate: &CertificateDer<'static>, file: &File) -> Result<(), TlsError> {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    match look_at_dates(certificate, UnixTime::now()) {
        Err(RustlsError::InvalidCertificate(
            error @ (Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }),
        )) => Err(TlsError::Dates { file: file.clone(), error }),
        _ => Ok(()),
    }
}

fn look_at_dates(certificate: &CertificateDer<'static>, now: UnixTime) -> Result<(), RustlsError> {
    let nobody = RootCertStore::empty();
    let algorithms = provider().signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(certificate)?;
    verify_server_cert_signed_by_trust_anchor(&parsed, &nobody, &[], now, algorithms)
}
