//! Each way in which a folder can be wrong, and the words that say so: a user with a half-finished
//! download must learn which file to fetch again.

use crate::small;
use flotilla_engine::weights::Checkpoint;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const FIRST: &str = "model-00000-of-00006.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const EMBED: &str = "model.embed_tokens.weight";
const SCALES: &str = "model.layers.1.mlp.experts.down_proj_scales";

/// Writes a good folder, breaks it, and expects an error of exactly one hint, with all of `words`.
#[track_caller]
fn check(spoil: impl FnOnce(&Path), words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    small::write(dir.path());
    assert!(Checkpoint::open(dir.path()).is_ok(), "the folder is good before it is spoiled");
    spoil(dir.path());
    let Err(error) = Checkpoint::open(dir.path()) else {
        panic!("the folder still opens, expected {words:?}")
    };
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    assert_eq!(error.matches("\nhint: ").count(), 1, "{error}");
    assert!(!error.ends_with('.'), "{error}");
}

/// A safetensors file taken apart.
struct Parts {
    path: PathBuf,
    header: Value,
    data: Vec<u8>,
}

impl Parts {
    fn read(path: PathBuf) -> Self {
        let bytes = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        Parts {
            path,
            header: serde_json::from_slice(&bytes[8..header]).unwrap(),
            data: bytes[header..].to_vec(),
        }
    }

    fn write(self) {
        let header = self.header.to_string().into_bytes();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &self.data].concat();
        fs::write(self.path, bytes).unwrap();
    }
}

fn edit_shard(dir: &Path, file: &str, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let mut parts = Parts::read(dir.join(file));
    edit(&mut parts.header, &mut parts.data);
    parts.write();
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn shard_of(dir: &Path, tensor: &str) -> String {
    let index: Value = serde_json::from_str(&fs::read_to_string(dir.join(INDEX)).unwrap()).unwrap();
    index["weight_map"][tensor].as_str().unwrap().to_owned()
}

/// Renames a tensor in its shard: its own name is gone, and another is there.
fn rename(dir: &Path, tensor: &str, to: &str) {
    edit_shard(dir, &shard_of(dir, tensor), |header, _| {
        let entry = header.as_object_mut().unwrap().remove(tensor).unwrap();
        header[to] = entry;
    });
}

/// Takes a tensor out of its shard, header and bytes.
fn remove(dir: &Path, tensor: &str) {
    edit_shard(dir, &shard_of(dir, tensor), |header, data| {
        let header = header.as_object_mut().unwrap();
        let gone = header.remove(tensor).unwrap();
        let offset = |entry: &Value, end: usize| entry["data_offsets"][end].as_u64().unwrap();
        let (start, end) = (offset(&gone, 0), offset(&gone, 1));
        data.drain(start as usize..end as usize);
        for (name, entry) in header {
            if name != "__metadata__" && offset(entry, 0) >= end {
                let shifted = [offset(entry, 0) - (end - start), offset(entry, 1) - (end - start)];
                entry["data_offsets"] = json!(shifted);
            }
        }
    });
}

#[test]
fn no_folder_no_config_no_weights() {
    let error = Checkpoint::open("/nonexistent/model").err().unwrap().to_string();
    assert!(error.starts_with("cannot read /nonexistent/model/config.json: "), "{error}");
    check(
        |dir| fs::remove_file(dir.join("config.json")).unwrap(),
        &["cannot read", "config.json", "incomplete"],
    );
    check(
        |dir| fs::remove_file(dir.join(INDEX)).unwrap(),
        &["has neither model.safetensors.index.json nor model.safetensors", "not those under original/"],
    );
}

#[test]
fn a_config_that_is_none() {
    let write = |text: &'static str| move |dir: &Path| fs::write(dir.join("config.json"), text).unwrap();
    check(write("{"), &["config.json is not readable as a gpt-oss config", "EOF"]);
    check(write("[]"), &["config.json is not readable as a gpt-oss config"]);
    check(
        |dir| edit_json(&dir.join("config.json"), |config| config["model_type"] = json!("llama")),
        &["config.json: model_type is llama, expected gpt_oss"],
    );
    check(
        |dir| {
            edit_json(&dir.join("config.json"), |config| {
                config["num_hidden_layers"] = json!(70_000);
                config.as_object_mut().unwrap().remove("layer_types");
            });
        },
        &["config.json: num_hidden_layers is 70000, expected at most 65535"],
    );
    check(
        |dir| {
            fs::remove_file(dir.join("config.json")).unwrap();
            fs::create_dir(dir.join("config.json")).unwrap();
        },
        &["config.json is not a regular file"],
    );
}

#[test]
fn a_config_of_another_model() {
    let edit = |field: &'static str, value: usize| {
        move |dir: &Path| edit_json(&dir.join("config.json"), |config| config[field] = json!(value))
    };
    check(
        edit("vocab_size", 300),
        &[FIRST, EMBED, "has shape [203, 64], expected [300, 64]", "not of the same model"],
    );
    let more_layers = |dir: &Path| {
        edit_json(&dir.join("config.json"), |config| {
            config["num_hidden_layers"] = json!(3);
            config.as_object_mut().unwrap().remove("layer_types");
        });
    };
    check(more_layers, &[INDEX, "tensor model.layers.2.input_layernorm.weight is missing"]);
    let fewer_layers = |dir: &Path| {
        edit_json(&dir.join("config.json"), |config| {
            config["num_hidden_layers"] = json!(1);
            config.as_object_mut().unwrap().remove("layer_types");
        });
    };
    check(fewer_layers, &[INDEX, "unexpected tensor model.layers.1."]);
}

