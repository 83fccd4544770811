//! The dialing side: whom it believes, the name that it expects, and its own certificate, if it has one.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, Error as RustlsError};

use crate::another_client::AnotherClient;
use crate::file::{File, TlsError, authority, identity, provider};
use crate::refusal::Refusal;
use crate::server::{ServerFiles, ServerTls, Versions};
use crate::watched::Watched;

#[derive(Clone, Debug)]
pub struct ClientFiles {
    /// Servers must show a certificate of this authority.
    pub ca: File,
    /// Certificate and key of this side.
    pub identity: Option<(File, File)>,
    /// The protocol that is spoken inside: `h2`.
    pub protocol: &'static str,
}

/// Whose certificate the other side must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    /// A server's, for the name that is dialed.
    Server,
    /// Another client's, under whatever name.
    Client,
}

/// Neither a host's name nor an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a host's name nor an address, as a certificate could have it")]
pub struct NotAName(String);

/// Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    files: Arc<ClientFiles>,
    config: Arc<Watched<ClientConfig>>,
    name: ServerName<'static>,
    expects: Expects,
}

impl ClientTls {
    /// `name`: what the server's certificate must name.
    pub fn open(files: ClientFiles, name: ServerName<'static>) -> Result<ClientTls, TlsError> {
        Self::open_expecting(files, name, Expects::Server)
    }

    fn open_expecting(
        files: ClientFiles,
        name: ServerName<'static>,
        expects: Expects,
    ) -> Result<ClientTls, TlsError> {
        let files = Arc::new(files);
        let pair = files.identity.clone().into_iter().flat_map(|(cert, key)| [cert, key]);
        let watched: Vec<File> = [files.ca.clone()].into_iter().chain(pair).collect();
        let read = Arc::clone(&files);
        let config = Watched::new(watched, move || read.config(expects))?;
        Ok(ClientTls { files, config: Arc::new(config), name, expects })
    }

    /// For clients of one authority among themselves: what one of them serves with, and another dials with. Both show the
    /// certificate that they show a server. `None`: this one has none.
    pub fn among_clients(&self) -> Result<Option<(ServerTls, ClientTls)>, TlsError> {
        let Some((cert, key)) = self.files.identity.clone() else { return Ok(None) };
        let files = ServerFiles {
            cert,
            key,
            client_ca: Some(self.files.ca.clone()),
            versions: Versions::Tls13,
            protocol: self.files.protocol,
        };
        // Nobody looks at the name, and it is not sent.
        let dials = Self::open_expecting((*self.files).clone(), self.name.clone(), Expects::Client)?;
        Ok(Some((ServerTls::open(files)?, dials)))
    }

    /// A name as a URL has it: IPv6 addresses stand in brackets there.
    pub fn name(host: &str) -> Result<ServerName<'static>, NotAName> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        ServerName::try_from(bare.to_owned()).map_err(|_| NotAName(host.to_owned()))
    }

    /// Also waits for the server's first word. TLS 1.3 is done for a client before the server has looked at its
    /// certificate; whoever is refused hears so in that word's place.
    pub async fn connect<S>(&self, stream: S) -> Result<TlsStream<S>, Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let usage = match self.expects {
            Expects::Server => "serverAuth",
            Expects::Client => "clientAuth",
        };
        let refused = |error: io::Error| Refusal::of_server(&error, &self.files, &self.name, usage);
        let connector = TlsConnector::from(self.config.current());
        let mut stream = connector.connect(self.name.clone(), stream).await.map_err(refused)?;
        let word = stream.fill_buf().await.map_err(refused)?;
        if word.is_empty() { Err(Refusal::Closed) } else { Ok(stream) }
    }
}

impl ClientFiles {
    fn config(&self, expects: Expects) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3");
        let builder = match expects {
            Expects::Server => builder.with_root_certificates(authority(&self.ca)?),
            Expects::Client => {
                builder.dangerous().with_custom_certificate_verifier(AnotherClient::of(&self.ca)?)
            }
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let (chain, private) = identity(cert, key)?;
                let unfit = |error: RustlsError| TlsError::Unfit {
                    cert: cert.clone(),
                    key: key.clone(),
                    error: Box::new(error),
                };
                builder.with_client_auth_cert(chain, private).map_err(unfit)?
            }
        };
        config.alpn_protocols = vec![self.protocol.into()];
        config.resumption = Resumption::disabled();
        config.enable_sni = expects == Expects::Server;
        Ok(config)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("files", &self.files).field("name", &self.name).finish()
    }
}
