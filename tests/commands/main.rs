//! What the commands print and leave behind, and what they say to wrong words.

mod addresses;
mod chat;
mod files;
mod flags;
mod others;
mod output;
mod route;
#[path = "../support/mod.rs"]
mod support;
mod verify;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use support::checkpoint::{SEED, config, endless, synth};
use support::program::{flotilla, run};
use support::repository;
use support::server::{Up, free_port};

const COMMANDS: [&str; 9] =
    ["up", "coordinator", "worker", "plan", "synth", "verify", "chat", "top", "ready"];

#[tokio::test]
async fn every_command_has_help() {
    let all = run(["--help"]).await;
    for command in COMMANDS {
        assert!(all.expect_status(0).stdout.contains(&format!("\n  {command} ")), "{}", all.stdout);
        let help = run([command, "--help"]).await;
        help.expect_status(0);
        assert!(help.stdout.contains(&format!("Usage: flotilla {command} ")), "{}", help.stdout);
        assert_eq!(unexplained(&help.stdout), Vec::<&str>::new(), "{command}");
    }
    let version = run(["--version"]).await;
    assert!(version.expect_status(0).stdout.starts_with("flotilla "), "{}", version.stdout);
    let mut secret = flotilla(["worker", "--help"]);
    let secret = secret.env("FLOTILLA_JOIN_TOKEN", "swordfish").output().await.unwrap();
    assert!(!String::from_utf8_lossy(&secret.stdout).contains("swordfish"), "the token is shown in help");
}

/// Options with nothing behind them, on their line or the next.
fn unexplained(help: &str) -> Vec<&str> {
    let lines: Vec<&str> = help.lines().map(str::trim).collect();
    let is_bare = |line: &str| line.starts_with("--") && !line.contains("  ");
    let pairs = lines.iter().zip(lines.iter().skip(1).chain(&[""]));
    let bare = pairs.filter(|(line, next)| is_bare(line) && (next.is_empty() || next.starts_with('-')));
    bare.map(|(line, _)| *line).collect()
}

#[tokio::test]
async fn wrong_words_are_answered_with_status_2() {
    let cases: [(&[&str], &str); 12] = [
        (&[], "Usage: flotilla"),
        (&["sail"], "unrecognized subcommand 'sail'"),
        (&["up", "--worker", "2"], "unexpected argument '--worker'"),
        (&["up", "--workers", "0"], "0 is not in 1..=64"),
        (&["up", "--listen", "localhost"], "invalid value 'localhost' for '--listen"),
        (&["up", "--weights", "synthetic:-1"], "is not a number"),
        (&["coordinator"], "--join-token"),
        (&["worker"], "--join-token"),
        (&["synth", "--like", "gpt-oss-20b"], "--out"),
        (&["verify", "x", "--ranks", "65"], "65 is not in 1..=64"),
        (&["plan", "--ranks", "2", "--shares", "1,2"], "cannot be used with"),
        (&["chat", "--effort", "much"], "[possible values: low, medium, high]"),
    ];
    for (args, words) in cases {
        run(args).await.expect_refusal(2, &[words]);
    }
}

/// Every head, block and token of the vocabulary belongs to one rank, and bytes add up to the model's.
#[tokio::test]
async fn a_plan_gives_everything_an_owner() {
    for (model, kv_heads, blocks, vocab) in
        [("gpt-oss-120b", 8, 90, 201_088), ("gpt-oss-20b", 8, 90, 201_088)]
    {
        let alone = plan(&["--model", model, "--ranks", "1"]).await;
        let sharded_bytes = |plan: &Value, field: &str| -> u64 {
            plan["bytes"].as_array().unwrap().iter().map(|rank| rank[field].as_u64().unwrap()).sum()
        };
        for how in [&["--ranks", "4"][..], &["--ranks", "7"], &["--ranks", "64"], &["--shares", "24,16,12"]] {
            let plan = plan(&[&["--model", model], how].concat()).await;
            let stages = plan["plan"]["stages"].as_array().unwrap();
            assert_eq!(stages.len(), 1);
            let ranks = stages[0]["ranks"].as_array().unwrap();
            expect_tiled(ranks, &["kv_heads"], kv_heads);
            expect_tiled(ranks, &["experts", "blocks"], blocks);
            expect_tiled(ranks, &["vocab"], vocab);
            for field in ["experts", "embedding", "unembedding"] {
                assert_eq!(
                    sharded_bytes(&plan, field),
                    sharded_bytes(&alone, field),
                    "{model} {how:?} {field}"
                );
            }
        }
    }
}