#[test]
fn a_generation_config_that_is_none() {
    let write =
        |text: &'static str| move |dir: &Path| fs::write(dir.join("generation_config.json"), text).unwrap();
    check(write("<html>"), &["generation_config.json is not readable as a generation config"]);
    check(write(r#"{"eos_token_id": "2"}"#), &["generation_config.json", "a number or a list of them"]);
    check(
        write(r#"{"eos_token_id": [1, 203]}"#),
        &["generation_config.json: eos_token_id is 203, expected ids below vocab_size 203"],
    );
}

#[test]
fn an_index_that_is_none() {
    let write = |text: &'static str| move |dir: &Path| fs::write(dir.join(INDEX), text).unwrap();
    check(write(""), &[INDEX, "is not readable as an index of safetensors files"]);
    check(write("{}"), &[INDEX, "missing field `weight_map`"]);
    check(write(r#"{"weight_map": {}}"#), &[INDEX, "tensor lm_head.weight is missing"]);
    check(write(r#"{"weight_map": {"a": 3}}"#), &[INDEX, "expected a string"]);
}

#[test]
fn an_index_that_points_outside() {
    for file in
        ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "./x", "x/", "a\0b"]
    {
        check(
            |dir| edit_json(&dir.join(INDEX), |index| index["weight_map"][EMBED] = json!(file)),
            &[INDEX, EMBED, "expected the name of a file in the same folder"],
        );
    }
}

#[test]
fn an_index_of_other_tensors() {
    check(
        |dir| edit_json(&dir.join(INDEX), |index| index["weight_map"]["model.extra"] = json!(FIRST)),
        &[INDEX, "unexpected tensor model.extra"],
    );
    check(
        |dir| {
            edit_json(&dir.join(INDEX), |index| {
                index["weight_map"].as_object_mut().unwrap().remove(SCALES);
            });
        },
        &[INDEX, "tensor model.layers.1.mlp.experts.down_proj_scales is missing"],
    );
    check(
        |dir| {
            edit_json(&dir.join(INDEX), |index| {
                index["weight_map"][EMBED] = json!("model-00002-of-00006.safetensors")
            })
        },
        &[
            "model-00002-of-00006.safetensors: tensor model.embed_tokens.weight is missing",
            "(it is in model-00000-of-00006.safetensors)",
        ],
    );
}

#[test]
fn a_shard_that_is_missing_or_cut() {
    check(
        |dir| fs::remove_file(dir.join(FIRST)).unwrap(),
        &["cannot open", FIRST, "the download is incomplete"],
    );
    check(
        |dir| {
            fs::remove_file(dir.join(FIRST)).unwrap();
            fs::create_dir(dir.join(FIRST)).unwrap();
        },
        &[FIRST, "is not a regular file"],
    );
    let cut = |len: u64| {
        move |dir: &Path| {
            fs::OpenOptions::new().write(true).open(dir.join(FIRST)).unwrap().set_len(len).unwrap()
        }
    };
    check(cut(0), &[FIRST, "the file has 0 bytes, expected at least the 8", "fetch it again"]);
    check(cut(7), &[FIRST, "the file has 7 bytes"]);
    check(cut(100), &[FIRST, "the header claims ", "bytes, and the file ends after 92"]);
    check(
        |dir| edit_shard(dir, FIRST, |_, data| data.truncate(data.len() - 1)),
        &[FIRST, "bytes behind the header, and the file has ", "the download is incomplete"],
    );
    check(
        |dir| edit_shard(dir, FIRST, |_, data| data.push(0)),
        &[FIRST, "bytes behind the header, and the file has "],
    );
}

#[test]
fn a_header_that_is_none() {
    let start = |bytes: [u8; 8]| {
        move |dir: &Path| {
            let mut file = fs::read(dir.join(FIRST)).unwrap();
            file[..8].copy_from_slice(&bytes);
            fs::write(dir.join(FIRST), file).unwrap();
        }
    };
    check(start([0xff; 8]), &[FIRST, "the header claims 18446744073709551615 bytes, expected 2 to 16777216"]);
    check(start([0; 8]), &[FIRST, "the header claims 0 bytes"]);
    check(start(*b"version "), &[FIRST, "Git LFS pointer"]);
    check(start([16, 0, 0, 0, 0, 0, 0, 0]), &[FIRST, "the header is not JSON"]);
    check(
        start([0, 0, 128, 0, 0, 0, 0, 0]),
        &[FIRST, "the header claims 8388608 bytes, and the file ends after"],
    );
    check(
        |dir| edit_shard(dir, FIRST, |header, _| *header = json!([1])),
        &[FIRST, "the header is not JSON", "a map"],
    );
    check(
        |dir| edit_shard(dir, FIRST, |header, _| header[EMBED] = json!({ "dtype": "BF16" })),
        &[FIRST, "the header's entry of model.embed_tokens.weight is not a tensor: missing field"],
    );
    check(
        |dir| edit_shard(dir, FIRST, |header, _| header[EMBED]["dtype"] = json!("Q4_K")),
        &[FIRST, "entry of model.embed_tokens.weight", "unknown variant `Q4_K`"],
    );
    check(
        |dir| edit_shard(dir, FIRST, |header, _| header[EMBED]["data_offsets"] = json!([-1, 5])),
        &[FIRST, "entry of model.embed_tokens.weight", "-1"],
    );
}

#[test]
fn offsets_that_leave_holes_or_overlap() {
    let norm = "model.layers.0.input_layernorm.weight";
    let offsets = |start: u64, end: u64| {
        move |dir: &Path| {
            assert_eq!(shard_of(dir, norm), FIRST);
            edit_shard(dir, FIRST, |header, _| header[norm]["data_offsets"] = json!([start, end]));
        }
    };
    let embed = 203 * 64 * 2;
    check(
        offsets(embed + 2, embed + 130),
        &[FIRST, norm, "begins at byte 25986 of the data, expected 25984"],
    );
    check(
        offsets(embed - 2, embed + 126),
        &[FIRST, norm, "begins at byte 25982 of the data, expected 25984"],
    );
    check(offsets(embed, embed + 130), &[FIRST, norm, "has 130 bytes, expected 128 for BF16 [64]"]);
    check(offsets(embed, embed - 1), &[FIRST, norm, "has less than 0 bytes"]);
    check(
        |dir| edit_shard(dir, FIRST, |header, _| header[EMBED]["shape"] = json!([u64::MAX, u64::MAX])),
        &[FIRST, EMBED, "expected a number that exists for BF16"],
    );
}

#[test]
fn tensors_that_are_missing_or_unexpected() {
    let words = ["tensor model.layers.1.mlp.experts.down_proj_scales is missing", "of-00006.safetensors: "];
    check(|dir| remove(dir, SCALES), &words);
    check(
        |dir| rename(dir, SCALES, "model.layers.1.mlp.extra"),
        &["unexpected tensor model.layers.1.mlp.extra"],
    );
    // As in checkpoints whose experts were widened to bf16.
    check(
        |dir| rename(dir, SCALES, "model.layers.1.mlp.experts.down_proj"),
        &["unexpected tensor model.layers.1.mlp.experts.down_proj\n", "only MXFP4 checkpoints"],
    );
    let twice = |dir: &Path| {
        let last = shard_of(dir, "lm_head.weight");
        edit_shard(dir, &last, |header, data| {
            let offsets = [data.len(), data.len() + 128];
            header["model.layers.0.input_layernorm.weight"] =
                json!({ "dtype": "BF16", "shape": [64], "data_offsets": offsets });
            data.extend([0; 128]);
        });
    };
    check(twice, &["model-00006-of-00006", "tensor model.layers.0.input_layernorm.weight is also in", FIRST]);
}

#[test]
fn tensors_of_the_wrong_kind() {
    let edit = |field: &'static str, value: Value| {
        move |dir: &Path| edit_shard(dir, FIRST, |header, _| header[EMBED][field] = value)
    };
    check(edit("dtype", json!("F16")), &[FIRST, EMBED, "has dtype F16, expected BF16"]);
    check(edit("shape", json!([64, 203])), &[FIRST, EMBED, "has shape [64, 203], expected [203, 64]"]);
    check(edit("shape", json!([203 * 64])), &[FIRST, EMBED, "has shape [12992], expected [203, 64]"]);
}
