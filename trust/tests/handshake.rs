//! Every way in which two sides may not trust each other, over a pipe, with what each is told.

use std::path::Path;

use flotilla_trust::{ClientFiles, ClientTls, File, Refusal, ServerFiles, ServerTls, Versions};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::io::duplex;

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

#[derive(Clone, Copy)]
struct Wanted {
    name: &'static str,
    usage: Side,
    years: (i32, i32),
}

#[derive(Clone, Copy)]
enum Side {
    Server,
    Client,
}
use Side::{Client, Server};

const COORDINATOR: Wanted = Wanted { name: "coordinator", usage: Server, years: (2020, 2100) };
const WORKER: Wanted = Wanted { name: "worker", usage: Client, years: (2020, 2100) };

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Authority { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    /// Writes `NAME.crt` and `NAME.key`.
    fn issue(&self, folder: &Path, file: &str, wanted: Wanted) {
        let mut params = CertificateParams::new([wanted.name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(wanted.years.0, 1, 1);
        params.not_after = date_time_ymd(wanted.years.1, 1, 1);
        params.extended_key_usages = vec![match wanted.usage {
            Server => ExtendedKeyUsagePurpose::ServerAuth,
            Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(folder.join(format!("{file}.crt")), cert.pem()).unwrap();
        std::fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

/// `ca.crt`, `server.*` and `client.*` that trust each other; a test changes what it is about.
struct World(TempDir);

impl World {
    fn new() -> World {
        let (world, authority) = (World(tempfile::tempdir().unwrap()), Authority::new());
        world.trust("server-ca", &authority);
        world.trust("client-ca", &authority);
        authority.issue(world.0.path(), "server", COORDINATOR);
        authority.issue(world.0.path(), "client", WORKER);
        world
    }

    fn trust(&self, file: &str, authority: &Authority) {
        std::fs::write(self.0.path().join(format!("{file}.crt")), &authority.pem).unwrap();
    }

    fn file(&self, flag: &'static str, name: &str) -> File {
        File::new(flag, self.0.path().join(name))
    }

    fn server(&self) -> ServerTls {
        let files = ServerFiles {
            cert: self.file("--worker-tls-cert", "server.crt"),
            key: self.file("--worker-tls-key", "server.key"),
            client_ca: Some(self.file("--worker-tls-ca", "client-ca.crt")),
            versions: Versions::Tls13,
            protocol: "h2",
        };
        ServerTls::open(files).unwrap()
    }

    fn client(&self, with_certificate: bool, name: &str) -> ClientTls {
        let pair = || (self.file("--tls-cert", "client.crt"), self.file("--tls-key", "client.key"));
        let files = ClientFiles {
            ca: self.file("--tls-ca", "server-ca.crt"),
            identity: with_certificate.then(pair),
            protocol: "h2",
        };
        ClientTls::open(files, ClientTls::name(name).unwrap()).unwrap()
    }
}

#[test]
fn when_a_certificate_ends_is_known_and_renewed_with_it() {
    let world = World::new();
    let server = world.server();
    // The first days of 2100 and of 2077.
    assert_eq!(server.ends_at(), Some(4_102_444_800));
    let renewed = Wanted { years: (2020, 2077), ..COORDINATOR };
    Authority::new().issue(world.0.path(), "server", renewed);
    assert_eq!(server.ends_at(), Some(3_376_684_800));
}

/// What the client is told, and what the server.
async fn shake(client: &ClientTls, server: &ServerTls) -> (Result<(), Refusal>, Result<(), Refusal>) {
    let (near, far) = duplex(1 << 16);
    let serve = async {
        let mut stream = server.accept(far).await?;
        // The first word of HTTP/2 is the server's, too.
        stream.write_all(b"hello").await.map_err(|error| Refusal::Other(error.to_string()))?;
        stream.flush().await.map_err(|error| Refusal::Other(error.to_string()))
    };
    let dial = async { client.connect(near).await.map(drop) };
    tokio::join!(dial, serve)
}

async fn expect(world: &World, with_certificate: bool, name: &str, client_words: &str, server_words: &str) {
    let (client, server) = shake(&world.client(with_certificate, name), &world.server()).await;
    let told =
        |result: Result<(), Refusal>| result.err().map_or("nothing".into(), |refusal| refusal.to_string());
    let (client, server) = (told(client), told(server));
    assert!(client.contains(client_words), "the client is told {client:?}, not {client_words:?}");
    assert!(server.contains(server_words), "the server is told {server:?}, not {server_words:?}");
}

#[tokio::test]
async fn who_trust_each_other_meet() {
    let world = World::new();
    expect(&world, true, "coordinator", "nothing", "nothing").await;
}

#[tokio::test]
async fn a_client_without_certificate_is_told_to_bring_one() {
    let words = ("wants a certificate of this side", "shows no certificate\nhint: give it a certificate");
    expect(&World::new(), false, "coordinator", words.0, words.1).await;
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let world = World::new();
    Authority::new().issue(world.0.path(), "client", WORKER);
    let words =
        ("client.crt: it is not of an authority that the other side knows", "is not of an authority in");
    expect(&world, true, "coordinator", words.0, words.1).await;
    expect(&world, true, "coordinator", "\nhint: ", "client-ca.crt\nhint: --worker-tls-ca must have who")
        .await;
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let world = World::new();
    world.trust("server-ca", &Authority::new());
    let words = ("server-ca.crt\nhint: --tls-ca must have who signed it", "it is not of an authority that");
    expect(&world, true, "coordinator", words.0, words.1).await;
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let words = ("not for \"elsewhere\", but for ", "it is not for the name that was dialed");
    expect(&World::new(), true, "elsewhere", words.0, words.1).await;
    expect(&World::new(), true, "10.0.0.1", "not for \"10.0.0.1\"", "").await;
}

#[tokio::test]
async fn a_worker_cannot_pass_for_the_coordinator_nor_the_other_way_round() {
    let world = World::new();
    let authority = Authority::new();
    world.trust("server-ca", &authority);
    world.trust("client-ca", &authority);
    authority.issue(world.0.path(), "server", Wanted { usage: Client, ..COORDINATOR });
    authority.issue(world.0.path(), "client", WORKER);
    expect(&world, true, "coordinator", "usage must have serverAuth", "is not made for this").await;
    authority.issue(world.0.path(), "server", COORDINATOR);
    authority.issue(world.0.path(), "client", Wanted { usage: Server, ..WORKER });
    expect(&world, true, "coordinator", "is not made for this", "usage must have clientAuth").await;
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_refused_where_it_is_read_and_where_it_is_shown() {
    let (world, authority) = (World::new(), Authority::new());
    world.trust("server-ca", &authority);
    world.trust("client-ca", &authority);
    authority.issue(world.0.path(), "server", COORDINATOR);
    authority.issue(world.0.path(), "client", Wanted { years: (2020, 2021), ..WORKER });
    let pair = (world.file("--tls-cert", "client.crt"), world.file("--tls-key", "client.key"));
    let ca = world.file("--tls-ca", "server-ca.crt");
    let files = ClientFiles { ca, identity: Some(pair), protocol: "h2" };
    let error = ClientTls::open(files, ClientTls::name("coordinator").unwrap()).unwrap_err().to_string();
    assert!(error.contains("client.crt has expired\nhint: renew it"), "{error}");

    // One that was valid when it was read, as on a machine whose clock is late.
    let connector = stale_client(&world);
    let (near, far) = duplex(1 << 16);
    let server = world.server();
    let dial = connector.connect("coordinator".try_into().unwrap(), near);
    let (_, refused) = tokio::join!(dial, server.accept(far));
    assert_eq!(refused.err(), Some(Refusal::Dates { dates: "has expired" }));
}

/// Shows the client's certificate without looking at it.
fn stale_client(world: &World) -> tokio_rustls::TlsConnector {
    use tokio_rustls::rustls::crypto::ring::default_provider;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    let read = |name: &str| CertificateDer::from_pem_file(world.0.path().join(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(read("server-ca.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(world.0.path().join("client.key")).unwrap();
    let config = ClientConfig::builder_with_provider(std::sync::Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![read("client.crt")], key)
        .unwrap();
    std::sync::Arc::new(config).into()
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_so() {
    let world = World::new();
    let (mut near, far) = duplex(1 << 16);
    near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let refusal = world.server().accept(far).await.err().unwrap().to_string();
    assert!(refusal.contains("does not speak TLS\nhint: it must dial https://"), "{refusal}");

    let (near, mut far) = duplex(1 << 16);
    far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let refusal = world.client(true, "coordinator").connect(near).await.err().unwrap().to_string();
    assert!(refusal.contains("does not speak TLS\nhint: without TLS"), "{refusal}");
}

#[tokio::test]
async fn renewed_files_are_used_and_broken_ones_are_not() {
    let world = World::new();
    let (client, server) = (world.client(true, "coordinator"), world.server());
    let meet = async || {
        let (client, server) = shake(&client, &server).await;
        client.and(server)
    };
    meet().await.unwrap();
    let new = Authority::new();
    for file in ["server-ca", "client-ca"] {
        world.trust(file, &new);
    }
    meet().await.expect_err("the new authority knows neither of the old certificates");
    new.issue(world.0.path(), "server", COORDINATOR);
    new.issue(world.0.path(), "client", WORKER);
    meet().await.unwrap();
    std::fs::write(world.0.path().join("server.crt"), "broken").unwrap();
    std::fs::write(world.0.path().join("client.key"), "broken").unwrap();
    meet().await.expect("the old ones stay");
}

#[test]
fn a_key_that_does_not_fit_is_told_at_the_start() {
    let world = World::new();
    std::fs::copy(world.0.path().join("server.key"), world.0.path().join("client.key")).unwrap();
    let pair = (world.file("--tls-cert", "client.crt"), world.file("--tls-key", "client.key"));
    let files =
        ClientFiles { ca: world.file("--tls-ca", "server-ca.crt"), identity: Some(pair), protocol: "h2" };
    let error = ClientTls::open(files, ClientTls::name("x").unwrap()).unwrap_err().to_string();
    assert!(error.contains("do not serve") && error.ends_with("hint: they must belong together"), "{error}");
}

/// `server.*` stands for the dialed one, `client.*` for who dials: each with its own files.
async fn shake_as_clients(dialed: &World, dialing: &World) -> (Result<(), Refusal>, Result<(), Refusal>) {
    let among = |world: &World| world.client(true, "coordinator").among_clients().unwrap().unwrap();
    let ((served, _), (_, dials)) = (among(dialed), among(dialing));
    shake(&dials, &served).await
}

#[tokio::test]
async fn clients_of_one_authority_meet_whatever_their_names() {
    let (world, authority) = (World::new(), Authority::new());
    world.trust("server-ca", &authority);
    authority.issue(world.0.path(), "client", Wanted { name: "gpu-7", ..WORKER });
    let other = World::new();
    other.trust("server-ca", &authority);
    authority.issue(other.0.path(), "client", WORKER);
    assert_eq!(shake_as_clients(&world, &other).await, (Ok(()), Ok(())));
    assert!(
        world.client(false, "coordinator").among_clients().unwrap().is_none(),
        "there is nothing to show"
    );
}

#[tokio::test]
async fn clients_refuse_strangers_and_servers() {
    let (one, authority) = (World::new(), Authority::new());
    one.trust("server-ca", &authority);
    authority.issue(one.0.path(), "client", WORKER);
    let told = |refused: Result<(), Refusal>| refused.unwrap_err().to_string();
    // Of another authority: neither believes the other.
    let stranger = World::new();
    let (dialing, _) = shake_as_clients(&one, &stranger).await;
    assert!(told(dialing).contains("not of an authority in"));
    // What a coordinator shows is no worker's, and the other way round.
    let server = World::new();
    server.trust("server-ca", &authority);
    authority.issue(server.0.path(), "client", COORDINATOR);
    let (dialing, _) = shake_as_clients(&server, &one).await;
    assert!(told(dialing).contains("the extended key usage must have clientAuth"));
    let (_, dialed) = shake_as_clients(&one, &server).await;
    assert!(told(dialed).contains("the extended key usage must have clientAuth"));
}
