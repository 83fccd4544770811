//! Flags that cannot be meant, or come from another server: each is answered before anything is started, in the words of this
//! program.

use crate::support::program::run;
use crate::support::repository;

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
    let rows = [&up[..], &["64MB", "--step-tokens", "60000"]].concat();
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
    let cases: [(&[&str], &str); 6] = [
        (&["--step-tokens", "10"], "--step-tokens is 10, below --sequences 64"),
        (&["--sequences", "0"], "--sequences is 0, below its least value 1"),
        (&["--queue", "0"], "--queue is 0, below its least value 1"),
        (&["--stages", "3"], "--stages is 3, of 2 workers"),
        (&["--plan", "auto", "--stages", "2"], "--stages is 2, and --plan auto chooses how many"),
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
    for command in ["up", "worker", "verify"] {
        run([command, "--threads", "65535"]).await.expect_refusal(2, &["65535 is not in 1..=1024"]);
    }
    run([&up[..], &["--served-name", ""]].concat()).await.expect_refusal(2, &["--served-name"]);
    run(["worker", "--join-token", "t", "--name", ""]).await.expect_refusal(2, &["--name"]);
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

/// They were right by `--check`, and stopped the start.
#[tokio::test]
async fn a_check_looks_at_the_flags_of_traces() {
    let demo = repository("demo/model").to_str().unwrap().to_owned();
    for command in ["up", "coordinator"] {
        let check = [command, "--model", &demo, "--check"];
        let token = ["--join-token", "a-token-of-this-test"];
        let check = if command == "up" { check.to_vec() } else { [&check[..], &token].concat() };
        for flags in [["--trace-ratio", "5"], ["--otlp-endpoint", "nonsense"]] {
            run([&check[..], &flags].concat()).await.expect_refusal(2, &["\nhint: "]);
        }
        let right = ["--otlp-endpoint", "http://127.0.0.1:4318", "--trace-ratio", "0.5"];
        run([&check[..], &right].concat()).await.expect_status(0);
    }
}

/// They were written into certificates that no worker could ever accept.
#[tokio::test]
async fn certificates_name_what_can_be_dialed() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = dir.path().join("fleet");
    let certs = ["certs", fleet.to_str().unwrap(), "--coordinator"];
    for names in ["10.0.0.1:7070", "", "http://host", "two words", "a,,b"] {
        let ran = run([&certs[..], &[names]].concat()).await;
        ran.expect_refusal(2, &["expected a host's name or address, without http:// before it"]);
        assert!(!fleet.exists(), "{names:?}");
    }
    let ran = run([&certs[..], &["10.0.0.1, host.example,*.flotilla.svc,fd00::1"]].concat()).await;
    ran.expect_status(0);
    assert!(
        ran.stdout.contains("coordinator, as 10.0.0.1, host.example, *.flotilla.svc, fd00::1: "),
        "{ran:?}"
    );
    for (names, dialed) in [
        ("*.flotilla.svc,fd00::1,10.0.0.1", "https://[fd00::1]:7070 "),
        ("host.example,fd00::1", "https://host.example:7070 "),
        ("*.flotilla.svc", "https://COORDINATOR:7070 "),
    ] {
        let ran = run([&certs[..], &[names, "--worker", "a"]].concat()).await;
        assert!(ran.expect_status(0).stdout.contains(dialed), "{names}: {dialed}");
    }
}
