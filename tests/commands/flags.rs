//! Flags that cannot be meant, or come from another server: each is answered before anything is started, in the words of this
//! program.

use crate::support::program::run;
use crate::support::repository;
use crate::support::server::{Up, free_port};

/// Each command has other means to make a model fit.
#[tokio::test]
async fn what_does_not_fit_is_answered_with_what_this_command_can_do() {
    let demo = repository("demo/model").to_str().unwrap().to_owned();
    let up = ["up", "--model", &demo, "--listen", "127.0.0.1:0", "--memory-bytes"];
    let weights =
        "hint: take a smaller model, or more machines: `flotilla coordinator`, and `flotilla worker` on each";
    run([&up[..], &["200kB"]].concat()).await.expect_refusal(1, &["the model does not fit", weights]);
    let cache = [&up[..], &["64MB", "--kv-tokens", "10M"]].concat();
    run(cache).await.expect_refusal(1, &["the model does not fit", "\nhint: lower --kv-tokens"]);
    let rows = [&up[..], &["64MB", "--step-tokens", "5000000"]].concat();
    run(rows).await.expect_refusal(1, &["the model does not fit", "\nhint: lower --step-tokens"]);
    let plan = "hint: more or larger --devices, or lower --context";
    run(["plan", "--devices", "t4"]).await.expect_refusal(1, &["error: the model does not fit", plan]);
    let mixed = "cards and CPUs are never in one plan; of the CPUs alone: the model does not fit";
    run(["plan", "--devices", "t4;cpu:20GB@40GB/s"]).await.expect_refusal(1, &[mixed, plan]);
}

/// Before workers are started, and in the words of the flags.
#[tokio::test]
async fn up_says_what_is_wrong_with_its_numbers_before_it_starts_workers() {
    let demo = repository("demo/model").to_str().unwrap().to_owned();
    let cases: [(&[&str], &str); 5] = [
        (&["--step-tokens", "10"], "--step-tokens is 10, below --sequences 64"),
        (&["--sequences", "0"], "--sequences is 0, below its least value 1"),
        (&["--queue", "0"], "--queue is 0, below its least value 1"),
        (&["--stages", "3"], "--stages is 3, of 2 workers"),
        (&["--goal", "latency"], "--goal is given, and nothing is planned for it\nhint: add --plan auto"),
    ];
    for (flags, words) in cases {
        let ran = run([&["up", "--model", &demo, "--listen", "127.0.0.1:0"], flags].concat()).await;
        ran.expect_refusal(1, &[words]);
        assert!(!ran.stderr.contains("processes ["), "workers were started: {}", ran.stderr);
    }
}

/// What has no effect is refused: it was accepted, and ignored.
#[tokio::test]
async fn flags_without_effect_are_refused() {
    let demo = repository("demo/model").to_str().unwrap().to_owned();
    let up = ["up", "--model", &demo, "--listen", "127.0.0.1:0"];
    let pinned = run([&up[..], &["--pin", "0-4095"]].concat()).await;
    pinned.expect_refusal(1, &["--pin names core ", "\nhint: this process may use the cores "]);
    assert!(!pinned.stderr.contains("processes ["), "workers were started: {}", pinned.stderr);
    let worker = ["worker", "--join-token", "a-token-of-this-test", "--pin", "0-4095"];
    run(worker).await.expect_refusal(1, &["--pin names core "]);
    run([&up[..], &["--threads", "0"]].concat()).await.expect_refusal(2, &["0 is not in 1.."]);
    run(["worker", "--join-token", "t", "--threads", "0"]).await.expect_refusal(2, &["0 is not in 1.."]);
    let on_cards: [&[&str]; 5] = [
        &["--kv-dtype", "f32"],
        &["--dense", "int8"],
        &["--activations", "f32"],
        &["--pin", "0"],
        &["--threads", "2"],
    ];
    for flags in on_cards {
        let ran = run([&up[..], &["--gpus", "0"], flags].concat()).await;
        ran.expect_refusal(1, &[flags[0], " is for CPUs, and the workers compute on cards\nhint: leave "]);
    }
    let copies = run([&up[..], &["--replicas", "auto"]].concat()).await;
    copies.expect_refusal(1, &["nobody joins the workers that `up` starts", "\nhint: give a number"]);
    let linked = run(["plan", "--ranks", "2", "--link", "pcie3"]).await;
    linked.expect_refusal(2, &["cannot be used with", "--link <LINK>", "--ranks"]);
    run(["plan", "--link", "pcie3"]).await.expect_refusal(2, &["--devices"]);
}

#[tokio::test]
async fn sizes_are_typed_with_units() {
    let worker = ["worker", "--join-token", "a-token-of-this-test", "--check"];
    let sizes = ["--memory-bytes", "12GB", "--bandwidth", "30GB/s"];
    run([&worker[..], &sizes].concat()).await.expect_status(0);
    let wrong: [(&[&str], &str); 3] = [
        (&["--memory-bytes", "much"], "expected bytes, such as 12GB"),
        (&["--bandwidth", "fast"], "expected bytes a second, such as 30GB/s"),
        (&["--weight-rate", "fast"], "expected bytes a second, such as 500MB/s"),
    ];
    for (flags, words) in wrong {
        run([&worker[..], flags].concat()).await.expect_refusal(2, &[words]);
    }
    let demo = repository("demo/model").to_str().unwrap().to_owned();
    let up = ["up", "--model", &demo, "--check", "--kv-tokens"];
    run([&up[..], &["16k", "--memory-bytes", "1GB"]].concat()).await.expect_status(0);
    run([&up[..], &["many"]].concat())
        .await
        .expect_refusal(2, &["expected a number of tokens, such as 16384"]);
}

#[tokio::test]
async fn an_address_to_listen_on_is_this_hosts() {
    let demo = repository("demo/model").to_str().unwrap().to_owned();
    let up = ["up", "--model", &demo, "--listen"];
    run([&up[..], &["localhost:0", "--check"]].concat()).await.expect_status(0);
    run([&up[..], &["18000"]].concat())
        .await
        .expect_refusal(2, &["expected ADDRESS:PORT, such as 127.0.0.1:8000"]);
    // TEST-NET-3: of documents, and of nobody.
    let words = [
        "cannot listen on 203.0.113.9:8000: this host has no address 203.0.113.9",
        "\nhint: --listen takes one",
    ];
    run([&up[..], &["203.0.113.9:8000"]].concat()).await.expect_refusal(1, &words);
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
