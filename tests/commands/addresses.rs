//! Addresses to listen on, and to dial.

use crate::support::program::run;
use crate::support::repository;
use crate::support::server::{Up, free_port};

#[tokio::test]
async fn an_address_to_listen_on_is_this_hosts() {
    let demo = repository("demo/model").to_str().unwrap().to_owned();
    let up = ["up", "--model", &demo, "--listen"];
    run([&up[..], &["localhost:0", "--check"]].concat()).await.expect_status(0);
    run([&up[..], &["18000"]].concat())
        .await
        .expect_refusal(2, &["expected ADDRESS:PORT, such as 127.0.0.1:8000"]);
    let token = ["--join-token", "a-token-of-this-test"];
    let coordinator = [&["coordinator", "--model", &demo], &token[..]].concat();
    for (flag, at) in [("--worker-listen", "localhost:0"), ("--listen", "localhost:0")] {
        run([&coordinator[..], &[flag, at, "--check"]].concat()).await.expect_status(0);
    }
    run([&coordinator[..], &["--worker-listen", "7070"]].concat())
        .await
        .expect_refusal(2, &["expected ADDRESS:PORT, such as 127.0.0.1:8000"]);
    // TEST-NET-3: of documents, and of nobody.
    let words = [
        "cannot listen on 203.0.113.9:8000: this host has no address 203.0.113.9",
        "\nhint: --listen takes one",
    ];
    run([&up[..], &["203.0.113.9:8000"]].concat()).await.expect_refusal(1, &words);
    let api = [&coordinator[..], &["--listen", "127.0.0.1:0"]].concat();
    let worker = [&["worker", "--bandwidth", "1", "--join-timeout", "0"], &token[..]].concat();
    for (command, flag) in [
        (&api, "--worker-listen"),
        (&worker, "--collective-listen"),
        (&worker, "--weights-listen"),
        (&worker, "--health-listen"),
    ] {
        let said = "error: cannot listen on 203.0.113.9:7070: this host has no address 203.0.113.9: ";
        let ran = run([&command[..], &[flag, "203.0.113.9:7070"]].concat()).await;
        ran.expect_refusal(1, &[said, &format!("\nhint: {flag} takes one that this host has")]);
    }
}

/// Before half a second is spent on measuring, and in words of this program.
#[tokio::test]
async fn a_worker_says_what_is_odd_about_its_addresses() {
    let port = free_port();
    let api = format!("http://127.0.0.1:{port}");
    let worker =
        ["worker", "--join-token", "a-token-of-this-test", "--join-timeout", "0", "--bandwidth", "1"];
    let unreached = run([&worker[..], &["--coordinator", &api]].concat()).await;
    unreached.expect_refusal(
        1,
        &["hint: is it running, and is this the coordinator's --worker-listen port (7070)"],
    );
    assert!(!unreached.stderr.contains("cannot reach this one"), "{}", unreached.stderr);
    let far = run([&worker[..], &["--coordinator", "http://coordinator.invalid:7070"]].concat()).await;
    far.expect_refusal(1, &["workers of other hosts cannot reach this one"]);
    let listens = ["--coordinator", "http://coordinator.invalid:7070", "--collective-listen", "0.0.0.0:0"];
    let far = run([&worker[..], &listens].concat()).await;
    assert!(!far.stderr.contains("cannot reach this one"), "{}", far.stderr);
}

/// The likeliest slip, and the API closes such a connection without a word.
#[tokio::test]
async fn a_worker_at_the_apis_port_is_told_of_the_other() {
    let up = Up::start(&repository("demo/model"), &["--workers", "1"]).await;
    let worker =
        ["worker", "--join-token", "a-token-of-this-test", "--join-timeout", "1", "--bandwidth", "1"];
    let ran = run([&worker[..], &["--coordinator", &up.url]].concat()).await;
    let said = format!("error: cannot reach the coordinator at {}: ", up.url);
    let hint = "\nhint: is it running, and is this the coordinator's --worker-listen port (7070), and not its API (8000)?";
    ran.expect_refusal(1, &[&said, hint]);
}