async fn plan(args: &[&str]) -> Value {
    let ran = run([&["plan", "--json"], args].concat()).await;
    serde_json::from_str(&ran.expect_status(0).stdout).expect("a plan is JSON")
}

/// The ranges of the ranks, in their order, are 0..whole without gap or overlap.
#[track_caller]
fn expect_tiled(ranks: &[Value], path: &[&str], whole: u64) {
    let mut next = 0;
    for rank in ranks {
        let range = path.iter().fold(rank, |value, field| &value[field]);
        assert_eq!(range["start"], next, "{path:?}: {ranks:?}");
        next = range["end"].as_u64().unwrap();
    }
    assert_eq!(next, whole, "{path:?}: {ranks:?}");
}

#[tokio::test]
async fn a_plan_is_a_table_and_says_what_does_not_fit() {
    let table = run(["plan", "--model", "gpt-oss-120b", "--ranks", "3"]).await;
    let lines: Vec<&str> = table.expect_status(0).stdout.lines().collect();
    assert!(lines[0].starts_with("gpt-oss-120b: 36 layers, 128 experts, "), "{lines:?}");
    assert!(lines[1].starts_with("rank ") && lines[1].ends_with("activations"), "{lines:?}");
    let ranks: Vec<&str> = lines[2..5].iter().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(ranks, ["0", "1", "2"], "{lines:?}");

    let words = ["the model does not fit", "\nhint: raise --ranks or --memory-gb, or lower --kv-tokens"];
    run(["plan", "--ranks", "2", "--memory-gb", "16"]).await.expect_refusal(1, &words);
    run(["plan", "--ranks", "6", "--memory-gb", "16"]).await.expect_status(0);
    run(["plan", "--ranks", "3", "--memory-gb", "8,8"]).await.expect_refusal(1, &["2 values for 3 ranks"]);
    run(["plan", "--shares", "1,-2"]).await.expect_refusal(1, &["--shares must be positive"]);
    run(["plan", "--ranks", "0"]).await.expect_refusal(1, &["1 to 64 ranks, 0 were given"]);
    run(["plan", "--ranks", "65"]).await.expect_refusal(1, &["1 to 64 ranks, 65 were given"]);
    run(["plan", "--ranks", "18446744073709551615"]).await.expect_refusal(1, &["1 to 64 ranks, "]);
    let rows = ["plan", "--ranks", "2", "--step-tokens", "5000000000"];
    run([&rows[..], &["--memory-gb", "100"]].concat()).await.expect_refusal(1, &["or lower --step-tokens"]);
    let unloaded = &["there is no folder gpt-oss-20b", "--weights synthetic:1"];
    run(["up", "--model", "gpt-oss-20b", "--listen", "127.0.0.1:0"]).await.expect_refusal(1, unloaded);
    run(["plan", "--model", "gpt-5"]).await.expect_refusal(1, &["no model is called \"gpt-5\"", "\nhint: "]);
}

fn bytes_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
}

