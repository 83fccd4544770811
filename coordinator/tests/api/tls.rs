//! The front over TLS, by files.

use std::path::Path;
use std::sync::Arc;

use flotilla_coordinator::service::{Tls, TlsError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::server::{Server, Setup, within};

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

struct Files {
    folder: tempfile::TempDir,
    roots: RootCertStore,
}

impl Files {
    fn new() -> Files {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        Files { folder, roots }
    }

    fn tls(&self, cert: &str, key: &str) -> Result<Tls, TlsError> {
        Tls::from_files(&self.folder.path().join(cert), &self.folder.path().join(key))
    }

    fn client(&self) -> TlsConnector {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(self.roots.clone()).with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

async fn server(tls: Tls) -> Server {
    Server::start_with(Setup { adjust: Box::new(|settings| settings.tls = Some(tls)), ..Setup::default() })
        .await
}

#[tokio::test]
async fn https_is_served_and_http_is_told_so() {
    let files = Files::new();
    let server = server(files.tls("cert.pem", "key.pem").unwrap()).await;
    let plain = within(TcpStream::connect(server.address)).await.unwrap();
    let mut secure = within(files.client().connect("localhost".try_into().unwrap(), plain)).await.unwrap();
    secure.write_all(HEALTH).await.unwrap();
    let mut answer = String::new();
    // Not every peer says goodbye in TLS before it closes.
    let _ = within(secure.read_to_string(&mut answer)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"ready\""), "{answer:?}");

    let mut plain = within(TcpStream::connect(server.address)).await.unwrap();
    plain.write_all(HEALTH).await.unwrap();
    let mut answer = String::new();
    let _ = within(plain.read_to_string(&mut answer)).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    assert!(head.starts_with("HTTP/1.1 400 Bad Request"), "{head:?}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head:?} of {body:?}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"]["message"], "this port speaks https, not http");
}

#[test]
fn bad_files_stop_the_start_with_a_hint() {
    let (files, other) = (Files::new(), Files::new());
    let error = |cert: &str, key: &str| files.tls(cert, key).unwrap_err().to_string();
    let missing = error("none.pem", "key.pem");
    assert!(missing.starts_with("cannot read certificates from "), "{missing}");
    assert!(
        missing.contains("none.pem") && missing.contains("\nhint: --tls-cert is a PEM file"),
        "{missing}"
    );
    let swapped = error("key.pem", "key.pem");
    assert!(swapped.contains("key.pem holds no certificate\nhint: "), "{swapped}");
    let no_key = error("cert.pem", "cert.pem");
    assert!(no_key.starts_with("cannot read a private key from "), "{no_key}");
    let of_another =
        Tls::from_files(&files.folder.path().join("cert.pem"), &other.folder.path().join("key.pem"));
    let of_another = of_another.unwrap_err().to_string();
    assert!(of_another.contains("\nhint: they must belong together"), "{of_another}");
    assert!(Tls::from_files(Path::new("/"), Path::new("/")).is_err());
}
