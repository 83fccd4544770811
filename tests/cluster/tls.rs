//! Certificates between coordinator and workers, made by `flotilla certs`: who has one joins, who has another is told
//! why not, on both sides, and renewed ones are used without a restart.

use crate::support::checkpoint::endless;
use crate::support::client::{Client, greedy_text};
use crate::support::program::run;
use crate::support::server::{Coordinator, Running, TOKEN};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder of `flotilla certs`, for a coordinator on loopback and the workers a and b.
pub struct Certs(TempDir);

impl Certs {
    pub async fn new() -> Certs {
        let certs = Certs(tempfile::tempdir().unwrap());
        let ran =
            certs.make(&["--coordinator", "localhost,127.0.0.1", "--worker", "a", "--worker", "b"]).await;
        assert!(ran.contains("ca.crt, made anew"), "{ran}");
        certs
    }

    /// What it says.
    async fn make(&self, args: &[&str]) -> String {
        let dir = self.0.path().to_str().expect("test paths are UTF-8");
        let ran = run([&["certs", dir], args].concat()).await;
        ran.expect_status(0).stdout.clone()
    }

    fn path(&self, file: &str) -> String {
        self.0.path().join(file).to_str().expect("test paths are UTF-8").to_owned()
    }

    pub fn coordinator_flags(&self) -> Vec<String> {
        let files = [("cert", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt")];
        let flags = files
            .map(|(flag, file)| [format!("--worker-tls-{flag}"), self.path(&format!("coordinator/{file}"))]);
        flags.concat()
    }

    pub fn authority_flags(&self) -> Vec<String> {
        vec!["--tls-ca".into(), self.path("ca.crt")]
    }

    /// Its own certificate and key.
    pub fn worker_flags(&self, name: &str) -> Vec<String> {
        let file = |file: &str| self.path(&format!("workers/{name}/{file}"));
        vec!["--tls-cert".into(), file("tls.crt"), "--tls-key".into(), file("tls.key")]
    }

    /// Puts the files of `new` in the place of its own.
    fn replace_by(&self, new: &Certs) {
        for folder in ["coordinator", "workers/a", "workers/b"] {
            for file in ["ca.crt", "tls.crt", "tls.key"] {
                fs::copy(new.path(&format!("{folder}/{file}")), self.path(&format!("{folder}/{file}")))
                    .unwrap();
            }
        }
        fs::copy(new.path("ca.crt"), self.path("ca.crt")).unwrap();
    }
}

async fn coordinator(model: &Path, workers: usize, certs: &Certs) -> Coordinator {
    let flags = certs.coordinator_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Coordinator::start(model, workers, &flags).await
}

/// A worker that dials over TLS, or over what `scheme` says.
pub fn worker(workers_at: &str, scheme: &str, token: &str, name: &str, flags: &[Vec<String>]) -> Running {
    let address = workers_at.replace("http://", scheme);
    let args = ["worker", "--coordinator", &address, "--join-token", token, "--name", name, "--threads", "1"];
    let flags = flags.concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Running::start(&[&args[..], &flags].concat())
}

fn more(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

#[tokio::test]
async fn workers_with_certificates_join_and_are_sent_their_weights_also_with_renewed_ones() {
    let (model, certs) = (endless().await, Certs::new().await);
    let mut coordinator = coordinator(model.path(), 2, &certs).await;
    let workers_at = coordinator.workers_at.clone();
    let join = |name: &str| {
        let flags = [certs.authority_flags(), certs.worker_flags(name)];
        worker(&workers_at, "https://", TOKEN, name, &flags)
    };
    let (mut a, mut b) = (join("a"), join("b"));
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let text = greedy_text(&client, "Once", 30).await;
    assert!(!a.said().contains("weights are here still"), "{}", a.said());

    // Nothing is believed any more that was.
    certs.replace_by(&Certs::new().await);
    a.kill().await;
    a = join("a");
    a.hear("joined the coordinator").await;
    client.health(200).await;
    assert_eq!(greedy_text(&client, "Once", 30).await, text);
    coordinator.process.hear("act=\"read-certificates\"").await;
    assert!(!b.has_ended(), "{}", b.said());

    // What is broken is told, and changes nothing.
    fs::write(certs.path("coordinator/tls.crt"), "broken").unwrap();
    coordinator.process.hear("outcome=\"failed\"").await;
    a.kill().await;
    a = join("a");
    a.hear("joined the coordinator").await;
    client.health(200).await;
}

/// Scheme, token and flags, and what worker and coordinator say of it.
type Case = (&'static str, &'static str, Vec<Vec<String>>, &'static str, &'static str);

#[tokio::test]
async fn who_has_no_fitting_certificate_is_refused_and_both_sides_say_why() {
    let (model, certs, others) = (endless().await, Certs::new().await, Certs::new().await);
    let mut coordinator = coordinator(model.path(), 1, &certs).await;
    let (ours, a) = (certs.authority_flags(), certs.worker_flags("a"));
    let name = |name: &str| more(&["--tls-name", name]);
    let cases: [Case; 7] = [
        (
            "https://",
            TOKEN,
            vec![ours.clone()],
            "it wants a certificate of this side",
            "it shows no certificate",
        ),
        (
            "https://",
            TOKEN,
            vec![ours.clone(), others.worker_flags("a")],
            "it is not of an authority that the other side knows",
            "its certificate is not of an authority in",
        ),
        (
            "https://",
            TOKEN,
            vec![others.authority_flags(), a.clone()],
            "its certificate is not of an authority in",
            "it is not of an authority that the other side knows",
        ),
        (
            "https://",
            TOKEN,
            vec![ours.clone(), a.clone(), name("elsewhere")],
            "its certificate is not for \"elsewhere\", but for",
            "it is not for the name that was dialed",
        ),
        (
            "https://",
            TOKEN,
            vec![
                ours.clone(),
                more(&["--tls-cert", &certs.path("coordinator/tls.crt")]),
                more(&["--tls-key", &certs.path("coordinator/tls.key")]),
            ],
            "it is not made for this",
            "the extended key usage must have clientAuth",
        ),
        (
            "http://",
            TOKEN,
            vec![],
            "this port speaks TLS: --coordinator must begin with https://",
            "it does not speak TLS",
        ),
        (
            "https://",
            "wrong",
            vec![ours.clone(), a.clone()],
            "wrong or missing join token",
            "wrong or missing join token",
        ),
    ];
    for (scheme, token, flags, worker_words, coordinator_words) in cases {
        let before = coordinator.process.said().len();
        let flags = [flags, vec![more(&["--join-timeout", "0"])]].concat();
        let mut refused = worker(&coordinator.workers_at, scheme, token, "a", &flags);
        let status = refused.ended().await;
        let said = refused.said();
        assert!(status.code() == Some(1) && said.contains(worker_words), "{worker_words:?} is not in {said}");
        coordinator.process.hear_after(before, coordinator_words).await;
        let audit = coordinator.process.said()[before..].to_owned();
        assert!(audit.contains("act=\"admit-worker\"") && audit.contains("outcome=\"refused\""), "{audit}");
    }
    // And it is none the worse for it.
    let mut good = worker(&coordinator.workers_at, "https://", TOKEN, "a", &[ours, a, name("localhost")]);
    good.hear("joined the coordinator").await;
    Client::new(&coordinator.url).health(200).await;
    let admitted = coordinator.process.said();
    assert!(
        admitted.contains("who=\"a at 127.0.0.1:") && admitted.contains("outcome=\"done\""),
        "{admitted}"
    );
}

#[tokio::test]
async fn a_port_without_tls_tells_who_dials_https() {
    let (model, certs) = (endless().await, Certs::new().await);
    let coordinator = Coordinator::start(model.path(), 1, &[]).await;
    let flags = [certs.authority_flags(), certs.worker_flags("a"), more(&["--join-timeout", "0"])];
    let mut refused = worker(&coordinator.workers_at, "https://", TOKEN, "a", &flags);
    assert_eq!(refused.ended().await.code(), Some(1));
    assert!(refused.said().contains("it does not speak TLS"), "{}", refused.said());
}

/// Folder, start and words; nothing is dialed.
async fn expect_no_start(args: &[&str], words: &[&str]) {
    let all = [&["worker", "--join-token", "x", "--join-timeout", "0"], args].concat();
    run(all).await.expect_refusal(1, words);
}

#[tokio::test]
async fn flags_and_files_that_do_not_fit_stop_the_start() {
    let certs = Certs::new().await;
    let (ca, cert) = (certs.path("ca.crt"), certs.path("workers/a/tls.crt"));
    let other_key = certs.path("workers/b/tls.key");
    let https = ["--coordinator", "https://localhost:1"];
    expect_no_start(&https, &["nothing says whose certificate is believed", "\nhint: give --tls-ca"]).await;
    expect_no_start(&["--coordinator", "http://localhost:1", "--tls-ca", &ca], &["is not an https address"])
        .await;
    let pair = [&https[..], &["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &other_key]].concat();
    expect_no_start(&pair, &["do not serve", "\nhint: they must belong together"]).await;
    let missing = [&https[..], &["--tls-ca", "/nowhere/ca.crt"]].concat();
    expect_no_start(&missing, &["cannot read certificates from /nowhere/ca.crt", "--tls-ca is a PEM file"])
        .await;
    let expired = expired(certs.0.path());
    let (cert, key) = (expired.0.to_str().unwrap(), expired.1.to_str().unwrap());
    let pair = [&https[..], &["--tls-ca", &ca, "--tls-cert", cert, "--tls-key", key]].concat();
    expect_no_start(&pair, &["old.crt has expired", "\nhint: renew it"]).await;
}

/// A certificate whose time is over, and its key.
fn expired(folder: &Path) -> (PathBuf, PathBuf) {
    let mut params = rcgen::CertificateParams::new(["a".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let pair = rcgen::KeyPair::generate().unwrap();
    let (cert, key) = (folder.join("old.crt"), folder.join("old.key"));
    fs::write(&cert, params.self_signed(&pair).unwrap().pem()).unwrap();
    fs::write(&key, pair.serialize_pem()).unwrap();
    (cert, key)
}

#[tokio::test]
async fn certs_keeps_its_authority_and_renews_what_it_signs() {
    let certs = Certs::new().await;
    for key in ["ca.key", "coordinator/tls.key", "workers/a/tls.key"] {
        let mode = fs::metadata(certs.path(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let read = |file: &str| fs::read_to_string(certs.path(file)).unwrap();
    let (authority, cert, other) = (read("ca.crt"), read("workers/a/tls.crt"), read("workers/b/tls.crt"));
    let said = certs.make(&["--worker", "a", "--worker", "c", "--days", "30"]).await;
    assert!(said.contains("ca.crt, as it was") && said.contains("workers/c/tls.key"), "{said}");
    assert!(read("ca.crt") == authority && read("workers/c/ca.crt") == authority);
    assert!(read("workers/a/tls.crt") != cert && read("workers/b/tls.crt") == other);

    let dir = certs.path("");
    let refuse = async |args: &[&str], status, words| {
        run([&["certs", dir.as_str()], args].concat()).await.expect_refusal(status, &[words]);
    };
    refuse(&["--worker", "../a"], 1, "is no name for a worker").await;
    refuse(&[], 2, "--coordinator").await;
    refuse(&["--worker", "a", "--days", "0"], 2, "--days").await;
    fs::rename(certs.path("ca.key"), certs.path("away.key")).unwrap();
    refuse(&["--worker", "a"], 1, "bring it back, or choose another folder").await;
    fs::copy(certs.path("workers/b/tls.key"), certs.path("ca.key")).unwrap();
    refuse(&["--worker", "a"], 1, "are not ones of flotilla certs").await;
    assert_eq!(read("ca.crt"), authority);
}
