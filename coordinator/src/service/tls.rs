//! TLS for the front: a certificate and its key from files, read again when they change. TLS 1.2 and 1.3, no client
//! certificates.

use std::path::Path;

use flotilla_trust::{File, ServerFiles, ServerTls, Versions};

pub use flotilla_trust::TlsError;

#[derive(Clone, Debug)]
pub struct Tls(pub(super) ServerTls);

impl Tls {
    pub fn from_files(cert: &Path, key: &Path) -> Result<Tls, TlsError> {
        ServerTls::open(ServerFiles {
            cert: File::new("--tls-cert", cert),
            key: File::new("--tls-key", key),
            client_ca: None,
            versions: Versions::Tls12And13,
            protocol: "http/1.1",
        })
        .map(Tls)
    }

    /// When the certificate ends, in seconds since 1970.
    pub fn ends_at(&self) -> Option<u64> {
        self.0.ends_at()
    }

    /// Says what is wrong with renewed files also while nobody connects. Never ends.
    pub(super) async fn watch(self) {
        self.0.watch().await;
    }
}
