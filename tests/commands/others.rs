//! Words of vLLM and llama.cpp, which are answered with ours.

use crate::support::program::{flotilla, run};
use crate::support::repository;
use std::fs;

#[tokio::test]
async fn words_of_other_servers_are_answered_with_ours() {
    let cases: [(&[&str], &str); 22] = [
        (&["--max-model-len", "4096"], "hint: --kv-tokens "),
        (&["--ctx-size=4096"], "hint: --kv-tokens "),
        (&["-c", "4096"], "hint: --kv-tokens "),
        (&["--tensor-parallel-size", "2"], "hint: --workers "),
        (&["--host", "0.0.0.0"], "hint: --listen ADDRESS:PORT "),
        (&["--port", "8080"], "hint: --listen ADDRESS:PORT "),
        (&["--api-key", "k"], "hint: --api-keys FILE "),
        (&["--max-num-seqs=8"], "hint: --sequences "),
        (&["-ngl", "99"], "--device or --gpus"),
        (&["--gpu-memory-utilization", "0.9"], "hint: --memory-bytes "),
        (&["--served-model-name", "m"], "hint: --served-name "),
        (&["-np", "2"], "hint: --sequences "),
        (&["-ctk", "q8"], "hint: --kv-dtype "),
        (&["-ts", "1,1"], "hint: `flotilla worker --bandwidth` "),
        (&["-tp", "2"], "hint: --workers "),
        (&["-t", "2"], "hint: --threads "),
        (&["-b", "64"], "hint: --step-tokens "),
        (&["-ub", "64"], "hint: --step-tokens "),
        (&["--rpc", "10.0.0.2:50052"], "hint: workers dial"),
        (&["-hf", "openai/gpt-oss-20b"], "hint: nothing is downloaded here"),
        (&["-m", "m.gguf"], "hint: --model "),
        (&["gpt-oss-20b"], "hint: the model is named by a flag: --model "),
    ];
    for (flags, words) in cases {
        run([&["up"], flags].concat()).await.expect_refusal(2, &["unexpected argument", words]);
    }
    for command in ["worker", "coordinator"] {
        run([command])
            .await
            .expect_refusal(2, &["--join-token", "hint: export FLOTILLA_JOIN_TOKEN=$(openssl"]);
    }
    assert!(!run(["up", "--sail"]).await.stderr.contains("hint: "));
}

/// A flag was named that the command at hand does not have.
#[tokio::test]
async fn a_hint_says_whose_flag_it_names() {
    for command in ["worker", "chat"] {
        let ran = run([command, "--max-model-len", "4"]).await;
        ran.expect_refusal(
            2,
            &["hint: --kv-tokens ", "; it is a flag of `flotilla up` and `flotilla coordinator`"],
        );
    }
    run(["coordinator", "-t", "4"]).await.expect_refusal(2, &["`flotilla up` and `flotilla worker`"]);
    for command in ["worker", "coordinator"] {
        run([command, "--gpus", "all"]).await.expect_refusal(2, &["hint: one worker has one card: "]);
    }
    run(["serve", "gpt-oss-20b"]).await.expect_refusal(2, &["hint: `flotilla up --model DIR` serves"]);
}

/// And with one hint only: not with clap's guess at what looks alike.
#[tokio::test]
async fn every_flag_of_the_table_has_an_answer() {
    let help = run(["up", "--help"]).await.stdout;
    let page = fs::read_to_string(repository("docs/coming-from.md")).unwrap();
    let cells =
        page.lines().filter(|line| line.starts_with("| ")).flat_map(|line| line.split('|').skip(2).take(2));
    let spans = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let flags: Vec<&str> =
        spans.filter_map(|span| span.split(' ').next().filter(|flag| flag.starts_with('-'))).collect();
    assert!(flags.len() > 30, "{flags:?}");
    for flag in flags.into_iter().chain(["-ngl", "--cpu-offload-gb"]) {
        if help.contains(&format!(" {flag} ")) {
            continue;
        }
        let said = run(["up", flag, "1"]).await;
        said.expect_refusal(2, &["unexpected argument", "\nhint: "]);
        assert!(!said.stderr.contains("tip: "), "{flag}: {}", said.stderr);
    }
}

/// As `KEY=` in a file of variables: it stopped every command.
#[tokio::test]
async fn a_variable_that_is_empty_is_not_set() {
    let demo = repository("demo/model").to_str().unwrap().to_owned();
    let mut up = flotilla(["up", "--model", &demo, "--check"]);
    for variable in
        ["FLOTILLA_LOG", "FLOTILLA_LOG_FORMAT", "FLOTILLA_WEIGHT_CACHE", "OTEL_EXPORTER_OTLP_ENDPOINT"]
    {
        up.env(variable, "");
    }
    let output = up.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut worker = flotilla(["worker", "--join-token", "a-token-of-this-test", "--check"]);
    let output = worker.env("FLOTILLA_COORDINATOR", "").output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
}
