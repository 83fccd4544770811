//! The full vocabulary's tokenizer.json, built where it is needed: 28 MB do not belong in a
//! repository, and the crate tiktoken-rs carries the ranks they are derived from.
//!
//! The file comes out byte for byte as published (27,868,174 bytes, sha256 0614fe83…). What is checked
//! here is its length and its blake3, for which this workspace already has a crate.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

const BASE_TOKENS: u32 = 199_998;
const ADDED_TOKENS: std::ops::RangeInclusive<u32> = 199_998..=200_018;
const FILE_BYTES: u64 = 27_868_174;
const FILE_BLAKE3: &str = "0596814de1ca4de2980968802fdb4340e84e39f8ffa67467648e8e606680acb1";

/// One piece of the regular expression a line; joined by `|`.
const PATTERN: [&str; 7] = [
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
];

/// The path of the full tokenizer.json; built on first use, kept between test runs.
pub fn tokenizer_json() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("o200k_harmony_tokenizer.json");
    if fs::metadata(&path).is_ok_and(|file| file.len() == FILE_BYTES) {
        return path;
    }
    let text = serde_json::to_string_pretty(&document()).expect("a JSON value prints");
    assert_eq!(
        text.len() as u64,
        FILE_BYTES,
        "the rebuilt tokenizer.json has another length than the published"
    );
    assert_eq!(
        blake3::hash(text.as_bytes()).to_hex().as_str(),
        FILE_BLAKE3,
        "the rebuilt tokenizer.json differs"
    );
    // Tests of several binaries may build at once: each writes its own file, the rename is atomic.
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&unfinished, text).expect("the target directory is writable");
    fs::rename(&unfinished, &path).expect("a rename within one directory");
    path
}

fn document() -> Value {
    let tokens = base_tokens();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": ADDED_TOKENS.map(added_token).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN.join("|")}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor":
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": true,
            "vocab": vocab(&tokens),
            "merges": merges(&tokens),
        },
    })
}

fn base_tokens() -> Vec<Vec<u8>> {
    let o200k = tiktoken_rs::o200k_base_singleton();
    (0..BASE_TOKENS).map(|id| o200k.decode_bytes(&[id]).expect("every base id has bytes")).collect()
}

fn added_token(id: u32) -> Value {
    json!({
        "id": id,
        "content": special_text(id),
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": true,
    })
}

fn special_text(id: u32) -> String {
    let named = BTreeMap::from([
        (199_998, "startoftext"),
        (199_999, "endoftext"),
        (200_002, "return"),
        (200_003, "constrain"),
        (200_005, "channel"),
        (200_006, "start"),
        (200_007, "end"),
        (200_008, "message"),
        (200_012, "call"),
        (200_018, "endofprompt"),
    ]);
    named.get(&id).map_or_else(|| format!("<|reserved_{id}|>"), |name| format!("<|{name}|>"))
}

fn vocab(tokens: &[Vec<u8>]) -> Map<String, Value> {
    let chars = byte_chars();
    tokens.iter().zip(0u32..).map(|(token, id)| (spell(token, &chars), json!(id))).collect()
}

/// Every way to make a token out of two others, in the order of the token's rank, then of the parts'.
fn merges(tokens: &[Vec<u8>]) -> Vec<Value> {
    let chars = byte_chars();
    let ranks: HashMap<&[u8], u32> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
    let mut merges = Vec::new();
    for token in tokens {
        let mut halves: Vec<(u32, u32)> = (1..token.len())
            .filter_map(|cut| Some((*ranks.get(&token[..cut])?, *ranks.get(&token[cut..])?)))
            .collect();
        halves.sort_unstable();
        let text = |rank: u32| spell(&tokens[rank as usize], &chars);
        merges.extend(halves.into_iter().map(|(left, right)| json!([text(left), text(right)])));
    }
    merges
}

fn spell(token: &[u8], chars: &[char; 256]) -> String {
    token.iter().map(|byte| chars[usize::from(*byte)]).collect()
}

/// Byte-level BPE writes each byte as one printable character: itself, or one from U+0100 upwards.
fn byte_chars() -> [char; 256] {
    let mut moved = 0x100..;
    std::array::from_fn(|byte| match byte {
        33..=126 | 161..=172 | 174..=255 => char::from(byte as u8),
        _ => char::from_u32(moved.next().expect("68 of them")).expect("below the surrogates"),
    })
}
