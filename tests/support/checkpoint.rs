//! A small model to serve: random weights of `flotilla synth`, enough context for long answers.

use super::program::run;
use super::repository;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub const SEED: u64 = 2;

/// config.json: that of smoke, with a vocabulary that has room for the made-up tokenizer, a window that
/// slides within one answer, and a short original context.
pub fn config() -> Value {
    let text = fs::read_to_string(repository("tests/golden/smoke/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["vocab_size"] = json!(2048);
    config["sliding_window"] = json!(32);
    config["max_position_embeddings"] = json!(4096);
    config["rope_scaling"]["original_max_position_embeddings"] = json!(1024);
    config["rope_scaling"]["factor"] = json!(4.0);
    config
}

/// Writes a checkpoint of that config to `out`.
pub async fn synth(out: &Path, config: &Value, seed: u64) {
    let like = tempfile::NamedTempFile::new().unwrap();
    fs::write(like.path(), config.to_string()).unwrap();
    let path = |path: &Path| path.to_str().expect("test paths are UTF-8").to_owned();
    let args = ["synth", "--like", &path(like.path()), "--seed", &seed.to_string(), "--out", &path(out)];
    run(args).await.expect_status(0);
}

/// A folder `small` whose model never ends a turn: special tokens have logit 0 and are never the largest,
/// so that an answer is as long as it is asked to be.
pub async fn endless() -> Small {
    const SPECIAL: usize = 21;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("small");
    let config = config();
    synth(&folder, &config, SEED).await;
    let row_bytes = 2 * config["hidden_size"].as_u64().unwrap() as usize;
    edit_tensor(&folder, "lm_head.weight", |rows| {
        let first = rows.len() - SPECIAL * row_bytes;
        rows[first..].fill(0);
    });
    Small { folder, _dir: dir }
}

/// A checkpoint folder that is gone when this is dropped.
pub struct Small {
    folder: PathBuf,
    _dir: TempDir,
}

impl Small {
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Of all tensors, each once.
    pub fn tensor_bytes(&self) -> u64 {
        let bytes = |shard: PathBuf| {
            let bytes = fs::read(shard).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            tensors.tensors().iter().map(|(_, tensor)| tensor.data().len() as u64).sum::<u64>()
        };
        shards(&self.folder).map(bytes).sum()
    }
}

fn shards(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
}

/// Edits the bytes of a tensor in whichever safetensors file of the folder has it.
pub fn edit_tensor(dir: &Path, name: &str, edit: impl FnOnce(&mut [u8])) {
    let range_in = |bytes: &[u8]| {
        let (header, metadata) = SafeTensors::read_metadata(bytes).unwrap();
        let (start, end) = metadata.info(name)?.data_offsets;
        Some(8 + header + start..8 + header + end)
    };
    let found = shards(dir).map(|path| (fs::read(&path).unwrap(), path));
    let mut found = found.filter_map(|(bytes, path)| range_in(&bytes).map(|range| (bytes, path, range)));
    let (mut bytes, path, range) = found.next().expect("some file has the tensor");
    edit(&mut bytes[range]);
    fs::write(path, bytes).unwrap();
}
