//! The accepting side: its own certificate, and, where clients must prove who they are, the authority of theirs.

use std::fmt;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{Error as RustlsError, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::server::TlsStream;

use crate::file::{File, TlsError, authority, ends_at, identity, provider};
use crate::refusal::Refusal;
use crate::watched::Watched;

/// What is spoken.
#[derive(Clone, Copy, Debug)]
pub enum Versions {
    /// Where both sides are ours.
    Tls13,
    /// Where clients may be of any kind.
    Tls12And13,
}

#[derive(Clone, Debug)]
pub struct ServerFiles {
    pub cert: File,
    pub key: File,
    /// Clients must show a certificate of this authority. None: they need none.
    pub client_ca: Option<File>,
    pub versions: Versions,
    /// `h2` or `http/1.1`.
    pub protocol: &'static str,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ServerTls {
    files: Arc<ServerFiles>,
    served: Arc<Watched<Served>>,
}

/// Made of the files.
struct Served {
    config: Arc<ServerConfig>,
    ends_at: Option<u64>,
}

impl ServerTls {
    pub fn open(files: ServerFiles) -> Result<ServerTls, TlsError> {
        let files = Arc::new(files);
        let watched = [files.cert.clone(), files.key.clone()].into_iter().chain(files.client_ca.clone());
        let read = Arc::clone(&files);
        let served = Watched::new(watched, move || read.served())?;
        Ok(ServerTls { files, served: Arc::new(served) })
    }

    pub async fn accept<S>(&self, stream: S) -> Result<TlsStream<S>, Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accepted = TlsAcceptor::from(Arc::clone(&self.served.current().config)).accept(stream).await;
        accepted.map_err(|error| Refusal::of_client(&error, &self.files))
    }

    /// Takes renewed files, or says what is wrong with them, also while nobody connects. Never ends.
    pub async fn watch(self) {
        self.served.watch().await;
    }

    /// When the certificate that is shown ends, in seconds since 1970, if that can be told.
    pub fn ends_at(&self) -> Option<u64> {
        self.served.current().ends_at
    }
}

impl ServerFiles {
    fn served(&self) -> Result<Served, TlsError> {
        let (chain, key) = identity(&self.cert, &self.key)?;
        let ends_at = ends_at(&chain[0]);
        let verifier =
            match &self.client_ca {
                None => WebPkiClientVerifier::no_client_auth(),
                Some(file) => WebPkiClientVerifier::builder_with_provider(authority(file)?, provider())
                    .build()
                    .map_err(|error| TlsError::Authority { file: file.clone(), error: error.to_string() })?,
            };
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&self.versions.list())
            .map(|builder| builder.with_client_cert_verifier(verifier))
            .and_then(|builder| builder.with_single_cert(chain, key));
        let unfit = |error: RustlsError| TlsError::Unfit {
            cert: self.cert.clone(),
            key: self.key.clone(),
            error: Box::new(error),
        };
        let mut config = config.map_err(unfit)?;
        config.alpn_protocols = vec![self.protocol.into()];
        if self.client_ca.is_some() {
            // A session that is taken up again would not show its certificate anew.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Served { config: Arc::new(config), ends_at })
    }
}

impl Versions {
    fn list(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            Versions::Tls13 => vec![&TLS13],
            Versions::Tls12And13 => vec![&TLS13, &TLS12],
        }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}
