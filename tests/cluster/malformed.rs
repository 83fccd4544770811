//! Folders that are no model: `up` says what is wrong with which file, and what to do, and ends.

use crate::support::checkpoint::{config, synth};
use crate::support::program::run;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const SHARD: &str = "model-00000-of-00000.safetensors";

async fn check(good: &Path, spoil: impl FnOnce(&Path), words: &[&str]) {
    let dir = copy(good);
    spoil(dir.path());
    let model = dir.path().to_str().expect("test paths are UTF-8");
    let ran = run(["up", "--model", model, "--listen", "127.0.0.1:0"]).await;
    ran.expect_refusal(1, words).expect_refusal(1, &["error: ", "hint: "]);
    assert!(!ran.stdout.contains("is served"), "{ran:#?}");
}

fn copy(good: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(good).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    dir
}

fn edit_json(path: PathBuf, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[tokio::test]
async fn a_malformed_checkpoint_is_refused_with_words_and_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    synth(&good, &config(), 1).await;
    let good = good.as_path();
    let config_of = |dir: &Path| dir.join("config.json");

    check(good, |dir| fs::remove_file(config_of(dir)).unwrap(), &["cannot read", "config.json"]).await;
    check(good, |dir| fs::write(config_of(dir), "{").unwrap(), &["config.json is not readable"]).await;
    let llama = |config: &mut Value| config["model_type"] = json!("llama");
    check(good, |dir| edit_json(config_of(dir), llama), &["model_type is llama, expected gpt_oss"]).await;
    let wider = |config: &mut Value| config["hidden_size"] = json!(96);
    check(good, |dir| edit_json(config_of(dir), wider), &[SHARD, "has shape"]).await;

    check(good, |dir| fs::remove_file(dir.join(SHARD)).unwrap(), &["cannot open", SHARD]).await;
    let cut = |dir: &Path| {
        let file = fs::OpenOptions::new().write(true).open(dir.join(SHARD)).unwrap();
        file.set_len(file.metadata().unwrap().len() - 100).unwrap();
    };
    check(good, cut, &[SHARD, "fetch it again"]).await;
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    check(good, |dir| fs::write(dir.join(SHARD), pointer).unwrap(), &[SHARD, "Git LFS pointer"]).await;
    let outside = |index: &mut Value| index["weight_map"]["model.norm.weight"] = json!("../x.safetensors");
    let index = |dir: &Path| dir.join("model.safetensors.index.json");
    check(good, |dir| edit_json(index(dir), outside), &["outside its folder"]).await;

    let tokenizer = |dir: &Path| dir.join("tokenizer.json");
    check(good, |dir| fs::remove_file(tokenizer(dir)).unwrap(), &["tokenizer.json"]).await;
    check(good, |dir| fs::write(tokenizer(dir), "{}").unwrap(), &["tokenizer.json"]).await;
    let beyond = |tokenizer: &mut Value| tokenizer["added_tokens"][20]["id"] = json!(5000);
    check(good, |dir| edit_json(tokenizer(dir), beyond), &["tokenizer.json has ids up to"]).await;
    let renamed = |tokenizer: &mut Value| tokenizer["added_tokens"][8]["content"] = json!("<|begin|>");
    check(good, |dir| edit_json(tokenizer(dir), renamed), &["<|start|>"]).await;
    let eos = |generation: &mut Value| generation["eos_token_id"] = json!([9999]);
    check(good, |dir| edit_json(dir.join("generation_config.json"), eos), &["eos_token_id is 9999"]).await;
}

#[tokio::test]
async fn what_cannot_be_started_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    synth(&good, &config(), 1).await;
    let good = good.to_str().expect("test paths are UTF-8");
    let up = |more: &'static [&'static str]| run([&["up", "--model", good], more].concat());
    up(&["--listen", "203.0.113.1:80"])
        .await
        .expect_refusal(1, &["cannot listen on 203.0.113.1:80", "\nhint: "]);
    up(&["--step-tokens", "8", "--listen", "127.0.0.1:0"]).await.expect_refusal(1, &["--step-tokens is 8"]);
    up(&["--weights", "random:1"]).await.expect_refusal(2, &["expected synthetic:SEED"]);
    run(["up", "--model", "/nonexistent/model"]).await.expect_refusal(1, &["/nonexistent/model", "\nhint: "]);
}
