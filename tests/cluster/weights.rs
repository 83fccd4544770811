//! Where a worker's weights come from when it starts again: its own disk, whole or in part, and nothing that is damaged.

use crate::support::checkpoint::endless;
use crate::support::client::{Client, greedy_text};
use crate::support::server::{Coordinator, Running, TOKEN};
use std::fs;
use std::path::Path;

const READ: &str = "read from the weight cache";
const KEPT: &str = "kept in the weight cache";

/// A coordinator with `names` as its workers, which share a cache of `bytes` and each say `words` sooner or later,
/// for what is kept is written behind the loading; all that they said, and what it answers.
async fn load(model: &Path, cache: &Path, bytes: &str, names: &[&str], words: &str) -> (String, String) {
    let coordinator = Coordinator::start(model, names.len(), &["--weight-rate", "200MB/s"]).await;
    let cache = cache.to_str().expect("test paths are UTF-8");
    let flags = ["--weight-cache", cache, "--weight-cache-bytes", bytes];
    let start = |name: &&str| coordinator.worker_with(name, TOKEN, &flags);
    let mut workers: Vec<Running> = names.iter().map(start).collect();
    let client = Client::new(&coordinator.url);
    client.health(200).await;
    let text = greedy_text(&client, "Once upon a time", 40).await;
    for worker in &mut workers {
        worker.hear(words).await;
    }
    (workers.iter().map(Running::said).collect(), text)
}

fn files(cache: &Path) -> Vec<std::path::PathBuf> {
    let folders = fs::read_dir(cache).unwrap().map(|folder| folder.unwrap().path());
    folders.flat_map(|folder| fs::read_dir(folder).unwrap()).map(|file| file.unwrap().path()).collect()
}

#[tokio::test]
async fn weights_are_read_from_the_cache_after_a_restart_under_any_plan() {
    let model = endless().await;
    let dir = tempfile::tempdir().unwrap();
    let (said, expected) = load(model.path(), dir.path(), "1GB", &["a"], KEPT).await;
    assert!(!said.contains(READ), "{said}");
    let (said, text) = load(model.path(), dir.path(), "1GB", &["a"], READ).await;
    assert!(!said.contains(KEPT), "everything came from it: {said}");
    assert_eq!(text, expected);
    // Two ranks find their parts in those of one.
    let (said, text) = load(model.path(), dir.path(), "1GB", &["a", "b"], READ).await;
    assert!(!said.contains(KEPT), "{said}");
    assert_eq!(text, expected);
}

#[tokio::test]
async fn damage_in_the_cache_is_found_said_and_mended() {
    let model = endless().await;
    let dir = tempfile::tempdir().unwrap();
    let (_, expected) = load(model.path(), dir.path(), "1GB", &["a"], KEPT).await;
    let kept = files(dir.path());
    assert!(kept.len() > 10, "{kept:?}");
    for (number, file) in kept.iter().enumerate() {
        let mut bytes = fs::read(file).unwrap();
        match number % 3 {
            0 => *bytes.last_mut().unwrap() ^= 1,
            1 => bytes.truncate(4100),
            _ => continue,
        }
        fs::write(file, bytes).unwrap();
    }
    let (said, text) = load(model.path(), dir.path(), "1GB", &["a"], KEPT).await;
    assert!(said.contains("a part in the weight cache is damaged"), "{said}");
    assert_eq!(text, expected);
    let (said, text) = load(model.path(), dir.path(), "1GB", &["a"], READ).await;
    assert!(!said.contains("damaged") && !said.contains(KEPT), "{said}");
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_cache_that_may_hold_nothing_or_cannot_be_written_is_no_reason_to_fail() {
    let model = endless().await;
    let dir = tempfile::tempdir().unwrap();
    let full = "the weight cache is full of what is in use";
    let (_, expected) = load(model.path(), dir.path(), "0", &["a"], full).await;
    assert!(files(dir.path()).is_empty());
    let blocked = dir.path().join("file");
    fs::write(&blocked, "").unwrap();
    let (_, text) = load(model.path(), &blocked, "1GB", &["a"], "the weight cache cannot be written").await;
    assert_eq!(text, expected);
}
