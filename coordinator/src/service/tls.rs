//! TLS for the front: a certificate and its key from files, read once at start. rustls with ring, TLS 1.2
//! and 1.3, no client certificates.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{Error as RustlsError, ServerConfig};

#[derive(Clone)]
pub struct Tls(pub(super) TlsAcceptor);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read certificates from {}: {error}\nhint: --tls-cert is a PEM file, the server's certificate first, then those that signed it", path.display())]
    Certificates { path: PathBuf, error: PemError },
    #[error("{} holds no certificate\nhint: --tls-cert is a PEM file with -----BEGIN CERTIFICATE-----", path.display())]
    NoCertificate { path: PathBuf },
    #[error("cannot read a private key from {}: {error}\nhint: --tls-key is a PEM file with -----BEGIN PRIVATE KEY-----, not encrypted", path.display())]
    Key { path: PathBuf, error: PemError },
    #[error("the certificate in {} and the key in {} do not serve: {error}\nhint: they must belong together", cert.display(), key.display())]
    Unfit { cert: PathBuf, key: PathBuf, error: RustlsError },
}

impl Tls {
    pub fn from_files(cert: &Path, key: &Path) -> Result<Tls, TlsError> {
        let unread = |error| TlsError::Certificates { path: cert.to_owned(), error };
        let certificates = CertificateDer::pem_file_iter(cert).map_err(unread)?;
        let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(unread)?;
        if certificates.is_empty() {
            return Err(TlsError::NoCertificate { path: cert.to_owned() });
        }
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| TlsError::Key { path: key.to_owned(), error })?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_no_client_auth())
            .and_then(|builder| builder.with_single_cert(certificates, private));
        let unfit = |error| TlsError::Unfit { cert: cert.to_owned(), key: key.to_owned(), error };
        let mut config = config.map_err(unfit)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}