#[tokio::test]
async fn synth_is_reproducible_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name);
    for (name, seed) in [("first", SEED), ("again", SEED), ("other", SEED + 1)] {
        synth(&out(name), &config(), seed).await;
    }
    let (first, other) = (bytes_of(&out("first")), bytes_of(&out("other")));
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    let expected = [
        "config.json",
        "generation_config.json",
        "model-00000-of-00000.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(names, expected);
    assert!(first == bytes_of(&out("again")), "the same seed gave other bytes");
    assert!(first[expected[2]] != other[expected[2]], "another seed gave the same weights");

    let like = out("first").join("config.json").to_str().unwrap().to_owned();
    let full = out("other").to_str().unwrap().to_owned();
    let refused = run(["synth", "--like", &like, "--out", &full]).await;
    refused.expect_refusal(1, &["is not empty", "\nhint: name a new folder"]);
    assert!(bytes_of(&out("other")) == other, "a folder was overwritten");

    let fewer = out("fewer").to_str().unwrap().to_owned();
    run(["synth", "--like", &like, "--layers", "1", "--out", &fewer]).await.expect_status(0);
    let config: Value = serde_json::from_slice(&bytes_of(&out("fewer"))["config.json"]).unwrap();
    assert_eq!(
        (&config["num_hidden_layers"], config["layer_types"].as_array().unwrap().len()),
        (&1.into(), 1)
    );
    let none = out("none").to_str().unwrap().to_owned();
    let refused = run(["synth", "--like", &like, "--layers", "0", "--out", &none]).await;
    refused.expect_refusal(1, &["--layers must be at least 1"]);
    let wrong = [&["--out", "/proc/none"][..], &["--out", &none, "--tokenizer", "/etc/passwd"]];
    for (flags, words) in wrong.into_iter().zip(["cannot make /proc/none", "/etc/passwd"]) {
        let refused = run([&["synth", "--like", &like], flags].concat()).await;
        refused.expect_refusal(1, &[words]);
        assert!(!refused.stderr.contains("download is incomplete"), "{}", refused.stderr);
        assert!(!Path::new(&none).exists(), "{words}");
    }
    let smoke = repository("tests/golden/smoke/config.json").to_str().unwrap().to_owned();
    run(["synth", "--like", &smoke, "--out", &none]).await.expect_status(0);
}

#[tokio::test]
async fn chat_asks_and_prints_the_answer() {
    let model = endless().await;
    let up = Up::start(model.path(), &["--kv-tokens", "512"]).await;
    let ran = run(["chat", "--url", &up.url, "--effort", "low", "Who are you?"]).await;
    ran.expect_status(0);
    let expected = ask(&up.url).await;
    // Whoever pipes it on has the answer alone.
    assert!(!expected.trim().is_empty() && ran.stdout.trim() == expected.trim(), "{ran:#?} {expected:?}");
    let wrong = run(["chat", "--url", &up.url, "--model", "gpt-5", "Hello"]).await;
    wrong.expect_refusal(1, &["404", "\"gpt-5\" is not served here"]);
}

/// Before any worker is started, which would read weights for nothing.
#[tokio::test]
async fn up_says_what_is_wrong_with_the_front_before_it_starts_workers() {
    let model = endless().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let none = model.path().join("none.pem").to_str().unwrap().to_owned();
    let cases: [(&[&str], &[&str]); 5] = [
        (&["--kv-tokens", "10"], &["holds no chat", "\nhint: give --kv-tokens 512 or more"]),
        (&["--step-tokens", "65536"], &["65536 tokens", "\nhint: lower --step-tokens"]),
        (&["--api-keys", &none], &["none.pem"]),
        (&["--tls-cert", &none, "--tls-key", &none], &["none.pem"]),
        (&["--listen", &address], &["cannot listen on", "\nhint: "]),
    ];
    for (flags, words) in cases {
        let folder = model.path().to_str().unwrap();
        let first = ["up", "--model", folder, "--listen", "127.0.0.1:0"];
        let args =
            if flags[0] == "--listen" { [&first[..3], flags].concat() } else { [&first, flags].concat() };
        let ran = run(args).await;
        ran.expect_refusal(1, words);
        assert!(!ran.stderr.contains("processes ["), "workers were started: {}", ran.stderr);
    }
}

