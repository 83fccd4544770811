//! `flotilla verify`: what it misses, and what it takes.

use crate::support::checkpoint::{SEED, config, synth};
use crate::support::program::run;
use crate::support::repository;
use std::fs;

#[tokio::test]
async fn verify_says_what_it_misses() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    synth(&out, &config(), SEED).await;
    let words = ["golden.json", "hint: verify needs golden.json and golden.safetensors"];
    run(["verify", out.to_str().unwrap()]).await.expect_refusal(1, &words);
    let smoke = repository("tests/golden/smoke").to_str().unwrap().to_owned();
    let table = run(["verify", &smoke]).await;
    let lines: Vec<&str> = table.expect_status(0).stdout.lines().collect();
    assert!(lines[0].ends_with("1 ranks as threads") && lines.last() == Some(&"pass"), "{lines:#?}");
    assert_eq!(lines.len(), 2 + 6 + 1, "{lines:#?}");
    // By whatever way they are linked: of one host mostly by memory.
    let table = run(["verify", &smoke, "--ranks", "2", "--processes"]).await;
    let lines: Vec<&str> = table.expect_status(0).stdout.lines().collect();
    assert!(lines[0].ends_with("2 ranks as processes"), "{lines:#?}");
}

/// It was refused, by an error whose hint named it.
#[tokio::test]
async fn what_plan_prints_is_a_plan_file() {
    let dir = tempfile::tempdir().unwrap();
    let smoke = repository("tests/golden/smoke").to_str().unwrap().to_owned();
    let file = dir.path().join("plan.json").to_str().unwrap().to_owned();
    let verify = ["verify", &smoke, "--plan-file", &file];
    let printed = run(["plan", "--model", &smoke, "--ranks", "2", "--json"]).await;
    fs::write(&file, &printed.expect_status(0).stdout).unwrap();
    let table = run(verify).await;
    assert!(table.expect_status(0).stdout.contains("2 ranks as threads"), "{table:?}");
    let hint = "\nhint: `flotilla plan --json` writes one";
    for nothing in ["", "{}", "[1, 2]", "{\"plan\": {}}"] {
        fs::write(&file, nothing).unwrap();
        run(verify).await.expect_refusal(1, &["plan.json holds no plan: ", hint]);
    }
}
