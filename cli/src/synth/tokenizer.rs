//! A tokenizer.json for a synthetic checkpoint: every byte, the harmony special tokens, and made-up
//! words for the rest, so that any id a random model samples has a piece. It says nothing sensible.

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

/// The special tokens in their published order; the named ones are those that harmony needs.
const SPECIAL: [&str; 21] = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|reserved_200000|>",
    "<|reserved_200001|>",
    "<|return|>",
    "<|constrain|>",
    "<|reserved_200004|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|reserved_200009|>",
    "<|reserved_200010|>",
    "<|reserved_200011|>",
    "<|call|>",
    "<|reserved_200013|>",
    "<|reserved_200014|>",
    "<|reserved_200015|>",
    "<|reserved_200016|>",
    "<|reserved_200017|>",
    "<|endofprompt|>",
];

/// Where the published vocabulary has its special tokens.
const PUBLISHED_BASE: usize = 199_998;
const BYTES: usize = 256;

/// tokenizer.json for a vocabulary of `vocab` ids, padding behind the special tokens as published.
pub fn json(vocab: usize) -> Result<Vec<u8>> {
    ensure!(
        vocab >= BYTES + SPECIAL.len(),
        "a vocabulary of {vocab} has no room for {BYTES} bytes and {} special tokens\nhint: give --tokenizer",
        SPECIAL.len()
    );
    let base = PUBLISHED_BASE.min(vocab - SPECIAL.len());
    let pieces = byte_pieces().chain((0..base - BYTES).map(word)).enumerate();
    let pieces: Map<String, Value> = pieces.map(|(id, piece)| (piece, id.into())).collect();
    let added = SPECIAL.iter().enumerate().map(|(index, content)| {
        json!({ "id": base + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    });
    let document = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": r" ?[^\s]+|\s+" }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ]},
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                   "vocab": pieces, "merges": [] },
    });
    Ok(serde_json::to_vec(&document)?)
}

/// The printable stand-in of each byte, as byte-level BPE has it.
fn byte_pieces() -> impl Iterator<Item = String> {
    let mut next = 256;
    (0..=255u8).map(move |byte| match byte {
        33..=126 | 161..=172 | 174..=255 => char::from(byte).to_string(),
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("below the surrogates").to_string()
        }
    })
}

/// A word of its own for every index: a space (as byte-level BPE writes it) and syllables.
fn word(mut index: usize) -> String {
    const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
    const VOWELS: &[u8] = b"aeiou";
    let mut word = String::from('\u{120}');
    loop {
        word.push(CONSONANTS[index % CONSONANTS.len()].into());
        index /= CONSONANTS.len();
        word.push(VOWELS[index % VOWELS.len()].into());
        index /= VOWELS.len();
        if index == 0 {
            return word;
        }
        index -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_id_has_a_piece_of_its_own() {
        assert_eq!((0..200_000).map(word).collect::<BTreeSet<_>>().len(), 200_000);
        let document: Value = serde_json::from_slice(&json(1000).unwrap()).unwrap();
        assert_eq!(document["model"]["vocab"].as_object().unwrap().len(), 1000 - SPECIAL.len());
        assert_eq!(document["added_tokens"][8]["content"], "<|start|>");
        assert!(json(200).is_err());
    }
}