/// The front as an operator may have it: keys, and a certificate that nobody knows.
#[tokio::test]
async fn chat_has_a_key_and_trusts_a_private_certificate() {
    let model = endless().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (cert, private, keys) = (path("cert.pem"), path("key.pem"), path("keys.toml"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&private, made.signing_key.serialize_pem()).unwrap();
    let entry = run(["key", "ann"]).await;
    fs::write(&keys, &entry.expect_status(0).stdout).unwrap();
    let secret = entry.stderr.lines().find(|line| line.starts_with("flotilla-")).unwrap();
    let front = ["--api-keys", &keys, "--tls-cert", &cert, "--tls-key", &private];
    let up = Up::start(model.path(), &[&["--kv-tokens", "512"], &front[..]].concat()).await;
    let hint = format!("flotilla chat --url {} --ca {cert} --api-key KEY", up.url);
    assert!(up.process.said().contains(&hint), "{}", up.process.said());

    let ask = ["chat", "--url", &up.url, "--effort", "low", "Who are you?"];
    run(ask).await.expect_refusal(1, &["cannot reach https://", "trusted by --ca FILE"]);
    let trusting = [&ask[..], &["--ca", &cert]].concat();
    run(&trusting).await.expect_refusal(1, &["401", "hint: give --api-key, or set FLOTILLA_API_KEY"]);
    let ran = run([&trusting[..], &["--api-key", secret]].concat()).await;
    assert!(!ran.expect_status(0).stdout.trim().is_empty(), "{ran:#?}");
    // As `$(cat FILE)` does not leave it, and an environment file may.
    let of_a_file = format!("{secret}\n");
    let by_environment = flotilla(&trusting).env("FLOTILLA_API_KEY", of_a_file).output().await.unwrap();
    assert_eq!(String::from_utf8(by_environment.stdout).unwrap(), ran.stdout);
    let help = flotilla(["chat", "--help"]).env("FLOTILLA_API_KEY", secret).output().await.unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains(secret), "the key is shown in help");
}

