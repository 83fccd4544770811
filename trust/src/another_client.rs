//! Clients of one authority that dial each other: the one that is dialed shows the certificate that it shows servers, and
//! is believed as a server would believe it. The signature is looked at, the dates, and that it was made for a client; a
//! name is not, for any client is as good.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{DigitallySignedStruct, Error as RustlsError, SignatureScheme};

use crate::file::{File, TlsError, authority, provider};

#[derive(Debug)]
pub struct AnotherClient(Arc<dyn ClientCertVerifier>);

impl AnotherClient {
    pub fn of(ca: &File) -> Result<Arc<AnotherClient>, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(authority(ca)?, provider()).build();
        let unfit = |error| TlsError::Authority { file: ca.clone(), error };
        Ok(Arc::new(AnotherClient(verifier.map_err(|error| unfit(error.to_string()))?)))
    }
}

impl ServerCertVerifier for AnotherClient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        self.0.verify_client_cert(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