/// What the API says to the same question.
async fn ask(url: &str) -> String {
    let body = serde_json::json!({
        "messages": [{ "role": "user", "content": "Who are you?" }], "reasoning_effort": "low", "temperature": 0,
    });
    let client = support::client::Client::new(url);
    let answer = client.expect(support::client::CHAT, body).await;
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn chat_without_a_server_says_what_to_do() {
    let url = format!("http://127.0.0.1:{}", free_port());
    for more in [&["Hello"][..], &["--model", "m", "Hello"]] {
        let ran = run([&["chat", "--url", &url], more].concat()).await;
        ran.expect_refusal(1, &[&format!("error: cannot reach {url}: ")]);
        assert!(ran.stderr.ends_with("\nhint: start a server with `flotilla up`\n"), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn ready_says_by_its_status_whether_a_server_is() {
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let ran = run(["ready", "--url", &url]).await;
    ran.expect_refusal(1, &["cannot reach", "hint: start a server"]);
    // A coordinator without workers answers, and is not ready.
    let listen = format!("127.0.0.1:{port}");
    let mut alone =
        flotilla(["coordinator", "--listen", &listen, "--worker-listen", "127.0.0.1:0", "--workers", "1"]);
    let alone = alone.env("FLOTILLA_JOIN_TOKEN", "a-token-of-this-test").kill_on_drop(true).spawn().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let ran = loop {
        let ran = run(["ready", "--url", &url]).await;
        if !ran.stderr.contains("cannot reach") {
            break ran;
        }
        assert!(std::time::Instant::now() < deadline, "{ran:?}");
    };
    ran.expect_refusal(1, &["it is not ready: "]);
    drop(alone);
    let up = Up::start(&repository("demo/model"), &["--workers", "1"]).await;
    let ran = run(["ready", "--url", &up.url, "--wait", "30"]).await;
    assert!(ran.expect_status(0).stdout.contains("\"status\":\"ready\""), "{ran:?}");
}

/// It panicked at the second step: with one more step in flight than stages, the answers of both were taken for those of one.
#[tokio::test]
async fn bench_engine_measures_ranks_that_are_threads() {
    let demo = repository("demo/model/config.json").to_str().unwrap().to_owned();
    let small = ["--rounds", "1", "--no-kernels", "--batch", "1,2", "--depth", "32", "--prompt", "600"];
    let ran = run([&["bench", "engine", "--like", &demo, "--json"], &small[..]].concat()).await;
    let report: Value = serde_json::from_str(&ran.expect_status(0).stdout).expect("a report is JSON");
    let groups = report["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "{report}");
    for group in groups {
        let cases = group["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 4, "{group}");
        assert!(cases.iter().all(|case| case["tokens_per_second"].as_f64().unwrap() > 0.0), "{group}");
    }
}

/// A folder, its config.json, a published name with or without its publisher: everywhere the same.
#[tokio::test]
async fn a_model_is_named_alike_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let folder = repository("demo/model").to_str().unwrap().to_owned();
    let config = format!("{folder}/config.json");
    for (number, model) in [&folder, &config].into_iter().enumerate() {
        let out = dir.path().join(number.to_string()).to_str().unwrap().to_owned();
        run(["plan", "--model", model, "--ranks", "2"]).await.expect_status(0);
        run(["synth", "--like", model, "--layers", "1", "--out", &out]).await.expect_status(0);
        run(["up", "--model", model, "--check"]).await.expect_status(0);
        run(["up", "--model", model, "--weights", "synthetic:1", "--check"]).await.expect_status(0);
        let bench = [
            "--rounds",
            "1",
            "--no-kernels",
            "--ranks",
            "1",
            "--batch",
            "1",
            "--depth",
            "0",
            "--prompt",
            "8",
        ];
        run([&["bench", "engine", "--like", model], &bench[..]].concat()).await.expect_status(0);
    }
    for model in ["openai/gpt-oss-20b", "gpt-oss-20b"] {
        run(["plan", "--model", model, "--devices", "2xrtx3090"]).await.expect_status(0);
    }
    let url = "https://models.example/gpt-oss-20b";
    run(["plan", "--model", url])
        .await
        .expect_refusal(1, &["\nhint: curl -LO https://models.example/gpt-oss-20b/config.json"]);
    let hub = dir.path().join("hub");
    let snapshot = hub.join("models--me--my-model/snapshots/abc1");
    fs::create_dir_all(&snapshot).unwrap();
    fs::copy(&config, snapshot.join("config.json")).unwrap();
    let found = flotilla(["plan", "--model", "me/my-model", "--ranks", "2"])
        .env("HF_HUB_CACHE", &hub)
        .output()
        .await
        .unwrap();
    assert!(found.status.success(), "{found:?}");
    let none = dir.path().to_str().unwrap().to_owned();
    run(["plan", "--model", &none]).await.expect_refusal(1, &["config.json", "\nhint: "]);
    run(["plan", "--model", "openai/gpt-5"])
        .await
        .expect_refusal(1, &["no model is called", "a checkpoint's folder"]);
}

#[tokio::test]
async fn a_file_is_no_folder_and_gguf_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    for (name, hint) in [
        (
            "gpt-oss-120b-mxfp4.gguf",
            "GGUF is not read: take the published folder (hf download openai/gpt-oss-120b)",
        ),
        ("model.GGUF", "hf download openai/gpt-oss-20b"),
        ("model.safetensors", "give the folder that it is in"),
    ] {
        let file = dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(&file, "GGUF").unwrap();
        let said = format!("{file} is a file, and --model takes a folder");
        run(["up", "--model", &file]).await.expect_refusal(1, &[&said, hint]);
    }
}
